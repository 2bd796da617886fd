"""The thread beside the one that polls: woken, waited for, ended; what it raises is not lost."""

from __future__ import annotations

import threading
import time

import pytest

from consumers.storing import Storing


def test_it_works_when_woken_and_a_last_time_at_the_end() -> None:
    called: list[bool] = []
    once = threading.Event()

    def work(last: bool) -> None:
        called.append(last)
        once.set()

    storing = Storing(work)
    storing.start()
    storing.wake()
    assert once.wait(20)
    storing.end(finish=True)
    storing.end(finish=True)
    assert called[0] is False
    assert called.count(True) == 1
    assert called[-1] is True
    storing.check()


def test_what_ended_it_is_raised_and_nothing_more_is_done() -> None:
    called: list[bool] = []

    def work(last: bool) -> None:
        called.append(last)
        raise OSError("no space left")

    storing = Storing(work)
    storing.start()
    storing.wake()
    deadline = time.monotonic() + 20
    while not called and time.monotonic() < deadline:
        time.sleep(0.01)
    storing.end(finish=True)
    with pytest.raises(OSError, match="no space"):
        storing.check()
    assert called == [False]


def test_others_can_wait_for_what_it_is_doing_and_see_how_long_that_takes() -> None:
    begun, let = threading.Event(), threading.Event()

    def work(_last: bool) -> None:
        begun.set()
        let.wait(20)

    storing = Storing(work)
    storing.start()
    assert storing.settle(0.0)
    storing.wake()
    assert begun.wait(20)
    assert not storing.settle(0.05)
    assert storing.busy_for(time.monotonic()) >= 0.05
    let.set()
    assert storing.settle(20)
    storing.end(finish=False)
    assert storing.busy_for(time.monotonic()) == 0.0


def test_ending_what_never_began_is_harmless() -> None:
    done: list[bool] = []
    storing = Storing(done.append)
    storing.end(finish=True)
    storing.check()
    assert done == []
