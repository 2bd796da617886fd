"""Everything that says who is told: the settings' webhooks and the file of receivers, routes and mute times."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import msgspec

from monitor.alerts.calendars import WEEKDAYS, calendar_hours, weekly_hours
from monitor.alerts.durations import parse_duration
from monitor.alerts.receivers import Receiver, receivers_from_entries, receivers_from_settings
from monitor.alerts.records import SEVERITIES
from monitor.alerts.routing import EVENTS, GROUP_FIELDS, Mute, Route
from monitor.alerts.rules import Rules, load_rules
from monitor.alerts.targets import check_target
from monitor.alerts.tomlfile import Entry, read_entries
from monitor.egress.policy import EgressBlockedError, EgressPolicy
from monitor.errors import ConfigurationError, RuleError
from monitor.settings import Settings
from monitor.surges.judge import JudgeConfig

__all__ = ["NotificationConfig", "check_receivers", "load_notifications"]


@dataclass(frozen=True)
class NotificationConfig:
    """Receivers by name, the routes to them, what may be called at all, and which surges are announced."""

    receivers: Mapping[str, Receiver]
    routes: tuple[Route, ...]
    policy: EgressPolicy
    rules: Rules = field(default_factory=lambda: Rules(JudgeConfig()))


class MuteEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[mutes]]` of the file."""

    name: str
    days: tuple[str, ...] = WEEKDAYS
    start: str = "00:00"
    end: str = "00:00"
    timezone: str = "UTC"
    calendar: str = ""
    when: str = "closed"


class RouteEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[routes]]` of the file."""

    receivers: tuple[str, ...]
    name: str = ""
    keys: tuple[str, ...] = ("*",)
    rules: tuple[str, ...] = ("*",)
    severities: tuple[str, ...] = SEVERITIES
    events: tuple[str, ...] = EVENTS
    group_by: tuple[str, ...] = ()
    group_wait: str = ""
    repeat: str = ""
    escalate_after: str = ""
    escalate_to: tuple[str, ...] = ()
    mutes: tuple[str, ...] = ()
    inhibit: bool = True


def _length(entry: Entry, field: str, text: str) -> timedelta | None:
    if not text:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        entry.fail(str(error), field)


def _mute(entry: Entry) -> Mute:
    fields = entry.convert(MuteEntry)
    return Mute(name=fields.name, week=weekly_hours(entry, fields), hours=calendar_hours(entry, fields))


def _route(entry: Entry, receivers: Mapping[str, Receiver], mutes: Mapping[str, Mute]) -> Route:
    fields = entry.convert(RouteEntry)
    if not fields.receivers:
        entry.fail("a route needs at least one receiver", "receivers")
    entry.check("receivers", fields.receivers, tuple(receivers))
    entry.check("escalate_to", fields.escalate_to, tuple(receivers))
    entry.check("severities", fields.severities, SEVERITIES)
    entry.check("events", fields.events, EVENTS)
    entry.check("group_by", fields.group_by, GROUP_FIELDS)
    entry.check("mutes", fields.mutes, tuple(mutes))
    if bool(fields.escalate_after) != bool(fields.escalate_to):
        entry.fail("escalate_after and escalate_to belong together", "escalate_after" if fields.escalate_after else "")
    if fields.group_wait and not fields.group_by:
        entry.fail("group_wait needs group_by", "group_wait")
    return Route(
        receivers=fields.receivers,
        keys=fields.keys,
        rules=fields.rules,
        severities=fields.severities,
        events=fields.events,
        group_by=fields.group_by,
        group_wait=_length(entry, "group_wait", fields.group_wait) or timedelta(),
        repeat=_length(entry, "repeat", fields.repeat),
        escalate_after=_length(entry, "escalate_after", fields.escalate_after),
        escalate_to=fields.escalate_to,
        mutes=tuple(mutes[name] for name in fields.mutes),
        inhibit=fields.inhibit,
    )


def check_receivers(rules: Rules, receivers: Collection[str]) -> None:
    """Raises `RuleError`, naming file and line, when a rule tells a receiver that is not set up."""
    for rule in rules.rules:
        unknown = [name for name in rule.receivers if name not in receivers]
        if not unknown:
            continue
        told = f"the receiver {unknown[0]!r}, which is not set up"
        known = f"There are: {', '.join(receivers) or 'none'}."
        if rule.entry is not None:
            rule.entry.fail(f"it tells {told}", "receivers", known)
        raise RuleError(f"The rule {rule.name!r} tells {told}.", known)


def load_notifications(settings: Settings) -> NotificationConfig:
    """Receivers and routes in force. The receivers of `webhook_urls` get every alert, uninhibited; those of a file
    without routes get every alert that no wider one explains.

    Raises `ConfigurationError` naming the setting, or file, line and entry.
    """
    policy = EgressPolicy.parse(settings.egress_allow)
    plain = receivers_from_settings(settings, policy)
    routes = [Route(receivers=tuple(receiver.name for receiver in plain), inhibit=False)] if plain else []
    receivers = {receiver.name: receiver for receiver in plain}
    if settings.receivers_file:
        entries = read_entries(Path(settings.receivers_file), ("receivers", "routes", "mutes"))
        for entry, receiver in zip(
            entries["receivers"], receivers_from_entries(entries["receivers"], policy), strict=True
        ):
            try:
                check_target(receiver, policy)
            except (ConfigurationError, EgressBlockedError) as error:
                entry.fail(error.message.removesuffix("."), "url", error.hint)
            if receiver.name in receivers:
                raise ConfigurationError(
                    f"The name {receiver.name} in {settings.receivers_file} is that of a receiver of webhook_urls.",
                    "Give it another name.",
                )
            receivers[receiver.name] = receiver
        mutes = {mute.name: mute for mute in map(_mute, entries["mutes"])}
        routes += [_route(entry, receivers, mutes) for entry in entries["routes"]]
        named = tuple(name for name in receivers if name not in {receiver.name for receiver in plain})
        if named and not entries["routes"]:
            routes.append(Route(receivers=named))
    rules = load_rules(settings)
    check_receivers(rules, receivers)
    return NotificationConfig(receivers, tuple(routes), policy, rules)
