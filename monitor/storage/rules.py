"""Alert rules as the store knows them: which there are, and which are muted for a while."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, select, update

from monitor.errors import ConfigurationError
from monitor.storage.tables import rules
from monitor.storage.upsert import upsert

__all__ = ["RuleStatus", "list_rules", "mute_rule", "muted_rules", "sync_rules"]


class RuleStatus(msgspec.Struct, frozen=True):
    """One rule with its definition; `muted_until` lies in the past when it is not muted any more."""

    name: str
    definition: dict[str, Any]
    enabled: bool
    muted_until: datetime | None
    updated_at: datetime


def list_rules(conn: Connection) -> list[RuleStatus]:
    """All rules by name."""
    return [RuleStatus(*row) for row in conn.execute(select(rules).order_by(rules.c.name))]


def sync_rules(conn: Connection, definitions: Mapping[str, dict[str, Any]], now: datetime) -> None:
    """Take up what the configuration says now; rules that are gone are removed, mutings stay."""
    known = {rule.name: rule for rule in list_rules(conn)}
    gone = sorted(set(known) - set(definitions))
    if gone:
        conn.execute(rules.delete().where(rules.c.name.in_(gone)))
    rows = [
        {
            "name": name,
            "definition": definition,
            "enabled": bool(definition["enabled"]),
            "muted_until": known[name].muted_until if name in known else None,
            "updated_at": now,
        }
        for name, definition in definitions.items()
        if name not in known or known[name].definition != definition
    ]
    if rows:
        upsert(conn, rules, rows)


def mute_rule(conn: Connection, name: str, until: datetime, now: datetime) -> None:
    """Mute a rule until then (a time that is past ends it). Raises `ConfigurationError` for an unknown rule."""
    changed = conn.execute(update(rules).where(rules.c.name == name).values(muted_until=until, updated_at=now))
    if not changed.rowcount:
        raise ConfigurationError(f"There is no rule {name}.", "`sentiment-monitor alerts rules` shows them.")


def muted_rules(conn: Connection, now: datetime) -> frozenset[str]:
    """Names of the rules that are muted at the time `now`."""
    return frozenset(conn.scalars(select(rules.c.name).where(rules.c.muted_until > now)))
