"""What the aggregator does with records: count them, or put aside what cannot be counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, select

from consumers.aggregator import Aggregation, KafkaRecord, decode_batch, run_aggregator
from consumers.dead_letters import read_original
from consumers.place import LogPlace
from consumers.topics import ensure_topics
from monitor.errors import StorageError
from monitor.records import Contribution, ContributionBatch, Rejected, SourceWatermark, encode
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.dead_letters import LetterId, dead_letter_list
from monitor.storage.engine import open_engine, reading

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


@pytest.mark.kafka
def test_a_failing_agent_ends_the_process_with_an_error(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from consumers.clients import producer

    ensure_topics(kafka_settings)
    client = producer(kafka_settings)
    client.send(kafka_settings.topic("contributions"), value(), partition=0).get(10)
    client.close()

    def fail(_self: Aggregation, _records: object) -> None:
        raise StorageError("The disk that holds the database is full.")

    monkeypatch.setattr(Aggregation, "count", fail)
    with pytest.raises(StorageError, match="disk that holds the database is full"):
        run_aggregator(kafka_settings)
