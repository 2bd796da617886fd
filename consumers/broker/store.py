"""What the broker has to remember besides records: topics, committed offsets, transactions. A small SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from monitor.errors import BrokerError

__all__ = ["CommittedOffset", "MetadataStore", "StoredTopic", "TopicPartition", "Transaction", "TransactionState"]

FIRST_PRODUCER_ID: Final = 1000

_SCHEMA: Final = """
create table if not exists topics (name text primary key, partitions integer not null, configs text not null);
create table if not exists log_starts (
    topic text, partition integer, start integer not null, primary key (topic, partition)
) without rowid;
create table if not exists offsets (
    group_id text, topic text, partition integer, committed integer not null, metadata text,
    primary key (group_id, topic, partition)
) without rowid;
create table if not exists transactions (
    id text primary key, producer_id integer not null, epoch integer not null, timeout_ms integer not null,
    state text not null, started_at real not null, partitions text not null, offsets text not null
) without rowid;
create table if not exists producer_ids (next integer not null);
"""

TransactionState = Literal["empty", "ongoing", "committing", "aborting", "committed", "aborted"]


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class CommittedOffset(NamedTuple):
    """How far a group has come in a partition."""

    offset: int
    metadata: str | None = ""


@dataclass
class StoredTopic:
    """A topic: how many partitions it has and the settings that differ from the broker's."""

    name: str
    partitions: int
    configs: dict[str, str] = field(default_factory=dict)


@dataclass
class Transaction:
    """The state of one transactional id. `offsets` are those to be committed with it, by group."""

    id: str
    producer_id: int
    epoch: int
    timeout_ms: int
    state: TransactionState = "empty"
    started_at: float = 0.0
    partitions: set[TopicPartition] = field(default_factory=set)
    offsets: dict[str, dict[TopicPartition, CommittedOffset]] = field(default_factory=dict)


def _dump_offsets(transaction: Transaction) -> str:
    return json.dumps(
        [[group, *place, *committed] for group, of in transaction.offsets.items() for place, committed in of.items()]
    )


def _load_offsets(text: str) -> dict[str, dict[TopicPartition, CommittedOffset]]:
    offsets: dict[str, dict[TopicPartition, CommittedOffset]] = {}
    for group, topic, partition, offset, metadata in json.loads(text):
        offsets.setdefault(group, {})[TopicPartition(topic, partition)] = CommittedOffset(offset, metadata)
    return offsets


class MetadataStore:
    """The file at `path`, opened or begun. Every method that changes something has stored it when it returns.

    Methods raise `sqlite3.Error` when the disk is full or broken; opening raises `BrokerError`.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            # A killed process loses nothing; a power cut may lose the last moments, as it may of the log.
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise BrokerError(f"The embedded broker's file {path} cannot be used: {error}.") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Topics

    def topics(self) -> list[StoredTopic]:
        """All topics."""
        rows = self._db.execute("select name, partitions, configs from topics order by name")
        return [StoredTopic(name, partitions, json.loads(configs)) for name, partitions, configs in rows]

    def save_topic(self, topic: StoredTopic) -> None:
        """Insert or overwrite a topic."""
        self._db.execute(
            "insert into topics values (?, ?, ?) on conflict (name) do update "
            "set partitions = excluded.partitions, configs = excluded.configs",
            (topic.name, topic.partitions, json.dumps(topic.configs)),
        )

    def delete_topic(self, name: str) -> None:
        """Forget a topic and what groups have read of it."""
        with self.transaction():
            self._db.execute("delete from topics where name = ?", (name,))
            self._db.execute("delete from log_starts where topic = ?", (name,))
            self._db.execute("delete from offsets where topic = ?", (name,))

    def log_starts(self) -> dict[TopicPartition, int]:
        """Start offsets of the partitions of which records have been deleted."""
        rows = self._db.execute("select topic, partition, start from log_starts")
        return {TopicPartition(topic, partition): start for topic, partition, start in rows}

    def save_log_start(self, place: TopicPartition, start: int) -> None:
        """Remember a partition's start offset."""
        self._db.execute(
            "insert into log_starts values (?, ?, ?) on conflict do update set start = excluded.start", (*place, start)
        )

    # Committed offsets

    def offsets(self) -> dict[str, dict[TopicPartition, CommittedOffset]]:
        """Committed offsets by group."""
        found: dict[str, dict[TopicPartition, CommittedOffset]] = {}
        rows = self._db.execute("select group_id, topic, partition, committed, metadata from offsets")
        for group, topic, partition, offset, metadata in rows:
            found.setdefault(group, {})[TopicPartition(topic, partition)] = CommittedOffset(offset, metadata)
        return found

    def save_offsets(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Commit a group's offsets, all or none."""
        with self.transaction():
            self._db.executemany(
                "insert into offsets values (?, ?, ?, ?, ?) on conflict do update "
                "set committed = excluded.committed, metadata = excluded.metadata",
                [(group, *place, *committed) for place, committed in offsets.items()],
            )

    def delete_offsets(self, group: str, places: Iterable[TopicPartition]) -> None:
        """Forget how far a group has come in some partitions."""
        with self.transaction():
            self._db.executemany(
                "delete from offsets where group_id = ? and topic = ? and partition = ?",
                [(group, *place) for place in places],
            )

    # Producers and transactions

    def new_producer_id(self) -> int:
        """An id that no producer of this data folder has had."""
        with self.transaction():
            row = self._db.execute("select next from producer_ids").fetchone()
            producer_id = int(row[0]) if row else FIRST_PRODUCER_ID
            self._db.execute("delete from producer_ids")
            self._db.execute("insert into producer_ids values (?)", (producer_id + 1,))
        return producer_id

    def transactions(self) -> list[Transaction]:
        """All transactional ids."""
        rows = self._db.execute(
            "select id, producer_id, epoch, timeout_ms, state, started_at, partitions, offsets from transactions"
        )
        return [
            Transaction(
                name,
                producer_id,
                epoch,
                timeout_ms,
                state,
                started_at,
                {TopicPartition(*place) for place in json.loads(partitions)},
                _load_offsets(offsets),
            )
            for name, producer_id, epoch, timeout_ms, state, started_at, partitions, offsets in rows
        ]

    def save_transaction(self, transaction: Transaction) -> None:
        """Insert or overwrite the state of a transactional id."""
        row: tuple[Any, ...] = (
            transaction.id,
            transaction.producer_id,
            transaction.epoch,
            transaction.timeout_ms,
            transaction.state,
            transaction.started_at,
            json.dumps(sorted(transaction.partitions)),
            _dump_offsets(transaction),
        )
        self._db.execute("insert or replace into transactions values (?, ?, ?, ?, ?, ?, ?, ?)", row)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Statements inside are stored together or not at all."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("begin immediate")
        try:
            yield
            self._db.execute("commit")
        except BaseException:
            self._db.rollback()
            raise
