"""Gaps in what is read: a partition is read again from the store's place before a gap is taken for a loss.

Faust passes the record over that it is handing on when a rebalance begins, goes on with those that it had fetched
behind it, and refuses the missed one when it comes again (`faust.transport.consumer.Consumer._drain_messages`). What is
missing is still in the log then: reading has to be set back.

Once may not be enough. The loop that hands records on notes how far it is after every record, so that one that it still
holds undoes the setting back; and after a rebalance Faust itself goes to the acknowledged place, which may lie beyond
the store's, since records that are left out are acknowledged, too. So reading is set back at every gap, until records
come from the store's place on. Ways to know that they never will: the log begins behind that place, or `WITHIN_S`
seconds have passed in which nothing was being counted, whether anything comes or not. A broker that goes away meanwhile
for longer ends it, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from aiokafka.errors import KafkaError

from monitor.errors import BrokerError
from monitor.storage.checkpoint import GapError

__all__ = ["DRAIN_S", "WITHIN_S", "Rereading", "SetBack"]

# Behind the place that reading was set back to there may be as many records under way as the buffers hold: well under
# a second of counting. The rest is for setting back some twenty times.
WITHIN_S: Final = 30.0
# Faust lets go of what it has fetched of a partition in well under this, unless its buffers are full.
DRAIN_S: Final = 0.3


def _lost(partition: int, stored: int, found: int) -> BrokerError:
    return BrokerError(
        f"Partition {partition} of contributions was counted up to offset {stored}, but reading goes on at {found}.",
        "Stop every aggregator and start one: it reads on from where the store is.",
    )


class Rereading:
    """The partitions whose reading has not come to the store's place yet. `overdue` and `forget` take any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[int, tuple[float, GapError]] = {}

    def gap(self, gap: GapError) -> bool:
        """Take a gap in; whether it is the partition's first since it was last counted.

        Raises `BrokerError` when it cannot be closed by reading again: what comes is no later than the store's place,
        or `WITHIN_S` seconds have passed since the first.
        """
        if gap.found <= gap.stored:
            raise _lost(gap.partition, gap.stored, gap.found) from gap
        first = gap.partition not in self._open
        since = self._open.get(gap.partition, (self._clock(), gap))[0]
        self._open[gap.partition] = since, gap
        if self._clock() - since > WITHIN_S:
            raise _lost(gap.partition, gap.stored, gap.found) from gap
        return first

    def spent(self, seconds: float) -> None:
        """So long nothing could come of any partition, since records were counted or waited for the store."""
        # What is forgotten meanwhile, in another thread, stays so: that puts a new dictionary in its place.
        opened = self._open
        for partition, (since, gap) in list(opened.items()):
            opened[partition] = since + seconds, gap

    def counted(self, partition: int, offset: int) -> None:
        """A record at `offset` was counted, or had been: the partition goes on if that is no earlier than the gap."""
        found = self._open.get(partition)
        if found is not None and offset >= found[1].stored:
            self._open.pop(partition, None)

    def overdue(self, assigned: Callable[[], Collection[int]]) -> BrokerError | None:
        """What to end with if a gap has been open for longer than `WITHIN_S` seconds in a partition that is `assigned`.

        A gap of another one is of a batch that was counted when its partition had just been taken away.
        """
        late = [gap for since, gap in list(self._open.values()) if self._clock() - since > WITHIN_S]
        ours = assigned() if late else ()
        return next((_lost(gap.partition, gap.stored, gap.found) for gap in late if gap.partition in ours), None)

    def forget(self) -> None:
        """Partitions come and go: reading begins anew."""
        self._open = {}


class SetBack:
    """Sets Faust's reading back, each partition in a task of its own, so that others are counted meanwhile.

    `failed` is told, in the loop's thread, why reading cannot go on: `BrokerError` where the log begins behind the
    place, or whatever else goes wrong while `stopping` is not set.
    """

    def __init__(self, stopping: threading.Event, failed: Callable[[Exception], None]) -> None:
        self._stopping = stopping
        self._failed = failed
        self._tasks: dict[Any, asyncio.Task[None]] = {}

    def start(self, consumer: Any, places: Mapping[Any, int]) -> None:
        """Begin to set partitions (`TP`) back to these offsets, except where that is under way. Does not wait."""
        for partition, offset in places.items():
            task = self._tasks.get(partition)
            if task is None or task.done():
                self._tasks[partition] = asyncio.ensure_future(self._one(consumer, partition, offset))

    async def _one(self, consumer: Any, partition: Any, offset: int) -> None:
        try:
            await self._set_back(consumer, partition, offset)
        except (TimeoutError, KafkaError):
            # It has gone to another process, or the broker does not answer: the next gap, or the clock, tells.
            return
        except Exception as error:  # noqa: BLE001 - a task's error would be seen by nobody
            # Faust's consumer raises many things when it has been stopped.
            if not self._stopping.is_set():
                self._failed(error)

    async def _set_back(self, consumer: Any, partition: Any, offset: int) -> None:
        if partition not in consumer.assignment():
            return
        consumer.pause_partitions({partition})
        try:
            await asyncio.sleep(DRAIN_S)
            # Meanwhile it may have gone to another process: then its place is that one's.
            if partition in consumer.assignment():
                await consumer.seek_wait({partition: offset})
        finally:
            # Though it may be gone: it could come back, and Faust does not fetch what is not assigned.
            consumer.resume_partitions({partition})
        begin = (await consumer.earliest_offsets(partition))[partition]
        if begin > offset:
            raise _lost(partition.partition, offset, begin)
