"""The bundled price history (StockNet, MIT): daily bars of 88 US-listed companies from 2012 to 2017."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monitor.errors import ModelError

__all__ = ["Bars", "Part", "load_prices", "part_of"]

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Bars:
    """Consecutive bars of one ticker, oldest first: prices in dollars (float64), volume in shares, session dates."""

    opens: NDArray[np.float64]
    highs: NDArray[np.float64]
    lows: NDArray[np.float64]
    closes: NDArray[np.float64]
    volumes: NDArray[np.float64]
    dates: NDArray[np.datetime64]

    def between(self, start: int, stop: int) -> Bars:
        """Bars `start` up to, not including, `stop`."""
        part = slice(start, stop)
        return Bars(
            self.opens[part], self.highs[part], self.lows[part], self.closes[part], self.volumes[part], self.dates[part]
        )

    @property
    def count(self) -> int:
        """Number of bars."""
        return len(self.closes)


@cache
def load_prices() -> dict[str, Bars]:
    """All bundled bars by ticker. Raises `ModelError` when the installation lacks the file."""
    path = resources.files("models") / "data" / "prices.npz"
    try:
        with resources.as_file(path) as file, np.load(file, allow_pickle=False) as archive:
            tickers, starts = [str(t) for t in archive["tickers"]], archive["starts"]
            days, bars = archive["days"], archive["bars"].astype(np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError("The bundled price history cannot be read.", "Install the package again.") from error
    dates = days.astype("datetime64[D]")
    opens, highs, lows, closes, volumes = bars
    everything = Bars(opens, highs, lows, closes, volumes, dates)
    return {
        ticker: everything.between(start, stop)
        for ticker, (start, stop) in zip(tickers, itertools.pairwise(starts.tolist()), strict=True)
    }


def part_of(ticker: str) -> Part:
    """The part that a ticker belongs to, by its hash: about 80 % train, 10 % validation, 10 % test."""
    bucket = zlib.crc32(ticker.encode()) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"
