"""When a notice is tried again, and how many a receiver gets in a minute."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

__all__ = ["ATTEMPTS", "TokenBucket", "next_attempt"]

# Standard Webhooks' recommendation, seconds before each attempt: 0 s, 5 s, 5 m, 30 m, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
DELAYS_S: Final = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
ATTEMPTS: Final = len(DELAYS_S)
JITTER: Final = 0.1


def next_attempt(
    made: int, now: datetime, *, retry_after_s: float | None = None, rng: Callable[[], float] = random.random
) -> datetime | None:
    """When to try again after `made` failed attempts; None when that was the last one.

    Up to a tenth is added or taken off at random, so that notices which failed together do not come back together.
    A receiver's Retry-After can only make it later. `rng` gives numbers in [0, 1).
    """
    if made >= ATTEMPTS:
        return None
    delay = DELAYS_S[made] * (1 + JITTER * (2 * rng() - 1))
    return now + timedelta(seconds=max(delay, retry_after_s or 0.0))


class TokenBucket:
    """Allows `rate_per_minute` on average and as many at once, full at the beginning."""

    def __init__(self, rate_per_minute: float, now: datetime) -> None:
        self._per_second = rate_per_minute / 60
        self._size = max(1.0, rate_per_minute)
        self._tokens = self._size
        self._at = now

    def available(self, now: datetime) -> int:
        """Whole tokens there are now."""
        passed = max(0.0, (now - self._at).total_seconds())
        self._tokens = min(self._size, self._tokens + passed * self._per_second)
        self._at = max(now, self._at)
        # A tiny excess, so that a minute's worth of hundredths is not lost to rounding.
        return int(self._tokens + 1e-9)

    def take(self, number: int) -> None:
        """Use tokens that `available` has just reported."""
        self._tokens -= number
