"""Sentiment towards a company in an article about several: by its own sentences, and by all that stands round its name.

usage: python benchmarks/articles.py [--items 900] [--seed 2] [--fiqa FILE]

Articles are made of held-out SEntFiN headlines, each with a company and a label that people gave: among other headlines
(joined by full stops) or posts (line by line), at any place in them; and two headlines under a title that names both
companies. Beside them a headline alone, and those of FiQA's posts and headlines that have more than one sentence, if
its file is given: one company each, which is read with all that stands round it.
Prints one JSON list: right answers and tokens read, by each way.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.answers import LoadedModel
from models.bundle import load_model
from models.sentences import Place, entity_rows, sentence_at
from models.tokens import Row
from models.training.datasets import bundled_path, examples_of, find_entity, read_labelled, select

# (name, what lies between two texts, the set that the other texts come from, how many of them)
KINDS = (
    ("two headlines", ". ", "sentfin", 1),
    ("three headlines", ". ", "sentfin", 2),
    ("nine headlines", ". ", "sentfin", 8),
    ("a headline among eight posts", "\n", "twitter_topic", 8),
)
WAYS = ("text", "sentences")


class Article(NamedTuple):
    """A text and the places of the companies in it; it is asked about the first."""

    text: str
    named: list[list[Place]]

    def row(self, way: str) -> Row:
        """What is read."""
        first = self.named[0][0]
        return Row(self.text, first) if way == "text" else entity_rows(self.text, self.named)[first]


def moved(row: Row, by: int) -> Place:
    """Where a row's company stands when so many characters come before its text."""
    assert row.entity is not None
    return row.entity[0] + by, row.entity[1] + by


def among(rows: Sequence[Row], between: str, others: Sequence[str], count: int, seed: int) -> Iterator[Article]:
    """Each row's text at any place among `count` of the others, of which the first counts as naming another company."""
    g = random.Random(seed)
    for row in rows:
        beside, at = g.sample(others, count), g.randint(0, count)
        before = "".join(text + between for text in beside[:at])
        text = before + row.text + "".join(between + text for text in beside[at:])
        other = 0 if at else len(row.text + between)
        yield Article(text, [[moved(row, len(before))], [(other, other + 1)]])


def in_focus(rows: Sequence[Row]) -> Iterator[Article]:
    """Each row's text and the next row's under a title that names both companies."""
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        name, second = (one.text[slice(*moved(one, 0))] for one in (row, other))
        title = f"{name} and {second} in focus\n"
        middle = f"{title}{row.text}. "
        named = [
            [(0, len(name)), moved(row, len(title))],
            [(len(name) + 5, len(name) + 5 + len(second)), moved(other, len(middle))],
        ]
        yield Article(middle + other.text, named)


def answers(model: LoadedModel, rows: Sequence[Row]) -> tuple[NDArray[np.float32], float]:
    """Probabilities (N, 3), and tokens of a row on average."""
    tokens = [len(row.ids) for row in model.tokenize(rows)]
    return model.predict(rows).sentiment, float(np.mean(tokens))


def fiqa(model: LoadedModel, path: Path) -> Iterator[dict[str, Any]]:
    """Of texts about one company that have more than one sentence: how often the sign of the score is right."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    whole, cut, scores = [], [], []
    for line in lines:
        place = find_entity(line["text"], line["target"])
        if place is None:
            continue
        start, end = sentence_at(line["text"], place)
        if (start, end) != (0, len(line["text"])):
            whole.append(Row(line["text"], place))
            cut.append(Row(line["text"][start:end], (place[0] - start, place[1] - start)))
            scores.append(line["score"])
    for way, rows in zip(WAYS, (whole, cut), strict=True):
        said, tokens = answers(model, rows)
        right = float((np.sign(said[:, 2] - said[:, 0]) == np.sign(scores)).mean())
        yield {"kind": "one company (FiQA)", "way": way, "texts": len(rows), "right": right, "tokens": tokens}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=900)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--fiqa", type=Path)
    o = parser.parse_args()
    model = load_model("default", device="cpu")
    held_out = {name: select(read_labelled(bundled_path(name)), "test") for name in ("sentfin", "twitter_topic")}
    asked = [
        one for one in examples_of(held_out["sentfin"]) if one.row.entity is not None and one.sentiment is not None
    ]
    asked = random.Random(o.seed).sample(asked, min(o.items, len(asked)))
    truth = np.array([one.sentiment for one in asked])
    alone = [one.row for one in asked]
    texts = {name: [row.text for row in rows] for name, rows in held_out.items()}
    made = {"one headline": [Article(row.text, [[moved(row, 0)]]) for row in alone]} | {
        name: list(among(alone, between, texts[others], count, o.seed)) for name, between, others, count in KINDS
    }
    made["two headlines under a title that names both"] = list(in_focus(alone))
    found: list[dict[str, Any]] = []
    for kind, articles in made.items():
        for way in WAYS:
            said, tokens = answers(model, [article.row(way) for article in articles])
            right = float((said.argmax(axis=1) == truth).mean())
            found.append({"kind": kind, "way": way, "texts": len(articles), "right": right, "tokens": tokens})
    if o.fiqa:
        found += fiqa(model, o.fiqa)
    for row in found:
        row["right"], row["tokens"] = round(row["right"], 4), round(row["tokens"], 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
