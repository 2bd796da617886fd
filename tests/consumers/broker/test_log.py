"""A partition's log on disk: what is appended is read back, also after a restart, whatever happened to the file."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from consumers.broker.log import OffsetOutOfRangeError, PartitionLog
from consumers.broker.producers import SequenceError
from consumers.broker.wire import CorruptBatchError, ErrorCode, control_batch, split_batches


def batch(
    values: list[bytes], *, at: int = 1000, producer: tuple[int, int, int] | None = None, transactional: bool = False
) -> bytes:
    """A producer's batch; `producer` is id, epoch and first sequence number."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=1 << 20)
    for index, value in enumerate(values):
        builder.append(timestamp=at + index, key=None, value=value, headers=[])
    if producer is not None:
        builder.set_producer_state(*producer, transactional)
    builder.close()
    return bytes(builder.buffer())


def read_all(log: PartitionLog, start: int = 0) -> list[tuple[int, bytes]]:
    """Offset and value of all records from `start` on."""
    found: list[tuple[int, bytes]] = []
    offset = max(start, log.start_offset)
    while offset < log.next_offset:
        data = log.read(offset, 500, log.next_offset)
        for records in MemoryRecords(data):
            found += [(r.offset, r.value) for r in records if r.offset >= offset]
        *_, (_, last) = split_batches(data)
        offset = last.next_offset
    return found


class LogMachine(RuleBasedStateMachine):
    """The log against a plain list, over appends, restarts, torn tails and deletions."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.model: list[bytes] = []
        self.start = 0
        self.log = self.open()

    def open(self) -> PartitionLog:
        return PartitionLog(Path(self.folder.name) / "p", start_offset=self.start, segment_bytes=400)

    @rule(values=st.lists(st.binary(max_size=120), min_size=1, max_size=5))
    def append(self, values: list[bytes]) -> None:
        assert self.log.append(batch(values)) == len(self.model)
        self.model += values

    @rule()
    def restart(self) -> None:
        self.log.close()
        self.log = self.open()

    @rule(garbage=st.binary(min_size=1, max_size=150))
    def restart_with_a_torn_tail(self, garbage: bytes) -> None:
        self.log.close()
        last = max(self.log.folder.iterdir())
        with last.open("ab") as file:
            file.write(garbage)
        self.log = self.open()

    @rule(values=st.lists(st.binary(max_size=50), min_size=1, max_size=3), data=st.data())
    def restart_with_half_a_batch(self, values: list[bytes], data: st.DataObject) -> None:
        whole = batch(values)
        self.log.close()
        last = max(self.log.folder.iterdir())
        with last.open("ab") as file:
            file.write(whole[: data.draw(st.integers(1, len(whole) - 1))])
        self.log = self.open()

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.start = self.log.delete_before(data.draw(st.integers(self.start, len(self.model))))

    @invariant()
    def same(self) -> None:
        if hasattr(self, "log"):
            assert (self.log.start_offset, self.log.next_offset) == (self.start, len(self.model))
            assert read_all(self.log) == list(enumerate(self.model))[self.start :]

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
            self.folder.cleanup()


TestLog = LogMachine.TestCase
TestLog.settings = hypothesis_settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.fixture
def log(tmp_path: Path) -> PartitionLog:
    return PartitionLog(tmp_path / "p", segment_bytes=1000)


def test_a_batch_sent_twice_is_in_the_log_once_also_after_a_restart(log: PartitionLog) -> None:
    first, second = batch([b"a", b"b"], producer=(7, 0, 0)), batch([b"c"], producer=(7, 0, 2))
    assert [log.append(first), log.append(second), log.append(first)] == [0, 2, 0]
    log.close()
    again = PartitionLog(log.folder)
    assert again.append(second) == 2
    assert [value for _, value in read_all(again)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("producer", "code"),
    [((7, 3, 5), ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER), ((7, 2, 1), ErrorCode.INVALID_PRODUCER_EPOCH)],
)
def test_a_gap_and_a_fenced_epoch_are_refused(log: PartitionLog, producer: Any, code: ErrorCode) -> None:
    log.append(batch([b"a"], producer=(7, 3, 0)))
    with pytest.raises(SequenceError) as refused:
        log.append(batch([b"b"], producer=producer))
    assert refused.value.code == code
    assert log.next_offset == 1


def test_damaged_and_marker_batches_are_refused(log: PartitionLog) -> None:
    damaged = bytearray(batch([b"a value"]))
    damaged[-3] ^= 0xFF
    with pytest.raises(CorruptBatchError):
        log.append(bytes(damaged))
    with pytest.raises(CorruptBatchError):
        log.append(bytes(control_batch(1, 0, commit=True, at_ms=0)))
    assert log.next_offset == 0


def test_transactions_are_remembered_over_a_restart(log: PartitionLog) -> None:
    log.append(batch([b"a"], producer=(7, 0, 0), transactional=True))
    log.end_transaction(7, 0, commit=False)
    log.append(batch([b"b"], producer=(8, 0, 0), transactional=True))
    log.close()
    again = PartitionLog(log.folder)
    assert again.last_stable_offset == 2
    assert [(a.producer_id, a.first_offset) for a in again.producers.aborted_from(0)] == [(7, 0)]
    again.end_transaction(8, 0, commit=True)
    assert again.last_stable_offset == again.next_offset == 4


def test_retention_drops_the_oldest_segments_whole(log: PartitionLog) -> None:
    for n in range(50):
        log.append(batch([bytes([n]) * 100]))
    before = log.size
    freed = log.retain(3000, float("inf"))
    assert 0 < log.size == before - freed
    assert 3000 <= log.size < 3000 + 1200
    assert [value[0] for _, value in read_all(log)] == list(range(log.start_offset, 50))
    log.close()
    assert PartitionLog(log.folder).start_offset == log.start_offset


def test_retention_by_age_leaves_an_empty_log_that_goes_on(log: PartitionLog) -> None:
    log.append(batch([b"old"]))
    log.retain(1 << 40, -1.0)
    assert (log.start_offset, log.next_offset, read_all(log)) == (1, 1, [])
    assert log.append(batch([b"new"])) == 1


def test_reading_outside_the_log_is_out_of_range(log: PartitionLog) -> None:
    log.append(batch([b"a"]))
    assert log.read(1, 100, 1) == b""
    with pytest.raises(OffsetOutOfRangeError):
        log.read(2, 100, 2)
    with pytest.raises(OffsetOutOfRangeError):
        log.delete_before(2)


def test_a_full_disk_leaves_the_log_as_it_was(log: PartitionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(batch([b"a"]))
    write = os.write

    def full(fd: int, data: Any) -> int:
        write(fd, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            log.append(batch([b"b"], producer=(7, 0, 0)))
    assert log.append(batch([b"b"], producer=(7, 0, 0))) == 1
    assert [value for _, value in read_all(log)] == [b"a", b"b"]


def test_time_lookup_in_many_segments_is_exact(log: PartitionLog) -> None:
    for n in range(60):
        log.append(batch([b"x" * 50, b"y" * 50], at=10_000 + 100 * n))
    found = log.offset_at(10_000 + 100 * 37 + 1)
    assert found is not None
    assert (found.offset, found.timestamp) == (75, 13_701)
    assert log.offset_at(99_999) is None
