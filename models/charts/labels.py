"""What a chart shows: the net move over the picture's own range. It describes the picture, never the future."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.charts.prices import Bars
from monitor.records import Trend

__all__ = ["CURVE_POINTS", "THRESHOLD", "TREND_ORDER", "close_curve", "net_move", "trend_of"]

THRESHOLD: Final = 0.35
TREND_ORDER: Final = (Trend.DOWN, Trend.FLAT, Trend.UP)
CURVE_POINTS: Final = 16


def net_move(bars: Bars, *, closes_only: bool = False) -> float:
    """Last close less first close over the range between the lowest low and the highest high, in [-1, 1].

    `closes_only`: the drawing shows no highs and lows (a line, an area), so the range is that of the closes.
    0 for fewer than two bars or a range of 0.
    """
    if bars.count < 2:
        return 0.0
    top, bottom = (bars.closes, bars.closes) if closes_only else (bars.highs, bars.lows)
    span = float(top.max() - bottom.min())
    return float(bars.closes[-1] - bars.closes[0]) / span if span > 0 else 0.0


def trend_of(move: float) -> Trend:
    """The class of a net move: above +0.35 up, below -0.35 down, else flat."""
    return Trend.UP if move > THRESHOLD else Trend.DOWN if move < -THRESHOLD else Trend.FLAT


def close_curve(bars: Bars, *, closes_only: bool = False) -> NDArray[np.float32]:
    """The closes at `CURVE_POINTS` evenly spaced places, 0 at the picture's lowest low and 1 at its highest high.

    What a net move is read from: the last point less the first one is `net_move`. Between bars closes are interpolated.
    All are .5 where the range is 0. `closes_only` as in `net_move`.
    """
    top, bottom = (bars.closes, bars.closes) if closes_only else (bars.highs, bars.lows)
    low, span = float(bottom.min()), float(top.max() - bottom.min())
    if span <= 0:
        return np.full(CURVE_POINTS, 0.5, dtype=np.float32)
    places = np.linspace(0, bars.count - 1, CURVE_POINTS)
    return ((np.interp(places, np.arange(bars.count), bars.closes) - low) / span).astype(np.float32)
