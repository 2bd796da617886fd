"""What is pending is read off the judges' snapshots, and its end is in the trail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest
from sqlalchemy import Engine

from monitor.storage.alerts import audit_trail, get_alert, record_decisions
from monitor.storage.engine import reading, writing
from monitor.storage.judging import begin_watching, end_watching, save_judged, save_watched, take_lease
from monitor.storage.pending import Pending, get_pending, list_pending, note_pending
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.sorts import POSITIVE

BEGIN = 29_540_160
KEY, TOPIC = "ticker:AAA", "topic:earnings"
NOTHING = MinuteCounts([], np.zeros(0), np.zeros(0))


def at(minute: int) -> datetime:
    return datetime.fromtimestamp((minute + 1) * 60, UTC)


class Course:
    """A judge over a quiet ticker of 96 stories a day, one in four of which is of the sort that is watched."""

    def __init__(self, config: JudgeConfig) -> None:
        self.judge = Judge(config)
        self.minute = BEGIN - 1
        self.decisions: list[Decision] = []
        self.go(2 * 24 * 60)
        assert not self.decisions

    def go(self, minutes: int, of_sort: int = 0) -> None:
        for _ in range(minutes):
            self.minute += 1
            usual = self.minute % 15 == 0
            watched = of_sort + (self.minute % 60 == 0)
            total = np.array([max(watched, int(usual))] * 2)
            counts = MinuteCounts([KEY, TOPIC], total, np.array([watched] * 2), np.array([watched] * 2))
            self.decisions += self.judge.step(self.minute, counts if total[0] else NOTHING)


def pending(store: Engine) -> list[Pending]:
    with reading(store) as conn:
        return list_pending(conn)


@pytest.mark.parametrize("end", ["calm", "fired"])
def test_an_excursion_is_pending_until_it_fires_or_ends(store: Engine, end: str) -> None:
    # Without a bar that is within reach nothing fires.
    course = Course(JudgeConfig(bar=60.0 if end == "calm" else 4.0))
    with writing(store) as conn:
        note_pending(conn, course.judge.snapshot())
    assert pending(store) == []
    while not pending(store):
        course.go(1, of_sort=1)
        assert course.minute < BEGIN + 3 * 24 * 60
        with writing(store) as conn:
            note_pending(conn, course.judge.snapshot())
    assert not course.decisions
    found = {one.key: one for one in pending(store)}
    one = found[KEY]
    assert (one.state, one.surge, one.rule, one.ended_at) == ("pending", "negative", "negative-surge", None)
    assert one.started_at <= one.seen_at == at(course.minute)
    standing = course.judge.explain(KEY)
    assert (one.score, one.bar) == (standing.score, standing.bar)
    assert one.window_minutes in course.judge.config.windows
    with reading(store) as conn:
        assert list_pending(conn, key=KEY) == [one]
        assert list_pending(conn, key="ticker:BBB") == []
        assert get_pending(conn, one.id) == one
        assert audit_trail(conn, one.id) == []
    if end == "calm":
        while any(p.id == one.id for p in pending(store)):
            course.go(1)
            with writing(store) as conn:
                note_pending(conn, course.judge.snapshot())
        with reading(store) as conn:
            over = get_pending(conn, one.id)
            assert over is not None
            assert over.ended_at == at(course.minute)
            assert get_alert(conn, one.id) is None
            trail = audit_trail(conn, one.id)
        assert [(line["at"], line["event"]) for line in trail] == [
            (one.started_at, "pending"),
            (over.ended_at, "ended"),
        ]
        assert trail[1]["detail"] == {"highest score": round(over.score, 2), "bar": 60.0}
        return
    while not any(decision.episode_id == one.id for decision in course.decisions):
        course.go(1, of_sort=1)
    # As the judge stores it: the snapshot, then what it decided.
    with writing(store) as conn:
        note_pending(conn, course.judge.snapshot())
        record_decisions(conn, course.decisions, dashboard_url="http://d.example")
        assert get_pending(conn, one.id) is None
        assert one.id not in {p.id for p in list_pending(conn)}
        assert [line["event"] for line in audit_trail(conn, one.id)] == ["pending", "firing"]


def test_what_fires_and_ends_between_two_snapshots_is_an_alert_alone(store: Engine) -> None:
    course = Course(JudgeConfig(bar=4.0))
    while not pending(store):
        course.go(1, of_sort=1)
        with writing(store) as conn:
            note_pending(conn, course.judge.snapshot())
    (one,) = (p for p in pending(store) if p.key == KEY)
    while not any(decision.episode_id == one.id for decision in course.decisions):
        course.go(1, of_sort=1)
    while course.judge.firing():
        course.go(1)
    with writing(store) as conn:
        note_pending(conn, course.judge.snapshot())
        record_decisions(conn, course.decisions, dashboard_url="http://d.example")
        events = [line["event"] for line in audit_trail(conn, one.id) if line["event"] != "raised"]
    assert events == ["pending", "firing", "resolved"]


def test_snapshots_that_judges_store_are_looked_at(store: Engine) -> None:
    now, lease = datetime.now(UTC), timedelta(seconds=15)
    negative, positive = Course(JudgeConfig(bar=60.0)), Course(JudgeConfig(bar=60.0).watching(POSITIVE))
    for course in (negative, positive):
        course.go(5, of_sort=1)
    with writing(store) as conn:
        row = take_lease(conn, "me", now, lease, BEGIN)
        assert row is not None
        save_judged(conn, "me", row.version, negative.minute, now + lease, negative.judge.snapshot())
        begin_watching(conn, POSITIVE, BEGIN)
        save_watched(conn, POSITIVE, BEGIN, positive.minute, positive.judge.snapshot())
        assert {(one.surge, one.key) for one in list_pending(conn)} >= {("negative", KEY), ("positive", KEY)}
        (one,) = (one for one in list_pending(conn, key=KEY) if one.surge == POSITIVE)
        end_watching(conn, POSITIVE)
        assert {one.surge for one in list_pending(conn)} == {"negative"}
        over = get_pending(conn, one.id)
        assert over is not None
        assert over.ended_at == at(positive.minute)


@pytest.mark.parametrize("snapshot", [b"", b"state", msgspec.msgpack.encode({"minute": 1, "names": 3})])
def test_a_snapshot_that_is_not_understood_does_not_stop_the_judge(store: Engine, snapshot: bytes) -> None:
    with writing(store) as conn:
        note_pending(conn, snapshot)
        assert list_pending(conn) == []
