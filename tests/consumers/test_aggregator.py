"""What the aggregator does with records: count them, or put aside what cannot be counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from faust.types import TP
from kafka import TopicPartition
from sqlalchemy import Engine, select

from consumers.aggregator import Aggregation, KafkaRecord, _Failure, _make_app, decode_batch, run_aggregator
from consumers.clients import admin
from consumers.dead_letters import read_original
from consumers.place import LogPlace
from consumers.rereading import WITHIN_S, SetBack
from consumers.topics import ensure_topics
from monitor.errors import BrokerError, StorageError
from monitor.records import Contribution, ContributionBatch, Rejected, SourceWatermark, encode
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.checkpoint import Applied, ContributionRecord, PartitionCheckpoint
from monitor.storage.dead_letters import LetterId, dead_letter_list
from monitor.storage.engine import open_engine, reading
from monitor.storage.migrate import upgrade
from monitor.storage.places import places
from tests.consumers.running import sending, until

AT = 28_400_000 * 60_000


def value(key: str = "topic:earnings", item_id: str = "a", at: int = AT, score: float = -0.5) -> bytes:
    """An encoded batch with one contribution."""
    one = Contribution(key=key, item_id=item_id, at=at, p_negative=0.7, score=score, negative=True, signature=bytes(48))
    sources = (SourceWatermark("news:0", AT, False),)
    return encode(ContributionBatch(contributions=(one,), sources=sources, source_count=1))


BAD = [
    None,
    b"",
    b"not json",
    b'{"contributions": 3}',
    b"[" * 100_000,
    value(key=""),
    value(key="k" * 161),
    value(item_id="i" * 257),
    value(item_id="a\x00b"),
    value(at=-1),
    value(at=1 << 60),
    value().replace(b"-0.5", b"1e999"),
]


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_counted_is_told_with_a_reason(bad: bytes | None) -> None:
    found = decode_batch(bad)
    assert isinstance(found, Rejected)
    assert found.code == "bad_contributions"
    assert found.reason.endswith(".")


@pytest.mark.kafka
def test_bad_records_are_put_aside_and_the_rest_is_counted(kafka_settings: Settings, store: Engine) -> None:
    ensure_topics(kafka_settings)
    topic = kafka_settings.topic("contributions")
    values = [value(item_id="a"), b"poison", value(item_id="b"), None]
    records = [KafkaRecord(topic, 2, offset, AT, b"k", found) for offset, found in enumerate(values)]
    aggregation = Aggregation(kafka_settings, store, threading.Event(), LogPlace("log", {}))
    try:
        aggregation.count(records)
        aggregation.count(records)  # redelivered
    finally:
        aggregation.close()
    with reading(store) as connection:
        waiting = connection.scalars(select(t.waiting.c.contributions)).all()
        letters = {letter.id for letter in dead_letter_list(connection)}
        place = connection.scalar(select(t.partitions.c.next_offset))
    taken_in = {c.item_id for row in waiting for c in msgspec.msgpack.decode(row, type=list[Contribution])}
    assert (taken_in, place) == ({"a", "b"}, 4)
    assert letters == {LetterId(topic, 2, 1), LetterId(topic, 2, 3)}
    original = read_original(kafka_settings, LetterId(topic, 2, 1))
    assert original is not None
    assert (original.value, original.code) == (b"poison", "bad_contributions")


def test_a_store_that_stays_away_is_an_error_and_not_a_silent_loop(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    empty = open_engine(f"sqlite:///{tmp_path / 'no-tables.db'}")
    settings = make_settings(kafka_bootstrap_servers="127.0.0.1:1", worker_outage_s=0.3)
    aggregation = Aggregation(settings, empty, threading.Event(), LogPlace("log", {}))
    with pytest.raises(StorageError, match="no tables"):
        aggregation.count([KafkaRecord("contributions", 0, 0, AT, None, value())])
    empty.dispose()


def test_a_gap_sets_reading_back_and_what_is_behind_it_is_left_out_until_it_comes(
    make_settings: Callable[..., Settings], store: Engine
) -> None:
    def records(*offsets: int) -> list[KafkaRecord]:
        return [KafkaRecord("contributions", 0, offset, AT, None, value(item_id=f"i{offset}")) for offset in offsets]

    def place() -> int | None:
        with reading(store) as connection:
            return connection.scalar(select(t.partitions.c.next_offset))

    aggregation = Aggregation(make_settings(), store, threading.Event(), LogPlace("log", {}))
    assert aggregation.count(records(0, 1)) == {}
    assert aggregation.count(records(3, 4)) == {0: 2}
    assert aggregation.count(records(5)) == {0: 2}  # was under way when reading was set back, and may undo it
    assert place() == 2
    assert aggregation.count(records(6, 2, 3, 3)) == {0: 2}  # a hole inside a batch is one, too
    assert place() == 2
    assert aggregation.count(records(1, 2, 3, 4)) == {}
    assert place() == 5
    assert aggregation.count(records(6)) == {0: 5}  # the next gap is a new one
    assert aggregation.count(records(5, 6)) == {}
    with reading(store) as connection:
        waiting = connection.scalars(select(t.waiting.c.contributions)).all()
    taken_in = [c.item_id for row in waiting for c in msgspec.msgpack.decode(row, type=list[Contribution])]
    assert sorted(taken_in) == [f"i{number}" for number in range(7)]


def test_partitions_that_come_and_go_are_not_waited_for(
    make_settings: Callable[..., Settings], store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.rereading.WITHIN_S", -1.0)
    settings = make_settings(kafka_bootstrap_servers="127.0.0.1:1")
    stopping, failure = threading.Event(), _Failure()
    aggregation = Aggregation(settings, store, stopping, LogPlace("log", {}))
    with ThreadPoolExecutor(1) as pool:
        app = _make_app(settings, 4, aggregation, pool, failure, SetBack(stopping, failure.note))
        for signal in (app.on_partitions_assigned, app.on_partitions_revoked):
            with pytest.raises(BrokerError, match="up to offset 0, but reading goes on at 3"):
                aggregation.count([KafkaRecord("contributions", 0, 3, AT, None, value())])
            assert isinstance(aggregation.overdue(lambda: {0}), BrokerError)
            asyncio.run(signal.send({TP("contributions", 0)}))
            assert aggregation.overdue(lambda: {0}) is None


def test_a_gap_is_not_overdue_while_the_store_is_waited_for(
    make_settings: Callable[..., Settings], store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BrokerError | None] = []
    aggregation = Aggregation(make_settings(), store, threading.Event(), LogPlace("log", {}))
    records = [KafkaRecord("contributions", 0, offset, AT, None, value(item_id=f"i{offset}")) for offset in range(4)]
    aggregation.count(records[3:])
    monkeypatch.setattr("consumers.rereading.WITHIN_S", -1.0)
    apply = PartitionCheckpoint.apply

    def slow(self: PartitionCheckpoint, wanted: Sequence[ContributionRecord]) -> Applied:
        seen.append(aggregation.overdue(lambda: {0}))
        return apply(self, wanted)

    monkeypatch.setattr(PartitionCheckpoint, "apply", slow)
    assert aggregation.overdue(lambda: {0}) is not None
    assert aggregation.count(records) == {}
    assert (seen, aggregation.overdue(lambda: {0})) == ([None], None)


def test_nor_for_the_time_that_another_partition_waited_for_the_store(
    make_settings: Callable[..., Settings], store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregation = Aggregation(make_settings(), store, threading.Event(), LogPlace("log", {}))
    monkeypatch.setattr("consumers.rereading.WITHIN_S", 0.5)
    aggregation.count([KafkaRecord("contributions", 0, 3, AT, None, value())])
    apply = PartitionCheckpoint.apply

    def slow(self: PartitionCheckpoint, wanted: Sequence[ContributionRecord]) -> Applied:
        time.sleep(0.6)
        return apply(self, wanted)

    monkeypatch.setattr(PartitionCheckpoint, "apply", slow)
    aggregation.count([KafkaRecord("contributions", 1, 0, AT, None, value())])
    assert aggregation.overdue(lambda: {0, 1}) is None
    time.sleep(0.6)
    assert aggregation.overdue(lambda: {0, 1}) is not None


@pytest.mark.kafka
def test_a_record_that_faust_passes_over_is_read_again(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a rebalance: the record is lost between the consumer and the agent, and later ones come."""
    partitions = range(ensure_topics(kafka_settings)["contributions"])
    taken = Aggregation.count
    lost: list[int] = []
    enough = threading.Event()

    def lossy(self: Aggregation, records: Iterable[KafkaRecord]) -> dict[int, int]:
        if enough.is_set():
            raise StorageError("Enough.")
        given = list(records)
        kept = [one for one in given if one.offset != 3 or one.partition in lost]
        lost.extend(one.partition for one in given if one.offset == 3)
        return taken(self, kept)

    def feed() -> None:
        store = open_engine(kafka_settings.database)
        upgrade(store)
        with sending(kafka_settings) as sender:

            def send(first: int, last: int) -> None:
                for number in range(first, last):
                    for partition in partitions:
                        sender.to("contributions", partition, value(item_id=f"{partition}-{number}"))
                sender.flush()

            def counted(number: int) -> bool:
                with reading(store) as connection:
                    return [place.next_offset for place in places(connection).values()] == [number] * len(partitions)

            try:
                for first in (0, 10):
                    send(first, first + 10)
                    until(lambda first=first: counted(first + 10))  # type: ignore[misc]
            finally:
                enough.set()
                send(20, 21)
        store.dispose()

    monkeypatch.setattr(Aggregation, "count", lossy)
    with ThreadPoolExecutor(1) as pool:
        fed = pool.submit(feed)
        with pytest.raises(StorageError, match="Enough"):
            run_aggregator(kafka_settings)
        fed.result()
    # Each of them was read a second time.
    assert sorted(lost) == sorted([*partitions, *partitions])


def _drop(
    monkeypatch: pytest.MonkeyPatch, dropping: Callable[[KafkaRecord], bool], ends: Callable[[], bool] = lambda: False
) -> None:
    """Lose records between the consumer and the agent; end the aggregator when `ends`."""
    taken = Aggregation.count

    def lossy(self: Aggregation, records: Iterable[KafkaRecord]) -> dict[int, int]:
        if ends():
            raise StorageError("Enough.")
        return taken(self, [one for one in records if not dropping(one)])

    monkeypatch.setattr(Aggregation, "count", lossy)


def _backlog(settings: Settings, records: int) -> None:
    with sending(settings) as sender:
        for number in range(records):
            sender.to("contributions", 0, value(item_id=f"i{number}"))


@pytest.mark.kafka
def test_a_record_that_is_passed_over_in_a_backlog_is_read_again(
    kafka_settings: Settings, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust still hands on what it has fetched when reading is set back."""
    records = 4_000
    _backlog(kafka_settings, records)
    lost, enough = [], threading.Event()

    def first_time(record: KafkaRecord) -> bool:
        if record.offset == 3:
            lost.append(record.partition)
        return record.offset == 3 and len(lost) == 1

    def next_offset() -> int:
        with reading(store) as connection:
            return sum(place.next_offset for place in places(connection).values())

    def watch() -> None:
        try:
            until(lambda: next_offset() == records)
        finally:
            enough.set()
            with sending(kafka_settings) as sender:
                sender.to("contributions", 0, value(item_id="last"))

    _drop(monkeypatch, first_time, enough.is_set)
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch)
        with pytest.raises(StorageError, match="Enough"):
            run_aggregator(kafka_settings)
        watched.result()
    with reading(store) as connection:
        waiting = connection.scalars(select(t.waiting.c.contributions)).all()
    taken_in = [c.item_id for row in waiting for c in msgspec.msgpack.decode(row, type=list[Contribution])]
    assert sorted(taken_in) == sorted(f"i{number}" for number in range(records))
    assert len(lost) > 1


@pytest.mark.kafka
def test_a_gap_ends_the_process_by_the_clock_when_nothing_comes_any_more(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.rereading.WITHIN_S", 2.0)
    _backlog(kafka_settings, 10)
    quiet = threading.Event()

    def dropped(record: KafkaRecord) -> bool:
        silent = quiet.is_set() or record.offset == 3
        if record.offset == 9:
            quiet.set()
        return silent

    _drop(monkeypatch, dropped)
    with pytest.raises(BrokerError, match="but reading goes on at 4"):
        run_aggregator(kafka_settings)


@pytest.mark.kafka
def test_what_the_log_has_deleted_is_not_waited_for(kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _backlog(kafka_settings, 10)

    def deleted(record: KafkaRecord) -> bool:
        if record.offset == 3:
            client = admin(kafka_settings)
            client.delete_records({TopicPartition(record.topic, record.partition): 5})
            client.close()
        return record.offset == 3

    _drop(monkeypatch, deleted)
    begun = time.monotonic()
    with pytest.raises(BrokerError, match="but reading goes on at 5"):
        run_aggregator(kafka_settings)
    assert time.monotonic() - begun < WITHIN_S / 2


@pytest.mark.kafka
def test_a_failing_agent_ends_the_process_with_an_error(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_topics(kafka_settings)
    with sending(kafka_settings) as sender:
        sender.to("contributions", 0, value())

    def fail(_self: Aggregation, _records: object) -> None:
        raise StorageError("The disk that holds the database is full.")

    monkeypatch.setattr(Aggregation, "count", fail)
    with pytest.raises(StorageError, match="disk that holds the database is full"):
        run_aggregator(kafka_settings)
