"""The text encoder without padding: the tokens of all rows in one long matrix, attention row by row.

Everything but attention looks at a token alone, so rows of any length lie end to end and nothing is spent on padding.
Attention takes the rows of one length together (on a CUDA card: all rows in one call, by their boundaries). A row is
computed by the same operations whatever stands beside it; where sums are exact, as in int8, so is the row's result.

For encoders of the BERT architecture (Devlin et al. 2019), the usual one of small text encoders; `packable` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fusion import TextFeatures
from models.tokens import TokenizedRow

__all__ = ["FloatLayer", "Layer", "PackedEncoder", "PackedRows", "arrange", "packable"]

# Products of a shape that was seen before are ready; with so many rows more, there are few shapes.
TILE: Final = 64


def packable(encoder: nn.Module) -> bool:
    """Whether this encoder's architecture is known here."""
    config: Any = getattr(encoder, "config", None)
    return (
        getattr(config, "model_type", "") == "bert"
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
    )


@dataclass(frozen=True)
class PackedRows:
    """Rows end to end, the longest first.

    Attributes
    ----------
    ids, positions : (T,) token ids and their places in their rows; T is a multiple of `TILE`.
    groups : (first token, number of rows, tokens a row) of the rows of one length; the last fills up the tile.
    order : the given row that stands at each place.
    starts : (N + 1,) first token of each row in this order, then the end of the last.
    """

    ids: Tensor
    positions: Tensor
    groups: list[tuple[int, int, int]]
    order: list[int]
    starts: list[int]


def arrange(rows: Sequence[Sequence[int]]) -> PackedRows:
    """Token ids of N rows, none empty."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    lengths = [len(rows[i]) for i in order]
    starts = [0, *np.cumsum(lengths).tolist()]
    total = starts[-1]
    groups: list[tuple[int, int, int]] = []
    for start, length in zip(starts, lengths, strict=False):
        if groups and groups[-1][2] == length:
            groups[-1] = (groups[-1][0], groups[-1][1] + 1, length)
        else:
            groups.append((start, 1, length))
    fill = -total % TILE
    if fill:
        groups.append((total, 1, fill))
    ids = np.zeros(total + fill, dtype=np.int64)
    ids[:total] = np.fromiter(chain.from_iterable(rows[i] for i in order), dtype=np.int64, count=total)
    positions = np.concatenate([np.tile(np.arange(length), count) for _, count, length in groups])
    return PackedRows(torch.from_numpy(ids), torch.from_numpy(positions), groups, order, starts)


class Layer(Protocol):
    """One transformer layer in four steps; T tokens, H wide."""

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
        return cast(Tensor, self.attention_norm(self.attention_out(attended).add_(x)))

    def inner(self, y: Tensor) -> Tensor:
        """(T, I)."""
        return F.gelu(self.up(y))

    def outer(self, hidden: Tensor, y: Tensor) -> Tensor:
        """(T, H)."""
        return cast(Tensor, self.norm(self.down(hidden).add_(y)))


Attention = Callable[[Tensor, PackedRows], Tensor]


class PackedEncoder:
    """Encodes rows with the weights of a `BertModel`; its layers may be exchanged for others.

    Parameters
    ----------
    encoder : what `packable` accepts; its precision and device are kept.
    """

    def __init__(self, encoder: nn.Module) -> None:
        source = cast(Any, encoder)
        config = source.config
        self.heads = int(config.num_attention_heads)
        self.hidden_size = int(config.hidden_size)
        self.embeddings = source.embeddings
        self.layers: list[Layer] = [FloatLayer(layer) for layer in source.encoder.layer]
        self.device: torch.device = self.embeddings.word_embeddings.weight.device
        self._attend: Attention = self._by_boundaries if self.device.type == "cuda" else self.by_length

    def embed(self, packed: PackedRows) -> Tensor:
        """(T, H)."""
        parts = self.embeddings
        ids, positions = packed.ids.to(self.device), packed.positions.to(self.device)
        x = F.embedding(ids, parts.word_embeddings.weight)
        x = x + F.embedding(positions, parts.position_embeddings.weight)
        x += parts.token_type_embeddings.weight[0]
        return cast(Tensor, parts.LayerNorm(x))

    def by_length(self, qkv: Tensor, packed: PackedRows) -> Tensor:
        """What each token attends to, (T, H), from (T, 3H): one call for the rows of one length."""
        width = self.hidden_size // self.heads
        out = torch.empty(len(qkv), self.hidden_size, dtype=qkv.dtype, device=qkv.device)
        for start, count, length in packed.groups:
            end = start + count * length
            query, key, value = qkv[start:end].view(count, length, 3, self.heads, width).permute(2, 0, 3, 1, 4)
            found = F.scaled_dot_product_attention(query, key, value)
            out[start:end].view(count, length, self.heads, width).copy_(found.transpose(1, 2))
        return out

    def _by_boundaries(self, qkv: Tensor, packed: PackedRows) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        ends = [start + length * (n + 1) for start, count, length in packed.groups for n in range(count)]
        bounds = torch.tensor([0, *ends], dtype=torch.int32, device=qkv.device)
        longest = packed.groups[0][2] if len(packed.groups) == 1 else max(packed.groups[0][2], packed.groups[-1][2])
        query, key, value = qkv.view(len(qkv), 3, self.heads, -1).unbind(1)
        found = cast(Tensor, varlen_attn(query, key, value, bounds, bounds, longest, longest))
        return found.reshape(len(qkv), self.hidden_size)

    def attend(self, qkv: Tensor, packed: PackedRows) -> Tensor:
        """What each token attends to: (T, 3H) to (T, H)."""
        return self._attend(qkv, packed)

    def tokens(self, packed: PackedRows) -> Tensor:
        """Token vectors (T, H), as the rows stand in `packed`."""
        x = self.embed(packed)
        for layer in self.layers:
            y = layer.merge(self.attend(layer.project(x), packed), x)
            x = layer.outer(layer.inner(y), y)
        return x

    @torch.inference_mode()
    def __call__(self, rows: Sequence[TokenizedRow]) -> TextFeatures:
        """Features of N rows with a text, in fp32; padded token vectors only where a row has a picture."""
        packed = arrange([row.ids for row in rows])
        x = self.tokens(packed).float()
        count, size = len(rows), self.hidden_size
        places = np.empty(count, dtype=np.int64)
        places[packed.order] = packed.starts[:-1]
        lengths = np.array([len(row.ids) for row in rows])
        spans = np.array([row.span or (0, len(row.ids)) for row in rows])
        whole = self._means(x, places, lengths)
        same = all(row.span is None for row in rows)
        spanned = whole if same else self._means(x, places + spans[:, 0], spans[:, 1] - spans[:, 0])
        longest = int(lengths.max()) if any(row.pixels is not None for row in rows) else 0
        column = np.arange(longest)
        mask = torch.from_numpy(column < lengths[:, None]).to(x.device)
        span = torch.from_numpy((column >= spans[:, :1]) & (column < spans[:, 1:])).to(x.device)
        padded = x.new_zeros(count, longest, size)
        if longest:
            at = torch.from_numpy(places[:, None] + column).to(x.device)
            padded[mask] = x[at[mask]]
        return TextFeatures(padded, mask, span, torch.cat([whole, spanned], dim=1))

    @staticmethod
    def _means(x: Tensor, starts: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Means (N, H) of the tokens `starts[n]` to `starts[n] + lengths[n]`, summed one after the other."""
        row = np.repeat(np.arange(len(starts)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = torch.from_numpy(np.repeat(starts, lengths) + within).to(x.device)
        sums = x.new_zeros(len(starts), x.shape[1]).index_add_(0, torch.from_numpy(row).to(x.device), x[tokens])
        return sums / torch.from_numpy(lengths).to(x.device, x.dtype).unsqueeze(1)
