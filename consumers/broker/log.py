"""A partition's log: record batches in files, read from disk when they are asked for.

A partition is a folder of segments. The last one is appended to; when it is full a new one is begun, and retention
drops old ones whole. What is in memory, a sparse index and `PartitionProducers`, is rebuilt from the batch headers
when the log is opened. A batch that a kill or a full disk cut off is removed then; all that was acknowledged stands
before it.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from kafka.record import MemoryRecords

from consumers.broker.producers import PartitionProducers
from consumers.broker.segment import SUFFIX, Segment
from consumers.broker.wire import BatchHeader, CorruptBatchError, ErrorCode, control_batch, split_batches, stamp_batch

__all__ = ["OffsetOutOfRangeError", "PartitionLog", "TimedOffset"]

SEGMENT_BYTES: Final = 64 << 20


class OffsetOutOfRangeError(Exception):
    """An offset before the log's start or after its end."""


class TimedOffset(NamedTuple):
    """A record's offset and time (epoch ms)."""

    offset: int
    timestamp: int


class PartitionLog:
    """The log in `folder`, opened or begun.

    Raises `OSError` where the file system does; a failed append leaves the log as it was before.
    """

    def __init__(self, folder: Path, *, start_offset: int = 0, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self.producers = PartitionProducers()
        self._segment_bytes = segment_bytes
        self._listeners: set[Callable[[], None]] = set()
        self._unsynced = False
        folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(folder.glob(f"*{SUFFIX}"))
        self._segments = [Segment.recover(path, self.producers, active=path is paths[-1]) for path in paths] or [
            Segment.create(folder, start_offset)
        ]
        self.start_offset = min(max(start_offset, self._segments[0].base_offset), self.next_offset)
        self._active_fd = os.open(self._active.path, os.O_RDWR | os.O_APPEND)

    @property
    def _active(self) -> Segment:
        return self._segments[-1]

    @property
    def next_offset(self) -> int:
        """Offset that the next record gets (the high watermark: there are no replicas to wait for)."""
        return self._active.next_offset

    @property
    def last_stable_offset(self) -> int:
        """Where a reader of committed records has to stop."""
        return self.producers.last_stable(self.next_offset)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    # Appending

    def append(self, records: bytes) -> int:
        """Append a producer's batches; returns the base offset of the first. A batch sent twice is in the log once.

        Raises `CorruptBatchError`, `SequenceError` or `OSError`.
        """
        batches = list(split_batches(records))
        if any(header.control for _, header in batches):
            raise CorruptBatchError(ErrorCode.INVALID_RECORD, "only the broker writes markers")
        first = -1
        for position, header in batches:
            base = self.producers.duplicate_of(header)
            if base is None:
                base = self._write(bytearray(memoryview(records)[position : position + header.size]), header)
                self.producers.appended(header._replace(base_offset=base))
            first = base if first < 0 else first
        self._wake()
        return first

    def end_transaction(self, producer_id: int, producer_epoch: int, *, commit: bool) -> None:
        """Append the marker that ends this producer's open transaction. Raises `OSError`."""
        batch = control_batch(producer_id, producer_epoch, commit=commit, at_ms=int(time.time() * 1000))
        header = BatchHeader.read(batch)
        base = self._write(batch, header)
        self.producers.ended(header._replace(base_offset=base), commit=commit)
        self._wake()

    def _write(self, batch: bytearray, header: BatchHeader) -> int:
        if self._active.size and self._active.size + len(batch) > self._segment_bytes:
            self._roll()
        segment, base = self._active, self.next_offset
        stamp_batch(batch, base)
        try:
            written = os.write(self._active_fd, batch)
            if written < len(batch):
                # Only a full disk writes less than it was given; the rest of the error comes with the next write.
                written += os.write(self._active_fd, memoryview(batch)[written:])
        except OSError:
            os.ftruncate(self._active_fd, segment.size)
            raise
        segment.added(header._replace(base_offset=base))
        segment.written_at = time.time()
        self._unsynced = True
        return base

    def _roll(self) -> None:
        fresh = Segment.create(self.folder, self.next_offset)
        fd = os.open(fresh.path, os.O_RDWR | os.O_APPEND)
        os.fsync(self._active_fd)
        os.close(self._active_fd)
        self._segments.append(fresh)
        self._active_fd = fd

    def take_unsynced(self) -> int | None:
        """A file descriptor to fsync and close, in any thread; None when nothing was appended since the last one.

        A killed process loses nothing without it, a power cut would.
        """
        if not self._unsynced:
            return None
        self._unsynced = False
        return os.dup(self._active_fd)

    # Reading

    @contextmanager
    def _file(self, segment: Segment) -> Iterator[int]:
        if segment is self._active:
            yield self._active_fd
            return
        fd = os.open(segment.path, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)

    def _segments_from(self, offset: int) -> list[Segment]:
        first = bisect_right(self._segments, offset, key=lambda segment: segment.base_offset) - 1
        return self._segments[max(first, 0) :]

    def read(self, offset: int, max_bytes: int, up_to: int) -> bytes:
        """Whole batches from the one that holds `offset`, below the offset `up_to`: at most `max_bytes`, but one at
        least if there is one. Raises `OffsetOutOfRangeError` or `OSError`."""
        if not self.start_offset <= offset <= self.next_offset:
            raise OffsetOutOfRangeError
        for segment in self._segments_from(offset):
            if segment.next_offset > offset and offset < up_to:
                with self._file(segment) as fd:
                    return self._read(segment, fd, offset, max_bytes, up_to)
        return b""

    @staticmethod
    def _read(segment: Segment, fd: int, offset: int, max_bytes: int, up_to: int) -> bytes:
        position = segment.position_of(fd, offset)
        data = os.pread(fd, min(max_bytes, segment.size - position), position)
        end = 0
        while end < len(data):
            try:
                header = BatchHeader.read(data, end)
            except CorruptBatchError:  # cut off by max_bytes in mid-header
                break
            if header.base_offset >= up_to or (end and end + header.size > len(data)):
                break
            end += header.size
        if not end and position < segment.size:
            _, header = next(segment.headers_from(fd, position))
            end = header.size if header.base_offset < up_to else 0
        return data[:end] if end <= len(data) else os.pread(fd, end, position)

    def offset_at(self, timestamp: int) -> TimedOffset | None:
        """The first record whose time is `timestamp` (epoch ms) or later; None when there is none."""
        for segment in self._segments:
            with self._file(segment) as fd:
                for position, header in segment.batches_since(fd, timestamp):
                    if header.next_offset <= self.start_offset or header.control:
                        continue
                    for batch in MemoryRecords(os.pread(fd, header.size, position)):
                        for record in batch:
                            if record.timestamp >= timestamp and record.offset >= self.start_offset:
                                return TimedOffset(record.offset, record.timestamp)
        return None

    # Forgetting

    def delete_before(self, offset: int) -> int:
        """Forget records below `offset` (-1: all); returns the new start. Raises `OffsetOutOfRangeError`."""
        wanted = self.next_offset if offset < 0 else offset
        if wanted > self.next_offset:
            raise OffsetOutOfRangeError
        self.start_offset = max(self.start_offset, wanted)
        self._drop_unreachable()
        return self.start_offset

    def retain(self, max_bytes: int, max_age_s: float) -> int:
        """Drop segments that are older, or more than may be kept; returns the bytes freed.

        A segment's age is the time since it was last written to, not that of its records: a replay of old news has
        to stay as long as any other. Open transactions are kept.
        """
        before, now = self.size, time.time()
        excess = before - max_bytes
        start = self.start_offset
        for segment in self._segments:
            expired = now - segment.written_at > max_age_s
            if not (expired or excess >= segment.size > 0) or segment.next_offset > self.last_stable_offset:
                break
            start = segment.next_offset
            excess -= segment.size
        if start > self.start_offset:
            self.delete_before(start)
        return before - self.size

    def _drop_unreachable(self) -> None:
        if self._active.size and self._active.next_offset <= self.start_offset:
            self._roll()
        while len(self._segments) > 1 and self._segments[0].next_offset <= self.start_offset:
            self._segments.pop(0).path.unlink(missing_ok=True)
        self.producers.forget_before(self.start_offset)

    # Waiting for more

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` at every append until `unlisten`."""
        self._listeners.add(wake)

    def unlisten(self, wake: Callable[[], None]) -> None:
        """No more calls."""
        self._listeners.discard(wake)

    def _wake(self) -> None:
        for wake in tuple(self._listeners):
            wake()

    def close(self) -> None:
        """Sync and close; waiting readers are woken."""
        self._wake()
        try:
            os.fsync(self._active_fd)
        finally:
            os.close(self._active_fd)
