"""The deletion test of explanations: words that are said to matter must matter more than words drawn at random.

The words that speak most for the label are taken out of the text, and what the label's probability loses is compared
with what it loses when as many random words are taken out (Samek et al. 2017; DeYoung et al. 2020, comprehensiveness).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from models.answers import SENTIMENTS, LoadedModel
from models.explain import explain
from models.tokens import Row

__all__ = ["Deletion", "delete"]

_SHARE: Final = 0.2


class Deletion(msgspec.Struct, frozen=True):
    """What one text's label loses of its probability: without the `highlighted` words, and without `random` ones.

    `random` is the mean over several draws; `turned` says whether the label changes without the highlighted words.
    """

    removed: int
    highlighted: float
    random: float
    turned: bool


def delete(model: LoadedModel, text: str, *, draws: int = 10, seed: int = 0, share: float = _SHARE) -> Deletion | None:
    """The deletion test of one text, a `share` of whose words (at least one) is taken out.

    None for a text with fewer than three words. Raises `InputError` for one that says nothing.
    """
    found = explain(model, text, count=0)
    words = [word.text for word in found.words]
    count = max(1, round(share * len(words)))
    if len(words) < 3:
        return None
    strongest = sorted(range(len(words)), key=lambda i: -found.words[i].share)[:count]
    rng = random.Random(seed)  # noqa: S311 - no secret
    drawn = [rng.sample(range(len(words)), count) for _ in range(draws)]
    # The words joined again are the reference, so that what joining does to a text counts on neither side.
    rows = [Row(_without(words, left_out)) for left_out in ((), strongest, *drawn)]
    sentiment = model.predict(rows).sentiment
    label = SENTIMENTS.index(found.label)
    lost = sentiment[0, label] - sentiment[1:, label]
    return Deletion(
        count, float(lost[0]), float(np.mean(lost[1:])), bool(sentiment[1].argmax() != sentiment[0].argmax())
    )


def _without(words: Sequence[str], left_out: Sequence[int]) -> str:
    return " ".join(word for i, word in enumerate(words) if i not in left_out)
