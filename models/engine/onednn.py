"""Transformer layers in int8 by oneDNN: bytes go from one product to the next, and what follows one is part of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models.engine.int8 import ALIGNED, Product, Range, Recipe

__all__ = ["OneDnnLayer", "adds_exactly"]


@cache
def adds_exactly() -> bool:
    """Whether sums of products of bytes are right whatever these are.

    x86 without VNNI adds up two of them in 16 bits (`vpmaddubsw`), and what overflows is cut off in silence: found out
    by a product. Raises `RuntimeError` or `AttributeError` where this build of torch has no such kernel.
    """
    count, given = ALIGNED, torch.full((1, ALIGNED), 255, dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.full((count, count), 127, dtype=torch.int8), None)
    fixed = (weight, torch.ones(count), torch.zeros(count, dtype=torch.int64), torch.zeros(count))
    product: Any = torch.ops.onednn.qlinear_pointwise
    found: Tensor = product(given, 1.0, 0, *fixed, 1.0, 0, torch.float32, "none", [], "")
    return bool((found == 255 * 127 * count).all())


class _Quantiser(nn.Module):
    """(T, K) float to 0..255, each channel divided by its factor first."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        scale, zero = product.given
        ones = torch.ones(product.weight.shape[1]) if product.factor is None else product.factor
        self._scale = (1.0 / (ones * scale)).float()
        # One byte lower than wanted, so that the signed conversion can be used, which is vectorised.
        self._shift = torch.full_like(self._scale, float(zero - 128))

    def forward(self, x: Tensor) -> Tensor:
        """(T, K) bytes."""
        signed = torch.addcmul(self._shift, x, self._scale).round_().clamp_(-128.0, 127.0).to(torch.int8)
        # The same bits: TorchScript knows no `view` of another type.
        return signed.to(torch.uint8).bitwise_xor_(128)


class _Product(nn.Module):
    """x @ weight.T + bias for x in 0..255.

    Parameters
    ----------
    largest : weights are from minus this to this.
    out : None for a result in fp32; else GELU of it, in 0..255 of this range.
    """

    def __init__(self, product: Product, largest: int, out: Range | None = None) -> None:
        super().__init__()
        weight = product.weight
        scale = (weight.abs().amax(dim=1) / largest).clamp(min=1e-12)
        self._scale = scale.float()
        self._weight = torch.ops.onednn.qlinear_prepack((weight / scale[:, None]).round().to(torch.int8), None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = product.bias.float()
        self._given_scale, self._given_zero = product.given
        self._out_scale, self._out_zero = out or Range(1.0, 0)
        self._out_kind = torch.float32 if out is None else torch.uint8
        self._after, self._how = ("none", "") if out is None else ("gelu", "none")

    def forward(self, x: Tensor) -> Tensor:
        """(T, N)."""
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            x,
            self._given_scale,
            self._given_zero,
            self._weight,
            self._scale,
            self._zeros,
            self._bias,
            self._out_scale,
            self._out_zero,
            self._out_kind,
            self._after,
            [],
            self._how,
        )
        return found

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """(T, N) fp32: the product added to `other`, which is written over."""
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            x,
            self._given_scale,
            self._given_zero,
            self._weight,
            self._scale,
            self._zeros,
            other,
            self._bias,
            1.0,
            0,
            torch.float32,
            1.0,
            0,
            "sum",
            1.0,
            "none",
            [],
            "",
        )
        return found


class OneDnnLayer(nn.Module):
    """A layer after a recipe (`models.engine.packed.Layer`)."""

    # Sums of integers are exact however many rows a product has; a full row of vectors is all that the kernels like.
    tile = ALIGNED

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        largest = 127 if adds_exactly() else 64
        self._in, self._attended, self._middle = map(_Quantiser, (recipe.qkv, recipe.out, recipe.up))
        self._qkv, self._out, self._down = (_Product(one, largest) for one in (recipe.qkv, recipe.out, recipe.down))
        self._up = _Product(recipe.up, largest, out=recipe.down.given)
        self._attention_norm, self._norm = recipe.attention_norm, recipe.norm

    def project(self, x: Tensor) -> Tensor:
        """(T, 3H)."""
        found: Tensor = self._qkv(self._in(x))
        return found

    def merge(self, attended: Tensor, x: Tensor) -> Tensor:
        """(T, H). `x` is written over."""
        found: Tensor = self._attention_norm(self._out.plus(self._attended(attended), x))
        return found

    def inner(self, y: Tensor) -> Tensor:
        """(T, I + splits) in 0..255."""
        found: Tensor = self._up(self._middle(y))
        return found

    def outer(self, hidden: Tensor, y: Tensor) -> Tensor:
        """(T, H). `y` is written over."""
        found: Tensor = self._norm(self._down.plus(hidden, y))
        return found
