"""Batches under a budget: of tokens (padding counts) and of images."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plan"]


def plan(lengths: Sequence[int], images: Sequence[bool], *, token_budget: int, image_budget: int) -> list[list[int]]:
    """Indices of rows, grouped into batches.

    Parameters
    ----------
    lengths : tokens of each row (0: the row has a picture only).
    images : whether each row has a picture.
    token_budget : longest row times number of rows stays within it, but for a single row that exceeds it alone.
    image_budget : pictures in one batch at the most.

    Rows of about the same length come together, longest first: memory runs out in the first batch or not at all.
    Rows with a picture are kept apart from text-only ones, so that these never wait for the image tower.
    """
    batches: list[list[int]] = []
    for pictured in (False, True):
        order = sorted((i for i, shown in enumerate(images) if shown == pictured), key=lambda i: -lengths[i])
        batch: list[int] = []
        for index in order:
            longest = lengths[batch[0]] if batch else 0
            if batch and (longest * (len(batch) + 1) > token_budget or (pictured and len(batch) >= image_budget)):
                batches.append(batch)
                batch = []
            batch.append(index)
        if batch:
            batches.append(batch)
    return batches
