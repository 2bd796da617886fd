"""What the fusion is worth: text alone, chart alone and each way of fusing them, on the same held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from models.bundle import model_folder, restore_model
from models.fusion import FusionKind
from models.training.config import TrainingConfig
from models.training.fusion_stage import attach_fusion, attach_vision, fit_fusion, pair_logits, prepare
from models.training.pairs import make_pairs
from models.training.text_stage import Progress
from models.training.train import gather

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
    """One row of the table; `gain` is its accuracy less that of the best single modality, on the same pairs."""

    name: str
    pairs: int
    accuracy: Interval
    macro_f1: Interval
    gain: Interval


def bootstrap(
    labels: NDArray[np.int64], answers: dict[str, NDArray[np.int64]], *, samples: int = 2000, seed: int = 0
) -> list[Ablation]:
    """A row for each of `answers` (N,) against `labels` (N,); percentile bootstrap over the pairs (Efron 1979).

    The first two of `answers` are the single modalities. All rows are resampled alike, so that differences are paired.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(labels), size=(samples, len(labels)))
    right = {name: answer == labels for name, answer in answers.items()}
    accuracy = {name: hit[drawn].mean(axis=1) for name, hit in right.items()}
    best = max(list(answers)[:2], key=lambda name: right[name].mean())
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
            )
        )
    return found


def _interval(value: float, sampled: NDArray[np.floating]) -> Interval:
    low, high = np.quantile(sampled, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def ablate(
    base: str, config: TrainingConfig, *, kinds: Sequence[FusionKind] = KINDS, progress: Progress | None = None
) -> list[Ablation]:
    """Train each kind of fusion on the frozen text part of the model `base`, and measure all on the same pairs.

    The texts come from the bundled sets; pictures and tickers of the three parts differ. Rows: `text alone`,
    `chart alone` (through the first kind), then the kinds. Raises `ModelError`.
    """
    network, backbone, _ = restore_model(model_folder(base))
    network.requires_grad_(False)
    attach_vision(network, config)
    texts, pictures = prepare(network, backbone, config, gather(config), progress=progress)
    pairs = make_pairs(texts["test"].examples, pictures["test"], seed=config.seed)
    labels = np.array([pair.sentiment for pair in pairs], dtype=np.int64)
    answers: dict[str, NDArray[np.int64]] = {}
    for kind in kinds:
        torch.manual_seed(config.seed)
        # Only the fusion is trained: all kinds share the text part and the sentiment head.
        attach_fusion(network, kind, backbone.hidden_size)
        fit_fusion(network, config, texts["train"], pictures["train"], progress)
        found = pair_logits(network, pairs, texts["test"], pictures["test"])
        if not answers:
            answers["text alone"], answers["chart alone"] = _said(found.text), _said(found.chart)
        answers[kind] = _said(found.both)
    return bootstrap(labels, answers)


def _said(logits: torch.Tensor) -> NDArray[np.int64]:
    said: NDArray[np.int64] = logits.argmax(-1).numpy().astype(np.int64)
    return said
