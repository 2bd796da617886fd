"""One file of a partition's log: whole record batches, one after the other, with a sparse index in memory."""

from __future__ import annotations

import mmap
import os
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from consumers.broker.producers import PartitionProducers
from consumers.broker.wire import (
    HEADER_BYTES,
    BatchHeader,
    CorruptBatchError,
    ErrorCode,
    is_commit_marker,
    split_batches,
)
from monitor.telemetry import get_logger

__all__ = ["SUFFIX", "Segment"]

log = get_logger(__name__)

SUFFIX: Final = ".log"
INDEX_INTERVAL_BYTES: Final = 16 << 10
_NO_TIMESTAMP: Final = -1


class Segment:
    """A file named by its first offset. `size` (bytes) and `next_offset` are its end; offsets never go back in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base_offset = int(path.stem)
        self.next_offset = self.base_offset
        self.size = 0
        self.written_at = time.time()
        # One entry each interval of bytes: first offset, position, largest record time inside the interval (epoch ms).
        self._offsets = array("q")
        self._positions = array("q")
        self._latest = array("q")

    @classmethod
    def create(cls, folder: Path, base_offset: int) -> Segment:
        """A new empty file."""
        segment = cls(folder / f"{base_offset:020d}{SUFFIX}")
        segment.path.touch()
        return segment

    @classmethod
    def recover(cls, path: Path, producers: PartitionProducers, *, active: bool) -> Segment:
        """Open an existing file by reading its batch headers, and tell `producers` of them.

        In the active segment, the one that was being written, checksums are checked and what is not a whole batch is
        cut off.
        """
        segment = cls(path)
        stat = path.stat()
        segment.written_at = stat.st_mtime
        if stat.st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                segment._replay(data, producers, check_crc=active)
        lost = stat.st_size - segment.size
        if lost and active:
            log.warning("cut off an incomplete batch at the end of the log", file=str(path), bytes=lost)
            os.truncate(path, segment.size)
        elif lost:
            log.error("a damaged segment can be read only up to the damage", file=str(path), bytes_lost=lost)
        return segment

    def _replay(self, data: mmap.mmap, producers: PartitionProducers, *, check_crc: bool) -> None:
        # The views are released before the map is closed, also when a batch is damaged: hence a generator of its own.
        batches = split_batches(data, check_crc=check_crc)
        try:
            for position, header in batches:
                if header.base_offset < self.next_offset:
                    raise CorruptBatchError(ErrorCode.CORRUPT_MESSAGE, "an offset goes back")
                if header.control:
                    producers.ended(header, commit=is_commit_marker(data[position : position + header.size]))
                else:
                    producers.appended(header)
                self.added(header)
        except CorruptBatchError as damage:
            log.debug("end of the whole batches", file=str(self.path), reason=str(damage))
        finally:
            batches.close()

    def added(self, header: BatchHeader) -> None:
        """Take a batch that has been written to the end of the file into the index."""
        if not self._positions or self.size - self._positions[-1] >= INDEX_INTERVAL_BYTES:
            self._offsets.append(header.base_offset)
            self._positions.append(self.size)
            self._latest.append(_NO_TIMESTAMP)
        self._latest[-1] = max(self._latest[-1], header.max_timestamp)
        self.size += header.size
        self.next_offset = header.next_offset

    def headers_from(self, fd: int, position: int) -> Iterator[tuple[int, BatchHeader]]:
        """Position and header of the batches from the one at `position` to the end."""
        buffer, start = b"", position
        while position < self.size:
            if position + HEADER_BYTES > start + len(buffer):
                buffer, start = os.pread(fd, INDEX_INTERVAL_BYTES, position), position
            header = BatchHeader.read(buffer, position - start)
            yield position, header
            position += header.size

    def position_of(self, fd: int, offset: int) -> int:
        """Where the batch begins that holds `offset`, or the first one after it; `size` when there is none."""
        entry = bisect_right(self._offsets, offset) - 1
        start = self._positions[entry] if entry >= 0 else 0
        return next((at for at, header in self.headers_from(fd, start) if header.next_offset > offset), self.size)

    def batches_since(self, fd: int, timestamp: int) -> Iterator[tuple[int, BatchHeader]]:
        """Position and header of the batches with a record at or after `timestamp` (epoch ms)."""
        for entry, latest in enumerate(self._latest):
            if latest < timestamp:
                continue
            end = self._positions[entry + 1] if entry + 1 < len(self._positions) else self.size
            for position, header in self.headers_from(fd, self._positions[entry]):
                if position >= end:
                    break
                if header.max_timestamp >= timestamp:
                    yield position, header
