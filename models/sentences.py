"""What is read of a text when the sentiment towards a company in it is asked: where several are named, one sentence.

The classifier learned from headlines and posts, which say one thing. Of an article about several companies it hears all
of what it is given: with the neighbouring sentences in sight it is right on far fewer companies than with the sentence
that names them alone (docs/decisions/entity-sentence.md). A text about a single company is read as it is, since what is
said of it need not stand beside its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from sentencex import get_sentence_boundaries

from models.tokens import Row

__all__ = ["entity_rows", "sentence_at"]

_CASHTAG: Final = re.compile(r"\$\w+")
# A list of names and cashtags has fewer letters beside them: what is said of them comes after it.
_SAYS_LETTERS: Final = 3
# So many sentences after it at the most: a text of dots has as many as characters.
_FURTHER: Final = 3


def sentence_at(text: str, span: tuple[int, int], language: str = "en") -> tuple[int, int]:
    """Characters (start, end) of the sentences that `span` lies in; a line break ends a sentence.

    `language` is an ISO 639-1 code; one that has no rules is read as English is.
    """
    begin = text.rfind("\n", 0, span[0]) + 1
    end = text.find("\n", span[1])
    line = text[begin : end if end >= 0 else len(text)]
    bounds = [(found["start_index"], found["end_index"]) for found in get_sentence_boundaries(language, line)]
    start = max((first for first, _ in bounds if begin + first <= span[0]), default=0)
    stop = min((last for _, last in bounds if begin + last >= span[1]), default=len(line))
    return begin + start, begin + stop


def entity_rows(text: str, spans: Collection[tuple[int, int]], language: str = "en") -> dict[tuple[int, int], Row]:
    """The row that asks about each of the companies at `spans`, all that the text names."""
    if len(spans) < 2:
        return {span: Row(text, span) for span in spans}
    rows: dict[tuple[int, int], Row] = {}
    for span in spans:
        start, end = sentence_at(text, span, language)
        for _ in range(_FURTHER):
            after = len(text) - len(text[end:].lstrip())
            if after == len(text) or _says_something(text, start, end, spans):
                break
            end = sentence_at(text, (start, after + 1), language)[1]
        rows[span] = Row(text[start:end], (span[0] - start, span[1] - start))
    return rows


def _says_something(text: str, start: int, end: int, spans: Collection[tuple[int, int]]) -> bool:
    """Whether there is more between `start` and `end` than names."""
    left, at = "", start
    for first, last in sorted(spans):
        if at <= first and last <= end:
            left += text[at:first] + " "
            at = last
    left += text[at:end]
    return sum(map(str.isalpha, _CASHTAG.sub(" ", left))) >= _SAYS_LETTERS
