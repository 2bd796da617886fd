"""The live judge: the same decisions as the judge over the ticks in memory, whatever happens to its process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select, update

from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.engine import reading, writing
from monitor.storage.judging import first_minute
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.live import LiveJudge
from monitor.surges.ticks import MINUTE_MS

BEGIN = 28_400_010
DAYS = 4
SURGE = BEGIN + 3 * 1440 + 600
END = BEGIN + DAYS * 1440


@pytest.fixture(scope="module")
def counts() -> dict[int, MinuteCounts]:
    """Two tickers and a topic with news every few minutes, and forty negative stories on the fourth day."""
    rnd = np.random.default_rng(5)
    made: dict[int, MinuteCounts] = {}
    for minute in range(BEGIN, END):
        rows = {}
        for key, rate in (("ticker:AAA", 0.05), ("ticker:BBB", 0.05), ("topic:earnings", 0.2)):
            stories = int(rnd.poisson(rate))
            if stories:
                rows[key] = (stories, int(rnd.binomial(stories, 0.2)))
        if SURGE <= minute < SURGE + 20:
            rows["ticker:AAA"] = (2, 2)
        if rows:
            values = np.array(list(rows.values()))
            made[minute] = MinuteCounts(list(rows), values[:, 0], values[:, 1])
    assert min(made) >= BEGIN
    return made


def write_ticks(store: Engine, counts: dict[int, MinuteCounts]) -> None:
    rows = [
        {
            "key": key,
            "minute": minute,
            "stories": int(found.stories[i]),
            "negative_stories": int(found.negative_stories[i]),
            "items": int(found.stories[i]),
            "negative_items": int(found.negative_stories[i]),
            "score_sum": 0.0,
            "late": 0,
        }
        for minute, found in counts.items()
        for i, key in enumerate(found.keys)
    ]
    with writing(store) as connection:
        connection.execute(insert(t.ticks), rows)


def set_watermark(store: Engine, partition: int, minute: int) -> None:
    """This partition has closed every minute before `minute`."""
    values = {"watermark": minute * MINUTE_MS, "updated_at": datetime.now(UTC)}
    with writing(store) as connection:
        there = connection.execute(update(t.partitions).where(t.partitions.c.partition == partition).values(**values))
        if not there.rowcount:
            rest = {"next_offset": 1, "sources": [], "source_count": 0, "log": "", "counted": 0, "late": 0, "stale": 0}
            connection.execute(insert(t.partitions).values(partition=partition, **values, **rest))


def expire_lease(store: Engine) -> None:
    with writing(store) as connection:
        connection.execute(update(t.judge).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))


def judged_to(store: Engine) -> int | None:
    with reading(store) as connection:
        return connection.scalar(select(t.judge.c.judged_to))


def recorded(store: Engine) -> list[tuple[str, str]]:
    """Episode and event of everything announced, in order."""
    with reading(store) as connection:
        rows = connection.execute(select(t.outbox.c.episode_id, t.outbox.c.event).order_by(t.outbox.c.id))
        return [(row.episode_id, row.event) for row in rows]


def in_memory(counts: dict[int, MinuteCounts], settings: Settings) -> list[Decision]:
    judge = Judge(JudgeConfig.of(settings))
    nothing = MinuteCounts([], np.zeros(0), np.zeros(0))
    return [d for minute in range(min(counts), END) for d in judge.step(minute, counts.get(minute, nothing))]


def run_to_the_end(judge: LiveJudge) -> None:
    while judge.advance():
        pass


def test_it_decides_what_the_judge_decides_in_memory(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    settings = make_settings()
    write_ticks(store, counts)
    set_watermark(store, 0, END)
    run_to_the_end(LiveJudge(store, settings, 1))
    fired = [decision for decision in in_memory(counts, settings) if decision.action == "fire"]
    assert [decision.key for decision in fired] == ["ticker:AAA"]
    assert {episode for episode, _ in recorded(store)} == {fired[0].episode_id}
    assert judged_to(store) == END - 1


def test_it_begins_with_what_a_history_has_shown(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts], tmp_path: Path
) -> None:
    (tmp_path / "rules.toml").write_text("[judge]\nheights = { volume = 29.0, negative = 0.016180339887498949 }\n")
    write_ticks(store, counts)
    set_watermark(store, 0, END)
    run_to_the_end(LiveJudge(store, make_settings(rules_file=str(tmp_path / "rules.toml")), 1))
    judge, nothing = Judge(JudgeConfig(height=0.016180339887498949)), MinuteCounts([], np.zeros(0), np.zeros(0))
    decided = [d for minute in range(min(counts), END) for d in judge.step(minute, counts.get(minute, nothing))]
    assert {d.episode_id for d in decided} > {d.episode_id for d in in_memory(counts, make_settings())}
    assert {episode for episode, _ in recorded(store)} == {d.episode_id for d in decided}


@pytest.mark.parametrize("snapshot_s", [1e9, 1e-9])
def test_a_process_that_dies_at_any_time_is_replaced_without_a_trace(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts], snapshot_s: float
) -> None:
    settings = make_settings(judge_snapshot_s=snapshot_s)
    write_ticks(store, counts)
    for step in range(0, END - BEGIN, 1000):
        set_watermark(store, 0, BEGIN + step)
        LiveJudge(store, settings, 1).advance()  # forgotten after one step: nothing is given back
        expire_lease(store)
    set_watermark(store, 0, END)
    run_to_the_end(LiveJudge(store, settings, 1))
    fired = [decision for decision in in_memory(counts, settings) if decision.action == "fire"]
    assert [pair for pair in recorded(store) if pair[1] == "firing"] == [(fired[0].episode_id, "firing")]
    assert judged_to(store) == END - 1


def test_an_episode_that_other_settings_do_not_know_of_is_resolved_once(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    write_ticks(store, counts)
    set_watermark(store, 0, SURGE + 60)
    run_to_the_end(LiveJudge(store, make_settings(), 1))
    (fired,) = [pair for pair in recorded(store) if pair[1] == "firing"]
    for more in (10, 20):
        # As after a crash, with settings by which nothing is surprising enough.
        expire_lease(store)
        set_watermark(store, 0, SURGE + 60 + more)
        assert LiveJudge(store, make_settings(surge_budget=1e-60), 1).advance() == 10
    assert [pair for pair in recorded(store) if not pair[1].startswith("raised")] == [fired, (fired[0], "resolved")]


def test_what_only_other_settings_find_is_told_while_it_goes_on_and_ends_once(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    write_ticks(store, counts)
    set_watermark(store, 0, SURGE + 60)
    run_to_the_end(LiveJudge(store, make_settings(surge_budget=1e-60), 1))
    assert recorded(store) == []
    expire_lease(store)
    # The same minutes again, by settings that had found it: nothing is new, and still it has to be told.
    judge = LiveJudge(store, make_settings(), 1)
    set_watermark(store, 0, SURGE + 61)
    run_to_the_end(judge)
    (fired,) = [pair for pair in recorded(store) if pair[1] == "firing"]
    set_watermark(store, 0, END)
    run_to_the_end(judge)
    assert [pair for pair in recorded(store) if not pair[1].startswith("raised")] == [fired, (fired[0], "resolved")]


def test_a_partition_that_was_never_counted_in_holds_judging_up(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    write_ticks(store, counts)
    judge = LiveJudge(store, make_settings(), 2)
    set_watermark(store, 0, END)
    assert judge.advance() == 0
    set_watermark(store, 1, BEGIN + 100)
    run_to_the_end(judge)
    assert judged_to(store) == BEGIN + 99


def test_one_process_judges_and_another_takes_over_when_it_stops_or_falls_silent(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    settings = make_settings(judge_lease_s=3600.0)
    write_ticks(store, counts)
    first, second = LiveJudge(store, settings, 1), LiveJudge(store, settings, 1)
    set_watermark(store, 0, BEGIN + 100)
    assert first.advance() > 0
    set_watermark(store, 0, BEGIN + 200)
    assert second.advance() == 0
    first.release()
    assert second.advance() == 100
    expire_lease(store)
    set_watermark(store, 0, BEGIN + 300)
    assert first.advance() == 100
    set_watermark(store, 0, BEGIN + 400)
    assert second.advance() == 0
    assert second.judged_to is None


def test_a_holder_that_was_overtaken_in_mid_step_changes_nothing(
    store: Engine,
    make_settings: Callable[..., Settings],
    counts: dict[int, MinuteCounts],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings()
    write_ticks(store, counts)
    sleeper, other = LiveJudge(store, settings, 1), LiveJudge(store, settings, 1)
    set_watermark(store, 0, BEGIN + 100)
    step = Judge.step

    def overtaken(self: Judge, minute: int, found: MinuteCounts) -> list[Decision]:
        monkeypatch.setattr(Judge, "step", step)
        expire_lease(store)
        run_to_the_end(other)
        return step(self, minute, found)

    monkeypatch.setattr(Judge, "step", overtaken)
    assert sleeper.advance() == 0
    assert judged_to(store) == BEGIN + 99
    expire_lease(store)
    set_watermark(store, 0, BEGIN + 200)
    assert sleeper.advance() == 100


def test_an_item_of_years_ago_does_not_have_the_years_since_judged(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    (old,) = [found for minute, found in counts.items() if minute == min(counts)]
    years = 10 * 365 * 24 * 60
    write_ticks(store, {BEGIN - years: old})
    set_watermark(store, 0, BEGIN - years + 10)
    judge = LiveJudge(store, make_settings(), 1)
    assert judge.advance() == 10
    write_ticks(store, {BEGIN - years + 20: old} | counts)
    set_watermark(store, 0, END)
    with reading(store) as connection:
        assert first_minute(connection) == min(counts)
    run_to_the_end(judge)
    assert judged_to(store) == END - 1
    expected = {decision.episode_id for decision in in_memory(counts, make_settings())}
    assert {episode for episode, _ in recorded(store)} == expected != set()


def test_it_runs_in_a_thread_until_it_is_stopped(
    store: Engine, make_settings: Callable[..., Settings], counts: dict[int, MinuteCounts]
) -> None:
    write_ticks(store, {minute: found for minute, found in counts.items() if minute < BEGIN + 50})
    set_watermark(store, 0, BEGIN + 50)
    judge, stopping = LiveJudge(store, make_settings(judge_interval_s=0.01), 1), threading.Event()
    thread = threading.Thread(target=judge.run, args=(stopping,))
    thread.start()
    while judged_to(store) != BEGIN + 49:
        stopping.wait(0.01)
    stopping.set()
    thread.join(10)
    with reading(store) as connection:
        row = connection.execute(select(t.judge)).one()
    assert row.snapshot_minute == BEGIN + 49
    assert row.lease_until <= datetime.now(UTC)
