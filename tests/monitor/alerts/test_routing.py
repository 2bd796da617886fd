"""Who is told, and what holds a notice back."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import msgspec
import pytest

from monitor.alerts.calendars import CalendarHours, WeeklyHours
from monitor.alerts.durations import parse_duration
from monitor.alerts.records import Alert, AlertState
from monitor.alerts.routing import Mute, Route, Situation, inhibited_by, targets
from monitor.alerts.rules import Rule, Verdict
from monitor.storage.silences import Silence
from tests.monitor.alerts.builders import AT, an_alert


def alert(key: str = "ticker:AAPL", **changes: Any) -> Alert:
    return msgspec.structs.replace(an_alert(), **({"id": f"id-{key}", "key": key} | changes))


def told(routes: list[Route], about: Alert, situation: Situation | None = None) -> dict[str, str]:
    return {target.receiver: target.held for target in targets(routes, about, situation or Situation(AT))}


def test_all_matching_routes_apply_and_each_receiver_is_told_once() -> None:
    routes = [
        Route(("desk", "log"), keys=("ticker:*",)),
        Route(("desk", "pager"), severities=("critical",)),
        Route(("macro",), keys=("topic:*", "market")),
        Route(("other",), rules=("other-*",)),
        Route(("acks",), events=("acknowledged",)),
    ]
    assert told(routes, alert()) == {"desk": "", "log": ""}
    assert told(routes, alert(severity="critical")) == {"desk": "", "log": "", "pager": ""}
    assert told(routes, alert("market")) == {"macro": ""}


def test_a_receiver_is_held_back_only_when_every_route_to_it_is() -> None:
    always = Mute("always")
    assert told([Route(("a",), mutes=(always,)), Route(("b",))], alert()) == {"a": "mute time always", "b": ""}
    assert told([Route(("a",), mutes=(always,)), Route(("a",))], alert()) == {"a": ""}


def test_silences_cover_keys_rules_and_time() -> None:
    silence = Silence(
        id="s1", key="ticker:A*", rule="*", starts_at=AT, ends_at=AT + timedelta(hours=1), comment="", author="ada"
    )
    routes = [Route(("desk",))]
    assert told(routes, alert(), Situation(AT, [silence])) == {"desk": "silence s1 by ada"}
    for at, key in (
        (AT + timedelta(hours=1), "ticker:AAPL"),
        (AT - timedelta(seconds=1), "ticker:AAPL"),
        (AT, "market"),
    ):
        assert told(routes, alert(key), Situation(at, [silence])) == {"desk": ""}
    other = msgspec.structs.replace(silence, rule="other")
    assert told(routes, alert(), Situation(AT, [other])) == {"desk": ""}


def test_a_wider_alert_inhibits_what_it_explains() -> None:
    market, earnings = alert("market"), alert("topic:earnings")
    mostly = {"earnings": 6, "macro": 4}
    hardly = {"earnings": 4, "macro": 6}

    def explains(one: Alert, active: list[Alert], topics: Mapping[str, int] | None = None) -> Alert | None:
        known = {wider.id: {"desk"} for wider in active}
        return inhibited_by(one, Situation(AT, active=active, topics=topics or {}, told=known), "desk")

    assert explains(alert(), [market]) is market
    assert explains(earnings, [market, earnings]) is market
    assert explains(market, [market, earnings]) is None
    assert explains(alert(), [earnings], mostly) is earnings
    assert explains(alert(), [earnings], hardly) is None
    assert explains(alert(), [earnings]) is None
    assert explains(earnings, [alert("topic:macro")], mostly) is None
    assert explains(alert(), [alert("market", state=AlertState.RESOLVED)]) is None
    routes = [Route(("desk", "night")), Route(("log",), inhibit=False)]
    assert told(routes, alert(), Situation(AT, active=[market], told={market.id: {"desk", "log"}})) == {
        "desk": "inhibited by market (id-market)",
        # It was not told of the market's alert.
        "night": "",
        "log": "",
    }


def test_routes_and_silences_know_an_alert_by_the_rules_that_take_it() -> None:
    situation = Situation(AT, verdict=Verdict((Rule("bank watch"), Rule("all", receivers=("own", "nobody")))))
    routes = [
        Route(("desk",), rules=("bank*",)),
        Route(("found",), rules=("negative-surge",)),
        Route(("x",), rules=("y",)),
    ]
    assert told(routes, alert(), situation) == {"desk": "", "found": "", "own": "", "nobody": ""}
    known = targets(routes, alert(), situation, known=["desk", "own"])
    assert [target.receiver for target in known] == ["desk", "own"]
    silence = Silence(
        id="s1", key="*", rule="bank*", starts_at=AT, ends_at=AT + timedelta(hours=1), comment="", author="ada"
    )
    silenced = replace(situation, silences=[silence])
    assert set(told(routes, alert(), silenced).values()) == {"silence s1 by ada"}


def test_groups_are_named_by_what_their_alerts_share() -> None:
    route = Route(("desk",), group_by=("kind", "severity"))
    assert (
        route.group_of(alert()) == route.group_of(alert("ticker:MSFT")) == "surge=negative,kind=ticker,severity=warning"
    )
    assert route.group_of(alert("market")) != route.group_of(alert())
    assert route.group_of(alert()) != route.group_of(msgspec.structs.replace(alert(), surge="positive"))
    assert Route(("desk",)).group_of(alert()) == ""


@pytest.mark.parametrize(
    ("local", "quiet"),
    [
        ("2026-03-06T21:59", False),  # Friday
        ("2026-03-06T22:00", True),
        ("2026-03-07T05:59", True),  # the night that began on Friday
        ("2026-03-07T06:00", False),
        ("2026-03-07T23:00", False),  # no night begins on Saturday
        ("2026-03-08T03:00", False),
    ],
)
def test_a_night_belongs_to_the_day_it_begins_on(local: str, quiet: bool) -> None:
    zone = zoneinfo.ZoneInfo("Europe/Zurich")
    nights = Mute("nights", WeeklyHours(("mon", "tue", "wed", "thu", "fri"), time(22), time(6), zone))
    assert nights.active(datetime.fromisoformat(local).replace(tzinfo=zone).astimezone(UTC)) is quiet


def test_a_whole_day_and_a_part_of_one() -> None:
    weekend = Mute("weekend", WeeklyHours(("sat", "sun")))
    lunch = Mute("lunch", WeeklyHours(start=time(12), end=time(13)))
    saturday, sunday_end = datetime(2026, 3, 7, 0, 0, tzinfo=UTC), datetime(2026, 3, 8, 23, 59, tzinfo=UTC)
    assert weekend.active(saturday)
    assert weekend.active(sunday_end)
    assert not weekend.active(saturday - timedelta(minutes=1))
    assert not weekend.active(sunday_end + timedelta(minutes=1))
    assert lunch.active(datetime(2026, 3, 7, 12, 0, tzinfo=UTC))
    assert not lunch.active(datetime(2026, 3, 7, 13, 0, tzinfo=UTC))


def test_an_exchange_has_hours_and_holidays() -> None:
    closed = Mute("closed", hours=CalendarHours("XNYS", "closed"))
    opened = Mute("open", hours=CalendarHours("XNYS", "open"))
    # 14:30 UTC is the opening in New York, but not on the Friday before Easter and not in summer time (13:30).
    for at, is_open in (
        (datetime(2026, 3, 2, 14, 30, tzinfo=UTC), True),
        (datetime(2026, 3, 2, 14, 29, tzinfo=UTC), False),
        (datetime(2026, 4, 3, 15, 0, tzinfo=UTC), False),
        (datetime(2026, 4, 6, 13, 30, tzinfo=UTC), True),
        (datetime(2026, 3, 7, 15, 0, tzinfo=UTC), False),
    ):
        assert closed.active(at) is not is_open
        assert opened.active(at) is is_open
    assert not closed.active(datetime(1900, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("1 d", 86400)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "0s", "-5m", "5 minutes", "1000d", "1e3s"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"length of time|longer than"):
        parse_duration(text)
