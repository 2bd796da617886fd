"""Receivers as the store knows them: which there are and which are switched off. No secrets, no full addresses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, case, func, or_, select, update

from monitor.storage.audit import note_change
from monitor.storage.tables import deliveries, receivers
from monitor.storage.upsert import upsert

__all__ = [
    "ReceiverHealth",
    "ReceiverStatus",
    "disable",
    "enable",
    "leave_alone",
    "list_receivers",
    "receiver_health",
    "sync",
]


class ReceiverStatus(msgspec.Struct, frozen=True):
    """One receiver. `definition` holds its kind and a redacted address; `disabled_reason` says who switched it off;
    `quiet_until` is when it wants to be called again at the earliest (its Retry-After)."""

    name: str
    definition: dict[str, Any]
    enabled: bool
    disabled_reason: str | None
    updated_at: datetime
    quiet_until: datetime | None = None

    def quiet(self, now: datetime) -> bool:
        """True while it has asked to be left alone."""
        return self.quiet_until is not None and self.quiet_until > now


class ReceiverHealth(msgspec.Struct, frozen=True):
    """How many notices wait for a receiver, how many were given up, and when one last arrived."""

    waiting: int
    failed: int
    last_delivered_at: datetime | None


def list_receivers(conn: Connection) -> list[ReceiverStatus]:
    """All receivers by name."""
    return [ReceiverStatus(*row) for row in conn.execute(select(receivers).order_by(receivers.c.name))]


def sync(conn: Connection, definitions: Mapping[str, dict[str, Any]], now: datetime) -> None:
    """Take up what the configuration says now. A receiver whose definition has changed is switched on again; those
    that are gone are removed."""
    known = {receiver.name: receiver.definition for receiver in list_receivers(conn)}
    gone = sorted(set(known) - set(definitions))
    if gone:
        conn.execute(receivers.delete().where(receivers.c.name.in_(gone)))
    changed = [name for name, definition in definitions.items() if known.get(name) != definition]
    rows = [
        {
            "name": n,
            "definition": definitions[n],
            "enabled": True,
            "disabled_reason": None,
            "updated_at": now,
            "quiet_until": None,
        }
        for n in changed
    ]
    if rows:
        upsert(conn, receivers, rows)


def disable(conn: Connection, name: str, reason: str, now: datetime, *, by: str = "notifier") -> None:
    """Switch a receiver off until somebody switches it on again."""
    values = {"enabled": False, "disabled_reason": reason, "updated_at": now}
    if conn.execute(update(receivers).where(receivers.c.name == name).values(**values)).rowcount:
        note_change(conn, now, by, f"receiver:{name}", "switched off", {"reason": reason})


def leave_alone(conn: Connection, name: str, until: datetime) -> None:
    """It asked for a pause: whoever delivers, now or after a restart, sends it nothing before then. A pause that is
    longer already stays."""
    longer = or_(receivers.c.quiet_until.is_(None), receivers.c.quiet_until < until)
    conn.execute(update(receivers).where(receivers.c.name == name, longer).values(quiet_until=until))


def enable(conn: Connection, name: str, now: datetime, *, by: str) -> bool:
    """Switch a receiver on; False when there is none of this name."""
    values = {"enabled": True, "disabled_reason": None, "updated_at": now}
    if not conn.execute(update(receivers).where(receivers.c.name == name).values(**values)).rowcount:
        return False
    note_change(conn, now, by, f"receiver:{name}", "switched on")
    return True


def receiver_health(conn: Connection) -> dict[str, ReceiverHealth]:
    """How each receiver that was ever sent anything is doing, by name."""
    d = deliveries.c
    waits = func.sum(case((d.state == "pending", 1), else_=0))
    failed = func.sum(case((d.state == "failed", 1), else_=0))
    query = (
        select(d.receiver, waits, failed, func.max(d.delivered_at))
        .where(d.digest_id.is_(None), d.event != "test")
        .group_by(d.receiver)
    )
    return {name: ReceiverHealth(int(w), int(f), at) for name, w, f, at in conn.execute(query)}
