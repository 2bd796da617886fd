"""Gaps in what is read: a partition is read again from the store's place before a gap is taken for a loss.

Faust passes the record over that it is handing on when a rebalance begins, goes on with those that it had fetched
behind it, and refuses the missed one when it comes again (`faust.transport.consumer.Consumer._drain_messages`). What is
missing is still in the log then: reading has to be set back. Only where it is missing once more is it gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from monitor.errors import BrokerError
from monitor.storage.checkpoint import GapError

__all__ = ["WITHIN_S", "Rereading"]

# Behind the place that reading was set back to there may be as many records under way as the buffers hold: well under
# a second of counting.
WITHIN_S: Final = 30.0


class Rereading:
    """The partitions whose reading has been set back and has not come to the store's place yet."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}

    def gap(self, gap: GapError) -> bool:
        """Whether to set reading back to `gap.stored`; if not, it has been, and these are records from before.

        Raises `BrokerError` when the gap cannot be closed by reading again: what comes is no later than the store's
        place, or `WITHIN_S` seconds have passed.
        """
        since = self._since.get(gap.partition)
        if gap.found <= gap.stored or (since is not None and self._clock() - since > WITHIN_S):
            raise BrokerError(
                f"Partition {gap.partition} of contributions was counted up to offset {gap.stored}, but reading goes "
                f"on at {gap.found}.",
                "Stop every aggregator and start one: it reads on from where the store is.",
            ) from gap
        if since is not None:
            return False
        self._since[gap.partition] = self._clock()
        return True

    def counted(self, partition: int) -> None:
        """The partition goes on without a gap."""
        self._since.pop(partition, None)

    def forget(self) -> None:
        """Partitions come and go: reading begins anew."""
        self._since = {}
