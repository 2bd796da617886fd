"""The text encoder without padding: the tokens of all rows in one long matrix, attention row by row.

Everything but attention looks at a token alone, so rows of any length lie end to end and nothing is spent on padding;
how attention is computed is told in `models.engine.attention`. A row is computed by the same operations whatever stands
beside it; where sums are exact, as in int8, so is the row's result.

For encoders of the BERT architecture (Devlin et al. 2019), the usual one of small text encoders; `packable` tells.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.engine.attention import Attend, ByLength, VarlenFunction, attend_by_length, attention_for
from models.engine.layout import TILE, Ints, PackedRows, arrange, placed
from models.fusion import TextFeatures
from models.tokens import TokenizedRow
from monitor.telemetry import get_logger

__all__ = ["FloatLayer", "Layer", "PackedEncoder", "PackedRows", "arrange", "packable"]

log = get_logger(__name__)


def packable(encoder: nn.Module) -> bool:
    """Whether this encoder's architecture is known here."""
    config: Any = getattr(encoder, "config", None)
    return (
        getattr(config, "model_type", "") == "bert"
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
    )


class Layer(Protocol):
    """One transformer layer in four steps, an `nn.Module` that TorchScript can compile; T tokens, H wide.

    `tile`: tokens come in multiples of so many.
    """

    tile: int

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: (T, H) to (T, 3H)."""

    def merge(self, attended: Tensor, x: Tensor) -> Tensor:
        """Output of the attention block, from what was attended to and its input, both (T, H)."""

    def inner(self, y: Tensor) -> Tensor:
        """The feed-forward network's hidden values: (T, H) to (T, I)."""

    def outer(self, hidden: Tensor, y: Tensor) -> Tensor:
        """Output of the layer, from the hidden values and the attention block's output: (T, H)."""


class FloatLayer(nn.Module):
    """A layer of a Hugging Face `BertModel` with its own weights, in their precision."""

    # The order in which a product of floats adds up may depend on how many rows it has.
    tile = TILE

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        layer = cast(Any, source)
        own = layer.attention.self
        joined = [own.query, own.key, own.value]
        self.qkv_weight = torch.cat([one.weight.detach() for one in joined])
        self.qkv_bias = torch.cat([one.bias.detach() for one in joined])
        self.attention_out: nn.Linear = layer.attention.output.dense
        self.attention_norm: nn.LayerNorm = layer.attention.output.LayerNorm
        self.up: nn.Linear = layer.intermediate.dense
        self.down: nn.Linear = layer.output.dense
        self.norm: nn.LayerNorm = layer.output.LayerNorm

    def project(self, x: Tensor) -> Tensor:
        """(T, 3H)."""
        return F.linear(x, self.qkv_weight, self.qkv_bias)

    def merge(self, attended: Tensor, x: Tensor) -> Tensor:
        """(T, H)."""
        found: Tensor = self.attention_norm(self.attention_out(attended).add_(x))
        return found

    def inner(self, y: Tensor) -> Tensor:
        """(T, I)."""
        return F.gelu(self.up(y))

    def outer(self, hidden: Tensor, y: Tensor) -> Tensor:
        """(T, H)."""
        found: Tensor = self.norm(self.down(hidden).add_(y))
        return found


class _Embeddings(nn.Module):
    """Vectors of token ids at their places, of a Hugging Face `BertModel`."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        parts = cast(Any, source)
        self.words: Tensor = parts.word_embeddings.weight
        self.positions: Tensor = parts.position_embeddings.weight
        self.kind: Tensor = parts.token_type_embeddings.weight[0]
        self.norm: nn.LayerNorm = parts.LayerNorm

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(T, H) of token ids and their places in their rows, both (T,)."""
        x = F.embedding(ids, self.words) + F.embedding(positions, self.positions)
        found: Tensor = self.norm(x.add_(self.kind))
        return found


def _means(x: Tensor, places: Tensor, lengths: Tensor) -> Tensor:
    """Means (N, H) of so many rows of `x` each, at `places`, summed one after the other on every device."""
    sums = torch.segment_reduce(x.index_select(0, places), "sum", lengths=lengths, unsafe=True)
    return sums / lengths.to(x.dtype).unsqueeze(1)


class _Stack(nn.Module):
    """All of the encoder, with attention by the lengths of the rows."""

    def __init__(self, embeddings: nn.Module, layers: Sequence[Layer], heads: int) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layers = nn.ModuleList(cast(Sequence[nn.Module], layers))
        self.heads = heads

    def forward(
        self, ids: Tensor, positions: Tensor, groups: list[tuple[int, int, int]], tokens: int, means: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Token vectors (T, H) in fp32 and means over rows (N, 2H); arguments are those of `PackedEncoder._encoded`."""
        x = self.embeddings(ids, positions)
        for layer in self.layers:
            attended = attend_by_length(layer.project(x), groups, tokens, self.heads)  # type: ignore[operator]
            y = layer.merge(attended, x)  # type: ignore[operator]
            x = layer.outer(layer.inner(y), y)  # type: ignore[operator]
        return _pooled(x.float(), means)


def _pooled(x: Tensor, means: list[Tensor]) -> tuple[Tensor, Tensor]:
    whole = _means(x, means[0], means[1])
    asked = _means(x, means[2], means[3]) if len(means) > 2 else whole
    return x, torch.cat([whole, asked], dim=1)


def scripted(module: nn.Module) -> nn.Module:
    """A module compiled by TorchScript, or as it is where that is not to be had.

    Compiled, it comes back to the interpreter once a call. Otherwise each operation does, some hundred times, and
    waits for its lock whenever another thread computes in Python.
    """
    module.eval()
    try:
        with warnings.catch_warnings():
            # It is deprecated in favour of ways that need a C++ compiler where it runs, or go through Python.
            warnings.simplefilter("ignore", DeprecationWarning)
            return cast(nn.Module, torch.jit.script(module))
    except Exception as error:  # noqa: BLE001 - its compiler has errors of many kinds; without it all goes on, slower
        log.warning("not compiled", what=type(module).__name__, reason=f"{type(error).__name__}: {error}"[:200])
        return module


class PackedEncoder:
    """Encodes rows with the weights of a `BertModel`.

    Parameters
    ----------
    encoder : what `packable` accepts; its precision and device are kept.
    layers : what computes its layers; None: torch, with their own weights.
    varlen : attention by boundaries, in place of torch's own.
    """

    def __init__(
        self, encoder: nn.Module, *, layers: Sequence[Layer] | None = None, varlen: VarlenFunction | None = None
    ) -> None:
        source = cast(Any, encoder)
        config = source.config
        self.heads = int(config.num_attention_heads)
        self.hidden_size = int(config.hidden_size)
        self._embeddings = _Embeddings(source.embeddings)
        own = [FloatLayer(layer) for layer in source.encoder.layer] if layers is None else layers
        self.layers: Sequence[Layer] = own
        weight = self._embeddings.words
        self.device: torch.device = weight.device
        width = self.hidden_size // self.heads
        self.attention = attention_for(self.heads, width, weight.device, weight.dtype, varlen)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(T, H) of token ids and their places in their rows, both (T,)."""
        found: Tensor = self._embeddings(ids, positions)
        return found

    def attend(self, packed: PackedRows) -> Attend:
        """What each token of `packed` attends to: a function of (T, 3H) that gives (T, H)."""
        return self.attention.bound(packed, placed(self.device, self.attention.indices(packed)))

    @cached_property
    def _compiled(self) -> nn.Module:
        return scripted(_Stack(self._embeddings, self.layers, self.heads))

    def _encoded(
        self, packed: PackedRows, ids: Tensor, positions: Tensor, means: list[Tensor], indices: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Token vectors (T, H) and means over rows (N, 2H), in fp32.

        `means` : tokens and their numbers for the rows as wholes, then for what is asked about where that is less.
        """
        if isinstance(self.attention, ByLength):
            found: tuple[Tensor, Tensor] = self._compiled(ids, positions, packed.groups, packed.tokens, means)
            return found
        attend = self.attention.bound(packed, indices)
        x = self.embed(ids, positions)
        for layer in self.layers:
            y = layer.merge(attend(layer.project(x)), x)
            x = layer.outer(layer.inner(y), y)
        return _pooled(x.float(), means)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[TokenizedRow]) -> TextFeatures:
        """Features of N rows with a text, in fp32; padded token vectors only where a row has a picture."""
        packed = arrange([row.ids for row in rows], max(layer.tile for layer in self.layers))
        count = len(rows)
        places = np.empty(count, dtype=np.int64)
        places[packed.order] = packed.starts[:-1]
        lengths = np.array([len(row.ids) for row in rows])
        spans = np.array([row.span or (0, len(row.ids)) for row in rows])
        widths = spans[:, 1] - spans[:, 0]
        asked = any(row.span is not None for row in rows)
        # All that the device must know of this batch, in one copy.
        wanted = [packed.ids.numpy(), packed.positions.numpy(), _within(places, lengths), lengths]
        if asked:
            wanted += [_within(places + spans[:, 0], widths), widths]
        ids, positions, *parts = placed(self.device, [*wanted, *self.attention.indices(packed)])
        means, parts = parts[: len(wanted) - 2], parts[len(wanted) - 2 :]
        x, both = self._encoded(packed, ids, positions, means, parts)
        longest = int(lengths.max()) if any(row.pixels is not None for row in rows) else 0
        return self._padded(x, places, lengths, spans, longest, both)

    def _padded(self, x: Tensor, places: Ints, lengths: Ints, spans: Ints, longest: int, means: Tensor) -> TextFeatures:
        """Features of N rows whose tokens are wanted up to the place `longest` (0: none)."""
        count = len(places)
        padded = x.new_zeros(count, longest, self.hidden_size)
        if not longest:
            none = torch.zeros(count, 0, dtype=torch.bool, device=x.device)
            return TextFeatures(padded, none, none, means)
        column = np.arange(longest)
        mask = torch.from_numpy(column < lengths[:, None]).to(x.device)
        span = torch.from_numpy((column >= spans[:, :1]) & (column < spans[:, 1:])).to(x.device)
        at = torch.from_numpy(places[:, None] + column).to(x.device)
        padded[mask] = x[at[mask]]
        return TextFeatures(padded, mask, span, means)


def _within(starts: Ints, lengths: Ints) -> Ints:
    """The places `starts[n]` to `starts[n] + lengths[n]` of all n, one after the other."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places: Ints = np.repeat(starts, lengths) + within
    return places
