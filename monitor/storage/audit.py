"""Who changed what of the rules, silences, receivers and notices. What happens to an alert itself is in its own trail
(`monitor.storage.alerts.audit_trail`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from monitor.storage.tables import audit_log

__all__ = ["Change", "changes", "note_change"]


class Change(msgspec.Struct, frozen=True):
    """One change: `subject` is `rule:NAME`, `silence:ID`, `receiver:NAME` or `notice:ID`."""

    at: datetime
    actor: str
    subject: str
    event: str
    detail: dict[str, Any]


def note_change(
    connection: Connection, at: datetime, actor: str, subject: str, event: str, detail: dict[str, Any] | None = None
) -> None:
    """Write a change down; belongs into the transaction that makes it."""
    connection.execute(
        audit_log.insert().values(at=at, actor=actor[:128], subject=subject[:160], event=event, detail=detail or {})
    )


def changes(connection: Connection, *, subject: str = "", limit: int = 200) -> list[Change]:
    """The newest changes first; only those of `subject` when it is given."""
    c = audit_log.c
    query = select(c.at, c.actor, c.subject, c.event, c.detail).order_by(c.id.desc()).limit(limit)
    if subject:
        query = query.where(c.subject == subject)
    return [Change(*row) for row in connection.execute(query)]
