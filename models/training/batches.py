"""Batches of about one length, under a budget of padded tokens, in an order that seed and epoch fix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["batches_of", "epoch_batches"]

# Batches that are sorted by length together: enough for little padding, few enough for a random mix.
_POOL = 40


def batches_of(lengths: Sequence[int], order: Sequence[int], token_budget: int) -> list[list[int]]:
    """Rows in `order`, cut wherever the next row would take longest x rows over `token_budget`."""
    found: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        if current and longest * (len(current) + 1) > token_budget:
            found.append(current)
            current, longest = [], lengths[row]
        current.append(row)
    if current:
        found.append(current)
    return found


def epoch_batches(lengths: Sequence[int], token_budget: int, *, seed: int, epoch: int) -> list[list[int]]:
    """All rows once, shuffled, in batches of about one length; the same for the same seed and epoch."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths)).tolist()
    mean = max(1.0, float(np.mean(lengths))) if len(lengths) else 1.0
    pool = max(1, int(_POOL * token_budget / mean))
    found: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool], key=lambda row: lengths[row])
        found.extend(batches_of(lengths, part, token_budget))
    return [found[index] for index in generator.permutation(len(found)).tolist()]
