"""Threads that compute side by side, each on one processor core; short calls go before long ones.

Two passes on a core each take less time than both on two cores: threads that share a product wait for each other at the
end of each, and while another process has one of the cores, the other one waits for it.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from queue import PriorityQueue
from typing import Any, TypeVar

import torch

__all__ = ["Lanes", "lanes", "longest_pass", "part_tokens", "passes", "turn"]

T = TypeVar("T")

# Within it a pass stays in a core's cache; longer ones gain nothing.
LANE_TOKENS = 1024
# What a pass costs whatever is in it is worth 20 to 50 tokens: smaller ones are not shared out.
LEAST_TOKENS = 128
# A small call is cut into parts of so many: what a lane takes when it is free is made up of them.
PART_TOKENS = 64
# At most so many tokens in all come of a stream that is kept up with: others may come at any moment, which wait for a
# pass in progress.
KEPT_UP_TOKENS = 4096
SHORT_PASS_TOKENS = 512
# How far a token puts a call back behind those that come later, in seconds. An article of 1000 tokens lets pass what
# comes within a tenth of a second, and nothing after that: the wait of any call is bounded.
TOKEN_S = 0.0001
# By how much computing gives way to the threads and processes that move records: these need little, and at once
# (`nice(2)`).
NICENESS = 5


class Lanes:
    """`count` threads in each of which torch uses no other; elsewhere it uses as many as before."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._waiting: PriorityQueue[tuple[float, int, Future[Any], Callable[[], Any]]] = PriorityQueue()
        self._numbers = itertools.count()
        threads = torch.get_num_threads()
        started = threading.Barrier(count)

        def alone() -> None:
            if sys.platform == "linux":
                # There, and only there, each thread has a niceness of its own.
                with suppress(OSError):
                    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
            torch.set_num_threads(1)
            # A thread takes the process's number when it first asks for it: now, not when that is changed back.
            torch.get_num_threads()
            # Each task meets a thread of its own.
            started.wait()

        wait([self._pool.submit(alone) for _ in range(count)])
        # It was set for the whole process, too: for threads that are still to come.
        torch.set_num_threads(threads)

    def submit_at(self, at: float, work: Callable[[], T]) -> Future[T]:
        """Run `work` when a lane is free and nothing with an earlier turn waits (`turn`)."""
        future: Future[T] = Future()
        self._waiting.put((at, next(self._numbers), future, work))
        self._pool.submit(self._next)
        return future

    def _next(self) -> None:
        """Run what is first now, whatever was handed over when this was."""
        _, _, future, work = self._waiting.get_nowait()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for the result
            future.set_exception(error)


@cache
def lanes(count: int) -> Lanes:
    """The process's `count` lanes."""
    return Lanes(count)


def turn(tokens: int, now: float | None = None) -> float:
    """Where a call of so many tokens stands in the queue: shortest first, with ageing, so that none starves.

    `now` are seconds on the monotonic clock.
    """
    return (time.monotonic() if now is None else now) + TOKEN_S * tokens


def longest_pass(tokens: int) -> int:
    """Tokens of one pass at the most, where `tokens` wait in all."""
    return SHORT_PASS_TOKENS if tokens <= KEPT_UP_TOKENS else LANE_TOKENS


def passes(tokens: int, count: int, most: int) -> int:
    """Tokens of one pass, at most `most`, so that `tokens` in all keep `count` lanes busy to about the same end."""
    most = min(most, LANE_TOKENS)
    rounds = -(-tokens // (most * count))
    return min(most, max(LEAST_TOKENS, -(-tokens // (rounds * count)))) if tokens else most


def part_tokens(tokens: int, count: int, most: int) -> int:
    """Tokens of one part of a call of `tokens` in all, at most `most`: a whole pass of a large call, less of a small
    one, whose parts are put together with those of others (`models.engine.waiting`)."""
    return min(most, PART_TOKENS) if tokens <= KEPT_UP_TOKENS else passes(tokens, count, most)
