"""Trains the chart encoder on drawn charts.

    python -m models.charts.train --out FOLDER [--cache FOLDER] [--pictures 40000] [--epochs 5]

Draws the pictures once into the cache (parallel processes), trains with a checkpoint every few minutes (a killed run
goes on where it stopped when started again with the same arguments), calibrates by temperature on held-out tickers
and writes weights, config and `metrics.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.charts.dataset import NOT_A_CHART, Shard, prepare, shards
from models.charts.encoder import ChartEncoder, ChartReader, normalise, save_chart_encoder
from models.charts.prices import Part

__all__ = ["ChartTraining", "calibrate", "chart_bar", "measure", "train_chart_encoder"]

_SWAPPED: Final = torch.tensor([2, 1, 0, NOT_A_CHART])

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ChartTraining:
    """What a run depends on. `pictures` are those of the training part; validation and test have `held_out` each.

    `chart_threshold` is the probability from which a picture is called a chart; 0 sets it by our own held-out charts
    (`chart_bar`). Its default was set on half of 335 charts made by other people, of which .185, the value for our own,
    turned away a twentieth. `checkpoint_s`: seconds between checkpoints; `threads`: of torch, 0 for its own choice.
    """

    pictures: int = 40_000
    held_out: int = 3_000
    epochs: int = 5
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.03
    chart_weight: float = 0.5
    curve_weight: float = 4.0
    chart_threshold: float = 0.08
    average_decay: float = 0.99
    seed: int = 7
    processes: int = 2
    threads: int = 0
    checkpoint_s: float = 120.0


class Batch(NamedTuple):
    """8-bit pixels (B, H, W, 3), class indices (B,) and curves (B, CURVE_POINTS)."""

    pixels: Tensor
    labels: Tensor
    curves: Tensor


def _augmented(batch: Batch, generator: torch.Generator) -> Batch:
    """Mirrored in time or price (which swaps up and down), negative, other colours."""

    def some(share: float) -> Tensor:
        return torch.rand(len(labels), generator=generator) < share

    pixels, labels, curves = (part.clone() for part in batch)
    for axis in (1, 2):
        chosen = some(0.25)
        pixels[chosen] = pixels[chosen].flip(axis)
        labels[chosen] = _SWAPPED[labels[chosen]]
        curves[chosen] = 1 - curves[chosen] if axis == 1 else curves[chosen].flip(1)
    chosen = some(0.15)
    pixels[chosen] = 255 - pixels[chosen]
    chosen = some(0.25)
    pixels[chosen] = pixels[chosen][..., torch.randperm(3, generator=generator)]
    chosen = some(0.1)
    noise = torch.randn(pixels[chosen].shape, generator=generator) * 8
    pixels[chosen] = (pixels[chosen] + noise).clamp(0, 255).to(torch.uint8)
    return Batch(pixels, labels, curves)


def _loss(encoder: ChartEncoder, batch: Batch, config: ChartTraining) -> Tensor:
    pixels = normalise(batch.pixels).contiguous(memory_format=torch.channels_last)
    trend, chart, curve = encoder.heads(encoder(pixels).pooled)
    is_chart = batch.labels != NOT_A_CHART
    loss = functional.binary_cross_entropy_with_logits(chart, is_chart.float()) * config.chart_weight
    if bool(is_chart.any()):
        loss = loss + functional.cross_entropy(trend[is_chart], batch.labels[is_chart])
        loss = loss + functional.l1_loss(curve[is_chart], batch.curves[is_chart]) * config.curve_weight
    return loss


def _gather(parts: list[Shard], index: NDArray[np.int64], size: int) -> Batch:
    places = [(parts[i // size], i % size) for i in index.tolist()]
    return Batch(
        *(torch.from_numpy(np.stack([getattr(part, name)[at] for part, at in places])) for name in Batch._fields)
    )


@torch.inference_mode()
def _raw(encoder: ChartEncoder, parts: list[Shard], batch: int = 128) -> tuple[Floats, Floats, Labels]:
    """Uncalibrated logits: trend (N, 3), chart (N,); and the labels."""
    encoder.eval()
    trends, charts = [], []
    for part in parts:
        for start in range(0, len(part.labels), batch):
            trend, chart, _ = encoder.heads(
                encoder(normalise(torch.from_numpy(part.pixels[start : start + batch]))).pooled
            )
            trends.append(trend.double().numpy())
            charts.append(chart.double().numpy())
    return np.concatenate(trends), np.concatenate(charts), np.concatenate([part.labels for part in parts])


def calibrate(trend: Floats, chart: Floats, labels: Labels) -> tuple[float, float]:
    """The temperatures of both heads with the least negative log-likelihood on held-out logits (Guo et al. 2017)."""
    real = labels != NOT_A_CHART

    def trend_loss(log_t: float) -> float:
        z = trend[real] / math.exp(log_t)
        top = z.max(1, keepdims=True)
        log_p = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
        return -float(log_p[np.arange(len(log_p)), labels[real]].mean())

    def chart_loss(log_t: float) -> float:
        z = chart / math.exp(log_t)
        return float((np.logaddexp(0, z) - real * z).mean())

    best = [float(minimize_scalar(f, bounds=(-2.0, 2.5), method="bounded").x) for f in (trend_loss, chart_loss)]
    return math.exp(best[0]), math.exp(best[1])


def chart_bar(chart: Floats, labels: Labels, turned_away: float = 0.002) -> float:
    """The probability from which a picture is called a chart: as high as turns away that share of held-out charts.

    `chart` are calibrated logits. The share is small because other people's charts look less like charts to the
    encoder than our own, and a chart that is turned away is lost, while a picture let through is one doubtful reading.
    """
    p = 1 / (1 + np.exp(-chart[labels != NOT_A_CHART]))
    return float(np.clip(np.quantile(p, turned_away), 0.1, 0.99))


def _expected_calibration_error(p: Floats, hit: NDArray[np.bool_], bins: int = 15) -> float:
    """Weighted mean gap between confidence and accuracy over equal-width bins (Naeini et al. 2015)."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(p[which == b].mean() - hit[which == b].mean()) * (which == b).mean() for b in set(which)))


def measure(reader: ChartReader, parts: list[Shard]) -> dict[str, Any]:
    """Accuracy, confusion (rows: truth, columns: prediction) and calibration of the trend; precision and recall of
    "not a chart" at the reader's bar."""
    readings = reader.read_pixels(np.concatenate([part.pixels for part in parts]))
    labels = np.concatenate([part.labels for part in parts])
    real = labels != NOT_A_CHART
    p, truth = readings.trend[real].astype(np.float64), labels[real]
    predicted = p.argmax(1)
    confusion = np.zeros((3, 3), dtype=int)
    np.add.at(confusion, (truth, predicted), 1)
    turned_away = readings.chart < reader.threshold
    right = int((turned_away & ~real).sum())
    return {
        "pictures": len(labels),
        "accuracy": float((predicted == truth).mean()),
        "macro_f1": float(np.mean(2 * np.diag(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1))),
        "confusion": confusion.tolist(),
        "ece": _expected_calibration_error(p.max(1), predicted == truth),
        "not_a_chart": {
            "precision": right / max(int(turned_away.sum()), 1),
            "recall": right / max(int((~real).sum()), 1),
            "charts_turned_away": float(turned_away[real].mean()),
        },
    }


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short rise, then half a cosine."""
    rise = max(1, steps // 20)
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class _Run:
    """One training run and its checkpoint."""

    def __init__(self, config: ChartTraining, checkpoint: Path, steps: int) -> None:
        torch.manual_seed(config.seed)
        self.config, self.checkpoint, self.steps, self.step = config, checkpoint, steps, 0
        self.encoder = ChartEncoder()
        # Convolutions are a third faster on a CPU with the channels last (measured).
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(
            self.encoder,
            multi_avg_fn=get_ema_multi_avg_fn(config.average_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            if saved["config"] == asdict(config):
                self.encoder.load_state_dict(saved["encoder"])
                self.average.load_state_dict(saved["average"])
                self.optimizer.load_state_dict(saved["optimizer"])
                self.step = int(saved["step"])

    def save(self) -> None:
        """Write the checkpoint in one go."""
        state = {
            "config": asdict(self.config),
            "encoder": self.encoder.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        half = self.checkpoint.with_suffix(".part")
        torch.save(state, half)
        half.replace(self.checkpoint)

    def advance(self, batch: Batch) -> float:
        """One optimisation step; the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _rate(self.step, self.steps)
        # Augmentation and dropout of a step depend on the step alone, so a resumed run repeats them.
        seed = self.config.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.encoder.train()
        loss = _loss(self.encoder, _augmented(batch, generator), self.config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.encoder)
        self.step += 1
        return float(loss.detach())


def _silent(stage: str, done: int, total: int) -> None:
    """Reports to nobody."""
    del stage, done, total


def train_chart_encoder(out: Path, cache: Path, config: ChartTraining, report: Report | None = None) -> dict[str, Any]:
    """Train, calibrate, measure; write the encoder to `out`. Returns what `metrics.json` holds.

    `cache` keeps the drawn pictures and the checkpoint. `report(stage, done, total)` is told of progress.
    """
    say: Report = report or _silent
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = cache / f"pictures-{config.seed}"
    wanted: dict[Part, int] = {"train": config.pictures, "validation": config.held_out, "test": config.held_out}
    for part, count in wanted.items():
        prepare(
            folder,
            part,
            count,
            seed=config.seed,
            processes=config.processes,
            progress=partial(say, f"drawing {part}"),
        )
    parts = shards(folder, "train", config.pictures)
    size = len(parts[0].labels)
    per_epoch = config.pictures // config.batch
    run = _Run(config, cache / "checkpoint.pt", per_epoch * config.epochs)
    saved_at = time.monotonic()
    while run.step < run.steps:
        epoch, at = divmod(run.step, per_epoch)
        order = np.random.default_rng([config.seed, epoch]).permutation(config.pictures)
        for batch in range(at, per_epoch):
            chosen = order[batch * config.batch : (batch + 1) * config.batch]
            loss = run.advance(_gather(parts, chosen, size))
            say(f"training, loss {loss:.3f}", run.step, run.steps)
            if time.monotonic() - saved_at > config.checkpoint_s:
                run.save()
                saved_at = time.monotonic()
    run.save()
    return _finish(run, out, folder, config)


def _finish(run: _Run, out: Path, folder: Path, config: ChartTraining) -> dict[str, Any]:
    final = cast(ChartEncoder, run.average.module)
    final.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    trend, chart, labels = _raw(final, shards(folder, "validation", config.held_out))
    trend_t, chart_t = calibrate(trend, chart, labels)
    final.config = msgspec.structs.replace(
        final.config,
        trend_temperature=trend_t,
        chart_temperature=chart_t,
        chart_threshold=config.chart_threshold or chart_bar(chart / chart_t, labels),
    )
    metrics = {
        "training": asdict(config),
        "steps": run.step,
        "temperatures": {"trend": trend_t, "chart": chart_t},
        "validation": measure(ChartReader(final), shards(folder, "validation", config.held_out)),
        "test": measure(ChartReader(final), shards(folder, "test", config.held_out)),
    }
    save_chart_encoder(final, out)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Train the chart encoder on drawn charts.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, config and metrics")
    parser.add_argument("--cache", type=Path, default=Path("chart-training"), help="folder for pictures and checkpoint")
    for name in ("pictures", "held_out", "epochs", "seed", "processes", "threads"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(ChartTraining, name), dest=name)
    given = vars(parser.parse_args())
    out, cache = given.pop("out"), given.pop("cache")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("drawing", total=None)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        metrics = train_chart_encoder(out, cache, ChartTraining(**given), report)
    print(json.dumps(metrics["test"], indent=2))


if __name__ == "__main__":
    main()
