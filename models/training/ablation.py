"""What the fusion is worth: text alone, chart alone and each way of fusing them, on the same held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from models.bundle import model_folder, restore_model
from models.fusion import FusionKind
from models.training.config import TrainingConfig
from models.training.fusion_stage import (
    Texts,
    attach_fusion,
    attach_vision,
    encode_texts,
    fit_fusion,
    pair_logits,
    prepare,
)
from models.training.pairs import Pair, Pictures, make_pairs
from models.training.text_stage import Progress
from models.training.train import gather
from models.training.tweets import tweet_pairs

__all__ = ["Ablation", "Interval", "ablate", "bootstrap"]

KINDS: tuple[FusionKind, ...] = ("cross", "concat", "pool")


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Ablation:
    """One row of the table, measured on the same pairs as the others.

    `gain` is its accuracy less that of the best single modality, `behind` the first fusion's accuracy less its own.
    """

    name: str
    pairs: int
    accuracy: Interval
    macro_f1: Interval
    gain: Interval
    behind: Interval


def bootstrap(
    labels: NDArray[np.int64], answers: dict[str, NDArray[np.int64]], *, samples: int = 2000, seed: int = 0
) -> list[Ablation]:
    """A row for each of `answers` (N,) against `labels` (N,); percentile bootstrap over the pairs (Efron 1979).

    The first two of `answers` are the single modalities, the third is the fusion that the others are held against. All
    rows are resampled alike, so that differences are paired.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(labels), size=(samples, len(labels)))
    right = {name: answer == labels for name, answer in answers.items()}
    accuracy = {name: hit[drawn].mean(axis=1) for name, hit in right.items()}
    best = max(list(answers)[:2], key=lambda name: right[name].mean())
    first = list(answers)[2]
    found = []
    for name, answer in answers.items():
        f1 = np.array([f1_score(labels[rows], answer[rows], average="macro") for rows in drawn[: samples // 4]])
        found.append(
            Ablation(
                name,
                len(labels),
                _interval(float(right[name].mean()), accuracy[name]),
                _interval(float(f1_score(labels, answer, average="macro")), f1),
                _interval(float(right[name].mean() - right[best].mean()), accuracy[name] - accuracy[best]),
                _interval(float(right[first].mean() - right[name].mean()), accuracy[first] - accuracy[name]),
            )
        )
    return found


def _interval(value: float, sampled: NDArray[np.floating]) -> Interval:
    low, high = np.quantile(sampled, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def ablate(
    base: str,
    config: TrainingConfig,
    *,
    kinds: Sequence[FusionKind] = KINDS,
    tweets: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Ablation]]:
    """Train each kind of fusion on the frozen text part of the model `base`, and measure all on the same pairs.

    The texts come from the bundled sets; pictures and tickers of the three parts differ. `tweets` names an archive of
    StockNet: then its tweets that say nothing are measured, too, each with its chart up to that moment. Tables by the
    name of the pairs, with rows for `text alone`, `chart alone` (through the first kind) and the kinds. Raises
    `ModelError` and `InputError`.
    """
    network, backbone, _ = restore_model(model_folder(base))
    network.requires_grad_(False)
    attach_vision(network, config)
    material = prepare(network, backbone, config, gather(config), progress=progress)
    texts, pictures = material.texts, material.pictures
    pairs = make_pairs(texts["test"].examples, pictures["test"], seed=config.seed)
    measured: dict[str, tuple[list[Pair], Texts, Pictures]] = {"held-out": (pairs, texts["test"], pictures["test"])}
    if tweets is not None:
        assert network.vision is not None
        found, shown = tweet_pairs(network.vision, tweets, 2000, seed=config.seed)
        said = encode_texts(network, backbone, config, [pair.text for pair in found])
        # A tweet of which no token is left has no text to fuse.
        at = {id(example): number for number, example in enumerate(said.examples)}
        measured["tweets"] = ([pair for pair in found if id(pair.text) in at], said, shown)
    answers: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in measured}
    for kind in kinds:
        torch.manual_seed(config.seed)
        # Only the fusion is trained: all kinds share the text part and the sentiment head.
        attach_fusion(network, kind, backbone.hidden_size)
        fit_fusion(network, config, texts["train"], pictures["train"], progress)
        for name, (asked, words, charts) in measured.items():
            logits = pair_logits(network, asked, words, charts)
            if not answers[name]:
                answers[name] = {"text alone": _said(logits.text), "chart alone": _said(logits.chart)}
            answers[name][kind] = _said(logits.both)
    return {
        name: bootstrap(np.array([pair.sentiment for pair in asked], dtype=np.int64), answers[name])
        for name, (asked, _, _) in measured.items()
    }


def _said(logits: torch.Tensor) -> NDArray[np.int64]:
    said: NDArray[np.int64] = logits.argmax(-1).numpy().astype(np.int64)
    return said
