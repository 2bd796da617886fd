"""Counts, stories and the place in the stream, in one transaction: the aggregator's checkpoint.

Whatever happens to the process, the counts in the store are those of exactly the records below the stored offset.
Inside every transaction the stored offset is read first. Records below it are skipped; if it is not the one that this
process wrote last, another process has owned the partition meanwhile: what is in memory is thrown away and loaded
again. No other fencing is needed against a process that wakes up late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import astuple
from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor.open_stories import OpenRows
from monitor.records import Contribution, ContributionBatch, SourceWatermark
from monitor.storage import tables as t
from monitor.storage.engine import reading, writing
from monitor.storage.ledger import StoredLedger
from monitor.storage.trends import add_to_rollups
from monitor.storage.upsert import bulk_select, bulk_update, bulk_upsert, upsert
from monitor.stories import Copies, Story, add_copies, story_minute
from monitor.surges.counting import Changes, Counter, CounterState, CountingConfig
from monitor.surges.ticks import MINUTE_MS, TickDelta

__all__ = ["Applied", "ContributionRecord", "GapError", "PartitionCheckpoint", "partition_watermarks"]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Contribution])
_open_decoder = msgspec.msgpack.Decoder(OpenRows)
_NOTHING = TickDelta()


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


class GapError(Exception):
    """A record before `found` would never be counted: reading has to begin at `stored`."""

    def __init__(self, partition: int, stored: int, found: int) -> None:
        super().__init__(f"partition {partition}: counted up to offset {stored}, but reading goes on at {found}")
        self.partition, self.stored, self.found = partition, stored, found


class _StaleMemoryError(Exception):
    """Another process has moved the partition on."""


class PartitionCheckpoint:
    """One contributions partition: its counter in memory and its rows in the store.

    Not to be used by two threads at the same time. `before_commit` is called inside each transaction that counts.
    `log` is the identity of the log, `begin` the partition's first offset in it.
    """

    def __init__(
        self,
        engine: Engine,
        partition: int,
        config: CountingConfig,
        before_commit: Callable[[Connection], None] | None = None,
        *,
        log: str = "",
        begin: int = 0,
    ) -> None:
        self.partition = partition
        self._engine = engine
        self._config = config
        self._log = log
        self._begin = begin
        self._before_commit = before_commit
        self._counter: Counter | None = None

    @property
    def held(self) -> tuple[int, int]:
        """How many keys have open stories in memory, and how many stories these are."""
        return (self._counter.open_keys, self._counter.open_stories) if self._counter else (0, 0)

    def apply(self, records: Sequence[ContributionRecord]) -> Applied:
        """Count records, in order of their offsets, in one transaction.

        Raises `StorageError`, and `GapError` when records between the stored place and these are missing; nothing is
        counted then, and after a `StorageError` calling again with the same records is right.
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
            state = CounterState(sources={}, next_offset=self._begin)
            if row is not None:
                sources = msgspec.convert(row.sources, list[SourceWatermark])
                state = CounterState(
                    sources={source.source: source for source in sources},
                    source_count=row.source_count,
                    watermark=row.watermark,
                    next_offset=row.next_offset,
                )
            stories = _open_stories(connection, self.partition)
            return Counter(self._config, state, stories, _waiting(connection, self.partition))

    def _apply(self, connection: Connection, counter: Counter, records: Sequence[ContributionRecord]) -> Applied:
        state, begun = counter.state, counter.state.next_offset
        c = t.partitions.c
        place = select(c.next_offset, c.log).where(c.partition == self.partition).with_for_update()
        stored = connection.execute(place).first()
        if (self._begin if stored is None else stored.next_offset) != begun:
            raise _StaleMemoryError
        if stored is not None and stored.log != self._log:
            raise GapError(self.partition, begun, records[0].offset if records else self._begin)
        fresh = [record for record in records if record.offset >= begun]
        if not fresh:
            return Applied(0, len(records), 0, 0, 0, 0, state.watermark)
        for expected, record in enumerate(fresh, start=begun):
            if record.offset != expected:
                raise GapError(self.partition, begun, record.offset)
        batches = [record.batch for record in fresh if record.batch is not None]
        before, ledger = state.watermark // MINUTE_MS, StoredLedger(connection, self.partition)
        changes = counter.apply(batches, ledger)
        state.next_offset = fresh[-1].offset + 1
        ledger.flush()
        self._store_counts(connection, changes)
        closed = changes.open_minute > before
        self._store_open(connection, changes, counter.open_from(state.watermark), closed=closed)
        self._store_waiting(connection, changes, begun, closed=closed)
        self._store_place(connection, changes, state, begun, first=stored is None)
        if self._before_commit is not None:
            self._before_commit(connection)
        contributions = sum(len(batch.contributions) for batch in batches)
        skipped = len(records) - len(fresh)
        return Applied(
            len(fresh), skipped, contributions, changes.late, changes.stale, changes.duplicates, state.watermark
        )

    def _store_counts(self, connection: Connection, changes: Changes) -> None:
        ticks = [(minute, key, *astuple(delta)) for (key, minute), delta in changes.ticks.items() if delta != _NOTHING]
        bulk_upsert(connection, t.ticks, ticks, add=TickDelta.__struct_fields__)
        add_to_rollups(connection, changes.ticks)
        bulk_upsert(connection, t.stories, _story_rows(changes.stories.values()))
        _add_copies(connection, changes.copies)

    def _store_open(self, connection: Connection, changes: Changes, open_from: int, *, closed: bool) -> None:
        table = t.open_stories
        if closed:
            connection.execute(delete(table).where(table.c.partition == self.partition, table.c.newest < open_from))
        rows = [
            {"partition": self.partition, "newest": newest, "stories": _encoder.encode(opened)}
            for opened in changes.opened
            if (newest := opened.newest) >= open_from
        ]
        if rows:
            connection.execute(insert(table), rows)

    def _store_waiting(self, connection: Connection, changes: Changes, begun: int, *, closed: bool) -> None:
        c = t.waiting.c
        if closed:
            gone = (c.partition == self.partition) & (c.minute < changes.open_minute)
            connection.execute(delete(t.waiting).where(gone))
        rows = [
            {
                "partition": self.partition,
                "minute": minute,
                "offset": begun,
                "contributions": _encoder.encode(contributions),
            }
            for minute, contributions in changes.waiting.items()
            if contributions
        ]
        upsert(connection, t.waiting, rows)

    def _store_place(
        self, connection: Connection, changes: Changes, state: CounterState, begun: int, *, first: bool
    ) -> None:
        values: dict[str, Any] = {
            "next_offset": state.next_offset,
            "watermark": state.watermark,
            "sources": msgspec.to_builtins(list(state.sources.values())),
            "source_count": state.source_count,
            "updated_at": datetime.now(UTC),
        }
        row = t.partitions
        totals = {name: getattr(changes, name) for name in ("counted", "late", "stale")}
        if first:
            connection.execute(insert(row).values(partition=self.partition, log=self._log, **values, **totals))
            return
        more = {name: row.c[name] + total for name, total in totals.items()}
        mine = (row.c.partition == self.partition) & (row.c.next_offset == begun)
        if connection.execute(update(row).where(mine).values(**values, **more)).rowcount != 1:
            raise _StaleMemoryError


def _story_rows(stories: Iterable[Story]) -> list[tuple[Any, ...]]:
    """Stories in the order of the table's columns."""
    return [
        (
            story.minute,
            (first := story.first).key,
            story.id,
            first.at,
            story.last_at,
            story.items,
            first.positive - first.negative,
            first.p_negative,
            first.score,
            first.item_id,
            first.source,
            _copies(story) if story.items > 1 else "null",
        )
        for story in stories
    ]


def _copies(story: Story | Copies) -> str:
    return msgspec.json.encode({"sources": story.sources, "item_ids": story.item_ids}).decode()


def _add_copies(connection: Connection, copies: Mapping[str, Copies]) -> None:
    """Let copies join the stored stories that they are of."""
    columns = ("id", "last_at", "items", "item_id", "source", "copies")
    places = [(story_minute(id_), more.key, id_) for id_, more in copies.items()]
    rows: list[tuple[Any, ...]] = []
    for id_, last_at, items, item_id, source, told in bulk_select(connection, t.stories, columns, places):
        more, before = copies[id_], msgspec.json.decode(told)
        sources, item_ids = ([source] if source else [], [item_id]) if before is None else before.values()
        stored = Copies(more.key, last_at, items, tuple(sources), tuple(item_ids))
        add_copies(stored, more)
        rows.append((stored.last_at, stored.items, _copies(stored), story_minute(id_), more.key, id_))
    bulk_update(connection, t.stories, ("last_at", "items", "copies"), rows)


def _open_stories(connection: Connection, partition: int) -> list[OpenRows]:
    """What was told of the open stories of a partition, in that order."""
    c = t.open_stories.c
    query = select(c.stories).where(c.partition == partition).order_by(c.id)
    return [_open_decoder.decode(rows) for rows in connection.scalars(query)]


def _waiting(connection: Connection, partition: int) -> dict[int, list[Contribution]]:
    """The contributions of a partition that wait for their minute to close, by minute, in the order they came in."""
    c = t.waiting.c
    found: dict[int, list[Contribution]] = {}
    query = select(c.minute, c.contributions).where(c.partition == partition).order_by(c.minute, c.offset)
    for minute, contributions in connection.execute(query):
        found.setdefault(minute, []).extend(_decoder.decode(contributions))
    return found


def partition_watermarks(connection: Connection) -> Mapping[int, int]:
    """Watermark (epoch ms of event time) of every partition that has been counted in."""
    return dict(connection.execute(select(t.partitions.c.partition, t.partitions.c.watermark)).all())
