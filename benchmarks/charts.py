"""The chart encoder on held-out tickers, the same pictures clean, lightly worn and worn: `python benchmarks/charts.py`.

Lightly worn is what most sites do to a picture: scaled down by up to a third and saved as a JPEG of quality 75 to 95.
Worn is what training and the model card's figure are made of (`models/charts/screens.py`): framed, cropped, tilted,
scaled, blurred, recoloured, compressed. A picture is clear when its net move is a tenth or more away from the bounds of
the classes (0.35).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from models.charts.dataset import drawn_chart
from models.charts.encoder import ChartReader, load_chart_encoder, to_pixels
from models.charts.labels import THRESHOLD, TREND_ORDER
from models.charts.screens import worn

_MARGIN = 0.1
_CANDLES = ("candles", "hollow")
_FEW_BARS = 60


def _lightly_worn(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = max(float(rng.uniform(0.67, 1.0)), 90 / min(picture.size))
    scaled = picture.resize((round(picture.width * share), round(picture.height * share)), Image.Resampling.LANCZOS)
    coded = io.BytesIO()
    scaled.convert("RGB").save(coded, "JPEG", quality=int(rng.integers(75, 96)))
    return Image.open(coded).convert("RGB")


def _clean(picture: Image.Image, _rng: np.random.Generator) -> Image.Image:
    return picture


_WEARS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "clean": _clean,
    "lightly worn": _lightly_worn,
    "worn": worn,
}


def _told(right: NDArray[np.bool_]) -> str:
    bounds = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return f"{right.mean():.3f} ({bounds.low:.3f} to {bounds.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--encoder", type=Path, default=None, help="folder of a chart encoder; the shipped one")
    parser.add_argument("--seed", type=int, default=33)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reader = ChartReader(load_chart_encoder(args.encoder))
    pixels: dict[str, list[NDArray[np.uint8]]] = {wear: [] for wear in _WEARS}
    labels, clear, candles = [], [], []
    with Console(stderr=True).status("drawing") as status:
        for number in range(args.pictures):
            drawn = drawn_chart(np.random.default_rng([args.seed, number]), "test", TREND_ORDER[number % 3])
            labels.append(TREND_ORDER.index(drawn.trend))
            clear.append(abs(abs(drawn.move) - THRESHOLD) >= _MARGIN)
            candles.append(drawn.kind in _CANDLES and drawn.bars <= _FEW_BARS)
            for wear, wearing in _WEARS.items():
                pixels[wear].append(to_pixels(wearing(drawn.picture, np.random.default_rng([args.seed, number, 1]))))
            if number % 50 == 0:
                status.update(f"drawing {number} of {args.pictures}")
    truth, known = np.array(labels), {"clear": np.array(clear), "candles": np.array(candles)}
    parts = {
        "all": np.ones(len(truth), dtype=bool),
        "clear": known["clear"],
        f"candles, {_FEW_BARS} bars at most": known["candles"],
        "such candles, clear": known["candles"] & known["clear"],
    }
    print("| pictures | " + " | ".join(f"{name} ({mask.sum()})" for name, mask in parts.items()) + " |")
    print("|---" * (len(parts) + 1) + "|")
    for wear, drawn_pixels in pixels.items():
        right = reader.read_pixels(drawn_pixels).trend.argmax(axis=1) == truth
        print(f"| {wear} | " + " | ".join(_told(right[mask]) for mask in parts.values()) + " |")


if __name__ == "__main__":
    main()
