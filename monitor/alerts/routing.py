"""Who is told of an alert, and what holds a notice back: pure decisions, the time comes in as an argument.

Every matching route applies; a receiver that several of them name is told once. A notice is held back, never lost,
by a silence, the rules, a route's mute time, or a wider alert that explains this one; it goes out when that ends
while the alert still fires.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from monitor.alerts.calendars import CalendarHours, WeeklyHours
from monitor.alerts.records import SEVERITIES, Alert, AlertState
from monitor.alerts.rules import BUILT_IN, Verdict

if TYPE_CHECKING:
    from monitor.storage.silences import Silence

__all__ = ["EVENTS", "Mute", "Route", "Situation", "Target", "inhibited_by", "may_explain", "routes_for", "targets"]

EVENTS: Final = ("firing", "acknowledged", "resolved")
GROUP_FIELDS: Final = ("rule", "key", "kind", "severity", "surge")
# A ticker's alert is explained by a topic's when at least this share of its stories is about that topic.
COVERED_SHARE: Final = 0.5


@dataclass(frozen=True)
class Mute:
    """Times when a route is quiet: hours of weekdays, or when an exchange is `closed` or `open`."""

    name: str
    week: WeeklyHours = field(default_factory=WeeklyHours)
    hours: CalendarHours | None = None

    def active(self, at: datetime) -> bool:
        """True when the route is quiet at the time `at`."""
        return (self.hours or self.week).hold(at)


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

    def matches(self, alert: Alert, rules: Collection[str] = ()) -> bool:
        """True when this route takes the alert. `rules` are the names of those that take it; the name of what found
        the surge counts as well."""
        return (
            alert.severity in self.severities
            and any(fnmatchcase(alert.key, pattern) for pattern in self.keys)
            and any(fnmatchcase(name, pattern) for name in (alert.rule, *rules) for pattern in self.rules)
        )

    def group_of(self, alert: Alert) -> str:
        """What notices have in common that are sent together; empty when this route does not group."""
        if not self.group_by:
            return ""
        values = {
            "rule": alert.rule,
            "key": alert.key,
            "kind": _kind(alert.key),
            "severity": alert.severity,
            "surge": alert.surge,
        }
        # What surges is never mixed: a message about bad news has no good news in it.
        names = dict.fromkeys(("surge", *self.group_by))
        return ",".join(f"{name}={values[name]}" for name in names)[:256]


@dataclass(frozen=True)
class Situation:
    """What is known besides the alert itself when it is routed: what the rules say to it, the topics of its stories,
    counted, and, by the ids of alerts that may explain it, which receivers were told of these."""

    now: datetime
    silences: Sequence[Silence] = ()
    verdict: Verdict = field(default_factory=lambda: Verdict((BUILT_IN,)))
    active: Sequence[Alert] = ()
    topics: Mapping[str, int] = field(default_factory=dict)
    told: Mapping[str, Collection[str]] = field(default_factory=dict)

    def names(self, alert: Alert) -> tuple[str, ...]:
        """Names by which silences and routes know what takes the alert: of its detector and of the rules."""
        return (alert.rule, *(rule.name for rule in self.verdict.taken_by))


@dataclass(frozen=True)
class Target:
    """A receiver that is to be told. `held` says what holds the notice back; empty: nothing does."""

    receiver: str
    held: str
    group_key: str
    group_wait: timedelta


def _kind(key: str) -> str:
    return key.partition(":")[0]


def may_explain(wider: Alert, alert: Alert) -> bool:
    """True when `wider` is active, of the same sort of surge (each has a detector, the alert's rule), and of a wider
    key: the market, for a ticker a topic too."""
    if wider.id == alert.id or wider.rule != alert.rule or wider.state is AlertState.RESOLVED:
        return False
    kinds = {"market": ("topic", "ticker"), "topic": ("ticker",)}
    return _kind(alert.key) in kinds.get(_kind(wider.key), ())


def inhibited_by(alert: Alert, situation: Situation, receiver: str) -> Alert | None:
    """The wider active alert that explains this one to a receiver, which was told of it: the market's any topic's and
    ticker's, a topic's the tickers' whose stories are mostly about it. None when there is none."""
    total = sum(situation.topics.values())
    for wider in situation.active:
        if not may_explain(wider, alert) or receiver not in situation.told.get(wider.id, ()):
            continue
        if wider.key == "market":
            return wider
        if total:
            share = situation.topics.get(wider.key.partition(":")[2], 0) / total
            if share >= COVERED_SHARE:
                return wider
    return None


def _held(route: Route, alert: Alert, situation: Situation, receiver: str) -> str:
    for silence in situation.silences:
        if silence.covers(key=alert.key, rules=situation.names(alert), at=situation.now):
            return f"silence {silence.id} by {silence.author}"
    if situation.verdict.objection:
        return situation.verdict.objection
    for mute in route.mutes:
        if mute.active(situation.now):
            return f"mute time {mute.name}"
    wider = inhibited_by(alert, situation, receiver) if route.inhibit else None
    return f"inhibited by {wider.key} ({wider.id})" if wider else ""


def routes_for(routes: Iterable[Route], alert: Alert, situation: Situation) -> list[Route]:
    """The routes that take the alert, and one for each rule that takes it and names receivers of its own."""
    names = situation.names(alert)
    mine = [route for route in routes if route.matches(alert, names)]
    return mine + [Route(rule.receivers, rules=(rule.name,)) for rule in situation.verdict.taken_by if rule.receivers]


def targets(
    routes: Iterable[Route], alert: Alert, situation: Situation, known: Collection[str] | None = None
) -> list[Target]:
    """Everybody who is to be told that this alert fires, each once. A receiver that any route tells at once is told
    at once. `known` are the receivers that there are; None: all that are named."""
    found: dict[str, Target] = {}
    for route in routes_for(routes, alert, situation):
        if "firing" not in route.events:
            continue
        for name in route.receivers:
            if known is not None and name not in known:
                continue
            held = _held(route, alert, situation, name)
            if name not in found or (found[name].held and not held):
                found[name] = Target(name, held, route.group_of(alert), route.group_wait)
    return list(found.values())
