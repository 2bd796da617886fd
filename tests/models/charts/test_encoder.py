"""The encoder's input and output, and what the shipped weights can do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.charts.dataset import chart_picture
from models.charts.encoder import (
    HEIGHT,
    WIDTH,
    ChartEncoder,
    ChartEncoderConfig,
    ChartReader,
    content_box,
    load_chart_encoder,
    normalise,
    preprocess,
    save_chart_encoder,
    to_pixels,
)
from models.charts.labels import TREND_ORDER
from models.charts.negatives import not_a_chart
from monitor.errors import ModelError


@pytest.fixture(scope="module")
def reader() -> ChartReader:
    return ChartReader(load_chart_encoder())


def drawing() -> Image.Image:
    image = Image.new("RGB", (100, 60), (255, 255, 255))
    for x in range(100):
        image.putpixel((x, 59 - x * 59 // 99), (200, 30, 30))
    return image


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=4, max_size=4), st.integers(0, 3))
def test_margins_and_frames_make_no_difference(margins: list[int], frame: int) -> None:
    left, top, right, bottom = margins
    inner = drawing()
    wide = Image.new("RGB", (100 + left + right, 60 + top + bottom), (255, 255, 255))
    wide.paste(inner, (left, top))
    outer = Image.new("RGB", (wide.width + 2 * frame, wide.height + 2 * frame), (0, 0, 0))
    outer.paste(wide, (frame, frame))
    assert content_box(np.asarray(outer)) == (left + frame, top + frame, left + frame + 100, top + frame + 60)
    np.testing.assert_array_equal(to_pixels(outer)[3:-3, 3:-3], to_pixels(inner)[3:-3, 3:-3])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2), (500, 1), (WIDTH, HEIGHT)])
def test_a_plain_picture_of_any_size_is_an_input(size: tuple[int, int]) -> None:
    pixels = to_pixels(Image.new("RGB", size, (7, 80, 200)))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert (pixels == (7, 80, 200)).all()


def test_preprocess_is_the_normalised_picture() -> None:
    tensor = preprocess(drawing())
    assert tensor.shape == (3, HEIGHT, WIDTH)
    assert float(tensor.max()) == pytest.approx(2.0)
    torch.testing.assert_close(tensor, normalise(torch.from_numpy(to_pixels(drawing()))[None])[0])


def test_shapes_and_batches_agree(reader: ChartReader) -> None:
    pictures = [chart_picture(np.random.default_rng(seed), "test")[0] for seed in range(5)]
    output = reader.encoder(torch.stack([preprocess(picture) for picture in pictures]))
    size = reader.encoder.hidden_size
    assert output.tokens.shape == (5, HEIGHT // 16 * (WIDTH // 16), size)
    assert output.pooled.shape == (5, size)
    together = reader.read(pictures)
    assert together.trend.shape == (5, 3)
    np.testing.assert_allclose(together.trend.sum(1), 1, atol=1e-5)
    alone = [reader.read([picture]) for picture in pictures]
    np.testing.assert_allclose(together.trend, np.concatenate([r.trend for r in alone]), atol=1e-4)
    np.testing.assert_allclose(together.chart, np.concatenate([r.chart for r in alone]), atol=1e-4)
    assert reader.read([]).trend.shape == (0, 3)


def test_the_shipped_weights_read_charts_of_unseen_tickers(reader: ChartReader) -> None:
    rng = np.random.default_rng(2026)
    wanted = [TREND_ORDER[number % 3] for number in range(150)]
    drawn = [chart_picture(rng, "test", trend, clean=True) for trend in wanted]
    truth = np.array([TREND_ORDER.index(trend) for _, trend in drawn])
    readings = reader.read([picture for picture, _ in drawn])
    predicted = readings.trend.argmax(1)
    # The bounds lie some way below what the model card reports for worn pictures.
    assert (predicted == truth).mean() > 0.7
    assert (predicted == 2 - truth)[truth != 1].mean() < 0.12
    assert (readings.chart >= reader.threshold).mean() > 0.9


def test_the_shipped_weights_give_other_pictures_a_lower_probability(reader: ChartReader) -> None:
    rng = np.random.default_rng(7)
    others = reader.read([not_a_chart(rng) for _ in range(60)]).chart
    charts = reader.read([chart_picture(rng, "test", clean=True)[0] for _ in range(60)]).chart
    assert (others[:, None] < charts[None, :]).mean() > 0.8
    assert (others < reader.threshold).mean() > 0.4


def test_saved_weights_come_back_and_damage_is_found_out(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = ChartEncoder(ChartEncoderConfig(trend_temperature=1.5)).eval()
    save_chart_encoder(encoder, tmp_path / "a")
    again = load_chart_encoder(tmp_path / "a")
    pixels = torch.randn(2, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(encoder(pixels).pooled, again(pixels).pooled)
    assert again.config.trend_temperature == 1.5

    with pytest.raises(ModelError, match=r"lacks the file config\.json"):
        load_chart_encoder(tmp_path / "nowhere")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = bytearray((tmp_path / "b" / "model.safetensors").read_bytes())
    weights[-1] ^= 0xFF
    (tmp_path / "b" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="not those that its config names"):
        load_chart_encoder(tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    config = tmp_path / "c" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 192', '"hidden_size": 64'))
    with pytest.raises(ModelError, match="do not fit"):
        load_chart_encoder(tmp_path / "c")
    config.write_text("{")
    with pytest.raises(ModelError, match="not valid"):
        load_chart_encoder(tmp_path / "c")
