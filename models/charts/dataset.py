"""Labelled pictures for training: windows of real prices drawn in random styles, and pictures that are no charts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.charts.labels import CURVE_POINTS, TREND_ORDER, close_curve, net_move, trend_of
from models.charts.negatives import not_a_chart
from models.charts.prices import Bars, Part, load_prices, part_of
from models.charts.render import CLOSES_ONLY, Viewport, render
from models.charts.screens import worn
from models.charts.styles import Kind, random_style
from monitor.records import Trend

__all__ = [
    "NOT_A_CHART",
    "Drawing",
    "Shard",
    "chart_picture",
    "drawn_bars",
    "drawn_chart",
    "prepare",
    "reshaped",
    "shards",
]

# Class index of a picture that is no chart; 0, 1, 2 are down, flat, up.
NOT_A_CHART: Final = 3
SHARD_PICTURES: Final = 1000
_NEGATIVE_SHARE: Final = 0.16
_CONTEXT: Final = 40
_PART_SEED: Final[dict[Part, int]] = {"train": 0, "validation": 1, "test": 2}

Pixels = NDArray[np.uint8]


class Shard(NamedTuple):
    """`pixels` (N, H, W, 3) as the encoder takes them, `labels` (N,) class indices, `curves` (N, CURVE_POINTS).

    A curve is that of `models.charts.labels.close_curve`; of a picture that is no chart it means nothing.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    curves: NDArray[np.float32]


def reshaped(bars: Bars, rng: np.random.Generator) -> Bars:
    """The same prices told otherwise: several days a bar, no gaps between bars, upside down, backwards.

    Keeps the series real in its roughness while other markets' habits (round-the-clock trading has no gaps) and both
    directions come up equally.
    """
    o, h, low, c, v, dates = bars.opens, bars.highs, bars.lows, bars.closes, bars.volumes, bars.dates
    if rng.random() < 0.2:
        days = int(rng.integers(2, 6))
        whole = len(c) // days * days
        if whole >= 8 * days:
            o, c, dates = o[:whole:days], c[days - 1 : whole : days], dates[:whole:days]
            h, low = h[:whole].reshape(-1, days).max(1), low[:whole].reshape(-1, days).min(1)
            v = v[:whole].reshape(-1, days).sum(1)
    if rng.random() < 0.5:
        mirror = float(h.max() + low.min())
        o, h, low, c = mirror - o, mirror - low, mirror - h, mirror - c
    if rng.random() < 0.5:
        o, h, low, c, v = c[::-1], h[::-1], low[::-1], o[::-1], v[::-1]
    if rng.random() < 0.35:
        o = np.concatenate([o[:1], c[:-1]])
        h, low = np.maximum(h, o), np.minimum(low, o)
    return Bars(o, h, low, c, v, dates)


def _count(rng: np.random.Generator) -> int:
    """Bars in a picture: few to many, log-uniform."""
    low, high = (5, 32) if rng.random() < 0.25 else (8, 280)
    return int(np.exp(rng.uniform(np.log(low), np.log(high))))


@cache
def _tickers(part: Part) -> tuple[str, ...]:
    return tuple(sorted(ticker for ticker in load_prices() if part_of(ticker) == part))


class Drawing(NamedTuple):
    """A chart as it was drawn: its style's kind, the bars in view, their closes as a curve (`close_curve`), their net
    move from -1 to 1, and what that is."""

    picture: Image.Image
    kind: Kind
    bars: int
    curve: NDArray[np.float32]
    move: float
    trend: Trend


def drawn_chart(rng: np.random.Generator, part: Part, wanted: Trend | None = None) -> Drawing:
    """A clean chart of a ticker of `part` that shows `wanted`, where windows of that class are found."""
    prices, names = load_prices(), _tickers(part)
    style = random_style(rng)
    wide = bool(rng.random() < 0.25)
    if wide:
        style = replace(style, pad_left=0.0, pad_right=0.0)
    closes_only = style.kind in CLOSES_ONLY
    count = min(_count(rng), max(5, style.width // 2))
    for _ in range(40):
        bars = prices[names[int(rng.integers(len(names)))]]
        needed = count + 2 * _CONTEXT
        start = int(rng.integers(0, max(1, bars.count - needed)))
        window = reshaped(bars.between(start, start + needed), rng)
        shown = min(count, window.count)
        first = min(_CONTEXT, window.count - shown)
        view = Viewport(first, first + shown, own_scale=not (wide and rng.random() < 0.6))
        seen = window.between(view.first, view.last)
        move = net_move(seen, closes_only=closes_only)
        trend = trend_of(move)
        if wanted is None or trend is wanted:
            break
    curve = close_curve(seen, closes_only=closes_only)
    return Drawing(render(window, style, view), style.kind, shown, curve, move, trend)


def drawn_bars(rng: np.random.Generator, bars: Bars) -> Drawing:
    """A clean chart of exactly these bars, in a random style."""
    style = random_style(rng)
    closes_only = style.kind in CLOSES_ONLY
    move, curve = net_move(bars, closes_only=closes_only), close_curve(bars, closes_only=closes_only)
    view = Viewport(0, bars.count)
    return Drawing(render(bars, style, view), style.kind, bars.count, curve, move, trend_of(move))


def chart_picture(
    rng: np.random.Generator, part: Part, wanted: Trend | None = None, *, clean: bool = False
) -> tuple[Image.Image, Trend]:
    """A drawn chart of a ticker of `part` and what it shows: `wanted`, where windows of that class are found.

    `clean` leaves out what `screens.worn` does to a picture.
    """
    drawn = drawn_chart(rng, part, wanted)
    return (drawn.picture if clean else worn(drawn.picture, rng)), drawn.trend


def _make_shard(path: str, part: Part, number: int, count: int, seed: int) -> str:
    # Imported here: the workers of the pool need torch for nothing else than this module's input size.
    from models.charts.encoder import HEIGHT, WIDTH, to_pixels

    rng = np.random.default_rng([seed, _PART_SEED[part], number])
    pixels = np.empty((count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    curves = np.full((count, CURVE_POINTS), 0.5, dtype=np.float32)
    for i in range(count):
        if rng.random() < _NEGATIVE_SHARE:
            picture, labels[i] = not_a_chart(rng), NOT_A_CHART
        else:
            drawn = drawn_chart(rng, part, TREND_ORDER[int(rng.integers(3))])
            picture, labels[i], curves[i] = worn(drawn.picture, rng), TREND_ORDER.index(drawn.trend), drawn.curve
        pixels[i] = to_pixels(picture)
    final = Path(path)
    part_file = final.with_suffix(f".{os.getpid()}.part")
    with part_file.open("wb") as file:
        np.savez(file, pixels=pixels, labels=labels, curves=curves)
    part_file.replace(final)
    return path


def _files(folder: Path, part: Part, count: int) -> Iterator[tuple[Path, int, int]]:
    for number in range(-(-count // SHARD_PICTURES)):
        size = min(SHARD_PICTURES, count - number * SHARD_PICTURES)
        yield folder / f"{part}-{number:04d}-{size}.npz", number, size


def prepare(
    folder: Path,
    part: Part,
    count: int,
    *,
    seed: int,
    processes: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw `count` pictures of `part` into `folder`, a shard a file; shards that are there already are kept.

    The pictures depend on `seed`, the number of the shard and the fonts that the system has, on nothing else.
    `progress` is told (shards done, shards in all).
    """
    folder.mkdir(parents=True, exist_ok=True)
    everything = list(_files(folder, part, count))
    missing = [entry for entry in everything if not entry[0].exists()]
    done = len(everything) - len(missing)
    if progress:
        progress(done, len(everything))
    if not missing:
        return
    with ProcessPoolExecutor(min(processes, len(missing)), mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_make_shard, str(path), part, number, size, seed) for path, number, size in missing]
        for task in as_completed(tasks):
            task.result()
            done += 1
            if progress:
                progress(done, len(everything))


def shards(folder: Path, part: Part, count: int) -> list[Shard]:
    """The shards that `prepare` has drawn, in order."""
    loaded = []
    for path, _, _ in _files(folder, part, count):
        with np.load(path, allow_pickle=False) as archive:
            loaded.append(Shard(archive["pixels"], archive["labels"], archive["curves"]))
    return loaded
