"""Alert rules as the store knows them: those of the file, those made in the dashboard, and which are muted.

A rule of the file is changed in the file; one made in the dashboard or with `rules add` is kept here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, select, update

from monitor.alerts.records import Alert, alert_from_builtins
from monitor.errors import ConfigurationError
from monitor.storage.audit import note_change
from monitor.storage.tables import alert_events, episodes, rules
from monitor.storage.upsert import upsert
from monitor.surges.sorts import NEGATIVE

__all__ = [
    "BUILT_IN_ORIGIN",
    "FILE",
    "STORE",
    "TAKEN",
    "RuleStatus",
    "alerts_taken",
    "delete_rule",
    "list_rules",
    "mute_rule",
    "muted_rules",
    "rule_actor",
    "save_rule",
    "switch_rule",
    "sync_rules",
    "taken_counts",
    "watched_by_rules",
]

FILE: Final = "file"
STORE: Final = "store"
BUILT_IN_ORIGIN: Final = "built-in"
# The event in an alert's trail that says which rule took it; the rule is its actor.
TAKEN: Final = "taken"
_HINT: Final = "`sentiment-monitor rules list` shows them."


class RuleStatus(msgspec.Struct, frozen=True):
    """One rule with its definition; `muted_until` lies in the past when it is not muted any more. `origin` is `file`,
    `store` (made in the dashboard or by `rules add`) or `built-in`."""

    name: str
    origin: str
    definition: dict[str, Any]
    enabled: bool
    muted_until: datetime | None
    author: str
    updated_at: datetime

    def muted(self, now: datetime) -> bool:
        """True while it is muted."""
        return self.muted_until is not None and self.muted_until > now


def rule_actor(name: str) -> str:
    """How a rule is named in the trail of an alert."""
    return f"rule:{name}"


def list_rules(conn: Connection) -> list[RuleStatus]:
    """All rules by name."""
    return [RuleStatus(**row) for row in conn.execute(select(rules).order_by(rules.c.name)).mappings()]


def _known(conn: Connection, name: str) -> RuleStatus:
    row = conn.execute(select(rules).where(rules.c.name == name)).mappings().first()
    if row is None:
        raise ConfigurationError(f"There is no rule {name}.", _HINT)
    return RuleStatus(**row)


def sync_rules(
    conn: Connection, definitions: Mapping[str, dict[str, Any]], now: datetime, *, built_in: str = ""
) -> None:
    """Take up the rules that the configuration has now, by name; `built_in` is the one among them that no file has.
    Those that came from it and are gone are removed, one of the store with the same name is replaced; mutings stay, and
    so does whether the built-in rule is on."""
    known = {rule.name: rule for rule in list_rules(conn)}
    for rule in known.values():
        if rule.origin != STORE and rule.name not in definitions:
            conn.execute(rules.delete().where(rules.c.name == rule.name))
            note_change(conn, now, rule.origin, rule_actor(rule.name), "removed")
    for name, definition in definitions.items():
        before, origin = known.get(name), BUILT_IN_ORIGIN if name == built_in else FILE
        wanted = definition
        if before is not None and before.origin == origin == BUILT_IN_ORIGIN and not before.enabled:
            wanted = definition | {"enabled": False}
        if before is None or (before.origin, before.definition) != (origin, wanted):
            _keep(conn, wanted, before, name=name, origin=origin, author=origin, now=now)


def _keep(
    conn: Connection,
    definition: dict[str, Any],
    before: RuleStatus | None,
    *,
    name: str,
    origin: str,
    author: str,
    now: datetime,
) -> None:
    """Write a rule in place of `before`, whose muting stays, and note the change."""
    row = {
        "name": name,
        "origin": origin,
        "definition": definition,
        "enabled": bool(definition.get("enabled", True)),
        "muted_until": before.muted_until if before else None,
        "author": author,
        "updated_at": now,
    }
    upsert(conn, rules, [row])
    note_change(conn, now, author, rule_actor(name), "changed" if before else "added", definition)


def save_rule(conn: Connection, definition: dict[str, Any], *, author: str, now: datetime) -> None:
    """Keep a rule in the store, new or in place of the one of its name.

    Raises `ConfigurationError` when that one is of the file or built in.
    """
    name = str(definition["name"])
    row = conn.execute(select(rules).where(rules.c.name == name)).mappings().first()
    before = None if row is None else RuleStatus(**row)
    if before is not None and before.origin != STORE:
        where = "in the rules file" if before.origin == FILE else "built in"
        raise ConfigurationError(f"The rule {name} is {where}.", "Change it there, or give this one another name.")
    _keep(conn, definition, before, name=name, origin=STORE, author=author, now=now)


def delete_rule(conn: Connection, name: str, *, by: str, now: datetime) -> None:
    """Remove a rule of the store. Raises `ConfigurationError` for an unknown one and one of the file."""
    known = _known(conn, name)
    if known.origin != STORE:
        raise ConfigurationError(
            f"The rule {name} is not kept in the store.", "Take it out of the rules file, mute it or switch it off."
        )
    conn.execute(rules.delete().where(rules.c.name == name))
    note_change(conn, now, by, rule_actor(name), "removed", known.definition)


def switch_rule(conn: Connection, name: str, *, on: bool, by: str, now: datetime) -> None:
    """Switch a rule of the store, or the built-in one, on or off. Raises `ConfigurationError` for any other."""
    known = _known(conn, name)
    if known.origin == FILE:
        raise ConfigurationError(f"The rule {name} is in the rules file.", "Set `enabled` there, or mute it.")
    definition = {field: value for field, value in known.definition.items() if field != "enabled"}
    if not on:
        definition["enabled"] = False
    conn.execute(update(rules).where(rules.c.name == name).values(enabled=on, definition=definition, updated_at=now))
    note_change(conn, now, by, rule_actor(name), "switched on" if on else "switched off")


def mute_rule(conn: Connection, name: str, until: datetime, now: datetime, *, by: str) -> None:
    """Mute a rule until then (a time that is not ahead ends it). Raises `ConfigurationError` for an unknown rule."""
    _known(conn, name)
    conn.execute(update(rules).where(rules.c.name == name).values(muted_until=until, updated_at=now))
    event, detail = ("muted", {"until": until.isoformat()}) if until > now else ("unmuted", {})
    note_change(conn, now, by, rule_actor(name), event, detail)


def muted_rules(conn: Connection, now: datetime) -> frozenset[str]:
    """Names of the rules that are muted at the time `now`."""
    return frozenset(conn.scalars(select(rules.c.name).where(rules.c.muted_until > now)))


def watched_by_rules(conn: Connection) -> frozenset[str]:
    """The sorts of surge that enabled rules of the store watch."""
    kept = conn.scalars(select(rules.c.definition).where(rules.c.origin == STORE, rules.c.enabled))
    return frozenset(str(definition.get("surge", NEGATIVE)) for definition in kept)


def alerts_taken(conn: Connection, name: str, *, since: datetime, limit: int = 200) -> list[Alert]:
    """The alerts that a rule took since then (by the clock: a replay fires in the past), the youngest first."""
    query = (
        select(episodes.c.evidence)
        .join(alert_events, alert_events.c.episode_id == episodes.c.id)
        .where(alert_events.c.actor == rule_actor(name), alert_events.c.event == TAKEN, alert_events.c.at >= since)
        .order_by(episodes.c.fired_at.desc(), episodes.c.id)
        .limit(limit)
    )
    return [alert_from_builtins(evidence) for evidence in conn.scalars(query)]


def taken_counts(conn: Connection, now: datetime, days: int) -> dict[str, int]:
    """How many alerts each rule took in the last `days` days, by name."""
    query = (
        select(alert_events.c.actor, func.count())
        .where(alert_events.c.event == TAKEN, alert_events.c.at >= now - timedelta(days=days))
        .group_by(alert_events.c.actor)
    )
    return {actor.removeprefix(rule_actor("")): int(number) for actor, number in conn.execute(query)}
