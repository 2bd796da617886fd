"""Rows for an encoder to read."""

from __future__ import annotations

from models.answers import LoadedModel
from models.tokens import Row, TokenizedRow

__all__ = ["rows_of"]


def rows_of(model: LoadedModel, count: int = 40) -> list[TokenizedRow]:
    """Rows of many lengths, some with an entity."""
    words = [
        "shares",
        "of",
        "the",
        "bank",
        "fall",
        "sharply",
        "after",
        "a",
        "profit",
        "warning",
        "in",
        "the",
        "third",
        "quarter",
    ]
    texts = [" ".join(words[: 1 + n % len(words)] * (1 + n % 5)) for n in range(count)]
    return model.tokenize([Row(text, (0, 4) if n % 3 == 0 else None) for n, text in enumerate(texts)])
