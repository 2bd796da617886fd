"""Training: a killed run goes on where it stopped; calibration and its measure do what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from models.charts.dataset import NOT_A_CHART, Shard, prepare, shards
from models.charts.encoder import HEIGHT, WIDTH, ChartEncoder, ChartReader, load_chart_encoder
from models.charts.labels import CURVE_POINTS, TREND_ORDER, trend_of
from models.charts.train import Batch, ChartTraining, _augmented, calibrate, measure, train_chart_encoder

TINY = ChartTraining(pictures=16, held_out=12, epochs=1, batch=4, processes=1, threads=1, checkpoint_s=0.0)


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_like_one_that_was_not_killed(tmp_path: Path) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == 3:
            raise KilledError

    cache = tmp_path / "cache"
    with pytest.raises(KilledError):
        train_chart_encoder(tmp_path / "one", cache, TINY, kill)
    seen: list[int] = []
    stages: set[str] = set()

    def note(stage: str, done: int, total: int) -> None:
        stages.add(stage.split(",")[0])
        if stage.startswith("training"):
            seen.append(done)

    metrics = train_chart_encoder(tmp_path / "one", cache, TINY, note)
    assert seen == [3, 4]
    assert stages == {"drawing train", "drawing validation", "drawing test", "training"}
    (cache / "checkpoint.pt").unlink()
    train_chart_encoder(tmp_path / "two", cache, TINY)
    resumed, straight = (load_chart_encoder(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, value in straight.items():
        torch.testing.assert_close(resumed[name], value, msg=name, rtol=1e-3, atol=1e-4)
    assert metrics["steps"] == 4
    assert metrics["test"]["pictures"] == 12
    assert (tmp_path / "one" / "metrics.json").exists()


def test_drawn_shards_are_kept_and_seeded(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    prepare(tmp_path, "test", 6, seed=3, processes=1, progress=lambda done, total: told.append((done, total)))
    first = shards(tmp_path, "test", 6)[0]
    prepare(tmp_path, "test", 6, seed=3, processes=1)
    assert told == [(0, 1), (1, 1)]
    moves = first.curves[:, -1] - first.curves[:, 0]
    for move, label in zip(moves.tolist(), first.labels.tolist(), strict=True):
        assert label == NOT_A_CHART or TREND_ORDER[label] is trend_of(move)
    assert first.pixels.shape == (6, HEIGHT, WIDTH, 3)
    assert set(first.labels.tolist()) <= {0, 1, 2, NOT_A_CHART}


def test_mirrored_pictures_get_the_mirrored_label() -> None:
    pixels = torch.zeros(400, 4, 6, 3, dtype=torch.uint8)
    pixels[:, 0, 5] = 200  # upper right: a rise
    labels = torch.full((400,), 2)
    rise = torch.linspace(0.1, 1.0, CURVE_POINTS).expand(400, -1)
    changed, now, curves = _augmented(Batch(pixels, labels, rise), torch.Generator().manual_seed(1))
    assert (pixels[:, 0, 5] == 200).all()
    assert set(now.tolist()) == {0, 2}
    for picture, label in zip(changed.float().mean(-1), now.tolist(), strict=True):
        ground = picture.median()
        row, column = divmod(int((picture - ground).abs().argmax()), 6)
        up = (row == 0) == (column == 5)
        assert label == (2 if up else 0)
    # A curve goes with its label: what falls ends below where it began.
    assert ((curves[:, -1] > curves[:, 0]) == (now == 2)).all()
    assert torch.equal(rise, torch.linspace(0.1, 1.0, CURVE_POINTS).expand(400, -1))


def test_calibration_finds_the_temperature_that_was_put_in() -> None:
    rng = np.random.default_rng(4)
    trend, chart = rng.normal(0, 2, (6000, 3)), rng.normal(0, 3, 6000)
    real = rng.random(6000) < expit(chart)
    labels = np.array([rng.choice(3, p=p) for p in softmax(trend, axis=1)])
    labels[~real] = NOT_A_CHART
    trend_t, chart_t = calibrate(trend * 2.5, chart * 0.6, labels)
    assert trend_t == pytest.approx(2.5, rel=0.1)
    assert chart_t == pytest.approx(0.6, rel=0.1)


def test_measures_of_an_untrained_network_are_those_of_chance() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, 120)
    curves = np.full((120, CURVE_POINTS), 0.5, dtype=np.float32)
    shard = Shard(rng.integers(0, 256, (120, HEIGHT, WIDTH, 3), dtype=np.uint8), labels, curves)
    torch.manual_seed(0)
    found = measure(ChartReader(ChartEncoder()), [shard])
    confusion = np.array(found["confusion"])
    assert confusion.sum() == int((labels != NOT_A_CHART).sum())
    assert found["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert 0.1 < found["accuracy"] < 0.6
    assert 0 <= found["ece"] <= 1
