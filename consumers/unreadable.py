"""What the Kafka client cannot decode, handed out as what it is instead of ending whoever reads it.

kafka-python 3.0.12 raises out of `poll` when a record of a batch cannot be decoded (a header's name that is not UTF-8,
a length that is wrong, a damaged compression), says neither which nor where, and does not return from the poll after
that. Since nothing is committed, every worker that takes the partition over ends in the same way. A broker checks
nothing of all this: it keeps batches as producers send them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.util import decode_varint

from monitor.errors import BrokerError
from monitor.telemetry import get_logger

__all__ = ["Unreadable", "hand_out_unreadable"]

log = get_logger(__name__)

# Message format of Kafka 0.11 and later; brokers from 4.0 on have no other.
MAGIC: Final = 2


class Unreadable(bytes):
    """Stands for a record's value: that of a record whose headers cannot be decoded, or a batch as it lies in the log.

    `reason` is one sentence that names topic, partition and offset.
    """

    reason: str = ""

    @classmethod
    def of(cls, value: bytes, reason: str) -> Unreadable:
        """With its reason."""
        made = cls(value)
        made.reason = reason
        return made


def hand_out_unreadable(client: KafkaConsumer) -> None:
    """Make a consumer's polls hand out what it cannot decode: one record with an `Unreadable` value for each such
    record where its batch can be read on behind it, else one for the rest of the batch.

    Its polls raise `BrokerError`, with the place in it, where a codec is not installed and where no batch can be made
    out at all.
    """
    fetcher = client._fetcher
    original = fetcher.PartitionRecords

    def parse(fetch_offset: int, place: TopicPartition, records: Any, **options: Any) -> Any:
        return original(fetch_offset, place, _Records(records, place, fetch_offset), **options)

    fetcher.PartitionRecords = parse


class _Records:
    """In the place of kafka-python's `MemoryRecords`: its batches, each with a way round what is damaged in it."""

    def __init__(self, records: Any, place: TopicPartition, offset: int) -> None:
        self._records = records
        self._place = place
        self._offset = offset

    def next_batch(self) -> Any:
        raw = self._records._next_slice
        try:
            batch = self._records.next_batch()
        except Exception as error:
            raise BrokerError(
                f"What lies on {_name(self._place)} from offset {self._offset} on is no batch: {_told(error)}.",
                "The broker's log is damaged there; move the consumer group past it (kafka-consumer-groups).",
            ) from error
        if batch is None or batch.magic != MAGIC or batch.is_control_batch:
            return batch
        self._offset = batch.next_offset
        return _Batch(batch, raw, self._place)


class _Batch:
    """In the place of kafka-python's `DefaultRecordBatch`."""

    def __init__(self, batch: DefaultRecordBatch, raw: memoryview, place: TopicPartition) -> None:
        self._batch = batch
        self._raw = raw
        self._place = place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def validate_crc(self) -> bool:
        """Told by what is handed out."""
        return True

    def __iter__(self) -> Iterator[DefaultRecord]:
        batch, last = self._batch, self._batch.base_offset - 1
        try:
            if not batch.validate_crc():
                raise CorruptRecordError("its check sum is wrong")
            records = iter(batch)
        except UnsupportedCodecError as error:
            raise BrokerError(
                f"The records on {_name(self._place)} from offset {last + 1} on cannot be read: {_told(error)}.",
                "`sentiment-monitor doctor` says which package is missing.",
            ) from error
        except Exception as error:  # noqa: BLE001 - a decompressor may raise nearly anything
            yield self._rest(last, error)
            return
        while True:
            try:
                for record in records:
                    last = record.offset
                    yield record
                return
            except CorruptRecordError as error:
                if batch._next_record_index >= batch.records_count:
                    log.warning("a batch is longer than its records", place=_name(self._place), offset=last)
                    return
                found = self._skip(last, error)
                if found is None:
                    yield self._rest(last, error)
                    return
                last = found.offset
                yield found

    def _skip(self, last: int, error: Exception) -> DefaultRecord | None:
        """The record at which decoding stands, without its headers; None where it does not say where it ends."""
        batch = self._batch
        buffer = batch._buffer
        try:
            length, begin = decode_varint(buffer, batch._pos)
            _, at = decode_varint(buffer, begin)
            delta_ms, at = decode_varint(buffer, at)
            delta, at = decode_varint(buffer, at)
            key, at = _bytes(buffer, at)
            value, at = _bytes(buffer, at)
        except (ValueError, IndexError):
            return None
        end, offset = begin + length, batch.base_offset + delta
        if not at <= end <= len(buffer) or not last < offset <= batch.last_offset:
            return None
        batch._pos = end
        batch._next_record_index += 1
        reason = f"The record at {_name(self._place)}:{offset} cannot be decoded: {_told(error)}."
        return _made(offset, batch.first_timestamp + delta_ms, key, Unreadable.of(value or b"", reason))

    def _rest(self, last: int, error: Exception) -> DefaultRecord:
        batch, first = self._batch, last + 1
        reason = (
            f"The records on {_name(self._place)} from offset {first} to {batch.last_offset} cannot be decoded: "
            f"{_told(error)}. This is their batch as it lay in the log."
        )
        return _made(first, batch.max_timestamp, None, Unreadable.of(bytes(self._raw), reason))


def _name(place: TopicPartition) -> str:
    return f"{place.topic}:{place.partition}"


def _told(error: Exception) -> str:
    """What a library has to say, on one line and without its error's name and quotes."""
    return " ".join(str(error.args[0] if error.args else type(error).__name__).split())[:200]


def _bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(buffer, at)
    return (bytes(buffer[at : at + length]), at + length) if length >= 0 else (None, at)


def _made(offset: int, timestamp: int, key: bytes | None, value: Unreadable) -> DefaultRecord:
    return DefaultRecord(len(value), offset, timestamp, DefaultRecordBatch.CREATE_TIME, key, value, [])
