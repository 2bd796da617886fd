"""Transformer layers in int8 by FBGEMM: fp32 goes in and comes out of each product, bytes live only inside it.

On x86 without VNNI it is faster than oneDNN in small passes, and as fast in large ones: a product costs little whatever
is in it (docs/decisions/cpu-precision.md).
Khudia et al. 2021, FBGEMM: Enabling High-Performance Low-Precision Deep Learning Inference.
"""

from __future__ import annotations

import threading
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.engine.int8 import Product, Recipe

__all__ = ["FbgemmLayer"]

# Without VNNI two products of bytes are added up in 16 bits: within this no pair of them overflows.
_LARGEST_WEIGHT = 64
_packing = threading.Lock()


class _Product(nn.Module):
    """(x / factor) @ weight.T + bias with x and the weights as bytes inside."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        weight = product.weight.float()
        scale = (weight.abs().amax(dim=1) / _LARGEST_WEIGHT).clamp(min=1e-12)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        # What packs the weights decides what multiplies them, for the whole process.
        with _packing:
            engine = torch.backends.quantized.engine
            try:
                torch.backends.quantized.engine = "fbgemm"
                with warnings.catch_warnings():
                    # Tensors of bytes with a scale are to go; until then the weights are handed over in one.
                    warnings.simplefilter("ignore", UserWarning)
                    integers = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
                self._weight = torch.ops.quantized.linear_prepack(integers, product.bias.float())
            finally:
                torch.backends.quantized.engine = engine
        self._scale, self._zero = product.given
        self._scaled = product.factor is not None
        ones = torch.ones(weight.shape[1])
        self._inverse = (1.0 / (ones if product.factor is None else product.factor)).float()

    def forward(self, x: Tensor) -> Tensor:
        """(T, N) fp32 of x (T, K) fp32."""
        if self._scaled:
            x = x * self._inverse
        found: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x, self._scale, self._zero, self._weight
        )
        return found


class FbgemmLayer(nn.Module):
    """A layer after a recipe (`models.engine.packed.Layer`). Raises `RuntimeError` where torch is without FBGEMM."""

    # Sums of integers are exact however many rows a product has, and each is made bytes of by itself. GELU is oneDNN's,
    # which computes all values alike; torch's own would compute the last few of a batch in another way.
    tile = 1

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self._qkv, self._out, self._up, self._down = map(_Product, (recipe.qkv, recipe.out, recipe.up, recipe.down))
        self._attention_norm, self._norm = recipe.attention_norm, recipe.norm

    def project(self, x: Tensor) -> Tensor:
        """(T, 3H)."""
        found: Tensor = self._qkv(x)
        return found

    def merge(self, attended: Tensor, x: Tensor) -> Tensor:
        """(T, H)."""
        found: Tensor = self._attention_norm(self._out(attended).add_(x))
        return found

    def inner(self, y: Tensor) -> Tensor:
        """(T, I + splits)."""
        return F.gelu(self._up(y))

    def outer(self, hidden: Tensor, y: Tensor) -> Tensor:
        """(T, H)."""
        found: Tensor = self._norm(self._down(hidden).add_(y))
        return found
