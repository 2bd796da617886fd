"""What goes into the judge and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from monitor.surges.sorts import NEGATIVE, POSITIVE, VOLUME

__all__ = ["Action", "Decision", "MinuteCounts", "Standing", "WindowStanding", "episode_id"]

Action = Literal["fire", "update", "resolve"]


class MinuteCounts:
    """The counts of one closed minute: only keys with something in it, each once, in any order.

    `stories`, `negative_stories` and `positive_stories` (None: there are none) are arrays (len(keys),) of integers.
    Raises `ValueError` when lengths differ.
    """

    __slots__ = ("keys", "negative_stories", "positive_stories", "stories")

    def __init__(
        self,
        keys: Sequence[str],
        stories: NDArray[Any],
        negative_stories: NDArray[Any],
        positive_stories: NDArray[Any] | None = None,
    ) -> None:
        positive = np.zeros(len(keys), dtype=np.int64) if positive_stories is None else positive_stories
        if not len(keys) == len(stories) == len(negative_stories) == len(positive):
            raise ValueError("keys and their numbers of stories must be of one length")
        self.keys = keys
        self.stories = np.asarray(stories, dtype=np.int64)
        self.negative_stories = np.asarray(negative_stories, dtype=np.int64)
        self.positive_stories = np.asarray(positive, dtype=np.int64)

    def of(self, surge: str) -> NDArray[np.int64]:
        """The stories that a surge of this sort is made of, (len(keys),)."""
        return {NEGATIVE: self.negative_stories, POSITIVE: self.positive_stories, VOLUME: self.stories}[surge]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One step in the life of an episode, with what it rests on.

    `at` is the end of the minute that was judged, `started_at` when the episode's window began to be surprising,
    `fired_at` when it fired. `observed` and `expected` are stories of the sort that surges (`surge`) in the window of
    `window_minutes`, `stories` all stories in it, `share` and `expected_share` the share of that sort: 1 for a surge of
    volume. `p_value` is that of all windows together; `score` is -log10 of it; `severity` is `warning`, `high` or
    `critical`.
    """

    action: Action
    episode_id: str
    rule: str
    surge: str = NEGATIVE
    key: str
    at: datetime
    started_at: datetime
    fired_at: datetime
    window_minutes: int
    observed: int
    expected: float
    stories: int
    share: float
    expected_share: float
    p_value: float
    score: float
    severity: str


class WindowStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One window of a key as it stands: `observed` stories of the sort that is watched, where `expected` were to be
    expected, given the key, the season, the market and, unless it is watched itself, the volume. `common` is how many
    times the usual number of them the other keys of its kind have, at least 1; `burst` the probability that the key's
    news is in a burst that has nothing to do with sentiment (0 where volume is watched)."""

    minutes: int
    stories: int
    observed: int
    expected: float
    expected_share: float
    common: float
    burst: float
    p_value: float


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Why a key fires or does not: `verdict` is `firing`, `above_bar`, `below_bar`, `too_few_stories`, `too_young`
    or `unknown`; `reason` says it in a sentence."""

    surge: str = NEGATIVE
    key: str
    verdict: str
    reason: str
    score: float
    bar: float
    windows: tuple[WindowStanding, ...]


def episode_id(rule: str, key: str, minute: int) -> str:
    """Stable id of the episode of `rule` on `key` whose excursion began in the epoch minute `minute`: 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(f"{rule}\x1f{key}\x1f{minute}".encode("utf-8", "surrogatepass"))
