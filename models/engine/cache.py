"""Scores of rows that were seen before, by content and model version; the least recently used go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["RowScore", "ScoreCache", "row_key"]


class RowScore(NamedTuple):
    """What the model said of one row: `sentiment` (3,), `topic` (T,), `chart` (3,), each calibrated, float32.

    `p_chart` is the probability that its picture is a chart (0 without one); `used_chart` that the picture took part
    in the sentiment; `said` that its text had any token; `truncated` that not all of the text fitted.
    """

    sentiment: NDArray[np.float32]
    topic: NDArray[np.float32]
    chart: NDArray[np.float32]
    p_chart: float
    used_chart: bool
    said: bool
    truncated: bool = False


def row_key(version: str, text: str, entity: tuple[int, int] | None, image_hash: bytes) -> bytes:
    """128 bits that name a row's content and the model that scores it."""
    digest = xxhash.xxh3_128(version.encode())
    digest.update(f"\x1f{entity}\x1f".encode())
    digest.update(image_hash)
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.digest()


class ScoreCache:
    """At most `capacity` rows; 0 keeps none. May be used from several threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._rows: OrderedDict[bytes, RowScore] = OrderedDict()
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> RowScore | None:
        """The row's score, now the most recently used; None when it is not here."""
        with self._turn:
            found = self._rows.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._rows.move_to_end(key)
            return found

    def put(self, key: bytes, score: RowScore) -> None:
        """Keep a score, dropping the one that was unused for longest when there are too many."""
        if self.capacity < 1:
            return
        with self._turn:
            self._rows[key] = score
            self._rows.move_to_end(key)
            while len(self._rows) > self.capacity:
                self._rows.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: another model scores from now on."""
        with self._turn:
            self._rows.clear()
