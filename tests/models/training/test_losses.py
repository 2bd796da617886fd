from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.classifier import Logits
from models.training.losses import score_shares, supervised_loss

NONE = torch.tensor([-1, -1])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_the_balance_of_the_shares_is_the_score(scores: list[float]) -> None:
    shares = score_shares(torch.tensor(scores))
    assert torch.allclose(shares.sum(-1), torch.ones(len(scores)))
    assert torch.allclose(shares[:, 2] - shares[:, 0], torch.tensor(scores), atol=1e-6)
    assert bool((shares >= 0).all())


def _loss(sentiment: torch.Tensor, score: list[float]) -> torch.Tensor:
    return supervised_loss(
        Logits(sentiment, torch.zeros(2, 4)),
        NONE,
        NONE,
        torch.tensor(score),
        sentiment_weight=torch.ones(3),
        topic_weight=torch.ones(4),
        label_smoothing=0.05,
    )


def test_a_score_pulls_the_balance_towards_it() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        _loss(logits, [-0.6, math.nan]).backward()
        optimizer.step()
    found = logits.detach().softmax(-1)
    assert abs(float(found[0, 2] - found[0, 0]) + 0.6) < 0.02
    assert torch.equal(logits.detach()[1], torch.zeros(3))


def test_rows_without_any_label_cost_nothing() -> None:
    assert float(_loss(torch.randn(2, 3), [math.nan, math.nan])) == 0.0
