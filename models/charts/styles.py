"""How a chart is drawn: one `Style` holds every choice, `random_style` draws one from the looks found in practice."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

__all__ = ["Colour", "Kind", "Style", "random_style", "tradingview_style"]

Colour = tuple[int, int, int]
Kind = Literal["candles", "hollow", "ohlc", "range", "line", "step", "dots", "area", "baseline"]

WHITE: Final[Colour] = (255, 255, 255)
BLACK: Final[Colour] = (0, 0, 0)

_PAIRS: Final[tuple[tuple[str, str], ...]] = (
    ("#26a69a", "#ef5350"),
    ("#089981", "#f23645"),
    ("#2ebd85", "#f6465d"),
    ("#0ecb81", "#f6465d"),
    ("#00b061", "#ff3030"),
    ("#53b987", "#eb4d5c"),
    ("#4caf50", "#f44336"),
    ("#00ff00", "#ff0000"),
    ("#006340", "#a02128"),
    ("#77d879", "#db3f3f"),
    ("#ffffff", "#000000"),
    ("#000000", "#000000"),
    ("#2196f3", "#ff9800"),
    ("#3d85c6", "#cc4125"),
    ("#5b9bd5", "#404040"),
    ("#00bcd4", "#e91e63"),
    ("#1f77b4", "#d62728"),
    ("#16a085", "#c0392b"),
    ("#84b761", "#cc4748"),
    ("#6ba583", "#d75442"),
    ("#f0f0f0", "#3179f5"),
    ("#a9cdd3", "#f5a6ae"),
)
_LIGHT: Final = ("#ffffff", "#ffffff", "#ffffff", "#fafafa", "#f5f5f5", "#fdf6e3", "#eaeaf2", "#f0f3fa", "#fff8dc")
_DARK: Final = ("#131722", "#131722", "#000000", "#161a25", "#1e1e1e", "#0b0e11", "#181a20", "#222531", "#1b2631")
_LINES: Final = ("#2962ff", "#2196f3", "#1f77b4", "#d62728", "#4caf50", "#ff9800", "#9c27b0", "#00bcd4", "#673ab7")


def colour(text: str) -> Colour:
    """From `#rrggbb`."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of `other`, the rest of `one`."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(one, other, strict=True))
    return r, g, b


def luminance(of: Colour) -> float:
    """Perceived brightness in [0, 255]."""
    return 0.299 * of[0] + 0.587 * of[1] + 0.114 * of[2]


@dataclass(frozen=True, kw_only=True)
class Style:
    """Every choice of a drawing. Sizes are pixels of the finished picture, shares lie in [0, 1].

    `pad_*` are the shares of the price pane left free at its edges; `body` is the share of a bar's slot that its body
    takes; `panes` are the lower panes, from top to bottom.
    """

    width: int = 640
    height: int = 400
    kind: Kind = "candles"
    ground: Colour = WHITE
    ink: Colour = (60, 60, 60)
    up: Colour = (38, 166, 154)
    down: Colour = (239, 83, 80)
    wick: Colour | None = None
    border: Colour | None = None
    hollow_down: bool = False
    body: float = 0.7
    stroke: float = 1.0
    line: Colour = (41, 98, 255)
    fill_strength: float = 0.3
    oversample: int = 1
    log_scale: bool = False
    pad_top: float = 0.08
    pad_bottom: float = 0.08
    pad_left: float = 0.01
    pad_right: float = 0.03
    axis_right: bool = False
    axis_left: bool = False
    axis_bottom: bool = False
    spines: bool = False
    grid_x: bool = False
    grid_y: bool = False
    grid: Colour = (225, 225, 225)
    grid_dash: bool = False
    font_size: int = 11
    font: int = 0
    title: bool = False
    legend: bool = False
    watermark: bool = False
    last_price_line: bool = False
    averages: tuple[int, ...] = ()
    average_colours: tuple[Colour, ...] = ()
    bands: bool = False
    panes: tuple[Literal["volume", "oscillator"], ...] = ()
    pane_share: float = 0.18
    overlay_volume: bool = False
    levels: int = 0
    trend_lines: int = 0
    notes: int = 0
    markers: int = 0
    crosshair: bool = False
    toolbar: bool = False
    seed: int = field(default=0, compare=False)


def _hue(rng: np.random.Generator, dark: bool) -> Colour:
    value = float(rng.uniform(0.55, 1.0) if dark else rng.uniform(0.2, 0.85))
    r, g, b = colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.4, 1.0)), value)
    return round(r * 255), round(g * 255), round(b * 255)


def _visible(of: Colour, ground: Colour) -> Colour:
    """`of`, moved away from the ground where the two could hardly be told apart."""
    if sum(abs(a - b) for a, b in zip(of, ground, strict=True)) >= 90:
        return of
    return mix(of, WHITE if luminance(ground) < 128 else BLACK, 0.6)


def _size(rng: np.random.Generator) -> tuple[int, int]:
    width = float(np.exp(rng.uniform(np.log(130), np.log(900))))
    aspect = float(np.exp(rng.normal(np.log(1.45), 0.38)))
    if rng.random() < 0.15:
        aspect = 1.0
    height = float(np.clip(width / aspect, 90, 700))
    return round(width), round(height)


def _decorated(style: Style, rng: np.random.Generator, dark: bool, strength: float) -> Style:
    """Averages, bands, levels, notes and the like; `strength` scales how likely each is."""

    def chance(p: float) -> bool:
        return bool(rng.random() < p * strength)

    averages = tuple(int(n) for n in rng.choice([5, 7, 9, 10, 20, 21, 30, 50, 100, 200], rng.integers(1, 4), False))
    return replace(
        style,
        averages=averages if chance(0.3) else (),
        average_colours=tuple(_hue(rng, dark) for _ in averages),
        bands=chance(0.1),
        panes=tuple(name for name, p in (("volume", 0.22), ("oscillator", 0.12)) if chance(p)),  # type: ignore[misc]
        pane_share=float(rng.uniform(0.1, 0.28)),
        overlay_volume=chance(0.12),
        levels=int(rng.integers(1, 6)) if chance(0.15) else 0,
        trend_lines=int(rng.integers(1, 4)) if chance(0.12) else 0,
        notes=int(rng.integers(1, 4)) if chance(0.15) else 0,
        markers=int(rng.integers(1, 6)) if chance(0.1) else 0,
        crosshair=chance(0.06),
        title=chance(0.2),
        legend=chance(0.25),
        watermark=chance(0.12),
        toolbar=chance(0.08),
    )


def tradingview_style(rng: np.random.Generator) -> Style:
    """The look of the web's most copied charting page: teal and red, price axis on the right, or a bare crop of it."""
    dark = bool(rng.random() < 0.5)
    ground = colour("#131722") if dark else WHITE
    bare = bool(rng.random() < 0.55)
    up, down = (colour(c) for c in _PAIRS[int(rng.integers(0, 2))])
    if rng.random() < 0.2:
        up, down = (colour(c) for c in _PAIRS[int(rng.integers(len(_PAIRS)))])
    width, height = _size(rng)
    kind = str(
        rng.choice(["candles", "line", "area", "hollow", "ohlc", "baseline"], p=[0.62, 0.15, 0.09, 0.05, 0.06, 0.03])
    )
    style = Style(
        width=width,
        height=height,
        kind=kind,  # type: ignore[arg-type]
        ground=ground,
        ink=colour("#b2b5be") if dark else colour("#131722"),
        up=_visible(up, ground),
        down=_visible(down, ground),
        body=float(rng.uniform(0.6, 0.9)),
        stroke=float(rng.choice([1.0, 1.0, 1.5, 2.0])) if kind in ("candles", "hollow", "ohlc") else 2.0,
        line=colour(str(rng.choice(_LINES[:2]))),
        fill_strength=float(rng.uniform(0.15, 0.4)),
        oversample=2 if kind in ("line", "area", "baseline") else 1,
        log_scale=bool(rng.random() < 0.1),
        pad_top=float(rng.uniform(0.0, 0.22)),
        pad_bottom=float(rng.uniform(0.0, 0.22)),
        pad_left=0.0,
        pad_right=float(rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.3)])),
        axis_right=not bare,
        axis_bottom=not bare and bool(rng.random() < 0.8),
        spines=bool(rng.random() < 0.2),
        grid_x=bool(rng.random() < 0.6),
        grid_y=bool(rng.random() < 0.65),
        grid=colour("#2a2e39") if dark else colour("#e9ecf2"),
        font_size=int(rng.integers(9, 14)),
        font=int(rng.integers(4)),
        last_price_line=bool(rng.random() < 0.6),
        seed=int(rng.integers(1 << 31)),
    )
    return _decorated(style, rng, dark, 0.35 if bare else 0.9)


def random_style(rng: np.random.Generator) -> Style:
    """A style drawn from all looks: a third follow the web's charting pages, the others vary everything freely."""
    if rng.random() < 0.38:
        return tradingview_style(rng)
    dark = bool(rng.random() < 0.4)
    ground = colour(str(rng.choice(_DARK if dark else _LIGHT)))
    if rng.random() < 0.08:
        ground = mix(_hue(rng, dark), BLACK if dark else WHITE, 0.75)
    first, second = (colour(c) for c in _PAIRS[int(rng.integers(len(_PAIRS)))])
    roll = rng.random()
    if roll < 0.12:
        # East Asian markets: red rises.
        first, second = second, first
    elif roll < 0.3:
        first, second = _hue(rng, dark), _hue(rng, dark)
    elif roll < 0.36:
        second = first
    up, down = _visible(first, ground), _visible(second, ground)
    kinds = ["candles", "hollow", "ohlc", "range", "line", "step", "dots", "area", "baseline"]
    kind = str(rng.choice(kinds, p=[0.42, 0.08, 0.1, 0.02, 0.19, 0.02, 0.03, 0.11, 0.03]))
    width, height = _size(rng)
    bare = bool(rng.random() < 0.4)
    pads = rng.dirichlet([0.6, 0.6, 2.5]) * rng.choice([0.15, 0.4, 0.75], p=[0.6, 0.25, 0.15])
    sides = rng.dirichlet([0.6, 0.6, 2.5]) * rng.choice([0.1, 0.3, 0.7], p=[0.6, 0.25, 0.15])
    strong = bool(rng.random() < 0.3)
    style = Style(
        width=width,
        height=height,
        kind=kind,  # type: ignore[arg-type]
        ground=ground,
        ink=mix(ground, WHITE if dark else BLACK, float(rng.uniform(0.5, 0.95))),
        up=up,
        down=down,
        wick=None if rng.random() < 0.7 else mix(ground, WHITE if dark else BLACK, float(rng.uniform(0.4, 1.0))),
        border=None if rng.random() < 0.7 else mix(ground, WHITE if dark else BLACK, float(rng.uniform(0.4, 1.0))),
        hollow_down=bool(rng.random() < 0.1),
        body=float(rng.uniform(0.25, 1.0)),
        stroke=float(rng.choice([1.0, 1.0, 1.5, 2.0, 2.5, 3.5])),
        line=_visible(_hue(rng, dark) if rng.random() < 0.5 else colour(str(rng.choice(_LINES))), ground),
        fill_strength=float(rng.uniform(0.1, 1.0)),
        oversample=int(rng.choice([1, 2])),
        log_scale=bool(rng.random() < 0.1),
        pad_top=float(pads[0]),
        pad_bottom=float(pads[1]),
        pad_left=float(sides[0]),
        pad_right=float(sides[1]),
        axis_right=not bare and bool(rng.random() < 0.5),
        axis_left=not bare and bool(rng.random() < 0.5),
        axis_bottom=not bare and bool(rng.random() < 0.75),
        spines=bool(rng.random() < (0.15 if bare else 0.6)),
        grid_x=bool(rng.random() < 0.4),
        grid_y=bool(rng.random() < 0.5),
        grid=mix(
            ground, WHITE if dark else BLACK, float(rng.uniform(0.3, 0.55) if strong else rng.uniform(0.06, 0.25))
        ),
        grid_dash=bool(rng.random() < 0.4),
        font_size=int(rng.integers(7, 16)),
        font=int(rng.integers(4)),
        last_price_line=bool(rng.random() < 0.2),
        seed=int(rng.integers(1 << 31)),
    )
    return _decorated(style, rng, dark, 0.4 if bare else 1.0)
