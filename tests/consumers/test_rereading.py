"""When a gap is given up, and how Faust's reading is set back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest
from aiokafka.errors import IllegalStateError
from faust.types import TP

from consumers.rereading import DRAIN_S, WITHIN_S, Rereading, SetBack
from monitor.errors import BrokerError
from monitor.storage.checkpoint import GapError

PLACE = TP("contributions", 0)


def ours() -> set[int]:
    """The partitions of this process."""
    return {0, 1}


def test_a_gap_that_stays_is_an_error() -> None:
    now = 0.0
    rereading = Rereading(lambda: now)
    assert rereading.gap(GapError(0, 2, 3))
    now = WITHIN_S
    assert not rereading.gap(GapError(0, 2, 9))
    assert rereading.gap(GapError(1, 2, 3))
    assert rereading.overdue(ours) is None
    now = WITHIN_S + 1
    assert "up to offset 2, but reading goes on at 9" in str(rereading.overdue(ours))
    with pytest.raises(BrokerError, match="up to offset 2, but reading goes on at 12"):
        rereading.gap(GapError(0, 2, 12))
    rereading.counted(0, 1)  # read again, but from before the gap
    assert rereading.overdue(ours) is not None
    rereading.counted(0, 2)
    assert rereading.overdue(ours) is None
    assert rereading.gap(GapError(0, 2, 12))


def test_a_gap_is_its_own_partitions_and_only_of_those_that_are_here() -> None:
    now = 0.0
    rereading = Rereading(lambda: now)
    rereading.gap(GapError(0, 2, 3))
    now = WITHIN_S + 1
    assert rereading.gap(GapError(1, 2, 3))
    assert rereading.overdue(lambda: {1}) is None
    assert rereading.overdue(ours) is not None


def test_time_in_which_records_were_counted_is_not_held_against_a_gap() -> None:
    now = 0.0
    rereading = Rereading(lambda: now)
    rereading.gap(GapError(0, 2, 3))
    now = 100.0
    rereading.spent(100.0 - WITHIN_S)
    assert rereading.overdue(ours) is None
    now = 101.0
    assert rereading.overdue(ours) is not None


def test_what_was_open_before_a_rebalance_is_not_held_against_what_comes_after() -> None:
    now = 0.0
    rereading = Rereading(lambda: now)
    rereading.gap(GapError(0, 2, 3))
    now = WITHIN_S + 1
    rereading.forget()
    assert rereading.overdue(ours) is None
    assert rereading.gap(GapError(0, 2, 3))


def test_records_of_another_log_are_not_looked_for_again() -> None:
    with pytest.raises(BrokerError, match="reading goes on at 8"):
        Rereading().gap(GapError(0, 8, 8))


class FakeConsumer:
    """What `SetBack` calls, in order; the partition is assigned for so many questions."""

    def __init__(self, assigned: int = 9, begin: int = 0, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self._assigned, self._begin, self._error = assigned, begin, error

    def assignment(self) -> set[TP]:
        self._assigned -= 1
        return {PLACE} if self._assigned >= 0 else set()

    def pause_partitions(self, _partitions: set[TP]) -> None:
        self.calls.append("pause")

    def resume_partitions(self, _partitions: set[TP]) -> None:
        self.calls.append("resume")

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        self.calls.append(f"seek {partitions[PLACE]}")
        if self._error is not None:
            raise self._error

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        return dict.fromkeys(partitions, self._begin)


def set_back(consumer: FakeConsumer, times: int = 1, *, stopping: bool = False) -> list[Exception]:
    """Set partition 0 back to offset 2, so many times, each as soon as the last is done; what failed."""
    failed: list[Exception] = []
    stop = threading.Event()
    if stopping:
        stop.set()

    async def main() -> None:
        setting = SetBack(stop, failed.append)
        for _ in range(times):
            setting.start(consumer, {PLACE: 2})
            setting.start(consumer, {PLACE: 2})  # is under way
            await asyncio.sleep(DRAIN_S + 0.1)

    asyncio.run(main())
    return failed


def test_every_gap_sets_reading_back_with_the_partition_at_rest() -> None:
    consumer = FakeConsumer(begin=2)
    assert set_back(consumer, 2) == []
    assert consumer.calls == ["pause", "seek 2", "resume"] * 2


def test_a_partition_that_has_gone_is_left() -> None:
    gone, going = FakeConsumer(assigned=0), FakeConsumer(assigned=1)
    assert set_back(gone) + set_back(going) == []
    assert (gone.calls, going.calls) == ([], ["pause", "resume"])


def test_a_log_that_begins_behind_the_place_is_told_at_once() -> None:
    (told,) = set_back(FakeConsumer(begin=5))
    assert isinstance(told, BrokerError)
    assert "counted up to offset 2, but reading goes on at 5" in str(told)


def test_errors_are_told_unless_they_mend_themselves_or_all_is_stopping() -> None:
    for error in (TimeoutError(), IllegalStateError()):
        consumer = FakeConsumer(error=error)
        assert set_back(consumer) == []
        assert consumer.calls[-1] == "resume"
    error = ValueError("What is this?")
    assert set_back(FakeConsumer(error=error)) == [error]
    assert set_back(FakeConsumer(error=error), stopping=True) == []
