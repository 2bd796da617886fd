"""Sliding sums of minutes: stories and negatives of every key in every window, and the level before each.

Every minute adds what it brought and takes away what left; keys without anything cost nothing. The *level* sums hold
the stories before a window's beginning, fading with age: how lively a key is just now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.surges.baseline import KINDS
from monitor.surges.season import BLOCK_MINUTES

__all__ = ["Arrived", "Windows"]

Ints = NDArray[np.int64]
Array = NDArray[np.float64]


class Arrived(NamedTuple):
    """What one minute brought: key indices, each once, ascending; their negatives and stories, `counts` (2, len(keys));
    `totals` (2, kinds): the same of all keys of a kind."""

    keys: Ints
    counts: Ints
    totals: Ints


class Windows:
    """Counts of windows ending with the current minute.

    `counts[0 or 1, w, key]`: negatives and stories; `totals[0 or 1, w, kind]`: those of all keys of a kind;
    `level[w, key]`: stories before window w, weighted exp(-age / level_minutes); `exposure[w]` and
    `level_exposure[w]` the same of the season.
    """

    def __init__(self, minutes: Sequence[int], level_minutes: float) -> None:
        self.minutes = tuple(minutes)
        self._widths = np.array(self.minutes, dtype=np.int64)
        self._fade = float(np.exp(-1.0 / level_minutes))
        rows = len(self.minutes)
        self.counts = np.zeros((2, rows, 0), dtype=np.int64)
        self.level = np.zeros((rows, 0))
        self.totals = np.zeros((2, rows, len(KINDS)), dtype=np.int64)
        self.exposure = np.zeros(rows)
        self.level_exposure = np.zeros(rows)
        # `level` is as of this many minutes ago; fading it is put off until it is needed or a block ends.
        self._unfaded = 0
        self._exposures = np.zeros(max(self.minutes) + 3 * BLOCK_MINUTES)
        self._minutes: dict[int, Arrived] = {}

    def add(self, new: int) -> None:
        """Make room for as many new keys."""
        rows = len(self.minutes)
        self.counts = np.concatenate([self.counts, np.zeros((2, rows, new), dtype=np.int64)], axis=2)
        self.level = np.concatenate([self.level, np.zeros((rows, new))], axis=1)

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop the keys where `mask` is False; they must have nothing in their windows."""
        self.counts, self.level = self.counts[:, :, mask], self.level[:, mask]
        new = np.cumsum(mask) - 1
        self._minutes = {minute: a._replace(keys=new[a.keys]) for minute, a in self._minutes.items()}

    def step(self, minute: int, arrived: Arrived, exposure: float) -> None:
        """Move on to `minute`, which brought `arrived` and has `exposure` days of mean season."""
        self._unfaded += 1
        if len(arrived.keys):
            self._minutes[minute] = arrived
            self.counts[:, :, arrived.keys] += arrived.counts[:, None]
            self.totals += arrived.totals[:, None]
        ring = self._exposures
        ring[minute % len(ring)] = exposure
        left = ring[(minute - self._widths) % len(ring)]
        self.exposure += exposure - left
        self.level_exposure = self.level_exposure * self._fade + left
        leaving = [
            (row, self._minutes[minute - w]) for row, w in enumerate(self.minutes) if minute - w in self._minutes
        ]
        if leaving:
            rows = np.repeat([row for row, _ in leaving], [len(gone.keys) for _, gone in leaving])
            keys = np.concatenate([gone.keys for _, gone in leaving])
            counts = np.concatenate([gone.counts for _, gone in leaving], axis=1)
            self.counts[:, rows, keys] -= counts
            self.level[rows, keys] += counts[1] * self._fade ** (-self._unfaded)
            for row, gone in leaving:
                self.totals[:, row] -= gone.totals

    def level_of(self, index: Ints) -> Array:
        """The level sums (windows, len(index)) as of now."""
        return self.level[:, index] * self._fade**self._unfaded

    def block(self, block: int) -> tuple[Array, Array, float]:
        """Stories and negatives (keys,) and exposure of a past block that has left all windows; it is forgotten."""
        negatives, stories = counts = np.zeros((2, self.counts.shape[2]))
        first = block * BLOCK_MINUTES
        for minute in range(first, first + BLOCK_MINUTES):
            arrived = self._minutes.pop(minute, None)
            if arrived is not None:
                counts[:, arrived.keys] += arrived.counts
        exposure = float(self._exposures[np.arange(first, first + BLOCK_MINUTES) % len(self._exposures)].sum())
        return stories, negatives, exposure

    def settle(self, minute: int) -> None:
        """Fade the levels and add up the exposures afresh, so that no rounding builds up. Between two minutes."""
        self.level *= self._fade**self._unfaded
        self._unfaded = 0
        for row, width in enumerate(self.minutes):
            recent = np.arange(minute - width, minute) % len(self._exposures)
            self.exposure[row] = self._exposures[recent].sum()

    def state(self) -> dict[str, Any]:
        """Everything held, for a snapshot."""
        return {
            "counts": self.counts.tobytes(),
            "level": self.level.tobytes(),
            "totals": self.totals.tobytes(),
            "exposure": self.exposure.tobytes(),
            "level_exposure": self.level_exposure.tobytes(),
            "exposures": self._exposures.tobytes(),
            "unfaded": self._unfaded,
            "minutes": [(minute, *(part.tobytes() for part in a)) for minute, a in self._minutes.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        rows = len(self.minutes)

        def ints(data: bytes) -> Ints:
            return np.frombuffer(data, dtype=np.int64).copy()

        self.counts = ints(state["counts"]).reshape(2, rows, -1)
        self.level = np.frombuffer(state["level"]).reshape(rows, -1).copy()
        self.totals = ints(state["totals"]).reshape(2, rows, len(KINDS))
        self.exposure = np.frombuffer(state["exposure"]).copy()
        self.level_exposure = np.frombuffer(state["level_exposure"]).copy()
        self._exposures = np.frombuffer(state["exposures"]).copy()
        self._unfaded = int(state["unfaded"])
        self._minutes = {
            minute: Arrived(ints(index), ints(counts).reshape(2, -1), ints(totals).reshape(2, len(KINDS)))
            for minute, index, counts, totals in state["minutes"]
        }
