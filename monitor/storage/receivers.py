"""Receivers as the store knows them: which there are and which are switched off. No secrets, no full addresses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, select, update

from monitor.storage.tables import receivers
from monitor.storage.upsert import upsert

__all__ = ["ReceiverStatus", "disable", "enable", "list_receivers", "sync"]


class ReceiverStatus(msgspec.Struct, frozen=True):
    """One receiver. `definition` holds its kind and a redacted address; `disabled_reason` says who switched it off."""

    name: str
    definition: dict[str, Any]
    enabled: bool
    disabled_reason: str | None
    updated_at: datetime


def list_receivers(conn: Connection) -> list[ReceiverStatus]:
    """All receivers by name."""
    return [ReceiverStatus(*row) for row in conn.execute(select(receivers).order_by(receivers.c.name))]


def sync(conn: Connection, definitions: Mapping[str, dict[str, Any]], now: datetime) -> list[str]:
    """Take up what the configuration says now. A receiver whose definition has changed is switched on again; those
    that are gone are removed. Returns their names."""
    known = {receiver.name: receiver.definition for receiver in list_receivers(conn)}
    gone = sorted(set(known) - set(definitions))
    if gone:
        conn.execute(receivers.delete().where(receivers.c.name.in_(gone)))
    changed = [name for name, definition in definitions.items() if known.get(name) != definition]
    rows = [
        {"name": n, "definition": definitions[n], "enabled": True, "disabled_reason": None, "updated_at": now}
        for n in changed
    ]
    if rows:
        upsert(conn, receivers, rows)
    return gone


def disable(conn: Connection, name: str, reason: str, now: datetime) -> None:
    """Switch a receiver off until somebody switches it on again."""
    values = {"enabled": False, "disabled_reason": reason, "updated_at": now}
    conn.execute(update(receivers).where(receivers.c.name == name).values(**values))


def enable(conn: Connection, name: str, now: datetime) -> bool:
    """Switch a receiver on; False when there is none of this name."""
    values = {"enabled": True, "disabled_reason": None, "updated_at": now}
    return bool(conn.execute(update(receivers).where(receivers.c.name == name).values(**values)).rowcount)
