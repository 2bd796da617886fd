from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import astuple
from sqlalchemy import Engine

from monitor.storage.engine import reading, writing
from monitor.storage.tables import ticks
from monitor.storage.trends import (
    DAY,
    HOUR,
    MARKET,
    KeyTotals,
    TickSums,
    add_to_rollups,
    keys_by_volume,
    movers,
    newest_minute,
    oldest_minute,
    series,
    series_by_key,
    topic_keys,
    totals,
)
from monitor.storage.upsert import upsert
from monitor.surges.ticks import TickDelta
from tests.monitor.storage.rows import tick_row

COUNTS = ("stories", "negative_stories", "items", "negative_items", "score_sum", "late", "positive_stories")
# An epoch minute at which a day begins.
MIDNIGHT = 20_000 * DAY


def store_ticks(store: Engine, deltas: dict[tuple[str, int], TickSums]) -> None:
    """As the aggregator does: ticks and rollups in one transaction."""
    rows = [
        tick_row(key, minute, **{name: getattr(delta, name) for name in COUNTS})
        for (key, minute), delta in deltas.items()
    ]
    with writing(store) as connection:
        upsert(connection, ticks, rows, add=COUNTS)
        add_to_rollups(connection, {place: TickDelta(*astuple(delta)) for place, delta in deltas.items()})


def sums(stories: int, negative: int = 0, score: float = 0.0, items: int | None = None) -> TickSums:
    return TickSums(stories, negative, stories if items is None else items, negative, score, 0, stories - negative)


def test_empty_store(store: Engine) -> None:
    with reading(store) as connection:
        assert newest_minute(connection) is None
        assert oldest_minute(connection) is None
        assert topic_keys(connection) == []
        assert series(connection, MARKET, 0, DAY, 15) == []
        assert totals(connection, "ticker:", 0, DAY) == []


def test_market_is_the_sum_of_the_topics(store: Engine) -> None:
    store_ticks(
        store,
        {
            ("topic:earnings", MIDNIGHT + 1): sums(3, 1, 0.5),
            ("topic:macro", MIDNIGHT + 2): sums(2, 2, -1.5),
            ("ticker:AAPL", MIDNIGHT + 1): sums(3, 1, 0.5),
            ("topic:macro", MIDNIGHT + 15): sums(1),
        },
    )
    with reading(store) as connection:
        found = series(connection, MARKET, MIDNIGHT, MIDNIGHT + 60, 15)
    assert [bucket.minute - MIDNIGHT for bucket in found] == [0, 15]
    assert found[0].sums == TickSums(5, 3, 5, 3, -1.0, 0, 2)
    assert found[0].sums.mean_score == pytest.approx(-0.2)
    assert found[0].sums.negative_share == pytest.approx(0.6)


def test_ends_of_a_range(store: Engine) -> None:
    store_ticks(store, {("ticker:A", MIDNIGHT + n): sums(1) for n in (0, 4, 5, 9, 10)})
    with reading(store) as connection:
        found = series(connection, "ticker:A", MIDNIGHT + 7, MIDNIGHT + 10, 5)
        assert [(b.minute - MIDNIGHT, b.sums.stories) for b in found] == [(5, 2)], "start goes down to a whole step"
        by_key = series_by_key(connection, ["ticker:A", "ticker:B"], MIDNIGHT, MIDNIGHT + 11, 1)
    assert [b.minute - MIDNIGHT for b in by_key["ticker:A"]] == [0, 4, 5, 9, 10]
    assert by_key["ticker:B"] == []


def test_rollups_agree_with_the_ticks(store: Engine) -> None:
    rng = random.Random(5)
    everything: list[tuple[int, TickSums]] = []
    for _ in range(6):
        batch = {}
        for _ in range(40):
            minute = MIDNIGHT + rng.randrange(3 * DAY)
            delta = TickSums(rng.randrange(4), rng.randrange(2), rng.randrange(5), 1, rng.randrange(-8, 8) / 4, 0)
            batch["topic:ipo", minute] = delta
        store_ticks(store, batch)
        everything += [(minute, delta) for (_, minute), delta in batch.items()]
    with reading(store) as connection:
        for step in (5, 15, HOUR, 4 * HOUR, DAY):
            expected: dict[int, list[Any]] = {}
            for minute, delta in everything:
                place = expected.setdefault(minute - minute % step, [0, 0, 0.0])
                place[0] += delta.stories
                place[1] += delta.items
                place[2] += delta.score_sum
            found = series(connection, "topic:ipo", MIDNIGHT, MIDNIGHT + 3 * DAY, step)
            assert {b.minute: [b.sums.stories, b.sums.items, b.sums.score_sum] for b in found} == expected, step


def test_a_story_that_moves_leaves_its_hour(store: Engine) -> None:
    """The counter takes a story out of one minute and puts it into an earlier one: deltas may be negative."""
    store_ticks(store, {("ticker:A", MIDNIGHT + 61): sums(1, 1, -0.5)})
    store_ticks(store, {("ticker:A", MIDNIGHT + 61): TickSums(-1, -1), ("ticker:A", MIDNIGHT + 59): sums(1, 1, -0.7)})
    with reading(store) as connection:
        hours = series(connection, "ticker:A", MIDNIGHT, MIDNIGHT + DAY, HOUR)
    assert [(b.minute - MIDNIGHT, b.sums.stories, b.sums.items) for b in hours] == [(0, 1, 1), (60, 0, 1)]


@pytest.mark.parametrize("length", [60, DAY, 7 * DAY])
def test_totals_now_and_before(store: Engine, length: int) -> None:
    end = MIDNIGHT + 20 * DAY
    store_ticks(
        store,
        {
            ("ticker:A", end - 1): sums(4, 1, 2.0),
            ("ticker:A", end - length - 1): sums(2, 2, -1.0),
            ("ticker:OLD", end - length - 1): sums(9),
            ("ticker:B", end - 1): sums(6, 0, 1.0),
            ("topic:ipo", end - 1): sums(6),
            ("ticker:A", end): sums(100),
        },
    )
    with reading(store) as connection:
        found = totals(connection, "ticker:", end - length, end)
    by_key = {each.key: each for each in found}
    assert set(by_key) == {"ticker:A", "ticker:B"}
    if length == 60:
        assert list(by_key) == ["ticker:B", "ticker:A"], "most stories first"
        assert by_key["ticker:A"] == KeyTotals("ticker:A", 4, 1, 4, 2.0, 2, -1.0)
    assert (by_key["ticker:A"].items_before, by_key["ticker:A"].mean_before) == (2, -0.5)
    assert (by_key["ticker:B"].items_before, by_key["ticker:B"].mean_before) == (0, None)


def test_underscores_and_percents_in_a_prefix_are_letters(store: Engine) -> None:
    store_ticks(store, {("ticker:A_B", MIDNIGHT): sums(1), ("ticker:AXB", MIDNIGHT): sums(1)})
    with reading(store) as connection:
        assert [t.key for t in totals(connection, "ticker:A_", MIDNIGHT, MIDNIGHT + 1)] == ["ticker:A_B"]


def test_movers_need_items_and_are_damped() -> None:
    def each(key: str, now: tuple[int, float], before: tuple[int, float]) -> KeyTotals:
        return KeyTotals(key, now[0], 0, now[0], now[1], *before)

    candidates = [
        each("steady", (100, 10.0), (100, 10.0)),
        each("fell", (100, -50.0), (100, 10.0)),
        each("one item", (1, -1.0), (1, 1.0)),
        each("few items", (3, -3.0), (3, 0.0)),
        each("rose", (50, 30.0), (50, 0.0)),
    ]
    fell, rose = movers(candidates, count=5)
    assert [k.key for k in fell] == ["fell", "few items"]
    assert [k.key for k in rose] == ["rose"]
    assert fell[1].change == pytest.approx(-3 / 8), "three items count like three of eight"


def test_newest_ignores_what_is_dated_ahead(store: Engine) -> None:
    store_ticks(store, {("ticker:A", MIDNIGHT + 5): sums(1), ("ticker:A", MIDNIGHT + 900): sums(1)})
    with reading(store) as connection:
        assert newest_minute(connection) == MIDNIGHT + 900
        assert newest_minute(connection, not_after=MIDNIGHT + 10) == MIDNIGHT + 5
        assert oldest_minute(connection) == MIDNIGHT + 5


def test_keys_by_volume(store: Engine) -> None:
    store_ticks(
        store,
        {
            ("ticker:A", MIDNIGHT): sums(1),
            ("ticker:B", MIDNIGHT): sums(3),
            ("ticker:OLD", MIDNIGHT - 5 * DAY): sums(50),
            ("topic:ipo", MIDNIGHT): sums(9),
        },
    )
    with reading(store) as connection:
        assert keys_by_volume(connection, "ticker:", since=MIDNIGHT + 30, limit=5) == ["ticker:B", "ticker:A"]
        assert keys_by_volume(connection, "ticker:", since=0, limit=1) == ["ticker:OLD"]
        assert topic_keys(connection) == ["topic:ipo"]
