"""Who is told of an alert, and what holds a notice back: pure decisions, the time comes in as an argument.

Every matching route applies; a receiver that several of them name is told once. A notice is held back, never lost,
by a silence, the rules, a route's mute time, or a wider alert that explains this one; it goes out when that ends
while the alert still fires.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from monitor.alerts.calendars import CalendarHours
from monitor.alerts.records import SEVERITIES, Alert, AlertState

if TYPE_CHECKING:
    from monitor.storage.silences import Silence

__all__ = ["EVENTS", "Mute", "Route", "Situation", "Target", "inhibited_by", "targets"]

EVENTS: Final = ("firing", "acknowledged", "resolved")
GROUP_FIELDS: Final = ("rule", "key", "kind", "severity")
WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# A ticker's alert is explained by a topic's when at least this share of its stories is about that topic.
COVERED_SHARE: Final = 0.5


@dataclass(frozen=True)
class Mute:
    """Times when a route is quiet: hours of weekdays in a time zone, or when an exchange is `closed` or `open`.

    `start` to `end` may pass midnight; the weekday is that of its beginning. Both empty: the whole day.
    """

    name: str
    days: tuple[str, ...] = WEEKDAYS
    start: time = time(0)
    end: time = time(0)
    zone: zoneinfo.ZoneInfo = field(default_factory=lambda: zoneinfo.ZoneInfo("UTC"))
    hours: CalendarHours | None = None

    def active(self, at: datetime) -> bool:
        """True when the route is quiet at the time `at`."""
        if self.hours is not None:
            return self.hours.hold(at)
        local = at.astimezone(self.zone)
        today, yesterday = WEEKDAYS[local.weekday()], WEEKDAYS[local.weekday() - 1]
        now = local.time()
        if self.start < self.end:
            return today in self.days and self.start <= now < self.end
        return (today in self.days and now >= self.start) or (yesterday in self.days and now < self.end)


@dataclass(frozen=True)
class Route:
    """Which alerts go to which receivers. Patterns are those of file names (`ticker:*`)."""

    receivers: tuple[str, ...]
    keys: tuple[str, ...] = ("*",)
    rules: tuple[str, ...] = ("*",)
    severities: tuple[str, ...] = SEVERITIES
    events: tuple[str, ...] = EVENTS
    group_by: tuple[str, ...] = ()
    group_wait: timedelta = timedelta()
    repeat: timedelta | None = None
    escalate_after: timedelta | None = None
    escalate_to: tuple[str, ...] = ()
    mutes: tuple[Mute, ...] = ()
    inhibit: bool = True

    def matches(self, alert: Alert) -> bool:
        """True when this route takes the alert."""
        return (
            alert.severity in self.severities
            and any(fnmatchcase(alert.key, pattern) for pattern in self.keys)
            and any(fnmatchcase(alert.rule, pattern) for pattern in self.rules)
        )

    def group_of(self, alert: Alert) -> str:
        """What notices have in common that are sent together; empty when this route does not group."""
        if not self.group_by:
            return ""
        values = {"rule": alert.rule, "key": alert.key, "kind": _kind(alert.key), "severity": alert.severity}
        return ",".join(f"{name}={values[name]}" for name in self.group_by)[:256]


@dataclass(frozen=True)
class Situation:
    """What is known besides the alert itself when it is routed. `topics` counts the topics of the alert's stories;
    `objection` says why no rule takes the alert, empty when one does."""

    now: datetime
    silences: Sequence[Silence] = ()
    objection: str = ""
    active: Sequence[Alert] = ()
    topics: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A receiver that is to be told. `held` says what holds the notice back; empty: nothing does."""

    receiver: str
    held: str
    group_key: str
    group_wait: timedelta


def _kind(key: str) -> str:
    return key.partition(":")[0]


def inhibited_by(alert: Alert, situation: Situation) -> Alert | None:
    """The wider active alert that explains this one: the market's any topic's and ticker's, a topic's the tickers'
    whose stories are mostly about it. None when there is none."""
    kind = _kind(alert.key)
    total = sum(situation.topics.values())
    for wider in situation.active:
        if wider.id == alert.id or wider.rule != alert.rule or wider.state is AlertState.RESOLVED:
            continue
        if wider.key == "market" and kind in ("topic", "ticker"):
            return wider
        if kind == "ticker" and _kind(wider.key) == "topic" and total:
            share = situation.topics.get(wider.key.partition(":")[2], 0) / total
            if share >= COVERED_SHARE:
                return wider
    return None


def _held(route: Route, alert: Alert, situation: Situation) -> str:
    for silence in situation.silences:
        if silence.covers(key=alert.key, rule=alert.rule, at=situation.now):
            return f"silence {silence.id} by {silence.author}"
    if situation.objection:
        return situation.objection
    for mute in route.mutes:
        if mute.active(situation.now):
            return f"mute time {mute.name}"
    wider = inhibited_by(alert, situation) if route.inhibit else None
    return f"inhibited by {wider.key} ({wider.id})" if wider else ""


def targets(routes: Iterable[Route], alert: Alert, situation: Situation) -> list[Target]:
    """Everybody who is to be told that this alert fires, each once. A receiver that any route tells at once is told
    at once."""
    found: dict[str, Target] = {}
    for route in routes:
        if not route.matches(alert) or "firing" not in route.events:
            continue
        held = _held(route, alert, situation)
        for name in route.receivers:
            if name not in found or (found[name].held and not held):
                found[name] = Target(name, held, route.group_of(alert), route.group_wait)
    return list(found.values())
