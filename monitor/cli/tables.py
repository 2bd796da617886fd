"""What several verbs share: tables, times, lengths of time, who does it."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

__all__ = ["list_table", "minute", "moment", "parse_length", "parse_moment", "plain_table", "user_name"]

# Blanks between two columns, as rich pads them.
GAP: Final = 2


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


def list_table(
    console: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    spare: Sequence[str],
    cut: str,
    enough: int | None = None,
) -> Table:
    """A table with one line for every row, of plain text.

    On a terminal that is too narrow for it the columns `spare` are left out, the first of them first, as far as it
    takes, and then the end of what stands in the column `cut`; with `enough`, none is left out while that column has
    so much room. In a file or a pipe everything is there.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    widths = {header: max(map(cell_len, (header, *(row[i] for row in rows)))) for i, header in enumerate(headers)}
    kept = list(headers)
    whole = widths[cut]

    def needed() -> int:
        return sum(widths[header] for header in kept) + GAP * (len(kept) - 1)

    if console.is_terminal:
        widths[cut] = whole if enough is None else min(whole, enough)
        for header in spare:
            if needed() <= console.width:
                break
            kept.remove(header)
        widths[cut] = min(whole, max(1, widths[cut] + console.width - needed()))
    table = Table(box=None, pad_edge=False, width=needed())
    for header in kept:
        table.add_column(header, width=widths[header], no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(cell) for header, cell in zip(headers, row, strict=True) if header in kept))
    return table


def minute(at: datetime | None) -> str:
    """An event time that is a whole minute, as the judge decides, UTC; empty for None."""
    return f"{at:%Y-%m-%d %H:%M}" if at else ""


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
