"""Batches under a budget: of tokens (padding counts where there is any) and of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from monitor.settings import Settings

__all__ = ["plan", "token_budget"]


def token_budget(settings: Settings, device: torch.device) -> int:
    """Tokens of one pass at the most: a card is kept busy by many more than a processor's cache holds."""
    return settings.worker_token_budget if device.type == "cpu" else settings.worker_gpu_token_budget


def plan(
    lengths: Sequence[int], images: Sequence[bool], *, token_budget: int, image_budget: int, padded: bool = True
) -> list[list[int]]:
    """Indices of rows, grouped into batches.

    Parameters
    ----------
    lengths : tokens of each row (0: the row has a picture only).
    images : whether each row has a picture.
    token_budget : tokens of one batch at the most, but for a single row that exceeds it alone.
    padded : whether every row takes as many tokens as the longest of its batch; else it takes its own.
    image_budget : pictures in one batch at the most.

    Rows of about the same length come together, longest first: memory runs out in the first batch or not at all.
    Rows with a picture are kept apart from text-only ones, so that these never wait for the image tower.
    """
    batches: list[list[int]] = []
    for pictured in (False, True):
        order = sorted((i for i, shown in enumerate(images) if shown == pictured), key=lambda i: -lengths[i])
        batch: list[int] = []
        held = 0
        for index in order:
            taken = lengths[batch[0]] if padded and batch else lengths[index]
            if batch and (held + taken > token_budget or (pictured and len(batch) >= image_budget)):
                batches.append(batch)
                batch, held, taken = [], 0, lengths[index]
            batch.append(index)
            held += taken
        if batch:
            batches.append(batch)
    return batches
