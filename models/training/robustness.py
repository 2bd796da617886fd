"""Behaviour tests in the style of CheckList (Ribeiro et al. 2020): invariance, direction, minimum functionality.

Invariance: texts of a labelled file, changed in a way that must not matter; a test is passed when the label stays the
same. Direction and minimum functionality: the texts of `models/data/robustness.toml`, filled with company names.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.answers import SENTIMENTS, LoadedModel
from models.engine.items import Flag, ScoringRequest
from models.engine.scorer import Scorer
from models.sentences import entity_rows
from models.tokens import Row
from models.training.datasets import find_entity, places_of
from models.training.lines import LabelledLine
from models.training.packaged import packaged_lines
from monitor.records import NewsItem, Rejected

__all__ = ["PERTURBATIONS", "BehaviourTest", "Suite", "behaviour", "invariance", "load_suite", "perturb", "robustness"]

LONG: Final = 50_000
_MAX_ROWS: Final = 500
_LEAST_MOVE: Final = 0.1
_WORD: Final = re.compile(r"[A-Za-z]{5,}")
_CASHTAG: Final = re.compile(r"\$[A-Za-z]{1,6}\b")
_NUMBER: Final = re.compile(r"\d+")


class BehaviourTest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One test of the file, which says what the fields mean."""

    name: str
    kind: Literal["function", "direction", "entities", "unreadable", "empty"]
    labels: tuple[str, ...] = ()
    expect: Literal["up", "down"] = "down"
    texts: tuple[str | tuple[str, str, str], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All tests of the file, and the names that they are filled with."""

    companies: tuple[str, ...]
    test: tuple[BehaviourTest, ...]


class Passed(NamedTuple):
    """`wrong` are texts that failed."""

    n: int
    wrong: list[str]

    def told(self, kind: str) -> dict[str, Any]:
        """For the report: `kind`, `n`, `passed` (a share, None of nothing) and up to three texts that failed."""
        return {
            "kind": kind,
            "n": self.n,
            "passed": round(1.0 - len(self.wrong) / self.n, 4) if self.n else None,
            "failed": [text[:200] for text in self.wrong[:3]],
        }


def load_suite() -> Suite:
    """The tests that come with the package."""
    content = (resources.files("models") / "data" / "robustness.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(content), Suite)


# -- invariance --------------------------------------------------------------------------------------------------------


def _typos(text: str, rng: random.Random) -> str:
    """Two neighbouring letters inside one long word in eight change places (at least one word)."""
    words = list(_WORD.finditer(text))
    if not words:
        return text
    chosen = rng.sample(words, max(1, len(words) // 8))
    letters = list(text)
    for word in chosen:
        at = rng.randrange(word.start() + 1, word.end() - 2)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def _html(text: str, rng: random.Random) -> str:  # noqa: ARG001
    return f"<p>{text.replace('&', '&amp;')}&nbsp;</p><br/>"


def _emoji(text: str, rng: random.Random) -> str:
    # Without a direction of their own: a rocket would be a reason to change one's mind.
    return f"{text} {rng.choice('📰📌🕒💬')}"


def _tickers(text: str, rng: random.Random) -> str:
    return _CASHTAG.sub(lambda _: "$" + "".join(rng.choices("BCDFGHJKLMNPQRSTVWXZ", k=4)), text)


def _numbers(text: str, rng: random.Random) -> str:
    """Another last digit, so that the size of a figure stays."""
    return _NUMBER.sub(lambda found: found.group()[:-1] + str(rng.randint(1, 9)), text)


_TICKERS: Final = "tickers swapped"
_NAMES: Final = "companies swapped"
PERTURBATIONS: Final[dict[str, Callable[[str, random.Random], str]]] = {
    "typos": _typos,
    "upper case": lambda text, rng: text.upper(),  # noqa: ARG005
    "lower case": lambda text, rng: text.lower(),  # noqa: ARG005
    "HTML remains": _html,
    "emoji": _emoji,
    _TICKERS: _tickers,
    "last digits changed": _numbers,
    "link added": lambda text, rng: f"{text} https://t.co/{rng.getrandbits(40):x}",
    "wire prefix": lambda text, rng: f"{rng.choice(('UPDATE 1-', 'RPT-', 'BRIEF-', 'RT @news: '))}{text}",
}


def perturb(texts: Iterable[str], name: str, seed: int = 0) -> list[str]:
    """`texts` under the perturbation `name`; the same seed gives the same result."""
    rng = random.Random(f"{seed}{name}")  # noqa: S311 - no secret
    return [PERTURBATIONS[name](text, rng) for text in texts]


def _labels(model: LoadedModel, rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.asarray(model.predict(rows).sentiment.argmax(axis=1), dtype=np.int64)


def _kept(
    model: LoadedModel, before: NDArray[np.int64], after: Sequence[Row], truth: NDArray[np.int64]
) -> dict[str, Any]:
    """How many of N changed rows keep the label that they had `before` (N,), and how often either is right."""
    if not after:
        return Passed(0, []).told("invariance")
    now = _labels(model, after)
    return Passed(len(after), [after[i].text for i in np.flatnonzero(before != now).tolist()]).told("invariance") | {
        "accuracy": round(float((now == truth).mean()), 4),
        "clean_accuracy": round(float((before == truth).mean()), 4),
    }


def invariance(
    model: LoadedModel,
    lines: Sequence[LabelledLine],
    companies: Sequence[str],
    seed: int = 0,
    names: Sequence[str] = (*PERTURBATIONS, _NAMES),
) -> dict[str, dict[str, Any]]:
    """For each perturbation, the share of texts that keep their label; only texts that it changes count.

    `accuracy` is that on the changed texts, `clean_accuracy` on the same texts as they were; both are missing where a
    perturbation changes none (`n` is 0). In rows with entities the company is swapped for each of them, and the
    sentiment towards it must stay.
    """
    said = [line for line in lines if line.text and line.sentiment]
    texts = [line.text for line in said]
    truth = np.array([SENTIMENTS.index(line.sentiment or "") for line in said], dtype=np.int64)
    clean = _labels(model, [Row(text) for text in texts])
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in names if name in PERTURBATIONS):
        changed = perturb(texts, name, seed)
        touched = [i for i, text in enumerate(texts) if changed[i] != text]
        found[name] = _kept(model, clean[touched], [Row(changed[i]) for i in touched], truth[touched])
    if _NAMES in names:
        swapped = _swapped(lines, companies, seed)
        before = _labels(model, [one for one, _, _ in swapped])
        right = np.array([label for _, _, label in swapped], dtype=np.int64)
        found[_NAMES] = _kept(model, before, [other for _, other, _ in swapped], right)
    return found


def _swapped(lines: Sequence[LabelledLine], companies: Sequence[str], seed: int) -> list[tuple[Row, Row, int]]:
    """Each entity's row, the same with another company's name in its place, and the label."""
    rng = random.Random(f"{seed}{_NAMES}")  # noqa: S311 - no secret
    found = []
    for line in lines:
        for name, label in line.entities.items():
            span = find_entity(line.text, name)
            if span is None:
                continue
            other = rng.choice([company for company in companies if company.lower() not in line.text.lower()])
            text = line.text[: span[0]] + other + line.text[span[1] :]
            row = Row(text, (span[0], span[0] + len(other)))
            found.append((Row(line.text, span), row, SENTIMENTS.index(label)))
    return found


# -- direction and minimum functionality -------------------------------------------------------------------------------


def _function(model: LoadedModel, test: BehaviourTest, companies: Sequence[str]) -> Passed:
    texts = [str(text).replace("{c}", company) for text in test.texts for company in companies]
    said = _labels(model, [Row(text) for text in texts])
    return Passed(
        len(texts), [text for text, label in zip(texts, said, strict=True) if SENTIMENTS[label] not in test.labels]
    )


def _direction(model: LoadedModel, test: BehaviourTest, companies: Sequence[str]) -> Passed:
    pairs = [(a.replace("{c}", company), b.replace("{c}", company)) for a, b in test.pairs for company in companies]
    sentiment = model.predict([Row(text) for pair in pairs for text in pair]).sentiment
    score = (sentiment[:, 2] - sentiment[:, 0]).reshape(-1, 2)
    move = (score[:, 1] - score[:, 0]) * (1 if test.expect == "up" else -1)
    return Passed(len(pairs), [pairs[i][1] for i in np.flatnonzero(move < _LEAST_MOVE).tolist()])


def _entities(model: LoadedModel, test: BehaviourTest, companies: Sequence[str]) -> Passed:
    rows: list[Row] = []
    wanted: list[str] = []
    for text, towards_a, towards_b in (entry for entry in test.texts if not isinstance(entry, str)):
        for at, company in enumerate(companies):
            other = companies[(at + 1) % len(companies)]
            filled = text.replace("{a}", company).replace("{b}", other)
            places = [places_of(filled, name) for name in (company, other)]
            read = entity_rows(filled, [found for found in places if found])
            for found, label in zip(places, (towards_a, towards_b), strict=True):
                rows.append(read[found[0]] if found else Row(filled))
                wanted.append(label)
    said = _labels(model, rows)
    return Passed(
        len(rows),
        [row.text for row, label, right in zip(rows, said, wanted, strict=True) if SENTIMENTS[label] != right],
    )


def _flagged(scorer: Scorer, test: BehaviourTest, flag: str, *, or_refused: bool) -> Passed:
    now = datetime.now(UTC)
    texts = [str(text) for text in test.texts]
    said = scorer.score(
        [ScoringRequest(NewsItem(id=f"r{i}", published_at=now, title=text)) for i, text in enumerate(texts)]
    )
    return Passed(
        len(texts),
        [
            text
            for text, one in zip(texts, said, strict=True)
            if not (or_refused if isinstance(one, Rejected) else flag in one.flags)
        ],
    )


def _long(scorer: Scorer, texts: Sequence[str]) -> Passed:
    long = tuple((text + " ") * (LONG // (len(text) + 1) + 1) for text in texts)
    test = BehaviourTest(name="long", kind="unreadable", texts=long)
    return _flagged(scorer, test, Flag.TRUNCATED, or_refused=False)


def behaviour(scorer: Scorer, suite: Suite) -> dict[str, dict[str, Any]]:
    """Direction, minimum functionality, and what no model may guess at: unreadable, empty and very long texts."""
    found: dict[str, dict[str, Any]] = {}
    for test in suite.test:
        if test.kind == "function":
            passed = _function(scorer.model, test, suite.companies)
        elif test.kind == "direction":
            passed = _direction(scorer.model, test, suite.companies)
        elif test.kind == "entities":
            passed = _entities(scorer.model, test, suite.companies)
        elif test.kind == "unreadable":
            passed = _flagged(scorer, test, Flag.LANGUAGE, or_refused=False)
        else:
            passed = _flagged(scorer, test, Flag.NO_TEXT, or_refused=True)
        found[test.name] = passed.told(test.kind)
    plain = next(test for test in suite.test if test.kind == "function")
    texts = [str(text).replace("{c}", suite.companies[0]) for text in plain.texts]
    found[f"{LONG:,} characters"] = _long(scorer, texts).told("long")
    return found


def robustness(scorer: Scorer, lines: Iterable[LabelledLine]) -> dict[str, dict[str, Any]]:
    """All tests; invariance on the first 500 of `lines` that have a text with a sentiment or with entities.

    Tickers are swapped in the held-out posts as well: headlines have none.
    """
    suite = load_suite()
    some = islice((line for line in lines if line.text and (line.sentiment or line.entities)), _MAX_ROWS)
    found = invariance(scorer.model, list(some), suite.companies)
    posts = [line for line in packaged_lines("twitter_sentiment") if _CASHTAG.search(line.text)]
    found[f"{_TICKERS} in posts"] = invariance(scorer.model, posts, suite.companies, names=[_TICKERS])[_TICKERS]
    return found | behaviour(scorer, suite)
