"""How steady a sentiment is: the same texts with typos, in capitals, with emoji, HTML remains or other tickers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.bundle import SENTIMENTS, LoadedModel
from models.tokens import Row
from models.training.evaluate import read_labelled_lines

__all__ = ["PERTURBATIONS", "perturb", "robustness", "robustness_of_file"]

_WORD: Final = re.compile(r"[A-Za-z]{5,}")
_CASHTAG: Final = re.compile(r"\$[A-Za-z]{1,6}\b")
_NUMBER: Final = re.compile(r"\d+")
_MAX_ROWS: Final = 1_000


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


PERTURBATIONS: Final[dict[str, Callable[[str, random.Random], str]]] = {
    "typos": _typos,
    "upper_case": lambda text, rng: text.upper(),  # noqa: ARG005
    "lower_case": lambda text, rng: text.lower(),  # noqa: ARG005
    "html": _html,
    "emoji": _emoji,
    "tickers": _tickers,
    "numbers": _numbers,
    "link": lambda text, rng: f"{text} https://t.co/{rng.getrandbits(40):x}",
}


def perturb(texts: Iterable[str], name: str, seed: int = 0) -> list[str]:
    """`texts` under the perturbation `name`; the same seed gives the same result."""
    rng = random.Random(f"{seed}{name}")  # noqa: S311 - no secret
    return [PERTURBATIONS[name](text, rng) for text in texts]


def robustness(model: LoadedModel, texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """For each perturbation: `same`, the share of texts that keep their label, and `accuracy` against `labels`.

    `clean` is the unperturbed reference.
    """
    truth = np.array([SENTIMENTS.index(label) for label in labels])
    clean = model.predict([Row(text) for text in texts]).sentiment.argmax(axis=1)
    found = {"clean": {"same": 1.0, "accuracy": round(float((clean == truth).mean()), 4)}}
    for name in PERTURBATIONS:
        said = model.predict([Row(text) for text in perturb(texts, name, seed)]).sentiment.argmax(axis=1)
        found[name] = {
            "same": round(float((said == clean).mean()), 4),
            "accuracy": round(float((said == truth).mean()), 4),
        }
    return found


def robustness_of_file(model: LoadedModel, path: Path) -> dict[str, Any]:
    """Robustness on the first 1,000 texts of a labelled file that have a sentiment; empty when there are none."""
    rows = [line for line in read_labelled_lines(path, model.taxonomy.labels) if line.text and line.sentiment][
        :_MAX_ROWS
    ]
    return robustness(model, [row.text for row in rows], [row.sentiment or "" for row in rows]) if rows else {}
