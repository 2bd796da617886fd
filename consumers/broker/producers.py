"""What a partition remembers of its producers: sequence numbers (idempotence) and transactions.

Nothing of this is stored by itself: all of it stands in the log's batch headers, and is rebuilt from them at start.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from consumers.broker.wire import NO_PRODUCER, BatchHeader, ErrorCode

__all__ = ["AbortedTransaction", "PartitionProducers", "SequenceError"]

# As many as a producer may have in flight: a retried batch is always among them.
REMEMBERED_BATCHES: Final = 5
MAX_PRODUCERS: Final = 10_000
_WRAP: Final = 0x7FFFFFFF


class SequenceError(Exception):
    """A batch that is out of its producer's order, or of a producer that has been fenced."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.code = code


class AbortedTransaction(NamedTuple):
    """Records of `producer_id` from `first_offset` up to the marker at `last_offset` are not to be read."""

    producer_id: int
    first_offset: int
    last_offset: int


class _Batch(NamedTuple):
    first_sequence: int
    last_sequence: int
    base_offset: int


@dataclass
class _Producer:
    epoch: int
    batches: deque[_Batch] = field(default_factory=lambda: deque(maxlen=REMEMBERED_BATCHES))


class PartitionProducers:
    """Producers of one partition. `open` maps a producer in mid-transaction to its first offset."""

    def __init__(self) -> None:
        self._producers: OrderedDict[int, _Producer] = OrderedDict()
        self.open: dict[int, int] = {}
        self._aborted: list[AbortedTransaction] = []

    def duplicate_of(self, header: BatchHeader) -> int | None:
        """Base offset under which this batch was appended before; None for a new one that is next in order.

        Raises `SequenceError` for one that is neither. A producer that is not remembered may start anywhere: its
        earlier batches have been dropped by retention.
        """
        known = self._producers.get(header.producer_id)
        if header.producer_id == NO_PRODUCER or known is None:
            return None
        if header.producer_epoch < known.epoch:
            raise SequenceError(ErrorCode.INVALID_PRODUCER_EPOCH)
        if header.producer_epoch > known.epoch:
            if header.base_sequence != 0:
                raise SequenceError(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER)
            return None
        for batch in known.batches:
            if (batch.first_sequence, batch.last_sequence) == (header.base_sequence, header.last_sequence):
                return batch.base_offset
        if known.batches and header.base_sequence != (known.batches[-1].last_sequence + 1) & _WRAP:
            raise SequenceError(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER)
        return None

    def appended(self, header: BatchHeader) -> None:
        """Take note of a data batch that is in the log now, under `header.base_offset`."""
        if header.producer_id == NO_PRODUCER:
            return
        producer = self._of_epoch(header.producer_id, header.producer_epoch)
        producer.batches.append(_Batch(header.base_sequence, header.last_sequence, header.base_offset))
        if header.transactional:
            self.open.setdefault(header.producer_id, header.base_offset)

    def ended(self, header: BatchHeader, *, commit: bool) -> None:
        """Take note of a transaction's end marker at `header.base_offset`."""
        self._of_epoch(header.producer_id, header.producer_epoch)
        first = self.open.pop(header.producer_id, None)
        if first is not None and not commit:
            self._aborted.append(AbortedTransaction(header.producer_id, first, header.base_offset))

    def _of_epoch(self, producer_id: int, epoch: int) -> _Producer:
        producer = self._producers.get(producer_id)
        if producer is None or producer.epoch != epoch:
            producer = self._producers[producer_id] = _Producer(epoch)
        self._producers.move_to_end(producer_id)
        while len(self._producers) > MAX_PRODUCERS:
            self._producers.popitem(last=False)
        return producer

    def last_stable(self, next_offset: int) -> int:
        """Offset below which every transaction has ended."""
        return min(self.open.values(), default=next_offset)

    def aborted_from(self, offset: int) -> list[AbortedTransaction]:
        """Aborted transactions that reach to `offset` or beyond."""
        return [aborted for aborted in self._aborted if aborted.last_offset >= offset]

    def forget_before(self, offset: int) -> None:
        """Drop aborted transactions whose records are all gone."""
        self._aborted = self.aborted_from(offset)
