"""Drawn charts: prices, labels and pictures agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.charts.dataset import chart_picture, drawn_bars, reshaped
from models.charts.labels import CURVE_POINTS, TREND_ORDER, close_curve, net_move, trend_of
from models.charts.negatives import KINDS, not_a_chart
from models.charts.prices import Bars, load_prices, part_of
from models.charts.render import CLOSES_ONLY, Viewport, render
from models.charts.screens import framed, worn
from models.charts.styles import Kind, Style, random_style, tradingview_style
from monitor.records import Trend

KIND_NAMES: list[Kind] = ["candles", "hollow", "ohlc", "range", "line", "step", "dots", "area", "baseline"]


def straight(first: float, last: float, count: int = 30) -> Bars:
    closes = np.linspace(first, last, count)
    opens = np.concatenate([[first], closes[:-1]])
    volumes = np.full(count, 1e6)
    dates = np.datetime64("2016-01-01") + np.arange(count)
    return Bars(opens, np.maximum(opens, closes) + 0.1, np.minimum(opens, closes) - 0.1, closes, volumes, dates)


def test_the_bundled_prices_are_bars_and_every_ticker_is_in_one_part() -> None:
    prices = load_prices()
    assert len(prices) == 88
    assert sum(bars.count for bars in prices.values()) == 108_589
    for bars in prices.values():
        assert np.isfinite(bars.closes).all()
        assert (bars.lows > 0).all()
        assert (bars.lows <= np.minimum(bars.opens, bars.closes)).all()
        assert (bars.highs >= np.maximum(bars.opens, bars.closes)).all()
        assert (np.diff(bars.dates) > np.timedelta64(0)).all()
    parts = [part_of(ticker) for ticker in prices]
    assert min(parts.count(part) for part in ("train", "validation", "test")) >= 5


def test_the_label_is_the_net_move_over_the_range_of_what_is_shown() -> None:
    bars = straight(10.0, 20.0)
    assert net_move(bars) > 0.9
    assert trend_of(net_move(bars)) is Trend.UP
    there_and_back = replace(bars, closes=np.concatenate([bars.closes[:15], bars.closes[:15][::-1]]))
    assert trend_of(net_move(there_and_back, closes_only=True)) is Trend.FLAT
    assert net_move(bars.between(3, 4)) == 0.0
    assert net_move(straight(5.0, 5.0), closes_only=True) == 0.0
    assert [trend_of(x) for x in (-0.36, -0.35, 0.35, 0.36)] == [Trend.DOWN, Trend.FLAT, Trend.FLAT, Trend.UP]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_prices_told_otherwise_are_still_bars(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bars = reshaped(load_prices()["AAPL"].between(100, 300), rng)
    assert bars.count >= 8
    assert (bars.highs >= np.maximum(bars.opens, bars.closes) - 1e-9).all()
    assert (bars.lows <= np.minimum(bars.opens, bars.closes) + 1e-9).all()


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_rise_is_drawn_from_the_lower_left_to_the_upper_right(kind: Kind) -> None:
    style = Style(width=200, height=120, kind=kind, up=(0, 0, 0), down=(0, 0, 0), line=(0, 0, 0), fill_strength=0.0)
    pixels = np.asarray(render(straight(10.0, 20.0), style)).mean(axis=2) < 128
    rows, columns = np.nonzero(pixels)
    assert rows.size > 20
    assert np.corrcoef(rows, columns)[0, 1] < -0.8
    falling = np.asarray(render(straight(20.0, 10.0), style)).mean(axis=2) < 128
    rows, columns = np.nonzero(falling)
    assert np.corrcoef(rows, columns)[0, 1] > 0.8


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(2, 260), st.booleans(), st.booleans())
def test_every_style_draws_every_window(seed: int, count: int, own_scale: bool, web: bool) -> None:
    rng = np.random.default_rng(seed)
    style = (tradingview_style if web else random_style)(rng)
    bars = load_prices()["XOM"].between(200, 200 + count + 20)
    view = Viewport(10, 10 + count, own_scale)
    picture = render(bars, style, view)
    assert picture.size == (style.width, style.height)
    assert np.asarray(picture).std() > 0.5
    assert picture.tobytes() == render(bars, style, view).tobytes()


def test_a_viewport_without_bars_is_refused() -> None:
    with pytest.raises(ValueError, match="no bar"):
        render(straight(1, 2), Style(), Viewport(5, 5))


def test_pictures_of_a_wanted_class_are_found_and_seeded() -> None:
    for trend in TREND_ORDER:
        found = [chart_picture(np.random.default_rng(seed), "train", trend)[1] for seed in range(12)]
        assert found.count(trend) >= 11
    one, other = (chart_picture(np.random.default_rng(9), "validation")[0] for _ in range(2))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_that_is_no_chart_is_drawn(kind: str) -> None:
    sizes = set()
    for seed in range(4):
        picture = not_a_chart(np.random.default_rng(seed), kind)
        assert picture.mode == "RGB"
        assert min(picture.size) >= 60
        sizes.add(picture.size)
    assert len(sizes) > 1


def test_a_frame_leaves_the_picture_its_share() -> None:
    picture = render(straight(1, 2), Style(width=300, height=200))
    for seed in range(20):
        around = framed(picture, np.random.default_rng(seed))
        assert around.width * around.height <= 300 * 200 / 0.35
        assert min(worn(picture, np.random.default_rng(seed)).size) >= 60


def test_the_curve_of_closes_tells_the_net_move() -> None:
    bars = load_prices()["AAPL"].between(100, 160)
    for closes_only in (False, True):
        curve = close_curve(bars, closes_only=closes_only)
        assert curve.shape == (CURVE_POINTS,)
        assert 0 <= curve.min() <= curve.max() <= 1
        assert curve[-1] - curve[0] == pytest.approx(net_move(bars, closes_only=closes_only), abs=1e-6)
    flat = Bars(*(np.full(3, 7.0) for _ in range(5)), bars.dates[:3])
    assert (close_curve(flat) == 0.5).all()


def test_given_bars_are_drawn_as_they_are() -> None:
    bars = load_prices()["AAPL"].between(100, 140)
    for seed in range(6):
        drawn = drawn_bars(np.random.default_rng(seed), bars)
        assert drawn.bars == 40
        assert drawn.move == pytest.approx(net_move(bars, closes_only=drawn.kind in CLOSES_ONLY))
        assert drawn.trend is trend_of(drawn.move)
