"""Counts and the place in the stream in one transaction: skipping, stale memory, failures, restarts."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import Connection, Engine, select

from monitor.records import Contribution, ContributionBatch, SourceWatermark
from monitor.storage import tables as t
from monitor.storage.checkpoint import ContributionRecord, GapError, PartitionCheckpoint, partition_watermarks
from monitor.storage.engine import reading, writing
from monitor.storage.places import places, restart_places
from monitor.stories import signature
from monitor.surges.counting import CountingConfig
from monitor.surges.ticks import MINUTE_MS
from tests.ledgers import counted_pairs

BEGIN = 28_400_000
CONFIG = CountingConfig()


def record(
    offset: int, items: list[str], *, minute: int = 0, key: str = "topic:earnings", negative: bool = True
) -> ContributionRecord:
    at = (BEGIN + minute) * MINUTE_MS
    found = tuple(
        Contribution(
            key=key,
            item_id=item,
            at=at,
            p_negative=0.75 if negative else 0.25,
            score=-0.5 if negative else 0.5,
            negative=negative,
            signature=signature(" ".join(f"{item}{number}word" for number in range(12))),
        )
        for item in items
    )
    sources = (SourceWatermark("news:0", at, False),)
    return ContributionRecord(offset, ContributionBatch(contributions=found, sources=sources, source_count=1))


def heartbeat(offset: int, minute: int) -> ContributionRecord:
    """Nothing to count: time has gone on to that minute."""
    return record(offset, [], minute=minute)


def ticks(store: Engine) -> dict[int, tuple[int, int, int]]:
    """Minute -> stories, negative stories, items; minutes count from BEGIN."""
    with reading(store) as connection:
        rows = connection.execute(select(t.ticks))
        return {row.minute - BEGIN: (row.stories, row.negative_stories, row.items) for row in rows}


@pytest.fixture
def checkpoint(store: Engine) -> PartitionCheckpoint:
    return PartitionCheckpoint(store, 0, CONFIG)


def test_records_are_counted_once_whatever_comes_again(store: Engine, checkpoint: PartitionCheckpoint) -> None:
    first, second = record(0, ["a", "b"]), record(1, ["c", "a"], minute=1)
    second = ContributionRecord(1, _merged(record(1, ["c"], minute=1), record(1, ["a"])))
    assert checkpoint.apply([first, second]).records == 2
    again = checkpoint.apply([first, second, record(2, ["d"], minute=1)])
    assert (again.records, again.skipped) == (1, 2)
    checkpoint.apply([heartbeat(3, 10)])
    assert ticks(store) == {0: (2, 2, 2), 1: (2, 2, 2)}
    redelivered = ContributionRecord(4, _merged(record(4, ["a", "b"]), record(4, ["c", "d"], minute=1)))
    assert checkpoint.apply([redelivered, heartbeat(5, 20)]).duplicates == 4
    assert ticks(store) == {0: (2, 2, 2), 1: (2, 2, 2)}
    with reading(store) as connection:
        assert len(counted_pairs(connection)) == connection.scalar(select(t.partitions.c.counted)) == 4


def _merged(*records: ContributionRecord) -> ContributionBatch:
    batches = [one.batch for one in records if one.batch is not None]
    found = tuple(c for batch in batches for c in batch.contributions)
    return ContributionBatch(contributions=found, sources=(), source_count=1)


def test_another_process_goes_on_where_this_one_was_and_a_zombie_notices(
    store: Engine, checkpoint: PartitionCheckpoint
) -> None:
    checkpoint.apply([record(0, ["a"])])
    other = PartitionCheckpoint(store, 0, CONFIG)
    assert other.apply([record(0, ["a"]), record(1, ["b"])]).skipped == 1
    late = checkpoint.apply([record(1, ["b"]), record(2, ["c"]), heartbeat(3, 2)])
    assert (late.records, late.skipped) == (2, 1)
    assert ticks(store) == {0: (3, 3, 3)}


def test_late_items_and_what_is_taken_back_are_found_in_the_ledger_by_another_process(store: Engine) -> None:
    PartitionCheckpoint(store, 0, CONFIG).apply([record(0, ["a", "b"]), heartbeat(1, 10)])
    late = PartitionCheckpoint(store, 0, CONFIG).apply([record(2, ["c", "a"]), heartbeat(3, 10)])
    assert (late.late, late.duplicates) == (1, 1)
    again = PartitionCheckpoint(store, 0, CONFIG).apply([record(4, ["c"]), heartbeat(5, 20), record(6, ["c"])])
    assert (again.late, again.duplicates) == (0, 2)
    assert ticks(store) == {0: (2, 2, 2), 9: (1, 1, 1)}
    (gone,) = record(7, ["c"]).batch.contributions  # type: ignore[union-attr]
    taken_back = ContributionBatch(
        contributions=(msgspec.structs.replace(gone, retracted=True),), sources=(), source_count=1
    )
    PartitionCheckpoint(store, 0, CONFIG).apply([ContributionRecord(7, taken_back)])
    PartitionCheckpoint(store, 0, CONFIG).apply([ContributionRecord(8, taken_back)])
    assert ticks(store) == {0: (2, 2, 2), 9: (1, 1, 0)}
    with reading(store) as connection:
        assert set(counted_pairs(connection)) == {("topic:earnings", "a"), ("topic:earnings", "b")}
        assert connection.scalar(select(t.partitions.c.counted)) == 2
        assert not connection.execute(select(t.waiting)).all()


def test_a_copy_joins_its_story_also_after_a_restart(store: Engine) -> None:
    text = "profit warning at the very same company that everybody writes about today and tomorrow"

    def copy(offset: int, item: str, minute: int) -> ContributionRecord:
        plain = record(offset, [item], minute=minute)
        assert plain.batch is not None
        (one,) = plain.batch.contributions
        values = {name: getattr(one, name) for name in one.__struct_fields__} | {"signature": signature(text)}
        batch = ContributionBatch(contributions=(Contribution(**values),), sources=plain.batch.sources, source_count=1)
        return ContributionRecord(offset, batch)

    PartitionCheckpoint(store, 0, CONFIG).apply([copy(0, "a", 0)])
    PartitionCheckpoint(store, 0, CONFIG).apply([copy(1, "b", 5)])
    PartitionCheckpoint(store, 0, CONFIG).apply([heartbeat(2, 10)])
    assert ticks(store) == {0: (1, 1, 1), 5: (0, 0, 1)}
    with reading(store) as connection:
        story = connection.execute(select(t.stories)).one()
    assert (story.items, story.item_id, story.minute) == (2, "a", BEGIN)


def test_a_failed_transaction_counts_nothing_and_can_be_tried_again(store: Engine) -> None:
    failures = [RuntimeError("the disk is full")]

    def fail_once(_: Connection) -> None:
        if failures:
            raise failures.pop()

    checkpoint = PartitionCheckpoint(store, 0, CONFIG, before_commit=fail_once)
    with pytest.raises(RuntimeError):
        checkpoint.apply([record(0, ["a", "b"]), heartbeat(1, 10)])
    assert ticks(store) == {}
    assert checkpoint.apply([record(0, ["a", "b"]), heartbeat(1, 10)]).records == 2
    assert ticks(store) == {0: (2, 2, 2)}


def test_a_record_that_cannot_be_read_moves_on(store: Engine, checkpoint: PartitionCheckpoint) -> None:
    checkpoint.apply([record(0, ["a"]), ContributionRecord(1, None)])
    after = [ContributionRecord(1, None), record(2, ["b"]), heartbeat(3, 10)]
    assert PartitionCheckpoint(store, 0, CONFIG).apply(after).skipped == 1
    assert ticks(store) == {0: (2, 2, 2)}


def test_a_changed_score_replaces_the_old_one(store: Engine, checkpoint: PartitionCheckpoint) -> None:
    checkpoint.apply([record(0, ["a"]), heartbeat(1, 10)])
    checkpoint.apply([record(2, ["a"], negative=False)])
    with reading(store) as connection:
        tick = connection.execute(select(t.ticks)).one()
    assert (tick.items, tick.negative_items, tick.score_sum) == (1, 0, 0.5)


def test_records_after_a_gap_or_of_another_log_are_refused(store: Engine) -> None:
    PartitionCheckpoint(store, 0, CONFIG, log="a", begin=7).apply([record(7, ["a"])])
    for log, offset in (("a", 9), ("b", 8)):
        with pytest.raises(GapError) as told:
            PartitionCheckpoint(store, 0, CONFIG, log=log).apply([record(offset, ["b"])])
        assert (told.value.stored, told.value.found) == (8, offset)
    with pytest.raises(GapError):
        PartitionCheckpoint(store, 0, CONFIG, log="b").apply([])
    with pytest.raises(GapError) as told:
        PartitionCheckpoint(store, 0, CONFIG, log="a").apply([record(8, ["b"]), heartbeat(10, 5)])
    assert (told.value.stored, told.value.found) == (8, 10)
    assert PartitionCheckpoint(store, 0, CONFIG, log="a").apply([]).records == 0
    assert PartitionCheckpoint(store, 0, CONFIG, log="a").apply([record(8, ["b"]), heartbeat(9, 5)]).records == 2
    assert ticks(store) == {0: (2, 2, 2)}


def test_another_log_may_use_the_same_offsets_for_what_waits(store: Engine) -> None:
    for log, item in (("a", "x"), ("b", "y"), ("c", "z")):
        with writing(store) as connection:
            restart_places(connection, log, dict.fromkeys(places(connection), 0))
        PartitionCheckpoint(store, 0, CONFIG, log=log).apply([record(0, [item])])
    PartitionCheckpoint(store, 0, CONFIG, log="c").apply([heartbeat(1, 5)])
    assert ticks(store) == {0: (3, 3, 3)}


def test_watermarks_are_stored_with_the_counts(store: Engine, checkpoint: PartitionCheckpoint) -> None:
    checkpoint.apply([record(0, ["a"], minute=10)])
    PartitionCheckpoint(store, 3, CONFIG).apply([record(0, ["a"], minute=4)])
    with reading(store) as connection:
        found = partition_watermarks(connection)
    assert found == {0: (BEGIN + 10) * MINUTE_MS - CONFIG.lateness_ms, 3: (BEGIN + 4) * MINUTE_MS - CONFIG.lateness_ms}
