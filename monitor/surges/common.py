"""Common mode: what all other keys of a kind do just now, beside what was to be expected of them.

A market-wide shock is no surprise for any one key. But a single busy key in a surge or a burst of its own is no shock:
what a key has above the limit of winsorising does not count for the others. That part is worked out once a block, for
all keys; the counts themselves are those of the minute.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from monitor.surges.baseline import KINDS, MAX_SHAPE, Baseline, winsor_limit
from monitor.surges.windows import Windows

__all__ = ["CommonMode"]

Ints = NDArray[np.int64]
Array = NDArray[np.float64]

# How much a whole kind of keys may be up, and the imagined stories that hold it to 1.
HIGHEST: Final = 20.0
IMAGINED: Final = 5.0


class CommonMode:
    """Sums over the keys of each kind; the first axis is negatives and others."""

    def __init__(self, windows: int) -> None:
        # Expected a day of mean season, (2, kinds).
        self._rates = np.zeros((2, len(KINDS)))
        # The keys that had more than the limit when the block began, ascending, and by how much, (2, windows, keys).
        self._beyond = np.zeros(0, dtype=np.int64)
        self._excess = np.zeros((2, windows, 0))
        self._pooled_excess = np.zeros((2, windows, len(KINDS)))

    def begin_block(self, baseline: Baseline, windows: Windows) -> None:
        """Take up what is expected of all keys now, and which of them have far more than that."""
        kinds, rates = baseline.kinds, np.array([baseline.negatives, baseline.others])
        self._rates = np.array([np.bincount(kinds, weights=row, minlength=len(KINDS)) for row in rates])
        # Most keys have no story in any window.
        active = np.flatnonzero(windows.counts[1, int(np.argmax(windows.minutes))])
        counts = windows.counts[:, :, active]
        counts[1] -= counts[0]
        usual = np.maximum(windows.exposure, 0.0)[:, None] * rates[:, None, active]
        excess = counts - winsor_limit(usual, MAX_SHAPE)
        far = np.flatnonzero((excess > 0.0).any(axis=(0, 1)))
        self._beyond, self._excess = active[far], np.maximum(excess[:, :, far], 0.0)
        self._pooled_excess = np.zeros_like(self._pooled_excess)
        for kind in np.unique(kinds[self._beyond]):
            self._pooled_excess[:, :, kind] = self._excess[:, :, kinds[self._beyond] == kind].sum(axis=2)

    def factors(self, index: Ints, kinds: Ints, windows: Windows, counts: Array, usual: Array) -> Array:
        """How many times the usual the other keys have, for the keys of `index` and `kinds`, between 1 and `HIGHEST`.

        `counts`, `usual`: their own negatives and others, and those expected, (2, windows, len(index)), as the result.
        """
        totals = windows.totals[:, :, kinds]
        totals[1] -= totals[0]
        observed = totals - counts - self._pooled_excess[:, :, kinds]
        if len(self._beyond):
            place = np.minimum(np.searchsorted(self._beyond, index), len(self._beyond) - 1)
            observed += np.where(self._beyond[place] == index, self._excess[:, :, place], 0.0)
        expected = windows.exposure[:, None] * self._rates[:, None, kinds] - usual
        factors: Array = np.minimum(np.maximum((observed + IMAGINED) / (expected + IMAGINED), 1.0), HIGHEST)
        return factors

    def state(self) -> dict[str, Any]:
        """Everything held, for a snapshot."""
        return {
            "rates": self._rates.tobytes(),
            "beyond": self._beyond.tobytes(),
            "excess": self._excess.tobytes(),
            "pooled_excess": self._pooled_excess.tobytes(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        rows = self._excess.shape[1]
        self._rates = np.frombuffer(state["rates"]).reshape(2, len(KINDS)).copy()
        self._beyond = np.frombuffer(state["beyond"], dtype=np.int64).copy()
        self._excess = np.frombuffer(state["excess"]).reshape(2, rows, -1).copy()
        self._pooled_excess = np.frombuffer(state["pooled_excess"]).reshape(2, rows, len(KINDS)).copy()
