"""Stories: near-duplicate texts of one news event, found inside a window key.

A signature is a MinHash sketch (Broder 1997) of the text's shingles: `VALUES` minima, 16 bits kept of each (b-bit
minwise hashing, Li and König 2010). Three neighbours are a *band*: texts that share a band are candidates
(locality-sensitive hashing), and the share of equal minima estimates their Jaccard similarity.
With 8 bands of 3 a pair of similarity .9 becomes a candidate with probability .9999, one of .6 with .86, one of .15
with .03. `monitor.open_stories` finds them.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import xxhash

from monitor.records import Contribution

__all__ = [
    "BANDS",
    "MAX_ITEM_IDS",
    "MAX_SOURCES",
    "SIGNATURE_BYTES",
    "VALUES",
    "Copies",
    "Story",
    "add_copies",
    "add_copy",
    "p_positive",
    "signature",
    "similarity",
    "story_id",
    "story_minute",
]

BANDS: Final = 8
ROWS: Final = 3
VALUES: Final = BANDS * ROWS
SIGNATURE_BYTES: Final = 2 * VALUES
MAX_SOURCES: Final = 32
MAX_ITEM_IDS: Final = 100

# A title of this many tokens tells a story by itself; a shorter one is read together with the head of the body.
ENOUGH_TOKENS: Final = 4
BODY_TOKENS: Final = 60
MAX_CHARS: Final = 4000
# Texts signed at once: as many as keep the arrays in the cache.
SIGN_TOGETHER: Final = 256

_URL = re.compile(r"(?:https?://|www\.)\S+")
# What agencies and users put before somebody else's headline, in the languages where it is common.
_PREFIX = re.compile(
    r"^\W*(?:"
    r"(?:update|rpt|repeat|wrapup|refile|corrected|correction|exclusive|breaking(?: news)?|just in|urgent|alert|flash|"
    r"brief|live|factbox|analysis|explainer|watch|video|eilmeldung|eil|alerte|dernière minute|última hora|urgente|"
    r"срочно|молния|عاجل|دچار|فوری|快讯|快訊|突发|突發|更新|速報|速报|独家|獨家|속보|긴급)(?:\s*\d+)?\s*[-–—:：|│】\])]+"
    r"|rt\s+@\w+:?"
    r"|[\[(【](?:[^\])】]{1,24})[\])】]"
    r")\s*"
)
# "... - Reuters", "... | CNBC": the publisher's name at the end.
_SUFFIX = re.compile(r"\s+[-–—|│]\s+[^-–—|│]{2,32}$")
# Words are runs of anything but white space and punctuation (marks stay inside words, as in Hindi or Arabic) ...
_TOKEN = re.compile(
    r"[^\s!-/:-@\[-`{-~\u00a1-\u00bf\u060c\u061b\u061f\u0964\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20]+"
)
# ... but for scripts written without spaces, where every character is a token: Thai, Lao, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED_CHAR = re.compile(f"[{_UNSPACED}]")
_MIXED = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")

_generator = np.random.Generator(np.random.PCG64(20260105))
_MULTIPLIERS = _generator.integers(1, 1 << 63, size=(VALUES, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_INCREMENTS = _generator.integers(0, 1 << 63, size=(VALUES, 1), dtype=np.uint64)
# The lower 15 bits of every value of a signature that is read as one integer, and the highest one.
_LOWER = int.from_bytes(b"\xff\x7f" * VALUES, "little")
_HIGHEST = _LOWER + int.from_bytes(b"\x01\x00" * VALUES, "little")


def _tokens(text: str) -> list[str]:
    found = _TOKEN.findall(text)
    if text.isascii() or not _UNSPACED_CHAR.search(text):
        return found
    return [part for token in found for part in _MIXED.findall(token)]


def _normalised(text: str) -> str:
    text = unicodedata.normalize("NFKC", text[:MAX_CHARS]).casefold()
    text = _URL.sub(" ", text).strip()
    for _ in range(3):
        shorter = _PREFIX.sub("", text, count=1)
        if shorter == text or not shorter:
            break
        text = shorter
    shorter = _SUFFIX.sub("", text)
    if shorter == text:
        return text
    return shorter if len(_tokens(shorter)) >= ENOUGH_TOKENS else text


def _shingles(title: str, body: str) -> set[str]:
    tokens = _tokens(_normalised(title))
    if len(tokens) < ENOUGH_TOKENS and body:
        tokens += _tokens(_normalised(body))[:BODY_TOKENS]
    shingles = {f"{a} {b}" for a, b in itertools.pairwise(tokens)}
    # Single characters of an unspaced script are shared by unrelated texts; words are not.
    shingles.update(t for t in tokens if len(t) > 1 or not _UNSPACED_CHAR.match(t))
    return shingles or set(tokens)


def signature(title: str, body: str = "") -> bytes:
    """MinHash signature of a text, `VALUES` unsigned integers of two bytes, little end first; empty without words.

    Copies of a story get equal or nearly equal signatures: agency prefixes, the publisher's name at the end, letter
    case, punctuation, addresses and Unicode compatibility forms do not count. Works for any language; the same in
    every process. The body matters only where the title has fewer than `ENOUGH_TOKENS` words.
    """
    return signatures([(title, body)])[0]


def signatures(texts: Sequence[tuple[str, str]]) -> list[bytes]:
    """The signatures of many texts (title, body), as `signature` gives them one by one, several times as fast."""
    parts = (texts[first : first + SIGN_TOGETHER] for first in range(0, len(texts), SIGN_TOGETHER))
    return [sketch for part in parts for sketch in _signatures(part)]


def _signatures(texts: Sequence[tuple[str, str]]) -> list[bytes]:
    digest = xxhash.xxh3_64_intdigest
    hashes: list[int] = []
    starts: list[int] = []
    signed: list[int] = []
    for number, (title, body) in enumerate(texts):
        shingles = _shingles(title, body)
        if shingles:
            signed.append(number)
            starts.append(len(hashes))
            hashes += [digest(shingle.encode("utf-8", "surrogatepass")) for shingle in shingles]
    sketches = [b""] * len(texts)
    if not signed:
        return sketches
    # Multiplication wraps around at 2**64, which is the universal hash that is wanted.
    mixed = _MULTIPLIERS * np.array(hashes, dtype=np.uint64) + _INCREMENTS
    minima = np.minimum.reduceat(mixed, starts, axis=1).T
    values = (minima >> np.uint64(13)).astype("<u2")
    for number, row in zip(signed, values, strict=True):
        sketches[number] = row.tobytes()
    return sketches


def similarity(a: bytes, b: bytes) -> float:
    """Estimated Jaccard similarity of two signatures, in [0, 1]; 0 when one is empty."""
    if not a or not b:
        return 0.0
    differ = int.from_bytes(a, "little") ^ int.from_bytes(b, "little")
    # The highest bit of every value that is not 0; the sum of two lower parts does not reach the next value.
    unequal = (((differ & _LOWER) + _LOWER) | differ) & _HIGHEST
    return (VALUES - unequal.bit_count()) / VALUES


def story_id(key: str, item_id: str, minute: int) -> str:
    """Id of the story that `item_id` begins under `key` when counted in epoch minute `minute`: 32 hexadecimal digits,
    the same wherever it is computed. Its first eight are the minute (`story_minute`)."""
    digest = xxhash.xxh3_128_hexdigest(f"{key}\x1f{item_id}".encode("utf-8", "surrogatepass"))
    return f"{minute:08x}{digest[:24]}"


def story_minute(id_: str) -> int:
    """The epoch minute that the story of this id is counted in."""
    return int(id_[:8], 16)


def p_positive(score: float, p_negative: float) -> float:
    """The probability of positive: a score is that less the probability of negative."""
    return min(max(round(score + p_negative, 6), 0.0), 1.0)


class Story(msgspec.Struct, gc=False):
    """One story under one key. Times in epoch milliseconds; `minute` is the epoch minute that it is counted in.

    `first` is what its first item contributed; `items` counts its
    copies; `sources` are the distinct sources and `item_ids` the copies in the order in which they came, the first
    `MAX_SOURCES` and `MAX_ITEM_IDS` of them.
    """

    id: str
    minute: int
    first: Contribution
    last_at: int
    items: int
    sources: tuple[str, ...]
    item_ids: tuple[str, ...]

    @property
    def key(self) -> str:
        """The window key that it is counted under."""
        return self.first.key

    @property
    def p_positive(self) -> float:
        """Of the first item."""
        return p_positive(self.first.score, self.first.p_negative)


class Copies(msgspec.Struct, gc=False):
    """What copies add to a story that was begun before them: as the fields of `Story` of the same names."""

    key: str
    last_at: int
    items: int
    sources: tuple[str, ...]
    item_ids: tuple[str, ...]


def add_copy(story: Story | Copies, at: int, source: str, item_id: str) -> None:
    """Let one copy of event time `at` (epoch ms) join a story, or earlier copies of it, in place."""
    story.items += 1
    if at > story.last_at:
        story.last_at = at
    if source and source not in story.sources and len(story.sources) < MAX_SOURCES:
        story.sources = (*story.sources, source)
    if len(story.item_ids) < MAX_ITEM_IDS:
        story.item_ids = (*story.item_ids, item_id)


def add_copies(story: Story | Copies, more: Copies) -> None:
    """Let copies join a story, or earlier copies of it, in place."""
    story.items += more.items
    story.last_at = max(story.last_at, more.last_at)
    new = [source for source in more.sources if source not in story.sources]
    story.sources = (*story.sources, *new)[:MAX_SOURCES]
    story.item_ids = (*story.item_ids, *more.item_ids)[:MAX_ITEM_IDS]
