"""What the packed encoder needs: exact products of integers, and budgets that count no padding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.bundle import load_model
from models.engine import fbgemm, onednn, precision
from models.engine.batching import plan, token_budget
from models.engine.int8 import Product, Range
from models.engine.lanes import lanes, turn
from monitor.settings import Settings


def test_the_largest_products_of_integers_are_exact() -> None:
    """Where the processor adds up pairs of products in 16 bits, the weights have to be smaller."""
    product = Product(torch.full((32, 64), 2.0), torch.zeros(32), Range(1.0, 0))
    wanted = torch.full((3, 32), 255.0 * 2.0 * 64)
    bytes_ = onednn._Product(product, 127 if onednn.adds_exactly() else 64)
    assert torch.allclose(bytes_(torch.full((3, 64), 255, dtype=torch.uint8)), wanted, rtol=1e-6)
    floats = fbgemm._Product(product)
    assert torch.allclose(floats(torch.full((3, 64), 255.0)), wanted, rtol=1e-6)


def test_both_libraries_compute_the_same_product() -> None:
    torch.manual_seed(0)
    weight, factor, x = torch.randn(48, 64), torch.rand(64) + 0.5, torch.randn(5, 64)
    product = Product(weight, torch.randn(48), Range(16.0 / 255, 128), factor)
    exact = (x / factor) @ weight.T + product.bias
    by_onednn = onednn._Product(product, 64)(onednn._Quantiser(product)(x))
    by_fbgemm = fbgemm._Product(product)(x)
    # One value in a hundred may round to the next byte.
    assert (by_onednn - by_fbgemm).std() / exact.std() < 0.005
    assert (by_fbgemm - exact).std() / exact.std() < 0.03


def test_a_batch_without_padding_counts_its_own_tokens_alone() -> None:
    lengths = [100, 10, 10, 10, 10, 10]
    assert plan(lengths, [False] * 6, token_budget=150, image_budget=1) == [[0], [1, 2, 3, 4, 5]]
    assert plan(lengths, [False] * 6, token_budget=150, image_budget=1, padded=False) == [[0, 1, 2, 3, 4, 5]]
    assert plan([200, 10], [False] * 2, token_budget=150, image_budget=1, padded=False) == [[0], [1]]


def test_a_card_gets_more_tokens_in_a_pass() -> None:
    some = Settings(worker_token_budget=100, worker_gpu_token_budget=1000)
    assert token_budget(some, torch.device("cpu")) == 100
    assert token_budget(some, torch.device("cuda", 0)) == 1000


def test_a_precision_is_timed_where_it_serves_on_texts_of_many_lengths(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []
    began = time.monotonic()

    class Noted:
        def submit_at(self, at: float, work: Callable[[], Any]) -> Future[Any]:
            assert isinstance(work, partial)
            lengths = [len(row) for row in work.args[0]]
            timed.extend(lengths)
            # It has a turn among what is scored meanwhile.
            assert began < at <= turn(sum(lengths))
            assert sum(lengths) <= precision._TOKENS_TOGETHER
            return lanes(1).submit_at(at, work)

    monkeypatch.setattr(precision, "lanes", lambda count: Noted())
    precision.measure(load_model(model_dir, device="cpu"), ("int8",))
    assert len(timed) >= 2 * precision._TIMED
    once = timed[: precision._TIMED]
    assert max(once) > 4 * statistics.median(once)
