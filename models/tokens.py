"""From a row (text, perhaps an entity in it, perhaps a picture) to token ids, with the entity always in sight."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from models.backbones import TextBackbone

__all__ = ["ENTITY_TOKENS", "MAX_TOKENS", "Row", "RowTokenizer", "TokenizedRow", "clean"]

MAX_TOKENS = 256
# Longest stretch handed to the tokenizer: more characters than any 256 tokens of running text need.
_CHARACTERS = 16 * MAX_TOKENS
# How a company fares is said where it is named: of a long text a row that asks about an entity reads so many tokens
# round it. (Where several are named the row has but a few sentences to begin with: `models.sentences`.)
ENTITY_TOKENS = 96
# Of these, at most so many are the text's beginning (the headline), where the entity stands further down.
_HEADLINE = 32

_LINK = re.compile(r"(?:https?://|www\.|t\.co/)\S+|pic\.twitter\.com/\S+", re.IGNORECASE)
_TAG = re.compile(r"<(?:/?[a-zA-Z][^<>]{0,500}|!--.{0,500}?--)>", re.DOTALL)
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff\u200b-\u200f\u202a-\u202e\ufeff]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Row:
    """One question to the model.

    Attributes
    ----------
    text : what was said; may be empty when there is a picture.
    entity : character span (start, end) in `text` whose sentiment is asked; None asks about the whole text.
    image : bytes of a chart image.
    """

    text: str
    entity: tuple[int, int] | None = None
    image: bytes | None = None


@dataclass(slots=True)
class TokenizedRow:
    """A row ready for the network.

    Attributes
    ----------
    ids : token ids with the special ones; empty when the text says nothing.
    span : token positions (start, end) of the entity with its markers; None for an item row.
    pixels : (3, height, width) of a decoded picture, or None.
    truncated : True when not all of the text fitted.
    image_problem : why a picture that was given cannot be used; empty otherwise.
    """

    ids: list[int]
    span: tuple[int, int] | None = None
    pixels: Tensor | None = field(default=None, repr=False)
    truncated: bool = False
    image_problem: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def clean(text: str) -> str:
    """`text` without links, HTML tags and entities, invisible characters, lone surrogates and runs of white space."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    text = _INVISIBLE.sub("", text)
    if "/" in text or "www" in text:
        text = _LINK.sub(" ", text)
    return _SPACE.sub(" ", text).strip()


class RowTokenizer:
    """Turns texts into ids for one text backbone; at most `max_tokens` ids a row, special ones included.

    Of a row that asks about an entity at most 96 ids and the special ones: the beginning of the text and what stands
    round the entity.
    """

    def __init__(self, backbone: TextBackbone, max_tokens: int = MAX_TOKENS) -> None:
        self._tokenizer = backbone.tokenizer
        self._prefix = list(backbone.prefix)
        self._suffix = list(backbone.suffix)
        self._open, self._close = backbone.markers
        self.max_tokens = min(max_tokens, backbone.max_positions)
        self._room = self.max_tokens - len(self._prefix) - len(self._suffix)

    def __call__(self, rows: Sequence[Row]) -> list[TokenizedRow]:
        """Token ids of N rows, in their order; pictures are not looked at."""
        pieces: list[str] = []
        cut: list[bool] = []
        for row in rows:
            parts, was_cut = _parts(row)
            pieces.extend(parts)
            cut.append(was_cut)
        encoded = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        found: list[TokenizedRow] = []
        at = 0
        for row, was_cut in zip(rows, cut, strict=True):
            if row.entity is None:
                found.append(self._item(encoded[at].ids, was_cut))
                at += 1
            else:
                before, entity, after = (encoding.ids for encoding in encoded[at : at + 3])
                found.append(self._entity(before, entity, after, was_cut))
                at += 3
        return found

    def _item(self, ids: list[int], was_cut: bool) -> TokenizedRow:
        if not ids:
            return TokenizedRow([])
        kept = ids[: self._room]
        return TokenizedRow([*self._prefix, *kept, *self._suffix], truncated=was_cut or len(kept) < len(ids))

    def _entity(self, before: list[int], entity: list[int], after: list[int], was_cut: bool) -> TokenizedRow:
        if not entity:
            return self._item(before + after, was_cut)
        room = min(self._room, ENTITY_TOKENS)
        marked = [self._open, *entity[: room // 2], self._close]
        spare = room - len(marked)
        if len(before) + len(after) > spare:
            was_cut = True
            # As much after the entity as before it, unless one side is shorter; the headline stays in any case.
            room_after = min(len(after), max(spare // 2, spare - len(before)))
            room_before = spare - room_after
            if len(before) > room_before:
                headline = min(_HEADLINE, room_before // 2)
                before = before[:headline] + before[len(before) - (room_before - headline) :]
            after = after[:room_after]
        start = len(self._prefix) + len(before)
        ids = [*self._prefix, *before, *marked, *after, *self._suffix]
        return TokenizedRow(ids, span=(start, start + len(marked)), truncated=was_cut)


def _parts(row: Row) -> tuple[list[str], bool]:
    """Cleaned text in one piece, or before, in and after the entity; and whether characters were left out."""
    text = row.text
    if row.entity is None:
        return [clean(text[: 2 * _CHARACTERS])[:_CHARACTERS]], len(text) > 2 * _CHARACTERS
    start, end = (min(max(position, 0), len(text)) for position in row.entity)
    end = max(start, end)
    before, entity, after = text[:start], text[start:end], text[end:]
    cut = len(before) > 2 * _CHARACTERS or len(after) > 2 * _CHARACTERS
    if len(before) > 2 * _CHARACTERS:
        before = f"{before[:_CHARACTERS]} {before[-_CHARACTERS:]}"
    return [clean(before), clean(entity[:_CHARACTERS]), clean(after[: 2 * _CHARACTERS])], cut
