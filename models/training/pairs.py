"""Pairs of a text and a chart image with the sentiment of both together.

No public set pairs labelled texts with chart images, so pairs are built by the rule that the product promises: a text
that states a direction outweighs the chart; where the text is neutral or says nothing (`$AAPL chart`), the chart
decides, up for positive, down for negative, flat for neutral.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.backbones import VisionBackbone, VisionTokens
from models.charts.dataset import NOT_A_CHART, chart_picture
from models.charts.labels import TREND_ORDER
from models.charts.negatives import not_a_chart
from models.charts.prices import load_prices, part_of
from models.training.datasets import Example, Part

__all__ = ["Pair", "Pictures", "bare_texts", "draw_pictures", "make_pairs"]

NEUTRAL = 1

_BARE: dict[str, tuple[str, ...]] = {
    "train": (
        "${t} chart", "look at this ${t}", "{t} shares today", "chart of the day: ${t}", "${t} daily chart", "${t}",
        "here is the ${t} chart", "what do you think of ${t}?", "watching ${t} closely", "{t} stock, one year",
        "${t} technical view", "my ${t} chart from this morning", "price action in ${t}", "{t} (see chart)",
        "updated chart ${t} #stocks", "${t} intraday", "where is ${t} going?", "take a look at {t}", "chart attached",
        "#{t} chart", "{t} share price chart", "this is {t} over the last months", "a picture says it all ${t}",
    ),
    "validation": ("${t} weekly", "one chart: {t}", "{t} stock price today", "have a look: ${t}", "${t} candles"),
    "test": (
        "${t} 4h chart", "check out ${t}", "{t} stock today", "the ${t} chart right now", "{t} in one picture",
        "see ${t} here",
    ),
}  # fmt: skip


class Pair(msgspec.Struct, frozen=True):
    """A text and the number of a picture in the pool; `sentiment` is that of both, `said` that of the text."""

    text: Example
    picture: int
    sentiment: int


class Pictures:
    """Pictures of one part with their classes (0 down, 1 flat, 2 up, 3 no chart) and their features.

    The features are computed once, unless the vision backbone is trained too: then they are computed when asked for.
    """

    def __init__(self, vision: VisionBackbone, pixels: Tensor, labels: NDArray[np.int64]) -> None:
        self.labels = labels
        self._vision = vision
        self.charts = np.flatnonzero(labels != NOT_A_CHART)
        self._live = any(parameter.requires_grad for parameter in _encoder(vision).parameters())
        self._pixels = pixels if self._live else None
        self._features = None if self._live else self._compute(pixels)

    @torch.inference_mode()
    def _compute(self, pixels: Tensor) -> _Features:
        self._vision.eval()
        device = next(self._vision.parameters()).device
        found = [self._vision(part.to(device)) for part in torch.split(pixels, 64)]
        return _Features(
            torch.cat([part.tokens.cpu() for part in found]), torch.cat([part.pooled.cpu() for part in found])
        )

    def features(self, index: Sequence[int]) -> VisionTokens:
        """Features of the pictures at `index`."""
        device = next(self._vision.parameters()).device
        if self._pixels is not None:
            features: VisionTokens = self._vision(self._pixels[list(index)].to(device))
            return features
        assert self._features is not None
        held, rows = self._features, list(index)
        return _Features(held.tokens[rows].clone().to(device), held.pooled[rows].clone().to(device))


class _Features:
    def __init__(self, tokens: Tensor, pooled: Tensor) -> None:
        self.tokens = tokens
        self.pooled = pooled


def _encoder(vision: VisionBackbone) -> nn.Module:
    encoder: nn.Module = getattr(vision, "encoder", vision)
    return encoder


def draw_pictures(vision: VisionBackbone, part: Part, count: int, *, seed: int, negatives: float = 0.0) -> Pictures:
    """`count` freshly drawn pictures of tickers of `part`, equally many down, flat and up; a share shows no chart."""
    rng = np.random.default_rng([seed, ("train", "validation", "test").index(part)])
    pixels: list[Tensor] = []
    labels = np.empty(count, dtype=np.int64)
    for number in range(count):
        if negatives and rng.random() < negatives:
            picture, labels[number] = not_a_chart(rng), NOT_A_CHART
        else:
            picture, trend = chart_picture(rng, part, TREND_ORDER[number % 3])
            labels[number] = TREND_ORDER.index(trend)
        pixels.append(vision.preprocess(picture))
    return Pictures(vision, torch.stack(pixels), labels)


def bare_texts(part: Part, count: int, *, seed: int) -> list[Example]:
    """Texts that name a ticker and say nothing; wordings and tickers of the three parts differ."""
    generator = random.Random(f"{seed}-{part}")  # noqa: S311 - training data, no secrets
    tickers = sorted(ticker for ticker in load_prices() if part_of(ticker) == part)
    found = []
    for _ in range(count):
        text = generator.choice(_BARE[part]).replace("{t}", generator.choice(tickers))
        shaped = generator.choice((text, text, text.lower(), text.capitalize(), text.upper()))
        found.append(Example(text=shaped, sentiment=NEUTRAL, origin="bare"))
    return found


def make_pairs(texts: Sequence[Example], pictures: Pictures, *, seed: int) -> list[Pair]:
    """Each text with a random chart, and the sentiment that follows from both."""
    generator = np.random.default_rng([seed, 7])
    chosen = generator.choice(pictures.charts, size=len(texts))
    return [
        Pair(text, int(picture), text.sentiment if text.sentiment != NEUTRAL else int(pictures.labels[picture]))
        for text, picture in zip(texts, chosen, strict=True)
    ]
