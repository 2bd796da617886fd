"""When something holds: hours of weekdays in a time zone, and trading hours of exchanges from `exchange_calendars`."""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass, field
from datetime import datetime, time
from functools import cache
from typing import Any, Final, Protocol

from monitor.alerts.tomlfile import Entry

__all__ = ["WEEKDAYS", "CalendarHours", "WeeklyHours", "calendar_hours", "known_calendars", "weekly_hours"]

WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@cache
def _calendar(name: str) -> Any:
    # The library takes its time to load; most installations have no calendars.
    import exchange_calendars

    return exchange_calendars.get_calendar(name)


def known_calendars() -> tuple[str, ...]:
    """Names of exchanges, such as XNYS (New York), XLON (London), XSWX (Zurich)."""
    import exchange_calendars

    return tuple(exchange_calendars.get_calendar_names())


@dataclass(frozen=True)
class CalendarHours:
    """The hours in which the exchange `calendar` is `open` or `closed`, holidays and half days included."""

    calendar: str
    when: str

    def hold(self, at: datetime) -> bool:
        """True when `at` lies in these hours. Outside the years that the calendar covers nothing does."""
        calendar = _calendar(self.calendar)
        minute = at.replace(second=0, microsecond=0)
        if not calendar.first_minute <= minute <= calendar.last_minute:
            return False
        return bool(calendar.is_open_on_minute(minute)) == (self.when == "open")


@dataclass(frozen=True)
class WeeklyHours:
    """`start` to `end` (not included) of weekdays in a time zone. They may pass midnight: the weekday is that of the
    beginning. Both the same: the whole day."""

    days: tuple[str, ...] = WEEKDAYS
    start: time = time(0)
    end: time = time(0)
    zone: zoneinfo.ZoneInfo = field(default_factory=lambda: zoneinfo.ZoneInfo("UTC"))

    @property
    def always(self) -> bool:
        """True when no time lies outside."""
        return self.start == self.end and set(self.days) >= set(WEEKDAYS)

    def hold(self, at: datetime) -> bool:
        """True when `at` lies in these hours."""
        local = at.astimezone(self.zone)
        today, yesterday = WEEKDAYS[local.weekday()], WEEKDAYS[local.weekday() - 1]
        now = local.time()
        if self.start < self.end:
            return today in self.days and self.start <= now < self.end
        return (today in self.days and now >= self.start) or (yesterday in self.days and now < self.end)


class HoursEntry(Protocol):
    """The fields of an entry that say when it holds."""

    @property
    def days(self) -> tuple[str, ...]: ...
    @property
    def start(self) -> str: ...
    @property
    def end(self) -> str: ...
    @property
    def timezone(self) -> str: ...
    @property
    def calendar(self) -> str: ...
    @property
    def when(self) -> str: ...


def _clock(entry: Entry, name: str, text: str) -> time:
    try:
        at = time.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is not None:
        entry.fail(f"{text!r} is not a time of day such as 08:30", name)
    return at


def weekly_hours(entry: Entry, fields: HoursEntry) -> WeeklyHours:
    """`days`, `start`, `end` and `timezone` of an entry. Raises `RuleError`."""
    entry.check("days", fields.days, WEEKDAYS)
    if not fields.days:
        entry.fail("days must name one weekday at least", "days")
    try:
        zone = zoneinfo.ZoneInfo(fields.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        entry.fail(f"{fields.timezone!r} is no time zone such as Europe/Zurich", "timezone")
    return WeeklyHours(fields.days, _clock(entry, "start", fields.start), _clock(entry, "end", fields.end), zone)


def calendar_hours(entry: Entry, fields: HoursEntry) -> CalendarHours | None:
    """`calendar` and `when` of an entry; None when it names no exchange. Raises `RuleError`."""
    entry.check("when", (fields.when,), ("open", "closed"))
    if not fields.calendar:
        return None
    entry.check("calendar", (fields.calendar,), known_calendars())
    return CalendarHours(fields.calendar, fields.when)
