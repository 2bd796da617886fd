"""What is read of a text when it is asked how a company in it fares: where several are named, its own sentences.

The classifier learned from headlines and posts, which say one thing. Of an article about several companies it hears all
of what it is given: with the neighbouring sentences in sight it is right on far fewer companies than with those alone
that name the company (docs/decisions/entity-sentence.md). A text about a single company is read as it is, since what is
said of it need not stand beside its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from sentencex import get_sentence_boundaries

from models.tokens import Row

__all__ = ["Place", "entity_rows", "sentence_at"]

# Characters of a text, (start, end).
Place = tuple[int, int]

# A sentence is looked for within so many characters of a name, which is more than is read of it: the library takes the
# square of the length for some texts of quotes and brackets.
_REACH: Final = 1_000
# Mentions of a company that are looked at, and own sentences that are read, of which the tokenizer takes what fits.
_MENTIONS: Final = 8
_OWN: Final = 3
# Sentences that are taken on behind a list of names at the most: a text may hold nothing but stops.
_FURTHER: Final = 3
_NAMING: Final = re.compile(r"\$\w+|\([^()]{1,16}\)")
# A word, a change in figures, or anything in a script without spaces.
_SAYING: Final = re.compile(r"[^\W\d_]{2,}|[+-]\s?\d|\d\s?%|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_JOINING: Final = frozenset(
    ("and", "or", "vs", "the", "plus", "with", "for", "rt", "co", "inc", "corp", "ltd", "plc", "ag", "sa")
)
# Shorter lines are not wrapped: what follows on them is another one, however it begins.
_WRAPPED: Final = 40


def sentence_at(text: str, place: Place, language: str = "en") -> Place:
    """Characters of the sentences that `place` lies in; of very long ones what is near it.

    A line break ends a sentence unless a long line goes on in lower case. `language` is an ISO 639-1 code, whose rules
    for stops and abbreviations hold; one without rules is read as English is.
    """
    low, high = max(0, place[0] - _REACH), min(len(text), place[1] + _REACH)
    begin, end = low, high
    at = text.rfind("\n", low, place[0])
    while at >= 0 and begin == low:
        begin, at = (at + 1, at) if _ends(text, at) else (begin, text.rfind("\n", low, at))
    at = text.find("\n", place[1], high)
    while at >= 0 and end == high:
        end, at = (at, at) if _ends(text, at) else (end, text.find("\n", at + 1, high))
    bounds = [(b["start_index"], b["end_index"]) for b in get_sentence_boundaries(language, text[begin:end])]
    start = max((first for first, _ in bounds if begin + first <= place[0]), default=0)
    stop = min((last for _, last in bounds if begin + last >= place[1]), default=end - begin)
    return begin + start, begin + stop


def _ends(text: str, at: int) -> bool:
    """Whether the line break at `at` ends a sentence: a text that is wrapped goes on in lower case."""
    wrapped = at >= _WRAPPED and "\n" not in text[at - _WRAPPED : at]
    # Two letters: eBay and iPhone begin lines, too.
    return not (wrapped and text[at + 1 : at + 40].lstrip(" \t")[:2].islower())


def entity_rows(text: str, named: Sequence[Sequence[Place]], language: str = "en") -> dict[Place, Row]:
    """The row that asks about each company, by the place of its first mention; `Row.entity` is relative to `Row.text`.

    Parameters
    ----------
    named : for each company that the text names, the places of its mentions in order, at least one.
    language : see `sentence_at`.

    Where there are several companies, a row has the first sentences that name this company and no other, by its first
    eight mentions. Where there is none, it has the sentence of its first mention; if that is a list of names, what
    comes after it, too.
    """
    if len(named) < 2:
        return {places[0]: Row(text, places[0]) for places in named}
    sentences = {place: sentence_at(text, place, language) for places in named for place in places[:_MENTIONS]}
    rows: dict[Place, Row] = {}
    for places in named:
        own: dict[Place, Place] = {}
        for place in places[:_MENTIONS]:
            sentence = sentences[place]
            others = any(_within(other, sentence) for found in named if found is not places for other in found)
            if not others and _says_something(text, sentence, places):
                own.setdefault(sentence, place)
        if own:
            first, *more = _apart(own)[:_OWN]
            joined = " ".join([text[slice(*first)], *(text[slice(*sentence)] for sentence in more)])
            rows[places[0]] = _row(joined, own[first], first[0])
        else:
            start, end = _with_what_follows(text, sentences[places[0]], named, language)
            rows[places[0]] = _row(text[start:end], places[0], start)
    return rows


def _apart(sentences: Iterable[Place]) -> list[Place]:
    """Those that do not overlap an earlier one, as parts of one very long sentence do."""
    found: list[Place] = []
    for start, end in sentences:
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def _row(text: str, place: Place, start: int) -> Row:
    return Row(text, (place[0] - start, place[1] - start))


def _within(place: Place, sentence: Place) -> bool:
    return sentence[0] <= place[0] and place[1] <= sentence[1]


def _with_what_follows(text: str, sentence: Place, named: Sequence[Sequence[Place]], language: str) -> Place:
    """The sentence, and those behind it until something is said."""
    everywhere = sorted(place for places in named for place in places)
    start, end = sentence
    for _ in range(_FURTHER):
        after = len(text) - len(text[end:].lstrip())
        if after == len(text) or _says_something(text, (start, end), everywhere):
            break
        end = sentence_at(text, (after, after + 1), language)[1]
    return start, end


def _says_something(text: str, sentence: Place, places: Sequence[Place]) -> bool:
    """Whether there is something in it besides names, tickers and what joins them."""
    left, at = "", sentence[0]
    for place in places:
        if at <= place[0] and place[1] <= sentence[1]:
            left += text[at : place[0]] + " "
            at = place[1]
    left += text[at : sentence[1]]
    return any(found.lower() not in _JOINING for found in _SAYING.findall(_NAMING.sub(" ", left)))
