"""What several verbs share: tables, times, lengths of time, who does it."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["moment", "parse_length", "parse_moment", "plain_table", "user_name"]


def user_name(given: str) -> str:
    """The name that was given, else that of the user who runs the command."""
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "cli"


def plain_table(*headers: str) -> Table:
    """A table without frames. What is too long goes on in the next line, but an id stays whole: it is copied."""
    from rich.table import Column, Table

    return Table(
        *(Column(header, overflow="fold", no_wrap=header == "id") for header in headers), box=None, pad_edge=False
    )


def moment(at: datetime | None) -> str:
    """A time as it stands in tables, UTC; empty for None."""
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else ""


def parse_length(text: str, option: str = "--for") -> timedelta:
    """`2h` to a timedelta. Raises `ConfigurationError` naming the option."""
    from monitor.alerts.durations import parse_duration
    from monitor.errors import ConfigurationError

    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}.") from error


def parse_moment(text: str, now: datetime, option: str) -> datetime | None:
    """A day, a time (UTC unless it says otherwise) or a length before `now`; None for an empty text.

    Raises `ConfigurationError` naming the option.
    """
    from monitor.errors import ConfigurationError

    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - parse_length(text, option)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{option}: {text!r} is neither a time nor a length of time.", "Examples: 2026-03-01T08:00, 36h, 7d."
            ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def chosen_surges(given: list[str]) -> list[str]:
    """The sorts of surge that an option names, each once. Raises `ConfigurationError` for an unknown one."""
    from monitor.errors import ConfigurationError
    from monitor.surges.sorts import SURGES

    unknown = [name for name in given if name not in SURGES]
    if unknown:
        raise ConfigurationError(f"There is no sort of surge {unknown[0]!r}.", f"There are: {', '.join(SURGES)}.")
    return list(dict.fromkeys(given))
