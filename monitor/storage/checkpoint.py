"""Counts, stories and the place in the stream, in one transaction: the aggregator's checkpoint.

Whatever happens to the process, the counts in the store are those of exactly the records below the stored offset.
Inside every transaction the stored offset is read first. Records below it are skipped; if it is not the one that this
process wrote last, another process has owned the partition meanwhile: what is in memory is thrown away and loaded
again. No other fencing is needed against a process that wakes up late.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from monitor.records import ContributionBatch, SourceWatermark
from monitor.storage import tables as t
from monitor.storage.engine import reading, writing
from monitor.storage.trends import add_to_rollups
from monitor.storage.upsert import upsert
from monitor.surges.counting import Changes, Counted, Counter, CounterState, CountingConfig, Story
from monitor.surges.ticks import TickDelta

__all__ = ["Applied", "ContributionRecord", "PartitionCheckpoint", "partition_watermarks"]


class ContributionRecord(NamedTuple):
    """One record of a contributions partition; `batch` None is one that could not be decoded: it only moves on."""

    offset: int
    batch: ContributionBatch | None


class Applied(msgspec.Struct, frozen=True):
    """What a transaction did: records counted and skipped, contributions among them, items late, stale and known."""

    records: int
    skipped: int
    contributions: int
    late: int
    stale: int
    duplicates: int
    watermark: int


class _StaleMemoryError(Exception):
    """Another process has moved the partition on."""


class PartitionCheckpoint:
    """One contributions partition: its counter in memory and its rows in the store.

    Not to be used by two threads at the same time. `before_commit` is called inside each transaction that counts.
    """

    def __init__(
        self,
        engine: Engine,
        partition: int,
        config: CountingConfig,
        before_commit: Callable[[Connection], None] | None = None,
    ) -> None:
        self.partition = partition
        self._engine = engine
        self._config = config
        self._before_commit = before_commit
        self._counter: Counter | None = None

    def apply(self, records: Sequence[ContributionRecord]) -> Applied:
        """Count records, in order of their offsets, in one transaction.

        Raises `StorageError`; nothing is counted then, and calling again with the same records is right.
        """
        while True:
            counter = self._counter = self._counter or self._load()
            try:
                with writing(self._engine) as connection:
                    return self._apply(connection, counter, records)
            except (_StaleMemoryError, IntegrityError):
                # IntegrityError: two processes count the partition's first record at the same time.
                self._counter = None
            except BaseException:
                # The counter has run ahead of what is stored.
                self._counter = None
                raise

    def _load(self) -> Counter:
        with reading(self._engine) as connection:
            row = connection.execute(select(t.partitions).where(t.partitions.c.partition == self.partition)).first()
            state = CounterState(sources={})
            if row is not None:
                sources = msgspec.convert(row.sources, list[SourceWatermark])
                state = CounterState(
                    sources={source.source: source for source in sources},
                    source_count=row.source_count,
                    watermark=row.watermark,
                    next_offset=row.next_offset,
                )
            counter = Counter(self._config, state, ())
            stories = _open_stories(connection, self.partition, counter.open_from(state.watermark))
            return Counter(self._config, state, stories)

    def _apply(self, connection: Connection, counter: Counter, records: Sequence[ContributionRecord]) -> Applied:
        state, begun = counter.state, counter.state.next_offset
        place = select(t.partitions.c.next_offset).where(t.partitions.c.partition == self.partition).with_for_update()
        stored: int | None = connection.scalar(place)
        if (stored or 0) != begun:
            raise _StaleMemoryError
        fresh = [record for record in records if record.offset >= begun]
        if not fresh:
            return Applied(0, len(records), 0, 0, 0, 0, state.watermark)
        batches = [record.batch for record in fresh if record.batch is not None]
        pairs = {(c.key, c.item_id) for batch in batches for c in batch.contributions}
        known = _known(connection, pairs)
        total, counted = Changes(ticks={}, stories={}, counted=[]), dict[tuple[str, str], Counted]()
        for batch in batches:
            changes = counter.apply(batch, known)
            fresh_pairs = {(one.key, one.item_id): one for one in changes.counted}
            counted.update(fresh_pairs)
            known.update(fresh_pairs)
            _add(total, changes)
        total.counted = list(counted.values())
        state.next_offset = fresh[-1].offset + 1
        self._store(connection, total, state, begun, first=stored is None)
        if self._before_commit is not None:
            self._before_commit(connection)
        contributions = sum(len(batch.contributions) for batch in batches)
        skipped = len(records) - len(fresh)
        return Applied(len(fresh), skipped, contributions, total.late, total.stale, total.duplicates, state.watermark)

    def _store(self, connection: Connection, total: Changes, state: CounterState, begun: int, *, first: bool) -> None:
        ticks = [
            {"key": key, "minute": minute, **msgspec.structs.asdict(delta)}
            for (key, minute), delta in total.ticks.items()
            if delta != TickDelta()
        ]
        upsert(connection, t.ticks, ticks, add=msgspec.structs.asdict(TickDelta()))
        add_to_rollups(connection, total.ticks)
        upsert(connection, t.stories, [_story_row(story, self.partition) for story in total.stories.values()])
        upsert(connection, t.counted, [msgspec.structs.asdict(counted) for counted in total.counted])
        values: dict[str, Any] = {
            "next_offset": state.next_offset,
            "watermark": state.watermark,
            "sources": msgspec.to_builtins(list(state.sources.values())),
            "source_count": state.source_count,
            "updated_at": datetime.now(UTC),
        }
        row = t.partitions
        if first:
            late = {"late": total.late, "stale": total.stale}
            connection.execute(insert(row).values(partition=self.partition, **values, **late))
            return
        more = {"late": row.c.late + total.late, "stale": row.c.stale + total.stale}
        mine = (row.c.partition == self.partition) & (row.c.next_offset == begun)
        if connection.execute(update(row).where(mine).values(**values, **more)).rowcount != 1:
            raise _StaleMemoryError


def _add(total: Changes, changes: Changes) -> None:
    """Put a later record's changes, all but what was counted, on top of those of earlier ones."""
    for place, delta in changes.ticks.items():
        tick = total.ticks.setdefault(place, delta)
        if tick is not delta:
            for name in delta.__struct_fields__:
                setattr(tick, name, getattr(tick, name) + getattr(delta, name))
    total.stories.update(changes.stories)
    total.late += changes.late
    total.stale += changes.stale
    total.duplicates += changes.duplicates


_COLUMNS = ", ".join(f"c.{name}" for name in Counted.__struct_fields__)
_KNOWN = {
    "sqlite": text(
        f"select {_COLUMNS} from json_each(:pairs) as wanted "  # noqa: S608 - column names of our own
        "join counted as c on c.key = wanted.value ->> 0 and c.item_id = wanted.value ->> 1"
    ),
    "postgresql": text(
        f"select {_COLUMNS} from json_array_elements(cast(:pairs as json)) as wanted "  # noqa: S608
        "join counted as c on c.key = wanted.value ->> 0 and c.item_id = wanted.value ->> 1"
    ),
}


def _known(connection: Connection, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Counted]:
    """What has been counted of these pairs of key and item."""
    wanted = json.dumps(sorted(pairs))
    rows = connection.execute(_KNOWN[connection.dialect.name], {"pairs": wanted})
    return {
        (key, item_id): Counted(key, item_id, minute, story_id, p_negative, score, bool(negative))
        for key, item_id, minute, story_id, p_negative, score, negative in rows
    }


def _story_row(story: Story, partition: int) -> dict[str, Any]:
    row = msgspec.structs.asdict(story)
    row["sources"], row["signature"] = list(story.sources), list(story.signature)
    return {**row, "partition": partition}


def _open_stories(connection: Connection, partition: int, since: int) -> list[Story]:
    """Stories of a partition last seen at or after `since` (epoch ms), in the order in which they began."""
    c = t.stories.c
    columns = [c[name] for name in Story.__struct_fields__]
    query = select(*columns).where(c.partition == partition, c.last_at >= since).order_by(c.first_at, c.id)
    return [
        Story(**{**row, "sources": tuple(row["sources"]), "signature": tuple(row["signature"])})
        for row in connection.execute(query).mappings()
    ]


def partition_watermarks(connection: Connection) -> Mapping[int, int]:
    """Watermark (epoch ms of event time) of every partition that has been counted in."""
    return dict(connection.execute(select(t.partitions.c.partition, t.partitions.c.watermark)).tuples().all())
