"""Why did this key not alert? The judge is asked about any minute of the past, by judging the counts again up to it.

Pure: the counts come in as a function. What the judge says of a minute is a function of the counts up to it, so that
the answer is what the live judge went by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec
import numpy as np

from monitor.surges.decisions import Decision, MinuteCounts, Standing
from monitor.surges.judge import Judge

__all__ = ["LOOK_BACK_MINUTES", "Account", "account"]

# How long before the minute asked about the highest score is looked for.
LOOK_BACK_MINUTES: Final = 60
BATCH_MINUTES: Final = 24 * 60
_NOTHING: Final = MinuteCounts([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

Counts = Callable[[int, int], Mapping[int, MinuteCounts]]


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """How a key stood at the end of a minute, at `at`. `highest` is its best score in the hour up to then, reached at
    `highest_at`; `decisions` what was decided about the key in that hour."""

    at: datetime
    standing: Standing
    highest: float
    highest_at: datetime
    decisions: tuple[Decision, ...]


def account(
    judge: Judge,
    key: str,
    begin: int,
    minute: int,
    counts: Counts,
    progress: Callable[[float], object] = lambda _: None,
) -> Account:
    """How `key` stood at the end of `minute`, an epoch minute.

    Parameters
    ----------
    judge : at the end of the minute before `begin`: a new one, or one restored from a snapshot. It is stepped on.
    counts : the counts of the minutes from one to another (inclusive) that have any.
    progress : is told the share that is done, in [0, 1].

    Raises `ValueError` when `begin` is not before or at `minute`, or not where the judge is.
    """
    if begin > minute:
        raise ValueError("the judge is past that minute")
    best: tuple[float, int] = (-1.0, minute)
    decisions: list[Decision] = []
    for first in range(begin, minute + 1, BATCH_MINUTES):
        last = min(first + BATCH_MINUTES - 1, minute)
        loaded = counts(first, last)
        for now in range(first, last + 1):
            decided = judge.step(now, loaded.get(now, _NOTHING))
            if now > minute - LOOK_BACK_MINUTES:
                decisions += [decision for decision in decided if decision.key == key]
                best = max(best, (judge.explain(key).score, now))
        progress((last + 1 - begin) / (minute + 1 - begin))
    return Account(
        at=_end(minute),
        standing=judge.explain(key),
        highest=best[0],
        highest_at=_end(best[1]),
        decisions=tuple(decisions),
    )


def _end(minute: int) -> datetime:
    return datetime.fromtimestamp((minute + 1) * 60, UTC)
