"""How transformer layers are made int8: weights with one scale an output channel, activations with fixed scales.

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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.engine.packed import FloatLayer, PackedEncoder, PackedRows

__all__ = ["ALIGNED", "Product", "Range", "Recipe", "recipes"]

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
ALIGNED: Final = 16


class Range(NamedTuple):
    """Values from `-zero * scale` to `(255 - zero) * scale` as 0 to 255."""

    scale: float
    zero: int


def _range_of(values: Tensor, top: float | None = None) -> Range:
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
    return Range(scale, round(-low / scale))


@dataclass(frozen=True)
class Product:
    """A product x @ weight.T + bias to be made, with x (T, K) in 0 to 255.

    Attributes
    ----------
    weight, bias : (N, K), (N,) fp32.
    given : what x stands for.
    factor : (K,) that x is divided by before; None for no factor.
    """

    weight: Tensor
    bias: Tensor
    given: Range
    factor: Tensor | None = None


@dataclass(frozen=True)
class Recipe:
    """A layer to be made, H wide, with I hidden units and some that are split.

    Attributes
    ----------
    qkv, out, up, down : its four products; GELU comes after `up`, and what `down` is given stands for its result.
    attention_norm, norm : after `out` and after `down`, each added to what the block was given.
    """

    qkv: Product
    out: Product
    up: Product
    down: Product
    attention_norm: nn.LayerNorm
    norm: nn.LayerNorm


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


def _recipe(layer: FloatLayer, x: Tensor, attended: Tensor, y: Tensor, hidden: Tensor) -> Recipe:
    """A layer in int8, from a float layer and what passed through it on a sample of T tokens.

    Parameters
    ----------
    x, attended, y : (T, H) inputs of the three products that are H wide.
    hidden : (T, I) input of the last.
    """
    factor = _factor(x, layer.qkv_weight)
    qkv = _product(layer.qkv_weight * factor, layer.qkv_bias, _range_of(x / factor), factor)
    out = _product(layer.attention_out.weight, layer.attention_out.bias, _range_of(attended))

    factor = _factor(y, layer.up.weight)
    top = min(_STEP, float(hidden.amax()))
    up, up_bias, down = layer.up.weight * factor, layer.up.bias.detach(), layer.down.weight.detach()
    splits = _splits(hidden, top)
    if splits:
        units = torch.tensor([unit for unit, _ in splits])
        down = torch.cat([down, down[:, units]], dim=1)
        up_bias = torch.cat([up_bias, up_bias[units] - top * torch.tensor([float(step) for _, step in splits])])
        up = torch.cat([up, up[units]])
    spare = -len(up) % ALIGNED
    up, up_bias, down = F.pad(up, (0, 0, 0, spare)), F.pad(up_bias, (0, spare)), F.pad(down, (0, spare))
    return Recipe(
        qkv=qkv,
        out=out,
        up=_product(up, up_bias, _range_of(y / factor), factor),
        down=_product(down, layer.down.bias, _range_of(hidden.clamp(max=top), top)),
        attention_norm=copy.deepcopy(layer.attention_norm).float(),
        norm=copy.deepcopy(layer.norm).float(),
    )


def _product(weight: Tensor, bias: Tensor, given: Range, factor: Tensor | None = None) -> Product:
    return Product(weight.detach(), bias.detach(), given, factor)


@torch.inference_mode()
def recipes(encoder: PackedEncoder, sample: PackedRows) -> Iterator[Recipe]:
    """The layers of an encoder in int8, one after the other, with ranges as found on `sample`."""
    attend = encoder.attend(sample)
    x = encoder.embed(sample.ids, sample.positions)
    # What fills up the tile is no text.
    real = slice(sample.tokens)
    for layer in encoder.layers:
        if not isinstance(layer, FloatLayer):
            raise TypeError("only float layers can be quantised")
        attended = attend(layer.project(x))
        y = layer.merge(attended, x)
        hidden = layer.inner(y)
        yield _recipe(layer, x[real], attended[real], y[real], hidden[real])
        x = layer.outer(hidden, y)
