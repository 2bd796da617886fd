"""Records that the Kafka client cannot decode: handed out one by one or as a batch, and never the end of a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.record import MemoryRecords, default_records
from kafka.record.default_records import DefaultRecordBatchBuilder
from sqlalchemy import Engine

from consumers.clients import producer
from consumers.topics import ensure_topics
from consumers.unreadable import Unreadable, hand_out_unreadable
from monitor.errors import BrokerError
from monitor.records import encode
from monitor.settings import Settings
from tests.consumers.running import committed, letters, news, records, sending, stored, until, working
from tests.consumers.word_scorer import WordScorer

PLACE = TopicPartition("t.news", 3)
BASE = 1000
LZ4 = 3
# Long enough to be worth a compression.
VALUE = b"value%d" + b"." * 300


class BadName(str):
    """A header's name that is not UTF-8 on the wire, as a sender in C may write it."""

    def encode(self, *_: object, **__: object) -> bytes:
        return b"\xff\xfe"


def batch(*names: str, codec: int = 0, base: int = BASE) -> bytearray:
    """A batch of as many records as names of headers, as it lies in a log."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
    for number, name in enumerate(names):
        builder.append(number, 7, b"key%d" % number, VALUE % number, [(name, b"x")])
    made = bytearray(builder.build())
    made[0:8] = base.to_bytes(8, "big")
    return made


def resealed(made: bytearray) -> bytearray:
    """The batch with a check sum that fits what is in it now."""
    made[17:21] = default_records.calc_crc32c(memoryview(made)[21:]).to_bytes(4, "big")
    return made


def read(data: bytes, fetch_offset: int = BASE) -> tuple[list[Any], int]:
    """What a poll hands out, and the offset that it would go on from."""
    fetcher = SimpleNamespace(PartitionRecords=Fetcher.PartitionRecords)
    hand_out_unreadable(SimpleNamespace(_fetcher=fetcher))
    parsed = fetcher.PartitionRecords(fetch_offset, PLACE, MemoryRecords(bytes(data)), check_crcs=True)
    found = parsed.take()
    if parsed:
        # What went wrong behind good records is told by the next poll.
        found += parsed.take()
    return found, parsed.next_fetch_offset


@pytest.mark.parametrize("codec", [0, LZ4])
def test_only_the_record_whose_header_is_wrong_is_unreadable(codec: int) -> None:
    found, position = read(batch("a", "b", BadName("c"), "d", codec=codec) + batch("e", base=BASE + 4))
    assert [record.offset for record in found] == [BASE, BASE + 1, BASE + 2, BASE + 3, BASE + 4]
    assert [isinstance(record.value, Unreadable) for record in found] == [False, False, True, False, False]
    assert position == BASE + 5
    bad = found[2]
    assert (bad.key, bytes(bad.value), bad.timestamp, bad.headers) == (b"key2", VALUE % 2, 7, [])
    assert bad.value.reason.startswith("The record at t.news:3:1002 cannot be decoded: ")
    assert "utf-8" in bad.value.reason


def test_reading_on_behind_it_finds_what_follows() -> None:
    found, position = read(batch("a", BadName("b"), "c"), fetch_offset=BASE + 2)
    assert [(record.offset, record.value) for record in found] == [(BASE + 2, VALUE % 2)]
    assert position == BASE + 3
    # Nothing lies behind it in the batch: the next one comes.
    found, position = read(batch("a", BadName("b")) + batch("c", base=BASE + 2), fetch_offset=BASE + 2)
    assert [(record.offset, record.value) for record in found] == [(BASE + 2, VALUE % 0)]


def damaged_length() -> bytearray:
    """Two records, the second of which claims to be longer than the batch."""
    made = batch("a", "b")
    at = bytes(made).index(b"value1")
    # The length of the whole comes before attributes, two deltas, the key with its length and the value's length.
    start = at - 2 - len(b"key1") - 1 - 3 - 2
    made[start : start + 2] = b"\xfe\x7f"
    return resealed(made)


def damaged_compression() -> bytearray:
    made = batch("a", "b", codec=LZ4)
    made[-20:] = b"\x00" * 20
    return resealed(made)


def damaged_log() -> bytearray:
    made = batch("a", "b")
    made[-1] ^= 0xFF
    return made


@pytest.mark.parametrize(
    ("made", "good", "why"),
    [
        (damaged_length(), 1, "from offset 1001 to 1001"),
        (damaged_compression(), 0, "from offset 1000 to 1001"),
        (damaged_log(), 0, "its check sum is wrong"),
    ],
    ids=["length", "compression", "check sum"],
)
def test_what_no_record_can_be_told_in_is_kept_as_it_lay_in_the_log(made: bytearray, good: int, why: str) -> None:
    found, position = read(made + batch("c", base=BASE + 2))
    assert [record.offset for record in found] == [BASE + n for n in range(good)] + [BASE + good, BASE + 2]
    rest = found[good]
    assert bytes(rest.value) == bytes(made)
    assert why in rest.value.reason
    assert rest.value.reason.startswith("The records on t.news:3 from offset")
    assert position == BASE + 3


def test_bytes_behind_the_last_record_of_a_batch_cost_nothing() -> None:
    made = batch("a", "b") + b"\x00\x00"
    made[8:12] = (len(made) - 12).to_bytes(4, "big")
    found, position = read(resealed(made))
    assert [record.value for record in found] == [VALUE % 0, VALUE % 1]
    assert position == BASE + 2


def test_a_codec_that_is_not_installed_is_said_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    made = batch("a", codec=LZ4)
    monkeypatch.setattr("kafka.codec.has_lz4", lambda: False)
    with pytest.raises(BrokerError, match=r"t\.news:3 from offset 1000 on cannot be read: Libraries for lz4") as told:
        read(made)
    assert "doctor" in told.value.hint


def test_what_is_no_batch_at_all_is_said_with_its_place() -> None:
    with pytest.raises(BrokerError, match=r"t\.news:3 from offset 1001 on is no batch"):
        read(batch("a") + b"\x00" * 8 + (4).to_bytes(4, "big") + b"\x00" * 4)


@pytest.mark.kafka
@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_a_worker_reads_on_behind_a_header_that_is_not_utf8_whatever_the_codec(
    kafka_settings: Settings, store: Engine, codec: str | None
) -> None:
    ensure_topics(kafka_settings)
    topic = kafka_settings.topic("news")
    strange = producer(kafka_settings, compression_type=codec)
    with sending(kafka_settings) as sender:
        for number in range(20):
            name = BadName("h") if number == 7 else "h"
            item = news(number)
            strange.send(topic, encode(item), item.id.encode(), [(name, b"x")], 0)
        strange.flush(timeout=30)
        strange.close()
        sender.item(news(99))
        sender.flush()
        with working(kafka_settings, WordScorer(), store):
            until(lambda: len(stored(store)) == 20 and sum(committed(kafka_settings).values()) == 21)
    assert set(stored(store)) == {f"i{n}" for n in range(20) if n != 7} | {"i99"}
    assert letters(store) == {(topic, 0, 7): "unreadable"}
    (dead,) = {record.key: record for record in records(kafka_settings, "dead-letters")}.values()
    assert dead.key == b"i7"
    assert dead.value == encode(news(7))
    assert f"{topic}:0:7" in dict(dead.headers)["reason"].decode()
