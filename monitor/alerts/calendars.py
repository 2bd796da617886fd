"""Trading hours of exchanges, from `exchange_calendars`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

__all__ = ["CalendarHours", "known_calendars"]


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
