"""Alert rules: what the judge goes by, and which of the surges that it finds are announced to whom.

The TOML file `rules_file` has one `[judge]` table and any number of `[[rules]]`; more rules are made in the dashboard
or with `rules add` and kept in the store. A surge is announced when one enabled rule takes it; until then it is held
back and looked at again. A rule watches one sort of surge: of negative stories, of positive ones, or of the volume. As
long as the file has none that watches negative stories, the built-in rule `negative-surge` takes every surge of these.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import msgspec

from monitor.alerts.calendars import WEEKDAYS, CalendarHours, WeeklyHours, calendar_hours, weekly_hours
from monitor.alerts.records import SEVERITIES, Alert
from monitor.alerts.tomlfile import Entry, parse_entries, read_entries
from monitor.settings import Settings
from monitor.surges.judge import JudgeConfig
from monitor.surges.sorts import NEGATIVE, POSITIVE, SURGES, VOLUME, detector, stories_of

__all__ = ["BUILT_IN", "Rule", "RuleEntry", "Rules", "Verdict", "load_rules", "parse_rules", "read_rules", "rule_of"]

KINDS: Final = ("market", "topic", "ticker")
MAX_PATTERNS: Final = 500
MAX_PATTERN_CHARS: Final = 160
MAX_WINDOWS: Final = 8
MAX_WINDOW_MINUTES: Final = 14 * 24 * 60
MAX_MINUTES: Final = 366 * 24 * 60


class RuleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[rules]]` of the file, and a rule as the store and the dashboard know it.

    `surge` is what it watches. Scope: `keys`, `exclude` (patterns), `severities`, `windows` (minutes; empty: any).
    Evidence: `min_stories` (all of the window, whatever they say), the other `min_...`, `max_p_value`. Hours: those of
    an exchange, and of weekdays. `receivers` are told besides those of the routes.
    """

    name: str
    description: str = ""
    surge: str = NEGATIVE
    keys: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    severities: tuple[str, ...] = SEVERITIES
    windows: tuple[int, ...] = ()
    min_stories: int = 0
    min_negative_stories: int = 0
    min_positive_stories: int = 0
    min_sources: int = 0
    min_share: float = 0.0
    max_p_value: float = 1.0
    calendar: str = ""
    when: str = "open"
    days: tuple[str, ...] = WEEKDAYS
    start: str = "00:00"
    end: str = "00:00"
    timezone: str = "UTC"
    receivers: tuple[str, ...] = ()
    enabled: bool = True


@dataclass(frozen=True)
class Rule:
    """Which surges are announced: their sort, keys by pattern, severity, windows, evidence, and hours; see
    `RuleEntry`. `entry` is where it is written, if it is."""

    name: str
    surge: str = field(default=NEGATIVE, kw_only=True)
    keys: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    severities: tuple[str, ...] = SEVERITIES
    windows: tuple[int, ...] = ()
    min_stories: int = 0
    min_negative_stories: int = 0
    min_positive_stories: int = 0
    min_sources: int = 0
    min_share: float = 0.0
    max_p_value: float = 1.0
    hours: CalendarHours | None = None
    week: WeeklyHours = field(default_factory=WeeklyHours)
    receivers: tuple[str, ...] = ()
    enabled: bool = True
    description: str = ""
    entry: Entry | None = field(default=None, compare=False, repr=False)

    @property
    def built_in(self) -> bool:
        """True of the rule that there is without anybody's having written one."""
        return self.entry is None and self.name == BUILT_IN.name

    def lacks_sources(self, alert: Alert) -> bool:
        """True when too few publishers tell of it. Where none at all is known, since whoever brings the news in names
        none, the built-in rule does not wait for them."""
        return alert.sources < self.min_sources and bool(alert.sources or not self.built_in)

    @property
    def definition(self) -> dict[str, Any]:
        """The fields of `RuleEntry` that differ from its defaults, as the store keeps them."""
        fields = {name: getattr(self, name) for name in RuleEntry.__struct_fields__ if hasattr(self, name)}
        if self.hours:
            fields |= {"calendar": self.hours.calendar, "when": self.hours.when}
        fields |= {"days": self.week.days, "start": _clock(self.week.start), "end": _clock(self.week.end)}
        entry = msgspec.structs.asdict(RuleEntry(**fields, timezone=self.week.zone.key))
        usual = msgspec.structs.asdict(RuleEntry(""))
        shown = {name: value for name, value in entry.items() if name == "name" or value != usual[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in shown.items()}

    def objection(self, alert: Alert, at: datetime) -> str:
        """Why this rule does not take the alert at the time `at`; empty when it does."""
        if not self.enabled:
            return "is switched off"
        if alert.surge != self.surge:
            return f"watches {stories_of(self.surge)}"
        if not any(fnmatchcase(alert.key, pattern) for pattern in self.keys):
            return f"is not about {alert.key}"
        if any(fnmatchcase(alert.key, pattern) for pattern in self.exclude):
            return f"leaves {alert.key} out"
        if alert.severity not in self.severities:
            return f"takes {', '.join(self.severities)} alone"
        if self.windows and alert.window.minutes not in self.windows:
            return f"looks at windows of {', '.join(map(str, self.windows))} minutes"
        if alert.total < self.min_stories:
            return f"wants {self.min_stories} stories"
        wanted = max(self.min_negative_stories, self.min_positive_stories)
        if alert.observed < wanted:
            return f"wants {wanted} {stories_of(self.surge)}"
        if self.lacks_sources(alert):
            return f"wants {self.min_sources} sources"
        if alert.share < self.min_share:
            return f"wants a {self.surge} share of {self.min_share:.0%}"
        if alert.p_value > self.max_p_value:
            return f"wants a p-value of {self.max_p_value:g} at most"
        if self.hours is not None and not self.hours.hold(at):
            return f"waits until {self.hours.calendar} is {self.hours.when}"
        if not self.week.always and not self.week.hold(at):
            return f"waits for its hours, {_clock(self.week.start)} to {_clock(self.week.end)} {self.week.zone.key}"
        return ""


def _clock(at: time) -> str:
    return at.isoformat("auto" if at.second or at.microsecond else "minutes")


BUILT_IN: Final = Rule(
    detector(NEGATIVE),
    min_sources=1,
    description="Takes every surge of negative stories; there as long as the file has no such rule.",
)


@dataclass(frozen=True)
class Verdict:
    """Which rules take an alert; when none does, `objection` says why, rule by rule."""

    taken_by: tuple[Rule, ...] = ()
    objection: str = ""


@dataclass(frozen=True)
class Rules:
    """The rules in force and what they say to the judge."""

    judge: JudgeConfig
    rules: tuple[Rule, ...] = (BUILT_IN,)

    @property
    def watched(self) -> tuple[str, ...]:
        """The sorts of surge that enabled rules watch, in the order of `SURGES`."""
        wanted = {rule.surge for rule in self.rules if rule.enabled}
        return tuple(surge for surge in SURGES if surge in wanted)

    def with_built_in(self, min_sources: int = BUILT_IN.min_sources) -> Rules:
        """With the built-in rule, unless there is one that watches negative stories, or has its name. It waits for
        `min_sources` publishers."""
        others = tuple(rule for rule in self.rules if not rule.built_in)
        if any(rule.surge == NEGATIVE or rule.name == BUILT_IN.name for rule in others):
            return self
        return Rules(self.judge, (replace(BUILT_IN, min_sources=min_sources), *others))

    def may_take_with_more_sources(self, alert: Alert) -> bool:
        """True when a rule that is on wants more publishers than are known of this alert."""
        return any(rule.enabled and rule.surge == alert.surge and rule.lacks_sources(alert) for rule in self.rules)

    def verdict(self, alert: Alert, at: datetime, muted: Collection[str] = ()) -> Verdict:
        """What the rules say to an alert at the time `at`. `muted` are the names of rules muted for a while."""
        mine = [rule for rule in self.rules if rule.surge == alert.surge]
        objections = {rule.name: "is muted" if rule.name in muted else rule.objection(alert, at) for rule in mine}
        taken_by = tuple(rule for rule in mine if not objections[rule.name])
        if taken_by:
            return Verdict(taken_by)
        told = "; ".join(f"{name} {objection}" for name, objection in objections.items())
        return Verdict((), f"rule {told}" if told else f"there is no rule that watches {stories_of(alert.surge)}")


class JudgeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[judge]` of the file: settings of the statistic, as in `JudgeConfig`. Left out: as it is there. The budget of
    false alarms is the setting `surge_budget`; `heights` are what `backtest --history` found."""

    heights: dict[str, float] | None = None
    windows: tuple[int, ...] | None = None
    min_stories: int | None = None
    min_age_minutes: int | None = None
    calm_minutes: int | None = None
    hold_off_minutes: int | None = None


def _patterns(entry: Entry, name: str, patterns: tuple[str, ...]) -> None:
    if len(patterns) > MAX_PATTERNS:
        entry.fail(f"{name} holds more than {MAX_PATTERNS} patterns", name)
    for pattern in patterns:
        if not pattern or len(pattern) > MAX_PATTERN_CHARS or not pattern.isprintable():
            entry.fail(f"a pattern in {name} must have 1 to {MAX_PATTERN_CHARS} printable characters", name)
        if not any(fnmatchcase(kind, pattern.partition(":")[0]) for kind in KINDS):
            entry.fail(f"{pattern!r} matches no key: keys are market, topic:NAME and ticker:SYMBOL", name)


def _bounded(entry: Entry, name: str, value: float, low: float, high: float) -> None:
    if math.isnan(value) or value < low:
        entry.fail(f"{name} must not be below {low:g}", name)
    if value > high:
        entry.fail(f"{name} must not be above {high:g}", name)


def _windows(entry: Entry, windows: tuple[int, ...]) -> None:
    if len(windows) > MAX_WINDOWS:
        entry.fail(f"there can be {MAX_WINDOWS} windows at most", "windows")
    if len(set(windows)) != len(windows):
        entry.fail("a window stands there twice", "windows")
    for minutes in windows:
        _bounded(entry, "windows", minutes, 1, MAX_WINDOW_MINUTES)


def _evidence(entry: Entry, fields: RuleEntry) -> None:
    for name in ("min_stories", "min_negative_stories", "min_positive_stories", "min_sources"):
        _bounded(entry, name, getattr(fields, name), 0, 1e6)
    _bounded(entry, "min_share", fields.min_share, 0, 1)
    _bounded(entry, "max_p_value", fields.max_p_value, 0, 1)
    for surge in (NEGATIVE, POSITIVE):
        name = f"min_{surge}_stories"
        if getattr(fields, name) and fields.surge != surge:
            entry.fail(f"{name} is for rules with surge = {surge!r}; this one watches {fields.surge!r}", name)
    if fields.min_share and fields.surge == VOLUME:
        entry.fail("min_share says nothing about a surge of volume: all stories count", "min_share")


def rule_of(entry: Entry, judge: JudgeConfig) -> Rule:
    """A rule from its entry. Raises `RuleError` naming the line."""
    fields = entry.convert(RuleEntry)
    if not 1 <= len(fields.name) <= 128 or not fields.name.isprintable() or fields.name != fields.name.strip():
        entry.fail("the name must have 1 to 128 printable characters and no space around", "name")
    if len(fields.description) > 500 or not fields.description.isprintable():
        entry.fail("the description must have at most 500 printable characters", "description")
    entry.check("surge", (fields.surge,), SURGES)
    _patterns(entry, "keys", fields.keys)
    _patterns(entry, "exclude", fields.exclude)
    if not fields.keys:
        entry.fail("keys must name one pattern at least", "keys")
    entry.check("severities", fields.severities, SEVERITIES)
    if not fields.severities:
        entry.fail("severities must name one at least", "severities")
    _windows(entry, fields.windows)
    entry.check("windows", tuple(map(str, fields.windows)), tuple(map(str, judge.windows)))
    _evidence(entry, fields)
    if len(fields.receivers) > 100 or not all(0 < len(name) <= 128 and name.isprintable() for name in fields.receivers):
        entry.fail("receivers must be names of receivers", "receivers")
    return Rule(
        name=fields.name,
        description=fields.description,
        surge=fields.surge,
        keys=fields.keys,
        exclude=fields.exclude,
        severities=fields.severities,
        windows=fields.windows,
        min_stories=fields.min_stories,
        min_negative_stories=fields.min_negative_stories,
        min_positive_stories=fields.min_positive_stories,
        min_sources=fields.min_sources,
        min_share=fields.min_share,
        max_p_value=fields.max_p_value,
        hours=calendar_hours(entry, fields),
        week=weekly_hours(entry, fields),
        receivers=fields.receivers,
        enabled=fields.enabled,
        entry=entry,
    )


def _judge(entry: Entry, base: JudgeConfig) -> JudgeConfig:
    fields = entry.convert(JudgeEntry)
    changes = {
        name: getattr(fields, name) for name in JudgeEntry.__struct_fields__ if getattr(fields, name) is not None
    }
    for name in ("min_stories", "min_age_minutes", "calm_minutes", "hold_off_minutes"):
        _bounded(entry, name, changes.get(name, 0), 0, MAX_MINUTES)
    _windows(entry, changes.get("windows", base.windows))
    heights = changes.get("heights", {})
    entry.check("heights", tuple(heights), SURGES)
    for height in heights.values():
        _bounded(entry, "heights", height, 1e-3, 1e3)
    changes["heights"] = tuple(sorted(heights.items()))
    try:
        # `replace` does not run the checks of the constructor.
        return JudgeConfig(**(msgspec.structs.asdict(base) | changes))
    except ValueError as error:
        entry.fail(str(error), "windows" if "windows" in changes else "")


def _rules(entries: Mapping[str, list[Entry]], base: JudgeConfig) -> Rules:
    judge = _judge(entries["judge"][0], base) if entries["judge"] else base
    rules: dict[str, Rule] = {}
    for entry in entries["rules"]:
        rule = rule_of(entry, judge)
        if rule.name in rules:
            entry.fail("there is another rule of this name", "name")
        rules[rule.name] = rule
    return Rules(judge, tuple(rules.values()) or (BUILT_IN,))


def parse_rules(text: str, base: JudgeConfig, source: str = "rules") -> Rules:
    """The rules of a TOML text. Raises `RuleError` naming the line; `source` is what the text is called there."""
    return _rules(parse_entries(source, text, ("judge", "rules"), single=("judge",)), base)


def read_rules(path: Path, base: JudgeConfig) -> Rules:
    """The rules of a TOML file. Raises `RuleError` naming file, line and entry."""
    return _rules(read_entries(path, ("judge", "rules"), single=("judge",)), base)


def load_rules(settings: Settings) -> Rules:
    """The rules of the configuration, the built-in one among them if the file leaves it to that. Raises `RuleError`
    naming file, line and entry."""
    base = JudgeConfig.of(settings)
    written = read_rules(Path(settings.rules_file), base) if settings.rules_file else Rules(base)
    return written.with_built_in(settings.surge_min_sources)
