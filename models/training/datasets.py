"""Labelled texts: schema-checked loading, near-duplicate groups, parts that never mix, and the rows to train on.

A file is JSON Lines (`.jsonl`, or `.jsonl.gz`); a line has `text` and any of `sentiment` (negative, neutral, positive),
`topic` (a name of the taxonomy), `entities` (name to sentiment) and `score` (from -1 to 1, perhaps with the `target`
that it is about). Other fields are ignored, but for `part` (train, validation, test), which fixes where the line
belongs, and `agreement` (`All`: all annotators gave this label), by which figures are told apart.

Rows without a part are split by groups of near-duplicates (`models.training.duplicates`), so that none lies on both
sides.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from models.answers import SENTIMENTS
from models.tokens import Row
from models.training.duplicates import near_duplicate_groups, normalised
from monitor.errors import InputError
from monitor.taxonomy import Taxonomy, bundled_taxonomy

__all__ = [
    "BUNDLED",
    "Example",
    "LabelledText",
    "Part",
    "all_agree",
    "assign_parts",
    "bundled_path",
    "examples_of",
    "find_entity",
    "fitting",
    "frozen_test",
    "places_of",
    "read_labelled",
    "select",
]

Part = Literal["train", "validation", "test"]
BUNDLED = ("sentfin", "twitter_sentiment", "twitter_topic")

TEST_SHARE = 0.08
VALIDATION_SHARE = 0.06
# In the published SEntFiN file a label clean-up has also gone through the names: "L&T Finance neutralings".
_SPOILT = {"neutral": ("Hold", "hold"), "negative": ("Sell", "sell"), "positive": ("Buy", "buy")}


class LabelledText(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a labelled file, checked. `all_agree`: the set says that all its annotators gave the sentiment."""

    text: str
    sentiment: str | None = None
    topic: str | None = None
    entities: dict[str, str] = {}
    score: float | None = None
    target: str | None = None
    all_agree: bool = False
    part: Part | None = None
    origin: str = ""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One question with its answers as class numbers; -1 where there is no answer.

    `origin` names the set that it comes from; `entity` is a character span in `text`; `score` is a graded sentiment
    from -1 to 1.
    """

    text: str
    entity: tuple[int, int] | None = None
    sentiment: int = -1
    topic: int = -1
    score: float | None = None
    origin: str = ""

    @property
    def row(self) -> Row:
        """The question as the model takes it."""
        return Row(self.text, self.entity)


def bundled_path(name: str) -> Path:
    """File of a set that ships with the package: `sentfin`, `twitter_sentiment` or `twitter_topic` (all MIT)."""
    return Path(str(resources.files("models") / "data" / f"{name}.jsonl.gz"))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"The data file {path} cannot be read: {reason}.") from error


def read_labelled(path: Path, taxonomy: Taxonomy | None = None, *, origin: str = "") -> list[LabelledText]:
    """All lines of a labelled file.

    Raises `InputError` naming file and line when a line is no JSON object, has no text, or has a label that is not
    known or about a name that does not stand in the text; and when there are no lines.
    """
    topics = set((taxonomy or bundled_taxonomy()).labels)
    name = origin or path.name.removesuffix(".gz").removesuffix(".jsonl")
    found: list[LabelledText] = []
    for number, line in _lines(path):
        try:
            raw = msgspec.json.decode(line, type=dict[str, Any])
            kept = {key: value for key, value in raw.items() if key in LabelledText.__struct_fields__}
            kept |= {"all_agree": all_agree(raw.get("agreement")), "origin": name}
            text = msgspec.convert(kept, type=LabelledText)
        except msgspec.MsgspecError as error:
            raise InputError(f"{path}, line {number}: {error}.") from error
        problem = _problem(text, topics)
        if problem:
            raise InputError(f"{path}, line {number}: {problem}.")
        found.append(text)
    if not found:
        raise InputError(f"The data file {path} holds no rows.")
    return found


def all_agree(agreement: object) -> bool:
    """Whether the field `agreement` of a line says that all annotators gave its label."""
    return isinstance(agreement, str) and agreement.strip().lower() == "all"


def _problem(row: LabelledText, topics: set[str]) -> str:
    if not row.text.strip():
        return "the text is empty"
    for label in (row.sentiment, *row.entities.values()):
        if label is not None and label not in SENTIMENTS:
            return f"the sentiment `{label}` is none of {', '.join(SENTIMENTS)}"
    if row.topic is not None and row.topic not in topics:
        return f"the topic `{row.topic}` is not in the taxonomy"
    if row.score is not None and not -1.0 <= row.score <= 1.0:
        return f"the score {row.score} is not between -1 and 1"
    if row.sentiment is None and row.topic is None and not row.entities and row.score is None:
        return "there is no label: neither `sentiment`, `topic`, `entities` nor `score`"
    for name in row.entities:
        if not name.strip():
            return "an entity has no name"
        # The first look is the quick one, and nearly always enough.
        if name not in row.text and find_entity(row.text, name) is None:
            return f"the entity `{name[:80]}` does not stand in the text"
    return ""


def assign_parts(
    texts: Sequence[str],
    *,
    seed: int = 0,
    test_share: float = TEST_SHARE,
    validation_share: float = VALIDATION_SHARE,
    groups: Sequence[int] | None = None,
) -> list[Part]:
    """Part of each text: a whole group of near-duplicates falls into one, by the hash of its first member and `seed`.

    The order of the texts does not matter. `groups` are those of `near_duplicate_groups`, where they are known.
    """
    known = near_duplicate_groups(texts) if groups is None else groups
    first: dict[int, str] = {}
    for group, text in zip(known, texts, strict=True):
        plain = normalised(text)
        first[group] = min(first.get(group, plain), plain)
    parts: dict[int, Part] = {}
    for group, plain in first.items():
        digest = hashlib.blake2b(plain.encode("utf-8", "replace"), key=seed.to_bytes(8, "big"), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        parts[group] = (
            "test" if place < test_share else "validation" if place < test_share + validation_share else "train"
        )
    return [parts[group] for group in known]


def select(
    rows: Iterable[LabelledText],
    part: Part,
    *,
    test_share: float = TEST_SHARE,
    validation_share: float = VALIDATION_SHARE,
) -> list[LabelledText]:
    """The rows of one part; rows without a part are split now, near-duplicates together."""
    held = list(rows)
    if all(row.part is not None for row in held):
        return [row for row in held if row.part == part]
    parts = assign_parts([row.text for row in held], test_share=test_share, validation_share=validation_share)
    return [row for row, assigned in zip(held, parts, strict=True) if (row.part or assigned) == part]


def find_entity(text: str, name: str) -> tuple[int, int] | None:
    """Where `name` stands in `text`: whole and as written, else in any case, else inside a word; None if nowhere.

    A name that a label clean-up has spoilt ("L&T Finance neutralings") is found as what it was.
    """
    wanted = name.strip()
    found = _whole(text, wanted) or re.search(re.escape(wanted), text, re.IGNORECASE)
    if found is None:
        mended = (wanted.replace(bad, good) for bad, goods in _SPOILT.items() if bad in wanted for good in goods)
        found = next((place for each in mended if (place := _whole(text, each))), None)
    return found.span() if found is not None and found.end() > found.start() else None


def places_of(text: str, name: str) -> list[tuple[int, int]]:
    """Where `name` stands, as `find_entity` finds it, and where the same words stand after that; empty if nowhere."""
    first = find_entity(text, name)
    if first is None:
        return []
    words = re.escape(text[slice(*first)])
    return [
        first,
        *(found.span() for found in re.finditer(rf"(?<!\w){words}(?!\w)", text) if found.start() >= first[1]),
    ]


def _whole(text: str, wanted: str) -> re.Match[str] | None:
    pattern = rf"(?<!\w){re.escape(wanted)}(?!\w)"
    return re.search(pattern, text) or re.search(pattern, text, re.IGNORECASE)


def fitting(rows: Iterable[LabelledText], taxonomy: Taxonomy) -> list[LabelledText]:
    """Rows whose topics the taxonomy has; of others the topic is left out, and the row where nothing is left."""
    known = set(taxonomy.labels)
    fitted = [row if row.topic in known else msgspec.structs.replace(row, topic=None) for row in rows]
    return [row for row in fitted if row.sentiment or row.topic or row.entities]


def examples_of(rows: Iterable[LabelledText], taxonomy: Taxonomy | None = None) -> list[Example]:
    """The questions in labelled texts: one for each text, one for each entity that stands in it, one for a score.

    A text without a sentiment of its own whose entities all agree is an item row with their sentiment.
    """
    topics = {name: number for number, name in enumerate((taxonomy or bundled_taxonomy()).labels)}
    sentiments = {name: number for number, name in enumerate(SENTIMENTS)}
    found: list[Example] = []
    for row in rows:
        agreed = set(row.entities.values())
        sentiment = row.sentiment if row.sentiment is not None else agreed.pop() if len(agreed) == 1 else None
        if sentiment is not None or row.topic is not None:
            found.append(
                Example(
                    text=row.text,
                    sentiment=sentiments[sentiment] if sentiment is not None else -1,
                    topic=topics[row.topic] if row.topic is not None else -1,
                    origin=row.origin,
                )
            )
        for name, label in row.entities.items():
            span = find_entity(row.text, name)
            if span is not None:
                found.append(Example(text=row.text, entity=span, sentiment=sentiments[label], origin=row.origin))
        if row.score is not None:
            asked = find_entity(row.text, row.target) if row.target and row.target.strip() else None
            found.append(Example(text=row.text, entity=asked, score=row.score, origin=row.origin))
    return found


def frozen_test(sets: Sequence[str] = BUNDLED) -> list[LabelledText]:
    """Rows that no shipped training has seen and no retraining may see: what a new model is measured on.

    `sets` are names of bundled sets or paths of labelled files.
    """
    rows: list[LabelledText] = []
    for name in sets:
        rows.extend(select(read_labelled(bundled_path(name) if name in BUNDLED else Path(name)), "test"))
    return rows


def class_shares(labels: Sequence[int], classes: int) -> tuple[float, ...]:
    """Share of each class among the labels that are not -1, with one added to every count."""
    known = np.array([label for label in labels if label >= 0], dtype=np.int64)
    count = np.bincount(known, minlength=classes) + 1.0
    return tuple(float(share) for share in count / count.sum())
