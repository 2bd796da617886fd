"""Counting: what an item, a copy, a late one and a repeated one do to the ticks."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.open_stories import OpenRows
from monitor.records import Contribution, SourceWatermark
from monitor.stories import Story, add_copies
from monitor.surges.counting import Changes, Counter, CounterState, CountingConfig
from monitor.surges.ledger import STALE, MemoryLedger
from monitor.surges.ticks import Reached, TickDelta, advance, merge_sources
from tests.monitor.surges.builders import MINUTE, batch, contribution

HOUR = 60 * MINUTE


class Store:
    """What the aggregator keeps: adds the changes up, remembers what waits and what was counted."""

    def __init__(self, config: CountingConfig | None = None) -> None:
        self.config = config or CountingConfig()
        self.counter = Counter(self.config, CounterState())
        self.ledger = MemoryLedger()
        self.ticks: dict[tuple[str, int], TickDelta] = {}
        self.waiting: dict[int, list[Contribution]] = {}
        self.stories: dict[str, Story] = {}
        self.opened: list[OpenRows] = []
        self.counted = 0

    def apply(self, *items: Contribution, at: int | None = None, idle: bool = False) -> Changes:
        changes = self.counter.apply([batch(*items, at=at, idle=idle)], self.ledger)
        for pair, delta in changes.ticks.items():
            tick = self.ticks.setdefault(pair, TickDelta())
            for name in TickDelta.__struct_fields__:
                setattr(tick, name, getattr(tick, name) + getattr(delta, name))
        for minute in [minute for minute in self.waiting if minute < changes.open_minute]:
            del self.waiting[minute]
        for minute, told in changes.waiting.items():
            self.waiting.setdefault(minute, []).extend(told)
        self.stories |= changes.stories
        for story, copies in changes.copies.items():
            add_copies(self.stories[story], copies)
        self.opened += changes.opened
        self.counted += changes.counted
        return changes

    def close(self, at: int | None = None) -> Changes:
        """All sources fall quiet after `at`: every minute up to then is counted."""
        newest = max((c.at for told in self.waiting.values() for c in told), default=0)
        return self.apply(at=newest if at is None else at, idle=True)

    def restart(self) -> None:
        """A new counter from what is stored."""
        state = self.counter.state
        self.counter = Counter(self.config, state, self.opened, self.waiting)

    def shown(self) -> dict[tuple[str, int], tuple[int, int, int, int, float, int]]:
        rows = {
            pair: (t.stories, t.negative_stories, t.items, t.negative_items, round(t.score_sum, 6), t.late)
            for pair, t in self.ticks.items()
        }
        return {pair: row for pair, row in rows.items() if any(row)}


TEXT = "Profit warning sinks the shares of Acme"


def test_an_item_waits_until_its_minute_closes() -> None:
    store = Store()
    store.apply(contribution("1", 10 * MINUTE), at=11 * MINUTE + MINUTE - 1)
    assert (store.shown(), store.counted) == ({}, 0)
    changes = store.apply(at=12 * MINUTE)
    assert store.shown() == {("ticker:A", 10): (1, 0, 1, 0, -0.1, 0)}
    assert (changes.late, store.counted, store.waiting) == (0, 1, {})


def test_copies_count_as_items_and_once_as_a_story() -> None:
    store = Store()
    store.apply(
        contribution("1", 10 * MINUTE, title=TEXT, negative=True),
        contribution("2", 12 * MINUTE, title="UPDATE 1-" + TEXT, source="t"),
    )
    store.close()
    assert store.shown() == {("ticker:A", 10): (1, 1, 1, 1, -0.9, 0), ("ticker:A", 12): (0, 0, 1, 0, -0.1, 0)}
    (story,) = store.stories.values()
    assert (story.items, story.sources, story.first.item_id, story.item_ids) == (2, ("s", "t"), "1", ("1", "2"))


def test_a_story_is_positive_if_its_first_item_is() -> None:
    store = Store()
    first = msgspec.structs.replace(contribution("1", 0, title=TEXT, p_negative=0.1), positive=True, score=0.6)
    store.apply(first, contribution("2", MINUTE, title=TEXT), contribution("3", 0, negative=True), at=12 * MINUTE)
    assert {pair: (t.stories, t.negative_stories, t.positive_stories) for pair, t in store.ticks.items()} == {
        ("ticker:A", 0): (2, 1, 1),
        ("ticker:A", 1): (0, 0, 0),
    }
    assert {s.first.item_id: (s.first.positive, s.p_positive) for s in store.stories.values()} == {
        "1": (True, 0.7),
        "3": (False, 0),
    }


def test_a_copy_in_another_key_is_a_story_there() -> None:
    store = Store()
    store.apply(contribution("1", 0, title=TEXT), contribution("1", 0, title=TEXT, key="topic:earnings"))
    store.close()
    assert {pair: row[0] for pair, row in store.shown().items()} == {("ticker:A", 0): 1, ("topic:earnings", 0): 1}


def test_a_story_is_that_of_its_earliest_item_whichever_comes_first() -> None:
    store = Store()
    store.apply(contribution("copy", 12 * MINUTE, title=TEXT), at=12 * MINUTE)
    store.apply(contribution("first", 11 * MINUTE, title=TEXT, negative=True))
    store.close()
    assert {pair: row[:2] for pair, row in store.shown().items()} == {
        ("ticker:A", 11): (1, 1),
        ("ticker:A", 12): (0, 0),
    }
    assert [(s.first.item_id, s.item_ids) for s in store.stories.values()] == [("first", ("first", "copy"))]


def test_a_closed_minute_keeps_its_stories_and_late_items_count_in_the_first_open_one() -> None:
    store = Store()
    store.apply(contribution("1", 10 * MINUTE, title=TEXT), at=20 * MINUTE)
    before = store.shown()
    assert store.counter.state.watermark == 19 * MINUTE
    changes = store.apply(contribution("0", 9 * MINUTE, title=TEXT, negative=True), contribution("x", 5 * MINUTE))
    assert changes.late == 2
    store.close(21 * MINUTE)
    assert store.shown() == before | {("ticker:A", 19): (1, 0, 2, 1, -1.0, 2)}


def test_a_stale_item_is_remembered_but_in_no_tick() -> None:
    store = Store()
    store.apply(at=48 * HOUR)
    changes = store.apply(contribution("old", 20 * HOUR))
    assert (changes.stale, changes.late, changes.ticks, changes.waiting) == (1, 0, {}, {})
    assert [one.minute for one in store.ledger] == [STALE]
    again = store.apply(contribution("old", 20 * HOUR, negative=True))
    assert (again.stale, again.duplicates, again.ticks) == (0, 1, {})


def test_another_score_for_a_counted_item_corrects_items_but_not_stories() -> None:
    store = Store()
    store.apply(contribution("1", 0, negative=False))
    store.close()
    changes = store.apply(contribution("1", 0, negative=True))
    assert (changes.duplicates, store.counted) == (1, 1)
    assert store.shown() == {("ticker:A", 0): (1, 0, 1, 1, -0.9, 0)}
    assert [one.negative for one in store.ledger] == [True]


def test_another_score_for_a_waiting_item_is_the_one_that_counts() -> None:
    store = Store()
    store.apply(contribution("1", 0, negative=False), contribution("1", 0, negative=True))
    store.restart()
    store.close()
    assert store.shown() == {("ticker:A", 0): (1, 1, 1, 1, -0.9, 0)}


def test_what_is_taken_back_is_out_of_the_sums_and_may_come_again() -> None:
    taken_back = msgspec.structs.replace(contribution("1", 0, negative=True), retracted=True)
    store = Store()
    store.apply(contribution("1", 0, negative=True), contribution("2", 0))
    store.close()
    before = store.shown()
    for _ in range(2):
        store.apply(taken_back)
        assert store.shown() == {("ticker:A", 0): (2, 1, 1, 0, -0.1, 0)}
        assert store.counted == 1
    store.apply(contribution("1", 0, negative=True))
    assert (store.shown(), store.counted) == (before, 2)


def test_what_is_taken_back_while_it_waits_is_never_counted() -> None:
    store = Store()
    store.apply(contribution("1", 0), msgspec.structs.replace(contribution("1", 0), retracted=True))
    store.restart()
    store.apply(msgspec.structs.replace(contribution("unknown", 0), retracted=True))
    store.close()
    assert (store.shown(), store.counted, store.stories) == ({}, 0, {})


def test_a_story_expires_after_its_window() -> None:
    for gap, stories in ((24 * HOUR, 1), (24 * HOUR + 1, 2)):
        store = Store()
        store.apply(contribution("1", 0, title=TEXT), contribution("2", gap, title=TEXT))
        store.close()
        assert sum(row[0] for row in store.shown().values()) == stories


def test_memory_holds_open_stories_only() -> None:
    store = Store()
    for hour in range(100):
        store.apply(contribution(f"n{hour}", hour * HOUR), at=hour * HOUR)
    assert 0 < store.counter.open_stories <= 24 + 4 + 2


def test_the_watermark_waits_for_all_sources_and_never_goes_back() -> None:
    state = CounterState()
    merge_sources(state, [SourceWatermark("news:0", 10 * HOUR, False)], 2)
    assert not advance(state, MINUTE)
    merge_sources(state, [SourceWatermark("charts:0", 5 * HOUR, False)], 2)
    assert advance(state, MINUTE)
    assert state.watermark == 5 * HOUR - MINUTE
    merge_sources(state, [SourceWatermark("charts:0", 4 * HOUR, True)], 2)
    assert advance(state, MINUTE)
    assert state.watermark == 10 * HOUR - MINUTE
    merge_sources(state, [SourceWatermark("charts:0", 5 * HOUR, False)], 2)
    assert not advance(state, MINUTE)
    assert state.watermark == 10 * HOUR - MINUTE


def test_a_pause_leaves_the_last_minute_open_and_the_end_of_all_sources_closes_it() -> None:
    state = CounterState()
    merge_sources(state, [SourceWatermark("a", 10 * MINUTE + 5, True), SourceWatermark("b", 0, True, True)], 2)
    assert advance(state, MINUTE)
    assert state.watermark == 9 * MINUTE + 5
    merge_sources(state, [SourceWatermark("a", 10 * MINUTE + 5, True, True)], 2)
    assert advance(state, MINUTE)
    assert state.watermark == 11 * MINUTE + 5


entries = st.lists(
    st.tuples(
        st.integers(0, 11),  # item
        st.sampled_from(["ticker:A", "ticker:B"]),
        st.integers(0, 5 * 60),  # seconds within the lateness
        st.booleans(),
    ),
    max_size=30,
)


def _items(rows: list[tuple[int, str, int, bool]]) -> list[Contribution]:
    """Each pair of key and item once; three texts, so that copies abound."""
    first = {(key, item): (seconds, negative) for item, key, seconds, negative in rows}
    return [
        contribution(
            str(item), seconds * 1000, key=key, title=f"one of three stories told here {item % 3}", negative=bad
        )
        for (key, item), (seconds, bad) in sorted(first.items())
    ]


@settings(max_examples=60, deadline=None)
@given(entries, st.randoms(use_true_random=False))
def test_order_chunks_and_restarts_within_the_lateness_change_nothing(
    rows: list[tuple[int, str, int, bool]], r: random.Random
) -> None:
    config = CountingConfig(lateness_ms=5 * MINUTE)
    items = _items(rows)
    one = Store(config)
    one.apply(*items)
    one.close(20 * MINUTE)
    other = Store(config)
    r.shuffle(items)
    while items:
        size = r.randint(1, len(items))
        other.apply(*items[:size], at=max(c.at for c in items[:size]))
        items = items[size:]
        if r.random() < 0.3:
            other.restart()
    other.close(20 * MINUTE)
    assert (other.shown(), other.counted) == (one.shown(), one.counted)
    assert other.stories == one.stories


@settings(max_examples=60, deadline=None)
@given(entries, st.randoms(use_true_random=False))
def test_duplicates_and_restarts_change_nothing(rows: list[tuple[int, str, int, bool]], r: random.Random) -> None:
    items = _items(rows)
    one, other = Store(), Store()
    for position, item in enumerate(items):
        at = position * MINUTE
        one.apply(item, at=at)
        other.apply(item, *r.sample(items[: position + 1], r.randint(0, min(3, position + 1))), at=at)
        if r.random() < 0.3:
            other.restart()
    one.close(60 * MINUTE)
    other.close(60 * MINUTE)
    assert (other.shown(), other.counted) == (one.shown(), one.counted)
    assert other.stories == one.stories
    assert other.counter.state == one.counter.state


@settings(max_examples=40, deadline=None)
@given(entries, st.randoms(use_true_random=False))
def test_batches_that_are_counted_together_change_what_each_changes_alone(
    rows: list[tuple[int, str, int, bool]], r: random.Random
) -> None:
    # Some come late, and some again with another score.
    known = _items(rows)
    again = [msgspec.structs.replace(r.choice(known), score=-0.2) for _ in known]
    items = known + again
    r.shuffle(items)
    batches = [batch(*items[n : n + 3], at=n * MINUTE // 2) for n in range(0, len(items), 3)]
    batches.append(batch(at=60 * MINUTE, idle=True))
    alone, together = Counter(CountingConfig(), CounterState()), Counter(CountingConfig(), CounterState())
    one, other = MemoryLedger(), MemoryLedger()
    expected = [alone.apply([each], one) for each in batches]
    found = together.apply_each(batches, other)
    without = [msgspec.structs.replace(changes, opened=[]) for changes in (*found, *expected)]
    assert without[: len(found)] == without[len(found) :]
    assert list(one) == list(other)
    assert (together.state, together.open_stories) == (alone.state, alone.open_stories)


def test_an_item_far_ahead_moves_a_source_only_when_the_next_one_bears_it_out() -> None:
    day = 24 * HOUR
    reached = Reached(day, at=10 * day)
    assert reached.read(11 * day) == 11 * day, "a day ahead is not far"
    assert reached.read(400 * day) == 11 * day
    assert reached.read(400 * day) == 11 * day, "the same item again"
    assert reached.read(11 * day + 1) == 11 * day + 1
    assert (reached.alone, reached.ahead) == (1, 0)
    # There was really nothing to read: two in a row say so, and the earlier is believed.
    assert reached.read(60 * day) == 11 * day + 1
    assert reached.read(59 * day + HOUR) == 60 * day
    assert reached.alone == 1
    assert reached.read(90 * day) == 60 * day
    assert reached.read(2000 * day) == 90 * day
    assert (reached.ahead, reached.end(), reached.ahead) == (2000 * day, 2000 * day, 0)
    assert Reached(day).read(5 * day) == 5 * day, "the first is taken as it is"
