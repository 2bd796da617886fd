from __future__ import annotations

import re
from collections import Counter

from models.training.report_sentences import report_sentences

_LOSS = re.compile(r"\b(loss|bad loans|net debt)\b", re.IGNORECASE)


def test_the_same_seed_gives_the_same_sentences() -> None:
    assert report_sentences(50, seed=4) == report_sentences(50, seed=4)
    assert report_sentences(50, seed=4) != report_sentences(50, seed=5)


def test_labels_follow_from_the_figures() -> None:
    checked = 0
    for example in report_sentences(3000, seed=1):
        found = re.search(r"from \D*([\d,.]*\d)\D* to \D*([\d,.]*\d)", example.text)
        if not found or "swung" in example.text:
            continue
        old, new = (float(number.replace(",", "")) for number in found.groups())
        good = (new > old) != bool(_LOSS.search(example.text))
        assert example.sentiment == (2 if good else 0), example.text
        checked += 1
    assert checked > 50


def test_all_sentiments_and_entities_come_up() -> None:
    found = report_sentences(1000, seed=2)
    count = Counter(example.sentiment for example in found)
    assert min(count[label] for label in (0, 1, 2)) > 200
    asked = [example for example in found if example.entity is not None]
    assert 200 < len(asked) < 800
    for example in asked:
        assert example.entity is not None
        assert example.text[slice(*example.entity)][0].isupper()
