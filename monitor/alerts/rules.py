"""Alert rules: what the judge goes by, and which of the surges that it finds are announced.

The TOML file `rules_file` has one `[judge]` table and any number of `[[rules]]`. A surge is announced when one enabled
rule takes it; until then it is held back and looked at again when it gets worse. Without a file, or without `[[rules]]`
in it, the built-in rule `negative-surge` takes everything.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import msgspec

from monitor.alerts.calendars import CalendarHours, known_calendars
from monitor.alerts.records import SEVERITIES, Alert
from monitor.alerts.tomlfile import Entry, read_entries
from monitor.settings import Settings
from monitor.surges.judge import JudgeConfig

__all__ = ["BUILT_IN", "Rule", "Rules", "load_rules"]


@dataclass(frozen=True)
class Rule:
    """Which surges are announced: keys by pattern, severity, evidence, and hours of an exchange."""

    name: str
    keys: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    severities: tuple[str, ...] = SEVERITIES
    min_negative_stories: int = 0
    min_sources: int = 0
    hours: CalendarHours | None = None
    enabled: bool = True

    @property
    def definition(self) -> dict[str, Any]:
        """What the store and the dashboard show of it."""
        fields = {name: getattr(self, name) for name in RuleEntry.__struct_fields__ if hasattr(self, name)}
        hours = {"calendar": self.hours.calendar, "when": self.hours.when} if self.hours else {}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in (fields | hours).items()}

    def objection(self, alert: Alert, at: datetime) -> str:
        """Why this rule does not take the alert at the time `at`; empty when it does."""
        if not self.enabled:
            return "is switched off"
        if not any(fnmatchcase(alert.key, pattern) for pattern in self.keys):
            return f"is not about {alert.key}"
        if any(fnmatchcase(alert.key, pattern) for pattern in self.exclude):
            return f"leaves {alert.key} out"
        if alert.severity not in self.severities:
            return f"takes {', '.join(self.severities)} alone"
        if alert.observed < self.min_negative_stories:
            return f"wants {self.min_negative_stories} negative stories"
        if alert.sources < self.min_sources:
            return f"wants {self.min_sources} sources"
        if self.hours is not None and not self.hours.hold(at):
            return f"waits until {self.hours.calendar} is {self.hours.when}"
        return ""


BUILT_IN: Final = Rule("negative-surge")


@dataclass(frozen=True)
class Rules:
    """The rules in force and what they say to the judge."""

    judge: JudgeConfig
    rules: tuple[Rule, ...] = (BUILT_IN,)

    def objection(self, alert: Alert, at: datetime, muted: Collection[str] = ()) -> str:
        """Why no rule takes the alert; empty when one does. `muted` are the names of rules muted for a while."""
        objections = []
        for rule in self.rules:
            objection = "is muted" if rule.name in muted else rule.objection(alert, at)
            if not objection:
                return ""
            objections.append(f"{rule.name} {objection}")
        return f"rule {'; '.join(objections)}"


class RuleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[rules]]` of the file."""

    name: str
    keys: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    severities: tuple[str, ...] = SEVERITIES
    min_negative_stories: int = 0
    min_sources: int = 0
    calendar: str = ""
    when: str = "open"
    enabled: bool = True


class JudgeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`[judge]` of the file: settings of the statistic, as in `JudgeConfig`. Left out: as it is there. The budget of
    false alarms is the setting `surge_budget`."""

    windows: tuple[int, ...] | None = None
    min_stories: int | None = None
    min_age_minutes: int | None = None
    calm_minutes: int | None = None
    hold_off_minutes: int | None = None


def _rule(entry: Entry) -> Rule:
    fields = entry.convert(RuleEntry)
    if not fields.name or len(fields.name) > 128:
        entry.fail("the name must have 1 to 128 characters", "name")
    for name, given, known in (
        ("severities", fields.severities, SEVERITIES),
        ("when", (fields.when,), ("open", "closed")),
        ("calendar", (fields.calendar,) if fields.calendar else (), known_calendars() if fields.calendar else ()),
    ):
        entry.check(name, given, known)
    for name in ("min_negative_stories", "min_sources"):
        if getattr(fields, name) < 0:
            entry.fail(f"{name} must not be below 0", name)
    return Rule(
        name=fields.name,
        keys=fields.keys,
        exclude=fields.exclude,
        severities=fields.severities,
        min_negative_stories=fields.min_negative_stories,
        min_sources=fields.min_sources,
        hours=CalendarHours(fields.calendar, fields.when) if fields.calendar else None,
        enabled=fields.enabled,
    )


def _judge(entry: Entry, base: JudgeConfig) -> JudgeConfig:
    fields = entry.convert(JudgeEntry)
    changes = {
        name: getattr(fields, name) for name in JudgeEntry.__struct_fields__ if getattr(fields, name) is not None
    }
    for name in ("min_stories", "min_age_minutes", "calm_minutes", "hold_off_minutes"):
        if changes.get(name, 0) < 0:
            entry.fail(f"{name} must not be below 0", name)
    try:
        # `replace` does not run the checks of the constructor.
        return JudgeConfig(**(msgspec.structs.asdict(base) | changes))
    except ValueError as error:
        entry.fail(str(error), "windows" if "windows" in changes else "")


def load_rules(settings: Settings) -> Rules:
    """The rules in force. Raises `ConfigurationError` naming file, line and entry."""
    base = JudgeConfig.of(settings)
    if not settings.rules_file:
        return Rules(base)
    entries = read_entries(Path(settings.rules_file), ("judge", "rules"), single=("judge",))
    rules: dict[str, Rule] = {}
    for entry in entries["rules"]:
        rule = _rule(entry)
        if rule.name in rules:
            entry.fail("there is another rule of this name", "name")
        rules[rule.name] = rule
    judge = _judge(entries["judge"][0], base) if entries["judge"] else base
    return Rules(judge, tuple(rules.values()) or (BUILT_IN,))
