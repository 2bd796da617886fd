"""What is normal for each key: its rate of stories and its share of negatives, learned with a lag.

Per key there are discounted sums of stories and exposure (rate), and of negative and all stories (share). A key with
little of its own leans on the pool of all keys of its kind: on its rate by `RATE_STORIES` imagined stories, on its
share by `share_stories`. What is learned lags by the longest window, so that a surge is not held against itself, and
is winsorised, so that it does not become its own normal afterwards.

A share wanders, and the memory of it is that of the steady Kalman filter: where the log odds move by a variance of
`share_wander` a day and a day's stories tell them with information i, the best memory is 1 / sqrt(share_wander i)
days. A key of many stories forgets within a day or two what one of few has to remember for weeks.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "SUMS", "Baseline", "kind_of", "winsor_limit"]

Array = NDArray[np.float64]

RATE_STORIES: Final = 0.3
# Before anything is known: a story a day (exposure is counted in days), one in five negative.
PRIOR_STORIES: Final = 1.0
PRIOR_SHARE: Final = 0.2
PRIOR_WEIGHT: Final = 5.0
WINSOR: Final = 4.0
# Dispersion of a key's counts of a quarter of an hour that winsorising allows for: 1 / shape.
MAX_SHAPE: Final = 8.0
# The memory of a share in days.
SHORTEST, LONGEST = 1.0, 60.0

KINDS: Final = ("ticker", "topic", "market", "other")
# Which kinds are sums of other keys.
SUMS: Final = np.array([kind in ("topic", "market") for kind in KINDS])


def kind_of(key: str) -> int:
    """Index into `KINDS`: only keys of one kind are pooled."""
    kind = key.partition(":")[0]
    return KINDS.index(kind) if kind in KINDS else len(KINDS) - 1


def winsor_limit(mean: Array, shape: Array | float) -> Array:
    """What a Gamma-Poisson count of this mean and shape hardly exceeds: mean + 4 sd + 1."""
    limit: Array = mean + WINSOR * np.sqrt(mean + mean * mean / shape) + 1.0
    return limit


class Baseline:
    """Sums and estimates of all keys, arrays (keys,); exposure in days of mean season.

    After `estimate`: `rate` all stories and `others`, `negatives` those of each sort per unit of exposure, `share`
    that of negatives, `share_weight` how many stories' worth of evidence on negatives stands behind it. "Negatives" are
    the stories of the sort that is watched; where all are (`prior_share` 1), `share` stays exactly 1.
    """

    SUMS: Final = ("negative", "stories", "exposure", "rate_stories")

    def __init__(
        self,
        rate_half_life_days: float,
        share_wander: float,
        share_stories: float,
        prior_share: float = PRIOR_SHARE,
    ) -> None:
        self._rate_half_life = rate_half_life_days
        self._share_wander = share_wander
        self._share_stories = share_stories
        self.kinds = np.zeros(0, dtype=np.int64)
        self.negative, self.stories, self.exposure, self.rate_stories = (np.zeros(0) for _ in range(4))
        # The pools by kind: negative, stories (share), exposure, stories (rate).
        prior = [PRIOR_WEIGHT * prior_share, PRIOR_WEIGHT, PRIOR_WEIGHT / PRIOR_STORIES, PRIOR_WEIGHT]
        self.pools = np.repeat(np.array([prior]), len(KINDS), axis=0)
        self.estimate()

    def __len__(self) -> int:
        return len(self.kinds)

    def add(self, kinds: NDArray[np.int64]) -> None:
        """Make room for new keys of these kinds; they begin at the pool."""
        self.kinds = np.concatenate([self.kinds, kinds])
        for name in self.SUMS:
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(len(kinds))]))
        self.estimate()

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop the keys where `mask` is False."""
        self.kinds = self.kinds[mask]
        for name in self.SUMS:
            setattr(self, name, getattr(self, name)[mask])
        self.estimate()

    def estimate(self) -> None:
        """Work out what is expected from the sums."""
        negative, stories, exposure, rate_stories = self.pools.T
        pool_share = (negative / stories)[self.kinds]
        pool_rate = (rate_stories / exposure)[self.kinds]
        share = (self.negative + self._share_stories * pool_share) / (self.stories + self._share_stories)
        # Rounding must not leave less than no others.
        self.share: Array = np.minimum(share, 1.0)
        self.rate: Array = (self.rate_stories + RATE_STORIES) / (self.exposure + RATE_STORIES / pool_rate)
        self.negatives: Array = self.rate * self.share
        self.others: Array = self.rate * (1.0 - self.share)
        self.share_weight: Array = self.share * (self.stories + self._share_stories)

    def learn(self, stories: Array, negative: Array, exposure: float, days: float) -> None:
        """Take up a block's counts (arrays (keys,)) of `exposure`, `days` after the one before.

        Volume is winsorised against the key's rate, negatives against its share of that volume.
        """
        rate_keep = 0.5 ** (days / self._rate_half_life)
        share_keep = np.exp(-days / self._share_memory())
        shape = np.minimum(self.rate_stories + RATE_STORIES, MAX_SHAPE)
        volume = np.minimum(stories, winsor_limit(self.rate * exposure, shape))
        scaled = negative * (volume / np.maximum(stories, 1.0))
        taken = np.minimum(scaled, winsor_limit(volume * self.share, shape))
        # A key exists from the first block that it is learned with.
        exists = (self.exposure > 0.0) | (stories > 0.0)
        added = {
            "negative": (share_keep, taken),
            "stories": (share_keep, volume),
            "exposure": (rate_keep, exposure * exists),
            "rate_stories": (rate_keep, volume),
        }
        for column, name in enumerate(self.SUMS):
            keep, value = added[name]
            setattr(self, name, getattr(self, name) * keep + value)
            pooled = np.bincount(self.kinds, weights=value, minlength=len(KINDS))
            self.pools[:, column] = self.pools[:, column] * rate_keep + pooled
        self.estimate()

    def _share_memory(self) -> Array:
        """In days, (keys,). The longest where the share is known to be 1."""
        information = self.rate * self.share * (1.0 - self.share)
        wanted = 1.0 / np.sqrt(np.maximum(self._share_wander * information, LONGEST**-2))
        return np.maximum(wanted, SHORTEST)

    def state(self) -> dict[str, Any]:
        """Everything learned, for a snapshot."""
        return {"kinds": self.kinds.tobytes(), "pools": self.pools.tobytes()} | {
            name: getattr(self, name).tobytes() for name in self.SUMS
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.kinds = np.frombuffer(state["kinds"], dtype=np.int64).copy()
        self.pools = np.frombuffer(state["pools"]).reshape(len(KINDS), len(self.SUMS)).copy()
        for name in self.SUMS:
            setattr(self, name, np.frombuffer(state[name]).copy())
        self.estimate()
