"""Asking two models the same: in chunks that can be stopped between, and about frozen pictures.

The pictures and pairs are the same in every run, of tickers that nothing was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.answers import LoadedModel, Predictions
from models.charts.dataset import chart_picture
from models.charts.labels import TREND_ORDER
from models.tokens import TokenizedRow
from models.training.datasets import Example
from models.training.gate import Answers
from models.training.pairs import NEUTRAL, bare_texts
from models.training.text_stage import Cancelled

__all__ = ["FrozenPairs", "ask", "frozen_pairs"]

PICTURES: Final = 600
_SEED: Final = 20
_BATCH: Final = 32


@cache
def _pictures(count: int) -> tuple[tuple[Image.Image, ...], NDArray[np.int64]]:
    rng = np.random.default_rng(_SEED)
    drawn = [chart_picture(rng, "test", TREND_ORDER[number % 3]) for number in range(count)]
    return tuple(picture for picture, _ in drawn), np.array([TREND_ORDER.index(trend) for _, trend in drawn])


@dataclass(frozen=True)
class FrozenPairs:
    """Each text with a picture. `trends` (N,) is what it shows, `sentiment` (N,) what text and picture say together."""

    texts: tuple[Example, ...]
    pictures: tuple[Image.Image, ...]
    trends: NDArray[np.int64]
    sentiment: NDArray[np.int64]

    def ask(self, model: LoadedModel, stopped: Callable[[], bool]) -> dict[str, Answers]:
        """Answers of the heads `fused` (text and chart) and `chart_only`; none for a model that reads no pictures.

        Raises `Cancelled` once `stopped` says so.
        """
        vision = model.network.vision
        if vision is None:
            return {}
        fused: list[NDArray[np.float32]] = []
        alone: list[NDArray[np.float32]] = []
        rows = model.tokenize([example.row for example in self.texts])
        for start in range(0, len(rows), _BATCH):
            if stopped():
                raise Cancelled
            chosen = range(start, min(start + _BATCH, len(rows)))
            pixels = [vision.preprocess(self.pictures[i]) for i in chosen]
            both = [TokenizedRow(rows[i].ids, rows[i].span, shown) for i, shown in zip(chosen, pixels, strict=True)]
            fused.append(model.forward(both).sentiment)
            alone.append(model.forward([TokenizedRow([], None, shown) for shown in pixels]).sentiment)
        return {
            "fused": Answers(np.concatenate(fused), self.sentiment),
            "chart_only": Answers(np.concatenate(alone), self.trends),
        }


def frozen_pairs(examples: Sequence[Example]) -> FrozenPairs:
    """Pairs of the test part's item texts with drawn charts: half with a direction, a quarter neutral, a quarter bare.

    What text and chart say together follows the rule of `models.training.pairs`. The same `examples` give the same
    pairs; there are as many as there are texts for, 600 at the most.
    """
    whole = [example for example in examples if example.entity is None and example.sentiment >= 0]
    directed = [example for example in whole if example.sentiment != NEUTRAL][: PICTURES // 2]
    neutral = [example for example in whole if example.sentiment == NEUTRAL][: PICTURES // 4]
    texts = (*directed, *neutral, *bare_texts("test", PICTURES // 4, seed=_SEED))
    pictures, trends = _pictures(PICTURES)
    # Drawn in turns of down, flat, up: mixed, so that every kind of text meets every trend.
    order = np.random.default_rng(_SEED).permutation(PICTURES)[: len(texts)]
    shown = trends[order]
    said = np.array([example.sentiment for example in texts])
    return FrozenPairs(
        texts, tuple(pictures[i] for i in order), shown, np.where(said == NEUTRAL, shown, said).astype(np.int64)
    )


def ask(model: LoadedModel, examples: Sequence[Example], stopped: Callable[[], bool]) -> Predictions:
    """Answers to all examples, in their order. Raises `Cancelled` once `stopped` says so, between two chunks."""
    parts = []
    for start in range(0, max(1, len(examples)), 256):
        if stopped():
            raise Cancelled
        parts.append(model.predict([example.row for example in examples[start : start + 256]]))
    return Predictions(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Predictions)
        }
    )
