"""How the tokens of a batch lie: all rows end to end in one long matrix, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TILE", "Ints", "PackedRows", "arrange", "placed"]

# Products of a shape that was seen before are ready; with so many rows more, there are few shapes.
TILE: Final = 64

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PackedRows:
    """Rows end to end, the longest first.

    Attributes
    ----------
    ids, positions : (T,) token ids and their places in their rows; T is a multiple of the tile.
    groups : (first token, number of rows, tokens a row) of the rows of one length; the last fills up the tile.
    order : the given row that stands at each place.
    starts : (N + 1,) first token of each row in this order, then the end of the last.
    """

    ids: Tensor
    positions: Tensor
    groups: list[tuple[int, int, int]]
    order: list[int]
    starts: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of the rows, without what fills up the tile."""
        return self.starts[-1]


def arrange(rows: Sequence[Sequence[int]], tile: int = TILE) -> PackedRows:
    """Token ids of N rows, none empty; their number is filled up to a multiple of `tile`."""
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
    fill = -total % tile
    if fill:
        groups.append((total, 1, fill))
    ids = np.zeros(total + fill, dtype=np.int64)
    ids[:total] = np.fromiter(chain.from_iterable(rows[i] for i in order), dtype=np.int64, count=total)
    positions = np.concatenate([np.tile(np.arange(length), count) for _, count, length in groups])
    return PackedRows(torch.from_numpy(ids), torch.from_numpy(positions), groups, order, starts)


def placed(device: torch.device, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    """One-dimensional arrays as int64 on the device: by one copy, because each waits for the device."""
    if device.type == "cpu":
        return [torch.from_numpy(one.astype(np.int64, copy=False)) for one in arrays]
    together = torch.from_numpy(np.concatenate([one.astype(np.int64, copy=False) for one in arrays])).to(device)
    return list(torch.split(together, [len(one) for one in arrays]))
