"""Sentiment towards a company in an article about several: by the sentence that names it, and by what stands round it.

usage: python benchmarks/articles.py [--items 900] [--seed 2] [--fiqa FILE]

Articles are made of held-out SEntFiN headlines, each with a company and a label that people gave: among other headlines
(joined by full stops) or posts (line by line), at any place in them. Beside them a headline alone, and, if
FiQA's file is given (`--fiqa`), the 235 of its 936 posts and headlines that have more than one sentence: one company
each, which is read with all that stands round it.
Prints one JSON list: right answers and tokens read, by each way.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import LoadedModel, load_model
from models.sentences import sentence_at
from models.tokens import Row
from models.training.datasets import bundled_path, examples_of, find_entity, read_labelled, select

# (name, what lies between two texts, the set that the other texts come from, how many of them)
KINDS = (
    ("two headlines", ". ", "sentfin", 1),
    ("three headlines", ". ", "sentfin", 2),
    ("nine headlines", ". ", "sentfin", 8),
    ("a headline among eight posts", "\n", "twitter_topic", 8),
)


def by_sentence(row: Row) -> Row:
    """What is read where several companies are named."""
    assert row.entity is not None
    start, end = sentence_at(row.text, row.entity)
    return Row(row.text[start:end], (row.entity[0] - start, row.entity[1] - start))


WAYS: dict[str, Callable[[Row], Row]] = {"text": lambda row: row, "sentence": by_sentence}


def placed(rows: Sequence[Row], between: str, others: Sequence[str], count: int, seed: int) -> Iterator[Row]:
    """Each row's text at any place among `count` of the others."""
    g = random.Random(seed)
    for row in rows:
        assert row.entity is not None
        beside, at = g.sample(others, count), g.randint(0, count)
        before = "".join(text + between for text in beside[:at])
        text = before + row.text + "".join(between + text for text in beside[at:])
        yield Row(text, (row.entity[0] + len(before), row.entity[1] + len(before)))


def answers(model: LoadedModel, rows: Sequence[Row]) -> tuple[NDArray[np.float32], float]:
    """Probabilities (N, 3), and tokens of a row on average."""
    tokens = [len(row.ids) for row in model.tokenize(rows)]
    return model.predict(rows).sentiment, float(np.mean(tokens))


def fiqa(model: LoadedModel, path: Path) -> Iterator[dict[str, Any]]:
    """Of texts about one company that have more than one sentence: how often the sign of the score is right."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows, scores = [], []
    for line in lines:
        span = find_entity(line["text"], line["target"])
        row = Row(line["text"], span) if span else None
        if row is not None and by_sentence(row).text != row.text:
            rows.append(row)
            scores.append(line["score"])
    for way, cut in WAYS.items():
        said, tokens = answers(model, [cut(row) for row in rows])
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
    made = {"one headline": alone} | {
        name: list(placed(alone, between, texts[others], count, o.seed)) for name, between, others, count in KINDS
    }
    found: list[dict[str, Any]] = []
    for kind, rows in made.items():
        for way, cut in WAYS.items():
            said, tokens = answers(model, [cut(row) for row in rows])
            right = float((said.argmax(axis=1) == truth).mean())
            found.append({"kind": kind, "way": way, "texts": len(rows), "right": right, "tokens": tokens})
    if o.fiqa:
        found += fiqa(model, o.fiqa)
    for row in found:
        row["right"], row["tokens"] = round(row["right"], 4), round(row["tokens"], 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
