"""Attention over rows that lie end to end; the ways of a card with its kernel's stand-in."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.bundle import load_model
from models.engine import attention
from models.engine.attention import Attention, Buckets, ByLength, Varlen, attention_for, bucket_length
from models.engine.layout import arrange, placed
from models.engine.packed import PackedEncoder
from tests.models.engine.rows import rows_of

HEADS, WIDTH = 2, 16


def varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, of_keys: Tensor, most: int, longest: int
) -> Tensor:
    """What a card's kernel computes, row by row, and what it asks for."""
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, of_keys)
    assert bounds[0] == 0
    assert bounds[-1] == len(query)
    assert most == longest == int(bounds.diff().max())
    rows = [slice(a, b) for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False)]
    each = [
        F.scaled_dot_product_attention(*(part[row].transpose(0, 1)[None] for part in (query, key, value)))
        for row in rows
    ]
    return torch.cat([one[0].transpose(0, 1) for one in each])


def attended(way: Attention, lengths: list[int], tile: int = 16) -> list[Tensor]:
    """Of each row, with values that depend on the row's length alone."""
    packed = arrange([[1] * length for length in lengths], tile)
    qkv = torch.zeros(len(packed.ids), 3 * HEADS * WIDTH)
    for start, end in zip(packed.starts, packed.starts[1:], strict=False):
        qkv[start:end] = torch.randn(end - start, qkv.shape[1], generator=torch.Generator().manual_seed(end - start))
    found = way.bound(packed, placed(torch.device("cpu"), way.indices(packed)))(qkv)
    assert found.shape == (len(qkv), HEADS * WIDTH)
    assert found.isfinite().all()
    rows = [found[a:b] for a, b in zip(packed.starts, packed.starts[1:], strict=False)]
    return [rows[packed.order.index(row)] for row in range(len(lengths))]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_every_way_gives_what_rows_alone_give(lengths: list[int]) -> None:
    wanted = [attended(ByLength(HEADS), [length], 1)[0] for length in lengths]
    for way in (ByLength(HEADS), Buckets(HEADS), Varlen(HEADS, varlen)):
        for found, right in zip(attended(way, lengths), wanted, strict=True):
            assert torch.allclose(found, right, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_in_its_bucket_a_row_has_the_bits_that_it_has_alone(lengths: list[int]) -> None:
    together = attended(Buckets(HEADS), lengths)
    assert all(torch.equal(row, attended(Buckets(HEADS), [n])[0]) for row, n in zip(together, lengths, strict=True))


def test_buckets_are_few_and_hold_their_rows() -> None:
    steps = [bucket_length(length) for length in range(1, 600)]
    assert all(length <= step and step % 8 == 0 for length, step in enumerate(steps, 1))
    assert len(set(steps[:256])) <= 10
    assert bucket_length(257) == 384


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_ways_of_a_card_answer_as_the_network_does(model_dir: Path, kind: torch.dtype) -> None:
    model = load_model(model_dir, device="cpu")
    rows = rows_of(model)
    with torch.inference_mode():
        wanted = model.encode_text(rows).pooled()
    encoder = copy.deepcopy(model.network.text).to(kind)
    by_boundaries = PackedEncoder(encoder, varlen=varlen)
    assert isinstance(by_boundaries.attention, Varlen)
    in_buckets = PackedEncoder(encoder)
    in_buckets.attention = Buckets(in_buckets.heads)
    for packed in (by_boundaries, in_buckets):
        found = packed(rows).pooled()
        assert found.dtype == torch.float32
        assert (found - wanted).abs().mean() < (1e-5 if kind == torch.float32 else 0.05)


def test_a_kernel_that_refuses_or_errs_is_done_without() -> None:
    def refuses(*_: object) -> Tensor:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")

    def errs(query: Tensor, *_: object) -> Tensor:
        return torch.zeros_like(query)

    device = torch.device("cpu")
    assert isinstance(attention_for(HEADS, WIDTH, device, torch.bfloat16, varlen), Varlen)
    for function in (refuses, errs):
        assert isinstance(attention_for(HEADS, WIDTH, device, torch.float32, function), Buckets)
    assert isinstance(attention_for(HEADS, WIDTH, device, torch.float32), ByLength)


def test_torchs_own_kernel_is_called_as_it_wants_to_be() -> None:
    """Without a card it can only be traced; that finds a wrong argument."""
    function = attention._varlen()
    with torch.device("meta"):
        part = torch.empty(24, HEADS, WIDTH, dtype=torch.bfloat16)
        bounds = torch.empty(3, dtype=torch.int32)
    assert function(part, part, part, bounds, bounds, 16, 16).shape == part.shape


def test_a_batchs_indices_reach_a_device_in_one_copy() -> None:
    parts = [np.arange(3), np.arange(5, dtype=np.int32), np.arange(0)]
    found = placed(torch.device("meta"), parts)
    assert [len(one) for one in found] == [3, 5, 0]
    assert len({one.untyped_storage()._cdata for one in found}) == 1
    assert all(one.dtype == torch.int64 for one in placed(torch.device("cpu"), parts))
