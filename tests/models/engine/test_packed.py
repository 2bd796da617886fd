"""What the packed encoder needs: exact products of integers, and budgets that count no padding."""

from __future__ import annotations

import torch

from models.engine.batching import plan, token_budget
from models.engine.int8 import _Product, _Range
from monitor.settings import Settings


def test_the_largest_products_of_integers_are_exact() -> None:
    """Where the processor adds up pairs of products in 16 bits, the weights have to be smaller."""
    product = _Product(torch.full((32, 64), 2.0), torch.zeros(32), _Range(1.0, 0))
    found = product(torch.full((3, 64), 255, dtype=torch.uint8))
    assert torch.allclose(found, torch.full((3, 32), 255.0 * 2.0 * 64), rtol=1e-6)


def test_a_batch_without_padding_counts_its_own_tokens_alone() -> None:
    lengths = [100, 10, 10, 10, 10, 10]
    assert plan(lengths, [False] * 6, token_budget=150, image_budget=1) == [[0], [1, 2, 3, 4, 5]]
    assert plan(lengths, [False] * 6, token_budget=150, image_budget=1, padded=False) == [[0, 1, 2, 3, 4, 5]]
    assert plan([200, 10], [False] * 2, token_budget=150, image_budget=1, padded=False) == [[0], [1]]


def test_a_card_gets_more_tokens_in_a_pass() -> None:
    some = Settings(worker_token_budget=100, worker_gpu_token_budget=1000)
    assert token_budget(some, torch.device("cpu")) == 100
    assert token_budget(some, torch.device("cuda", 0)) == 1000
