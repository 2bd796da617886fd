"""Transformer layers in int8: weights with one scale an output channel, activations with fixed scales.

The scales are found once, by running the float layers on a sample (post-training static quantisation). A scale that is
fixed, unlike one that is taken from the batch at hand, makes a row's result a function of the row alone: products of
integers are summed exactly, and every other step sees one token (or, in attention, one row).

Two things make one scale for all channels accurate enough:

- a few channels of the residual stream are many times larger than the others; each input channel is divided by a
  factor that its weights are multiplied by (SmoothQuant, Xiao et al. 2023);
- a few hidden units of the feed-forward network reach 30 where the others stay below 5: such a unit is split into
  several that share its weights, with biases one step apart, each of which saturates at the end of its step (after
  outlier channel splitting, Zhao et al. 2019).
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.engine.packed import FloatLayer, PackedEncoder, PackedRows

__all__ = ["Int8Layer", "quantised"]

# Share of the values that a range covers: what lies outside saturates.
_COVERED: Final = 0.9999
# How much of a channel's size goes over to the weights (1: all).
_SMOOTHING: Final = 0.65
# Hidden units above this are split, into so many more units of a layer at the most.
_STEP: Final = 5.0
_MAX_SPLITS: Final = 64
# Values that a range is found with.
_SAMPLED: Final = 1 << 18
# Widths that the integer kernels like.
_ALIGNED: Final = 16


class _Range(NamedTuple):
    """Values from `-zero * scale` to `(255 - zero) * scale` as 0 to 255."""

    scale: float
    zero: int


def _range_of(values: Tensor, top: float | None = None) -> _Range:
    flat = values.flatten()
    # An odd step meets every channel.
    sampled = flat[:: len(flat) // _SAMPLED | 1].numpy()
    last = len(sampled) - 1
    first, end = int((1.0 - _COVERED) * last), int(_COVERED * last)
    # Two places are wanted: to sort all of it takes ten times as long, half of the whole preparation.
    ordered = np.partition(sampled, (first, end))
    low = min(0.0, float(ordered[first]))
    high = max(float(ordered[end]), low + 1e-6) if top is None else top
    scale = (high - low) / 255.0
    return _Range(scale, round(-low / scale))


class _Quantiser(nn.Module):
    """(T, K) float to 0..255, each channel divided by its factor first."""

    def __init__(self, values: Tensor, factor: Tensor | None = None) -> None:
        super().__init__()
        self.range = _range_of(values if factor is None else values / factor)
        ones = torch.ones(values.shape[1]) if factor is None else factor
        self._scale = (1.0 / (ones * self.range.scale)).float()
        # One byte lower than wanted, so that the signed conversion can be used, which is vectorised.
        self._shift = torch.full_like(self._scale, float(self.range.zero - 128))

    def forward(self, x: Tensor) -> Tensor:
        """(T, K) bytes."""
        signed = torch.addcmul(self._shift, x, self._scale).round_().clamp_(-128.0, 127.0).to(torch.int8)
        # The same bits: TorchScript knows no `view` of another type.
        return signed.to(torch.uint8).bitwise_xor_(128)


@cache
def _largest_weight() -> int:
    """127; or 64, where the processor adds up two products of bytes in 16 bits, which then never overflow.

    x86 without VNNI does so (`vpmaddubsw`), and what overflows is cut off in silence: found out by a product.
    """
    count, given = _ALIGNED, torch.full((1, _ALIGNED), 255, dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.full((count, count), 127, dtype=torch.int8), None)
    fixed = (weight, torch.ones(count), torch.zeros(count, dtype=torch.int64), torch.zeros(count))
    product: Any = torch.ops.onednn.qlinear_pointwise
    found: Tensor = product(given, 1.0, 0, *fixed, 1.0, 0, torch.float32, "none", [], "")
    return 127 if bool((found == 255 * 127 * count).all()) else 64


class _Product(nn.Module):
    """x @ weight.T + bias for x in 0..255.

    Parameters
    ----------
    given : what x stands for.
    out : None for a result in fp32; else GELU of it, in 0..255 of this range.
    """

    def __init__(self, weight: Tensor, bias: Tensor, given: _Range, out: _Range | None = None) -> None:
        super().__init__()
        scale = (weight.abs().amax(dim=1) / _largest_weight()).clamp(min=1e-12)
        integers = (weight / scale[:, None]).round().to(torch.int8)
        self._scale = scale.float()
        self._weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = bias.detach().float()
        self._given_scale, self._given_zero = given
        self._out_scale, self._out_zero = out or _Range(1.0, 0)
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


def _factor(values: Tensor, weight: Tensor) -> Tensor:
    """What each input channel (K,) is divided by, and its weights (N, K) multiplied by."""
    size = values.abs().amax(dim=0).clamp(min=1e-3)
    weights = weight.abs().amax(dim=0).clamp(min=1e-3)
    factor = size**_SMOOTHING / weights ** (1.0 - _SMOOTHING)
    return factor / factor.mean()


def _splits(hidden: Tensor, top: float) -> list[tuple[int, int]]:
    """(unit, step) of the units to add: a unit that reaches beyond `top` goes on in the next."""
    largest = hidden.amax(dim=0)
    found = [
        (unit, step)
        for unit in (largest > 1.05 * top).nonzero().flatten().tolist()
        for step in range(1, int(1.02 * float(largest[unit]) / top) + 1)
    ]
    return found[:_MAX_SPLITS]


class Int8Layer(nn.Module):
    """A layer in int8, made from a float layer and what passed through it on a sample of tokens.

    Parameters
    ----------
    x, attended, y : (T, H) inputs of the three products that are H wide.
    hidden : (T, I) input of the last.
    """

    # Sums of integers are exact however many rows a product has; a full row of vectors is all that the kernels like.
    tile = _ALIGNED

    def __init__(self, layer: FloatLayer, x: Tensor, attended: Tensor, y: Tensor, hidden: Tensor) -> None:
        super().__init__()
        factor = _factor(x, layer.qkv_weight)
        self._in = _Quantiser(x, factor)
        self._qkv = _Product(layer.qkv_weight * factor, layer.qkv_bias, self._in.range)
        self._attended = _Quantiser(attended)
        self._out = _Product(layer.attention_out.weight, layer.attention_out.bias, self._attended.range)
        self._attention_norm, self._norm = (copy.deepcopy(n).float() for n in (layer.attention_norm, layer.norm))

        factor = _factor(y, layer.up.weight)
        self._middle = _Quantiser(y, factor)
        top = min(_STEP, float(hidden.amax()))
        up, up_bias, down = layer.up.weight * factor, layer.up.bias.detach(), layer.down.weight.detach()
        splits = _splits(hidden, top)
        if splits:
            units = torch.tensor([unit for unit, _ in splits])
            down = torch.cat([down, down[:, units]], dim=1)
            up_bias = torch.cat([up_bias, up_bias[units] - top * torch.tensor([float(step) for _, step in splits])])
            up = torch.cat([up, up[units]])
        spare = -len(up) % _ALIGNED
        up, up_bias, down = F.pad(up, (0, 0, 0, spare)), F.pad(up_bias, (0, spare)), F.pad(down, (0, spare))
        inner = _range_of(hidden.clamp(max=top), top)
        self._up = _Product(up, up_bias, self._middle.range, out=inner)
        self._down = _Product(down, layer.down.bias, inner)

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


@torch.inference_mode()
def quantised(encoder: PackedEncoder, sample: PackedRows) -> list[Int8Layer]:
    """The layers of an encoder in int8, with ranges as found on `sample`.

    Raises `RuntimeError` or `AttributeError` where this build of torch has no integer kernels for this processor.
    """
    attend = encoder.attend(sample)
    x = encoder.embed(sample.ids, sample.positions)
    # What fills up the tile is no text.
    real = slice(sample.tokens)
    found: list[Int8Layer] = []
    for layer in encoder.layers:
        if not isinstance(layer, FloatLayer):
            raise TypeError("only float layers can be quantised")
        attended = attend(layer.project(x))
        y = layer.merge(attended, x)
        hidden = layer.inner(y)
        found.append(Int8Layer(layer, x[real], attended[real], y[real], hidden[real]))
        x = layer.outer(hidden, y)
    return found
