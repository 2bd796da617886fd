"""Attention over rows that lie end to end, in three ways.

- `ByLength`: one call for the rows of one length. Nothing is copied and nothing computed in vain: the way on a CPU,
  where a call costs little beside what it computes.
- `Varlen`: one call for all rows, by their boundaries (FlashAttention, Dao 2023): the way on a CUDA card, in 16 bits.
- `Buckets`: rows are copied to a few lengths, with what fills them up masked: on a card that cannot do the former, or
  in fp32, because there each call costs the same however little is in it.

Which bucket a row falls into depends on its own length alone, so that its result does, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine.layout import Ints, PackedRows
from monitor.telemetry import get_logger

__all__ = [
    "Attend",
    "Attention",
    "Buckets",
    "ByLength",
    "Varlen",
    "VarlenFunction",
    "attend_by_length",
    "attention_for",
    "bucket_length",
]

log = get_logger(__name__)

_BUCKETS: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Against ordinary attention of values about one, in 16 bits.
_TOLERANCE: Final = 0.05

Attend = Callable[[Tensor], Tensor]
# Queries, keys and values (T, heads, width), bounds of the rows (N + 1,) int32 for queries and for keys, the longest
# row of either; gives (T, heads, width). The signature of `torch.nn.attention.varlen.varlen_attn`.
VarlenFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


class Attention(Protocol):
    """A way to attend. What a batch needs is computed once, not in every layer."""

    def indices(self, packed: PackedRows) -> list[Ints]:
        """One-dimensional arrays that the device must have."""

    def bound(self, packed: PackedRows, indices: Sequence[Tensor]) -> Attend:
        """What each token of `packed` attends to: a function of queries, keys and values (T, 3H) that gives (T, H).

        `indices` are those of this batch, on the device. Tokens that fill up the tile get any finite values.
        """


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, heads, L, width) from (N, L, 3H)."""
    count, length, size = qkv.size(0), qkv.size(1), qkv.size(2)
    query, key, value = qkv.view(count, length, 3, heads, size // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def attend_by_length(qkv: Tensor, groups: list[tuple[int, int, int]], tokens: int, heads: int) -> Tensor:
    """(T, H) of queries, keys and values (T, 3H), by one call for the rows of one length.

    `groups` and `tokens` are those of `PackedRows`. TorchScript compiles it, too.
    """
    size = qkv.size(1) // 3
    out = qkv.new_empty([qkv.size(0), size])
    out[tokens:] = 0.0
    for start, count, length in groups:
        if start < tokens:
            rows = qkv.narrow(0, start, count * length).view(count, length, 3 * size)
            query, key, value = _heads(rows, heads)
            found = F.scaled_dot_product_attention(query, key, value)
            out.narrow(0, start, count * length).view(count, length, heads, -1).copy_(found.transpose(1, 2))
    return out


class ByLength:
    """One call for the rows of one length."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    def indices(self, packed: PackedRows) -> list[Ints]:  # noqa: ARG002 - the same for all ways
        """None."""
        return []

    def bound(self, packed: PackedRows, indices: Sequence[Tensor]) -> Attend:  # noqa: ARG002 - the same for all ways
        """See `Attention`."""
        return partial(attend_by_length, groups=packed.groups, tokens=packed.tokens, heads=self._heads)


def bucket_length(length: int) -> int:
    """Tokens that a row of `length` is filled up to: a multiple of 8, which the kernels ask of a mask."""
    return next((step for step in _BUCKETS if length <= step), -(-length // 128) * 128)


class Buckets:
    """Rows filled up to few lengths, one call for those of one."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    @staticmethod
    def _lengths(packed: PackedRows) -> list[tuple[int, list[int], list[int]]]:
        """(tokens filled up to, first tokens, lengths) of each bucket's rows, the longest first."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for start, end in zip(packed.starts, packed.starts[1:], strict=False):
            starts, lengths = found.setdefault(bucket_length(end - start), ([], []))
            starts.append(start)
            lengths.append(end - start)
        return [(step, *rows) for step, rows in found.items()]

    def indices(self, packed: PackedRows) -> list[Ints]:
        """The token at each filled-up place, the place of each token, and all rows' lengths."""
        tokens: list[Ints] = []
        places = np.zeros(len(packed.ids), dtype=np.int64)
        offset = 0
        for step, starts, lengths in self._lengths(packed):
            first, column = np.array(starts)[:, None], np.arange(step)
            inside = column < np.array(lengths)[:, None]
            # What fills a row up is its own first token: finite, and masked.
            at = np.where(inside, first + column, first)
            tokens.append(at.ravel())
            places[at[inside]] = offset + np.flatnonzero(inside)
            offset += at.size
        return [np.concatenate(tokens), places, np.diff(np.array(packed.starts))]

    def bound(self, packed: PackedRows, indices: Sequence[Tensor]) -> Attend:
        """See `Attention`."""
        tokens, places, lengths = indices
        blocks: list[tuple[int, int, int, Tensor]] = []
        start = row = 0
        for step, starts, _ in self._lengths(packed):
            count = len(starts)
            inside = torch.arange(step, device=lengths.device) < lengths[row : row + count, None]
            blocks.append((start, count, step, inside[:, None, None, :]))
            start, row = start + count * step, row + count

        def attend(qkv: Tensor) -> Tensor:
            size = qkv.shape[1] // 3
            filled = qkv.index_select(0, tokens)
            out = qkv.new_empty(len(filled), size)
            for start, count, step, inside in blocks:
                rows = filled.narrow(0, start, count * step).view(count, step, 3 * size)
                found = F.scaled_dot_product_attention(*_heads(rows, self._heads), attn_mask=inside)
                out.narrow(0, start, count * step).view(count, step, self._heads, -1).copy_(found.transpose(1, 2))
            return out.index_select(0, places)

        return attend


class Varlen:
    """One call for all rows, by their boundaries."""

    def __init__(self, heads: int, function: VarlenFunction) -> None:
        self._heads = heads
        self._function = function

    def indices(self, packed: PackedRows) -> list[Ints]:
        """Bounds of the rows; what fills up the tile is one more."""
        total = len(packed.ids)
        return [np.array(packed.starts if total == packed.tokens else [*packed.starts, total])]

    def bound(self, packed: PackedRows, indices: Sequence[Tensor]) -> Attend:
        """See `Attention`."""
        bounds = indices[0].to(torch.int32)
        longest = max(length for _, _, length in packed.groups)

        def attend(qkv: Tensor) -> Tensor:
            query, key, value = qkv.view(len(qkv), 3, self._heads, -1).unbind(1)
            return self._function(query, key, value, bounds, bounds, longest, longest).reshape(len(qkv), -1)

        return attend


def _varlen() -> VarlenFunction:
    from torch.nn.attention.varlen import varlen_attn

    return cast(VarlenFunction, varlen_attn)


def _works(function: VarlenFunction, heads: int, width: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it gives what ordinary attention gives, on two rows. Raises whatever the card has against it."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(24, 3, heads, width, generator=generator).to(device, dtype)
    bounds = torch.tensor([0, 16, 24], dtype=torch.int32, device=device)
    query, key, value = qkv.unbind(1)
    found = function(query, key, value, bounds, bounds, 16, 16)
    rows = [_heads(qkv[a:b].reshape(1, b - a, -1).float(), heads) for a, b in ((0, 16), (16, 24))]
    wanted = torch.cat([F.scaled_dot_product_attention(*one).squeeze(0).transpose(0, 1) for one in rows])
    return bool(torch.allclose(found.float(), wanted, atol=_TOLERANCE))


@torch.inference_mode()
def attention_for(
    heads: int, width: int, device: torch.device, dtype: torch.dtype, varlen: VarlenFunction | None = None
) -> Attention:
    """The way to attend on this device in this precision; heads are `width` wide.

    `varlen` stands for torch's own, which is tried on a CUDA card only.
    """
    if varlen is None and device.type == "cpu":
        return ByLength(heads)
    try:
        function = varlen or _varlen()
        if _works(function, heads, width, device, dtype):
            return Varlen(heads, function)
        reason = "its answers are not those of ordinary attention"
    except (RuntimeError, AttributeError, NotImplementedError, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    log.info("attention by boundaries is not available", device=str(device), dtype=str(dtype), reason=reason)
    return Buckets(heads)
