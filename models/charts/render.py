"""Draws bars as a picture in a given style. Fast: PIL primitives only, 2 to 20 ms a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.charts.prices import Bars
from models.charts.styles import Colour, Style, luminance, mix

__all__ = ["CLOSES_ONLY", "Viewport", "font_of", "render"]

# Kinds that show closes alone, so that highs and lows are not in the picture.
CLOSES_ONLY: Final = frozenset({"line", "step", "dots", "area", "baseline"})
_FONTS: Final = ("", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "DejaVuSansMono.ttf")
_NOTES: Final = ("breakout", "support", "buy", "sell", "target", "entry", "gap", "earnings", "stop-loss", "ATH")

Floats = NDArray[np.float64]


class Viewport(NamedTuple):
    """Which bars the picture shows: `first` up to, not including, `last`; the bars round them are context.

    With `own_scale` the price axis spans the shown bars, else all bars given, as in a crop from a wider chart.
    """

    first: int
    last: int
    own_scale: bool = True


@cache
def font_of(number: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font by number; one that the system lacks is replaced by Pillow's own."""
    if _FONTS[number]:
        try:
            return ImageFont.truetype(_FONTS[number], size)
        except OSError:
            pass
    return ImageFont.load_default(size)


def _nice_ticks(low: float, high: float, count: int) -> Floats:
    """Round values between `low` and `high`, about `count` of them (Heckbert 1990)."""
    raw = (high - low) / max(count, 1)
    if not np.isfinite(raw) or raw <= 0:
        return np.array([low])
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * min((1.0, 2.0, 2.5, 5.0, 10.0), key=lambda m: abs(m * power - raw))
    return np.asarray(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step, dtype=np.float64)


def _average(values: Floats, window: int) -> Floats:
    """Trailing mean; the first values average what there is."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - window, 0)
    return np.asarray((sums[stop] - sums[start]) / (stop - start), dtype=np.float64)


class _Pane:
    """One rectangle of the picture with its own scale, drawn by itself and pasted, so that it clips what it draws."""

    def __init__(self, style: Style, box: tuple[int, int, int, int], view: Viewport, low: float, high: float) -> None:
        self.style, self.box = style, box
        self.scale = style.oversample
        self.width, self.height = (box[2] - box[0]) * self.scale, (box[3] - box[1]) * self.scale
        self.image = Image.new("RGB", (max(self.width, 1), max(self.height, 1)), style.ground)
        self.draw = ImageDraw.Draw(self.image)
        self.view = view
        usable = self.width * (1 - style.pad_left - style.pad_right)
        self.slot = usable / max(view.last - view.first, 1)
        self.low, self.high = low, high if high > low else low + max(abs(low), 1.0) * 1e-3

    def x(self, index: Floats | float) -> Floats:
        """Centre of the slot of a bar, in pane pixels."""
        return np.asarray(self.width * self.style.pad_left + (np.asarray(index) - self.view.first + 0.5) * self.slot)

    def y(self, value: Floats | float) -> Floats:
        """Height of a value, in pane pixels from the top."""
        v, low, high = np.asarray(value, dtype=np.float64), self.low, self.high
        if self.style.log_scale and low > 0:
            v, low, high = np.log(np.maximum(v, low * 1e-3)), np.log(low), np.log(high)
        top = self.height * self.style.pad_top
        room = self.height * (1 - self.style.pad_top - self.style.pad_bottom)
        return np.asarray(top + (high - v) / (high - low) * max(room - 1, 1))

    def stroke(self, width: float) -> int:
        """Pen width in pane pixels."""
        return max(1, round(width * self.scale))

    def path(self, xs: Floats, ys: Floats) -> list[tuple[float, float]]:
        """Points for PIL."""
        return list(zip(xs.tolist(), ys.tolist(), strict=True))

    def dashed(
        self, start: tuple[float, float], stop: tuple[float, float], ink: Colour, width: int, dash: float
    ) -> None:
        """A dashed straight line."""
        length = float(np.hypot(stop[0] - start[0], stop[1] - start[1]))
        for at in np.arange(0.0, length, dash * 2):
            a, b = at / length, min(at + dash, length) / length
            self.draw.line(
                (
                    start[0] + (stop[0] - start[0]) * a,
                    start[1] + (stop[1] - start[1]) * a,
                    start[0] + (stop[0] - start[0]) * b,
                    start[1] + (stop[1] - start[1]) * b,
                ),
                fill=ink,
                width=width,
            )

    def paste(self, onto: Image.Image) -> None:
        """Put the pane where it belongs in the finished picture."""
        left, top, right, bottom = self.box
        if right <= left or bottom <= top:
            return
        image = self.image
        if self.scale != 1:
            image = image.resize((right - left, bottom - top), Image.Resampling.BOX)
        onto.paste(image, (left, top))


def _shown(bars: Bars, pane: _Pane) -> range:
    """Bars that touch the pane: the viewport and the context that the padding leaves room for."""
    style, view = pane.style, pane.view
    # Padding holds no bars: context appears only where a crop cuts, that is, without padding.
    before = 1 if style.pad_left == 0 else 0
    after = 1 if style.pad_right == 0 else 0
    return range(max(view.first - before, 0), min(view.last + after, bars.count))


def _candles(pane: _Pane, bars: Bars, shown: range) -> None:
    style, draw = pane.style, pane.draw
    index = np.arange(shown.start, shown.stop)
    x = pane.x(index.astype(np.float64))
    half = max(pane.slot * style.body / 2, 0.5)
    opens, closes = pane.y(bars.opens[index]), pane.y(bars.closes[index])
    highs, lows = pane.y(bars.highs[index]), pane.y(bars.lows[index])
    pen = pane.stroke(min(style.stroke, max(1.0, pane.slot / pane.scale / 3)))
    for i in range(len(index)):
        rises = bars.closes[index[i]] >= bars.opens[index[i]]
        body = style.up if rises else style.down
        wick = style.wick or body
        if style.kind == "ohlc":
            draw.line((x[i], highs[i], x[i], lows[i]), fill=body, width=pen)
            draw.line((x[i] - half, opens[i], x[i], opens[i]), fill=body, width=pen)
            draw.line((x[i], closes[i], x[i] + half, closes[i]), fill=body, width=pen)
            continue
        if style.kind == "range":
            draw.rectangle((x[i] - half / 2, highs[i], x[i] + half / 2, lows[i]), fill=body)
            continue
        draw.line((x[i], highs[i], x[i], lows[i]), fill=wick, width=pen)
        top, bottom = min(opens[i], closes[i]), max(opens[i], closes[i])
        empty = (style.kind == "hollow" and rises) or (style.hollow_down and not rises)
        draw.rectangle(
            (round(x[i] - half), top, max(round(x[i] + half) - (1 if half > 1 else 0), round(x[i] - half)), bottom),
            fill=style.ground if empty else body,
            outline=style.border or body,
            width=pen if half > 2 else 1,
        )


def _line(pane: _Pane, bars: Bars, shown: range) -> None:
    style, draw = pane.style, pane.draw
    index = np.arange(shown.start, shown.stop)
    xs, ys = pane.x(index.astype(np.float64)), pane.y(bars.closes[index])
    if style.kind == "step":
        xs, ys = np.repeat(xs, 2)[1:], np.repeat(ys, 2)[:-1]
    points = pane.path(xs, ys)
    pen = pane.stroke(style.stroke)
    ink = style.line
    if style.kind in ("area", "baseline") and len(points) > 1:
        base = float(ys[0]) if style.kind == "baseline" else float(pane.height)
        mask = Image.new("L", pane.image.size, 0)
        ImageDraw.Draw(mask).polygon([(points[0][0], base), *points, (points[-1][0], base)], fill=255)
        fade = np.linspace(1.0, 0.15 if style.seed % 2 else 1.0, pane.height)[:, None] * style.fill_strength
        strength = (np.asarray(mask, dtype=np.float64) * fade).astype(np.uint8)
        pane.image.paste(ink, (0, 0), Image.fromarray(strength))
    if style.kind == "baseline":
        base = float(ys[0])
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            draw.line((x0, y0, x1, y1), fill=style.up if (y0 + y1) / 2 <= base else style.down, width=pen)
        pane.dashed((0, base), (pane.width, base), mix(style.ground, style.ink, 0.5), pane.stroke(1), 4.0 * pane.scale)
        return
    if style.kind == "dots" or (style.kind == "line" and style.seed % 11 == 0 and pane.slot > 8):
        r = max(1.0, min(pane.slot / 3, 3.0 * pane.scale))
        for x, y in points:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    if style.kind != "dots" and len(points) > 1:
        draw.line(points, fill=ink, width=pen, joint="curve")


def _overlays(pane: _Pane, bars: Bars, shown: range, rng: np.random.Generator) -> None:
    """Averages, bands, levels, trend lines, markers, the last price and the crosshair."""
    style, draw, view = pane.style, pane.draw, pane.view
    index = np.arange(shown.start, shown.stop)
    xs = pane.x(index.astype(np.float64))
    pen = pane.stroke(min(style.stroke, 1.5))
    for window, ink in zip(style.averages, style.average_colours, strict=False):
        draw.line(pane.path(xs, pane.y(_average(bars.closes, window)[index])), fill=ink, width=pen)
    if style.bands:
        middle = _average(bars.closes, 20)
        spread = 2 * np.sqrt(np.maximum(_average(bars.closes**2, 20) - middle**2, 0))
        for edge in (middle - spread, middle + spread):
            draw.line(pane.path(xs, pane.y(edge[index])), fill=mix(style.ground, style.line, 0.7), width=pen)
    for _ in range(style.levels):
        y = float(rng.uniform(0, pane.height))
        ink = mix(style.ground, style.line if rng.random() < 0.5 else style.down, float(rng.uniform(0.5, 1)))
        pane.dashed((0, y), (pane.width, y), ink, pen, float(rng.choice([3, 6, 10_000])) * pane.scale)
    for _ in range(style.trend_lines):
        a, b = rng.uniform(0, pane.width, 2), rng.uniform(0, pane.height, 2)
        draw.line((a[0], b[0], a[1], b[1]), fill=mix(style.ground, style.line, 0.8), width=pen)
    for _ in range(style.markers):
        i = int(rng.integers(view.first, view.last))
        x, y = float(pane.x(i)), float(pane.y(bars.closes[i]))
        r, up = 4.0 * pane.scale, bool(rng.random() < 0.5)
        y += (2.5 if up else -2.5) * r
        tip = -r if up else r
        draw.polygon([(x, y + tip), (x - r, y - tip), (x + r, y - tip)], fill=style.up if up else style.down)
    if style.last_price_line:
        last = bars.closes[view.last - 1]
        ink = style.up if last >= bars.opens[view.last - 1] else style.down
        y = float(pane.y(last))
        pane.dashed((0, y), (pane.width, y), ink, pane.stroke(1), 2.0 * pane.scale)
    if style.crosshair:
        x, y = float(rng.uniform(0, pane.width)), float(rng.uniform(0, pane.height))
        ink = mix(style.ground, style.ink, 0.6)
        pane.dashed((x, 0), (x, pane.height), ink, pane.stroke(1), 4.0 * pane.scale)
        pane.dashed((0, y), (pane.width, y), ink, pane.stroke(1), 4.0 * pane.scale)


def _grid(pane: _Pane, ticks_x: Floats, ticks_y: Floats) -> None:
    style, pen = pane.style, pane.stroke(1)
    dash = 3.0 * pane.scale if style.grid_dash else 1e9
    if style.grid_y:
        for y in pane.y(ticks_y).tolist():
            pane.dashed((0, y), (pane.width, y), style.grid, pen, dash)
    if style.grid_x:
        for x in pane.x(ticks_x).tolist():
            pane.dashed((x, 0), (x, pane.height), style.grid, pen, dash)


def _lower_pane(pane: _Pane, name: str, bars: Bars, shown: range) -> None:
    style = pane.style
    index = np.arange(shown.start, shown.stop)
    xs = pane.x(index.astype(np.float64))
    if name == "oscillator":
        change = np.diff(bars.closes, prepend=bars.closes[0])
        gain, loss = _average(np.maximum(change, 0), 14), _average(np.maximum(-change, 0), 14)
        strength = 100 * gain / np.maximum(gain + loss, 1e-9)
        for level in (30.0, 70.0):
            pane.dashed((0, float(pane.y(level))), (pane.width, float(pane.y(level))), style.grid, 1, 4.0)
        pane.draw.line(pane.path(xs, pane.y(strength[index])), fill=(126, 87, 194), width=pane.stroke(1))
        return
    half = max(pane.slot * style.body / 2, 0.5)
    tops = pane.y(bars.volumes[index])
    for i in range(len(index)):
        rises = bars.closes[index[i]] >= bars.opens[index[i]]
        ink = mix(style.ground, style.up if rises else style.down, 0.6)
        pane.draw.rectangle((xs[i] - half, min(tops[i], pane.height), xs[i] + half, pane.height), fill=ink)


def _texts(
    image: Image.Image, style: Style, bars: Bars, view: Viewport, box: Sequence[int], rng: np.random.Generator
) -> None:
    """Title, legend, watermark, notes and the toolbar of a charting page."""
    draw = ImageDraw.Draw(image)
    name = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), int(rng.integers(2, 5))))
    i = view.last - 1
    small = font_of(style.font, style.font_size)
    if style.watermark:
        big = font_of(style.font, max(12, (box[3] - box[1]) // 5))
        draw.text(
            ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
            name,
            mix(style.ground, style.ink, 0.15),
            font=big,
            anchor="mm",
        )
    if style.legend:
        text = f"{name} · 1D  O{bars.opens[i]:.2f} H{bars.highs[i]:.2f} L{bars.lows[i]:.2f} C{bars.closes[i]:.2f}"
        draw.text((box[0] + 6, box[1] + 4), text, style.ink, font=small)
        for row, window in enumerate(style.averages, start=1):
            line = (box[0] + 6, box[1] + 4 + row * (style.font_size + 4))
            draw.text(line, f"MA {window}", style.average_colours[row - 1], font=small)
    if style.title:
        big = font_of(style.font, style.font_size + 3)
        text = str(rng.choice([f"{name} daily", f"{name} Inc. share price", f"{name}/USD", f"{name} {bars.dates[i]}"]))
        draw.text(((box[0] + box[2]) / 2, 2), text, style.ink, font=big, anchor="ma")
    for _ in range(style.notes):
        at = (float(rng.uniform(box[0], box[2] * 0.8)), float(rng.uniform(box[1], box[3] * 0.9)))
        draw.text(at, str(rng.choice(_NOTES)), mix(style.ground, style.line, 0.9), font=small)
    if style.toolbar:
        for row in range(int(rng.integers(4, 10))):
            y = box[1] + 8 + row * 18
            draw.rectangle((3, y, 11, y + 8), outline=mix(style.ground, style.ink, 0.5))


def _axes(
    image: Image.Image,
    style: Style,
    pane: _Pane,
    bars: Bars,
    box: tuple[int, int, int, int],
    bottom: int,
    ticks_x: Floats,
    ticks_y: Floats,
) -> None:
    draw = ImageDraw.Draw(image)
    left, top, right, _ = box
    small = font_of(style.font, style.font_size)
    places = 2 if pane.high < 100 else 1 if pane.high < 1000 else 0
    for value in ticks_y.tolist():
        y = top + float(pane.y(value)) / pane.scale
        if not top <= y <= box[3]:
            continue
        if style.axis_right:
            draw.text((right + 5, y), f"{value:.{places}f}", style.ink, font=small, anchor="lm")
        if style.axis_left:
            draw.text((left - 5, y), f"{value:.{places}f}", style.ink, font=small, anchor="rm")
    if style.axis_right and style.last_price_line:
        i = pane.view.last - 1
        ink = style.up if bars.closes[i] >= bars.opens[i] else style.down
        y, half = top + float(pane.y(bars.closes[i])) / pane.scale, style.font_size * 0.7
        draw.rectangle((right + 1, y - half, image.width - 1, y + half), fill=ink)
        pen = (255, 255, 255) if luminance(ink) < 170 else (0, 0, 0)
        draw.text((right + 5, y), f"{bars.closes[i]:.{places}f}", pen, font=small, anchor="lm")
    if style.axis_bottom:
        for tick in ticks_x.tolist():
            x = left + float(pane.x(tick)) / pane.scale
            date = bars.dates[min(int(tick), bars.count - 1)].item()
            if left <= x <= right:
                draw.text(
                    (x, bottom + 3),
                    date.strftime(("%b %d", "%d", "%Y-%m", "%m/%d")[style.seed % 4]),
                    style.ink,
                    font=small,
                    anchor="ma",
                )
    if style.spines:
        draw.rectangle((left, top, right, bottom), outline=mix(style.ground, style.ink, 0.8))


def render(bars: Bars, style: Style, view: Viewport | None = None) -> Image.Image:
    """A picture (style.width x style.height, RGB) of the bars in the viewport; all of them without one.

    Bars outside the viewport feed the averages and, where the style leaves no padding, are cut by the edge.
    `style.seed` places whatever is placed at random, so that the same arguments give the same picture.
    """
    view = view or Viewport(0, bars.count)
    if not 0 <= view.first < view.last <= bars.count:
        raise ValueError("the viewport shows no bar")
    rng = np.random.default_rng(style.seed)
    image = Image.new("RGB", (style.width, style.height), style.ground)
    unit = style.font_size
    left = unit * 4 if style.axis_left else 16 if style.toolbar else 0
    right = style.width - (unit * 4 + 4 if style.axis_right else 0)
    top = unit + 8 if style.title else 0
    bottom = style.height - (unit + 6 if style.axis_bottom else 0)
    left, right, top, bottom = min(left, style.width // 3), max(right, style.width // 2), min(top, 40), max(bottom, 60)
    share = style.pane_share * len(style.panes)
    floor = round(bottom - (bottom - top) * min(share, 0.5))
    box = (left, top, right, floor)
    ranged = bars.between(view.first, view.last) if view.own_scale else bars
    closes_only = style.kind in CLOSES_ONLY
    low = float((ranged.closes if closes_only else ranged.lows).min())
    high = float((ranged.closes if closes_only else ranged.highs).max())
    pane = _Pane(style, box, view, low, high)
    shown = _shown(bars, pane)
    ticks_y = _nice_ticks(low, high, max(2, (floor - top) // 45))
    step = max(1, round((view.last - view.first) / max(2, (right - left) // 80)))
    ticks_x = np.arange(view.first, view.last, step, dtype=np.float64)
    _grid(pane, ticks_x, ticks_y)
    if style.overlay_volume:
        biggest = float(bars.volumes[shown.start : shown.stop].max())
        under = _Pane(style, box, view, 0.0, max(biggest, 1.0) * 4)
        under.image, under.draw = pane.image, pane.draw
        _lower_pane(under, "volume", bars, shown)
    (_line if closes_only else _candles)(pane, bars, shown)
    _overlays(pane, bars, shown, rng)
    pane.paste(image)
    for number, name in enumerate(style.panes):
        each = (bottom - floor) / len(style.panes)
        strip = (left, round(floor + each * number), right, round(floor + each * (number + 1)))
        peak = 100.0 if name == "oscillator" else float(bars.volumes[shown.start : shown.stop].max()) * 1.1
        lower = _Pane(style, strip, view, 0.0, max(peak, 1.0))
        lower.draw.line((0, 0, lower.width, 0), fill=style.grid)
        _lower_pane(lower, name, bars, shown)
        lower.paste(image)
    _texts(image, style, bars, view, box, rng)
    _axes(image, style, pane, bars, box, bottom, ticks_x, ticks_y)
    return image
