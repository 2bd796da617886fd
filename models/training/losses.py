"""Losses of the heads: cross-entropy to labels, scores and teachers' answers, and R-Drop's consistency."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from models.classifier import Logits

__all__ = [
    "SoftLabels",
    "class_weights",
    "consistency_loss",
    "distillation_loss",
    "score_shares",
    "supervised_loss",
]


class SoftLabels(NamedTuple):
    """Probabilities: `sentiment` (N, 3) and `topic` (N, T)."""

    sentiment: Tensor
    topic: Tensor


def class_weights(shares: tuple[float, ...], power: float) -> Tensor:
    """Weights (C,) proportional to share ** -power, with a mean of 1 over the rows."""
    share = torch.tensor(shares)
    weight = share**-power
    return weight / (weight * share).sum()


def score_shares(score: Tensor) -> Tensor:
    """Shares (N, 3) of negative, neutral and positive whose balance, positive less negative, is `score` (N,).

    What is missing to one is neutral: a score of 0.3 is 70 % neutral and 30 % positive.
    """
    negative, positive = (-score).clamp(min=0.0), score.clamp(min=0.0)
    return torch.stack([negative, 1.0 - negative - positive, positive], dim=-1)


def supervised_loss(
    logits: Logits,
    sentiment: Tensor,
    topic: Tensor,
    score: Tensor,
    *,
    sentiment_weight: Tensor,
    topic_weight: Tensor,
    label_smoothing: float,
) -> Tensor:
    """Scalar: cross-entropies of both heads, summed over the rows with that label, by the batch's rows.

    `sentiment` and `topic` (N,) are class numbers, -1 where there is none; `score` (N,) is NaN where there is none.
    """
    total = logits.sentiment.new_zeros(())
    for found, labels, weight in (
        (logits.sentiment, sentiment, sentiment_weight),
        (logits.topic, topic, topic_weight),
    ):
        known = labels >= 0
        if bool(known.any()):
            total = total + functional.cross_entropy(
                found[known].float(), labels[known], weight=weight, label_smoothing=label_smoothing, reduction="sum"
            )
    graded = ~torch.isnan(score)
    if bool(graded.any()):
        total = total + functional.cross_entropy(
            logits.sentiment[graded].float(), score_shares(score[graded]), reduction="sum"
        )
    return total / max(len(sentiment), 1)


def consistency_loss(first: Logits, second: Logits) -> Tensor:
    """Scalar: symmetric Kullback-Leibler divergence of two passes, mean over rows (Liang et al. 2021, eq. 2)."""
    total = first.sentiment.new_zeros(())
    for one, two in ((first.sentiment, second.sentiment), (first.topic, second.topic)):
        p, q = functional.log_softmax(one.float(), -1), functional.log_softmax(two.float(), -1)
        total = total + functional.kl_div(p, q, log_target=True, reduction="batchmean")
        total = total + functional.kl_div(q, p, log_target=True, reduction="batchmean")
    return total / 2


def distillation_loss(logits: Logits, soft: SoftLabels, asked: Tensor) -> Tensor:
    """Scalar: cross-entropy of both heads to the soft labels, mean over rows; topics of item rows alone.

    `asked` (N,) is True at rows about an entity.
    """
    loss = functional.cross_entropy(logits.sentiment.float(), soft.sentiment)
    if bool((~asked).any()):
        loss = loss + functional.cross_entropy(logits.topic.float()[~asked], soft.topic[~asked])
    return loss
