"""Near-duplicates: syndicated headlines, retweets, the same sentence with other figures.

MinHash over character shingles with banded look-up (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter
3); shingles of characters work in any language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from models.tokens import clean

if TYPE_CHECKING:
    from datasketch import MinHash

__all__ = ["DuplicateIndex", "near_duplicate_groups", "normalised"]

_SHINGLE = 5
_PERMUTATIONS = 64
_SIMILARITY = 0.7
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")


def normalised(text: str) -> str:
    """What near-duplicates share: no links, no case, no figures, no punctuation."""
    folded = unicodedata.normalize("NFKC", clean(text)).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", _DIGITS.sub("0", folded)).split())


class DuplicateIndex:
    """Texts, numbered as they come, to be found by those that nearly repeat them.

    Texts whose 5-character shingles have a Jaccard similarity of about 0.7 or more are near-duplicates.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        from datasketch import MinHashLSH

        self._lookup = MinHashLSH(threshold=_SIMILARITY, num_perm=_PERMUTATIONS)
        self._same: dict[str, int] = {}
        self._count = 0
        for text in texts:
            self.add(text)

    def find(self, text: str) -> list[int]:
        """Numbers of texts that `text` nearly repeats."""
        plain = normalised(text)
        return [self._same[plain]] if plain in self._same else list(self._lookup.query(_signature(plain)))

    def add(self, text: str) -> list[int]:
        """Take up a text; returns the numbers of earlier ones that it nearly repeats."""
        number, plain = self._count, normalised(text)
        self._count += 1
        if plain in self._same:
            return [self._same[plain]]
        self._same[plain] = number
        signature = _signature(plain)
        found = list(self._lookup.query(signature))
        self._lookup.insert(number, signature)
        return found


def _signature(plain: str) -> MinHash:
    from datasketch import MinHash

    shingles = {plain[at : at + _SHINGLE].encode() for at in range(max(1, len(plain) - _SHINGLE + 1))}
    signature = MinHash(num_perm=_PERMUTATIONS, seed=1)
    signature.update_batch(sorted(shingles))
    return signature


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """A group number for each text: near-duplicates, and their near-duplicates, share one."""
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    index = DuplicateIndex()
    for number, text in enumerate(texts):
        for other in index.add(text):
            parent[root(number)] = root(other)
    return [root(number) for number in range(len(texts))]
