"""Threads that compute side by side, each on one processor core.

Two passes on a core each take less time than both on two cores: threads that share a product wait for each other at the
end of each, and while another process has one of the cores, the other one waits for it.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch

__all__ = ["lanes", "passes"]

# Within it a pass stays in a core's cache; longer ones gain nothing.
LANE_TOKENS = 2048
# What a pass costs whatever is in it is worth about so many tokens: smaller ones are not shared out.
LEAST_TOKENS = 256


@cache
def lanes(count: int) -> ThreadPoolExecutor:
    """The process's `count` threads in each of which torch uses no other; elsewhere it uses as many as before."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
    threads = torch.get_num_threads()
    started = threading.Barrier(count)

    def alone() -> None:
        torch.set_num_threads(1)
        # A thread takes the process's number when it first asks for it: now, not when that is changed back.
        torch.get_num_threads()
        # Each task meets a thread of its own.
        started.wait()

    wait([pool.submit(alone) for _ in range(count)])
    # It was set for the whole process, too: for threads that are still to come.
    torch.set_num_threads(threads)
    return pool


def passes(tokens: int, count: int, most: int) -> int:
    """Tokens of one pass, at most `most`, so that `tokens` in all keep `count` lanes busy to about the same end."""
    most = min(most, LANE_TOKENS)
    rounds = -(-tokens // (most * count))
    return min(most, max(LEAST_TOKENS, -(-tokens // (rounds * count)))) if tokens else most
