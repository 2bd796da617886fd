"""Ids as people type them: the beginning is enough as long as only one id begins so."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, select

from monitor.errors import ConfigurationError
from monitor.storage.tables import deliveries, episodes, pending, silences

__all__ = ["alert_id", "delivery_ids", "pending_id", "silence_id"]

# Candidates that are named; one more is looked for, to say that there are others.
SHOWN: Final = 5


def alert_id(conn: Connection, text: str) -> str:
    """The alert that `text` is the id of, or the beginning of its id. Raises `ConfigurationError`."""
    c = episodes.c
    return _unique(conn, c.id, c.key, text, "alert", "`sentiment-monitor alerts list` shows them.")


def pending_id(conn: Connection, text: str) -> str | None:
    """What is or was pending and that `text` names, as `alert_id` does; None when `text` names an alert, or nothing."""
    if not text or conn.scalar(select(episodes.c.id).where(episodes.c.id.startswith(text, autoescape=True)).limit(1)):
        return None
    begins = pending.c.id.startswith(text, autoescape=True)
    if conn.scalar(select(pending.c.id).where(begins).limit(1)) is None:
        return None
    return _unique(
        conn, pending.c.id, pending.c.key, text, "pending alert", "`alerts list --state pending` shows them."
    )


def silence_id(conn: Connection, text: str) -> str:
    """The silence that `text` names, as `alert_id` does. Raises `ConfigurationError`."""
    c = silences.c
    return _unique(conn, c.id, c.comment, text, "silence", "`sentiment-monitor alerts silences` shows them.")


def delivery_ids(conn: Connection, texts: list[str]) -> list[str]:
    """The notices that `texts` name, as `alert_id` does. Raises `ConfigurationError`."""
    c = deliveries.c
    hint = "`sentiment-monitor alerts undelivered` shows them."
    return [_unique(conn, c.id, c.receiver, text, "notice", hint) for text in texts]


def _unique(
    conn: Connection, column: ColumnElement[str], about: ColumnElement[Any], text: str, what: str, hint: str
) -> str:
    if not text:
        raise ConfigurationError(f"The id of the {what} is empty.", hint)
    begins = column.startswith(text, autoescape=True)
    found = conn.execute(select(column, about).where(begins).order_by(column).limit(SHOWN + 1)).all()
    # An id may be the beginning of another one; as the shorter of the two it comes first.
    if found and (len(found) == 1 or found[0][0] == text):
        return str(found[0][0])
    if not found:
        raise ConfigurationError(f"There is no {what} {text}.", hint)
    named = ", ".join(f"{one} ({told})" if told else one for one, told in found[:SHOWN])
    more = " and others" if len(found) > SHOWN else ""
    raise ConfigurationError(f"More than one {what} begins with {text}: {named}{more}.", "Give more of its id.")
