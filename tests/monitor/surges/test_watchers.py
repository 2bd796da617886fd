"""Sorts of surge that rules watch: judged live while a rule wants it, with what is stored before that as history."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest
from sqlalchemy import Engine, select

from monitor.alerts.rules import BUILT_IN, Rule
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.engine import reading, writing
from monitor.storage.rules import save_rule, switch_rule
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.live import LiveJudge
from tests.monitor.surges.test_live import expire_lease, run_to_the_end, set_watermark, write_ticks

NOW = datetime(2026, 3, 2, tzinfo=UTC)
BEGIN = 28_400_010
FIRST, SECOND = BEGIN + 1440 + 600, BEGIN + 2 * 1440 + 600
END = BEGIN + 2 * 1440 + 900


@pytest.fixture(scope="module")
def counts() -> dict[int, MinuteCounts]:
    """A ticker and a topic with news every few minutes, much of it on the second and the third day; none negative."""
    rnd = np.random.default_rng(5)
    made: dict[int, MinuteCounts] = {}
    for minute in range(BEGIN, END):
        rows = {key: int(rnd.poisson(rate)) for key, rate in (("ticker:AAA", 0.05), ("topic:earnings", 0.2))}
        if any(begin <= minute < begin + 20 for begin in (FIRST, SECOND)):
            rows["ticker:AAA"] += 2
        rows = {key: number for key, number in rows.items() if number}
        if rows:
            stories = np.array(list(rows.values()))
            made[minute] = MinuteCounts(list(rows), stories, np.zeros_like(stories))
    return made


def volumes(counts: dict[int, MinuteCounts], settings: Settings) -> list[Decision]:
    """What the judge of volumes decides in memory."""
    judge, nothing = Judge(JudgeConfig.of(settings).watching("volume")), MinuteCounts([], np.zeros(0), np.zeros(0))
    return [d for minute in range(min(counts), END) for d in judge.step(minute, counts.get(minute, nothing))]


def recorded(store: Engine) -> dict[str, str]:
    """State of each episode."""
    with reading(store) as connection:
        assert set(connection.scalars(select(t.episodes.c.rule))) <= {"volume-surge"}
        return {row.id: row.state for row in connection.execute(select(t.episodes.c.id, t.episodes.c.state))}


def watch(store: Engine) -> None:
    with writing(store) as connection:
        save_rule(connection, Rule("busy", surge="volume").definition, author="ada", now=NOW)


def rows(store: Engine) -> list[tuple[str, int]]:
    with reading(store) as connection:
        found = connection.execute(select(t.watchers.c.surge, t.watchers.c.judged_to))
        return [(row.surge, row.judged_to) for row in found]


def test_nobody_watches_unless_a_rule_does(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    settings = make_settings()
    assert any(decision.action == "fire" for decision in volumes(counts, settings))
    write_ticks(store, counts)
    set_watermark(store, 0, END)
    run_to_the_end(LiveJudge(store, settings, 1))
    assert (recorded(store), rows(store)) == ({}, [])
    with writing(store) as connection:
        save_rule(connection, Rule("off", surge="volume", enabled=False).definition, author="ada", now=NOW)
        save_rule(connection, {**BUILT_IN.definition, "name": "more"}, author="ada", now=NOW)
    expire_lease(store)
    run_to_the_end(LiveJudge(store, settings, 1))
    assert rows(store) == []


@pytest.mark.parametrize("snapshot_s", [1e9, 1e-9])
def test_it_decides_what_the_judge_decides_in_memory_whenever_its_process_dies(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts], snapshot_s: float
) -> None:
    settings = make_settings(judge_snapshot_s=snapshot_s)
    write_ticks(store, counts)
    watch(store)
    for minute in (BEGIN + 10, *range(BEGIN + 1200, END, 400), SECOND + 10):
        set_watermark(store, 0, minute)
        LiveJudge(store, settings, 1).advance()
        expire_lease(store)
    set_watermark(store, 0, END)
    run_to_the_end(LiveJudge(store, settings, 1))
    assert rows(store) == [("volume", END - 1)]
    expected = volumes(counts, settings)
    ends = {decision.episode_id: decision.action for decision in expected}
    assert len(ends) >= 2
    assert recorded(store) == {id_: "resolved" if last == "resolve" else "firing" for id_, last in ends.items()}


def test_a_sort_that_is_watched_later_has_what_is_stored_as_its_history(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    settings = make_settings()
    write_ticks(store, counts)
    set_watermark(store, 0, SECOND + 15)
    judge = LiveJudge(store, settings, 1)
    run_to_the_end(judge)
    watch(store)
    run_to_the_end(judge)
    decided = [d for d in volumes(counts, settings) if d.at <= datetime.fromtimestamp((SECOND + 15) * 60, UTC)]
    over = {d.episode_id for d in decided if d.action == "resolve"}
    going_on = {d.episode_id for d in decided} - over
    assert over
    assert recorded(store) == dict.fromkeys(going_on, "firing") != {}, "what was over before is history"
    set_watermark(store, 0, END)
    run_to_the_end(judge)
    assert going_on <= set(recorded(store))
    assert rows(store) == [("volume", END - 1)]


def test_when_no_rule_watches_any_more_its_alerts_end(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    settings = make_settings()
    write_ticks(store, counts)
    watch(store)
    set_watermark(store, 0, SECOND + 15)
    judge = LiveJudge(store, settings, 1)
    run_to_the_end(judge)
    assert "firing" in recorded(store).values()
    with writing(store) as connection:
        switch_rule(connection, "busy", on=False, by="ada", now=NOW)
    run_to_the_end(judge)
    assert set(recorded(store).values()) == {"resolved"}
    assert rows(store) == []
