"""What the aggregator does with records: count them, or put aside what cannot be counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, select

from consumers.aggregator import Aggregation, KafkaRecord, decode_batch, run_aggregator
from consumers.dead_letters import read_original
from consumers.place import LogPlace
from consumers.rereading import WITHIN_S, Rereading
from consumers.topics import ensure_topics
from monitor.errors import BrokerError, StorageError
from monitor.records import Contribution, ContributionBatch, Rejected, SourceWatermark, encode
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.checkpoint import GapError
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


def test_a_gap_sets_reading_back_once_and_what_is_behind_it_is_left_out_until_it_comes(
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
    assert aggregation.count(records(5)) == {}  # was under way when reading was set back
    assert place() == 2
    assert aggregation.count(records(6, 2, 3, 3)) == {}  # a hole inside a batch is one, too
    assert place() == 2
    assert aggregation.count(records(1, 2, 3, 4)) == {}
    assert place() == 5
    assert aggregation.count(records(6)) == {0: 5}  # the next gap is a new one
    assert aggregation.count(records(5, 6)) == {}
    with reading(store) as connection:
        waiting = connection.scalars(select(t.waiting.c.contributions)).all()
    taken_in = [c.item_id for row in waiting for c in msgspec.msgpack.decode(row, type=list[Contribution])]
    assert sorted(taken_in) == [f"i{number}" for number in range(7)]


def test_a_gap_that_stays_is_an_error() -> None:
    now = 0.0
    rereading = Rereading(lambda: now)
    assert rereading.gap(GapError(0, 2, 3))
    now = WITHIN_S
    assert not rereading.gap(GapError(0, 2, 9))
    assert rereading.gap(GapError(1, 2, 3))
    now = WITHIN_S + 1
    with pytest.raises(BrokerError, match="up to offset 2, but reading goes on at 12"):
        rereading.gap(GapError(0, 2, 12))
    rereading.counted(0)
    assert rereading.gap(GapError(0, 2, 12))


def test_records_of_another_log_are_not_looked_for_again() -> None:
    with pytest.raises(BrokerError, match="reading goes on at 8"):
        Rereading().gap(GapError(0, 8, 8))


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
