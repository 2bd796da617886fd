from __future__ import annotations

import re
import tomllib
from collections import Counter
from itertools import chain
from pathlib import Path

import models
from models.training.contrast_sentences import figures_alone
from models.training.report_grammar import Grammar
from models.training.report_sentences import report_sentences

_LOSS = re.compile(r"\b(loss|bad loans|net debt)\b", re.IGNORECASE)


def test_the_same_seed_gives_the_same_sentences() -> None:
    assert report_sentences(50, seed=4) == report_sentences(50, seed=4)
    assert report_sentences(50, seed=4) != report_sentences(50, seed=5)


def test_labels_follow_from_the_figures() -> None:
    checked = 0
    for example in report_sentences(5000, seed=1):
        found = re.search(r"(?<!flow )from \D*([\d,.]*\d)\D* to \D*([\d,.]*\d)", example.text)
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


def test_of_two_companies_the_one_asked_about_has_its_own_sentiment() -> None:
    seen: Counter[int] = Counter()
    for example in report_sentences(4000, seed=3):
        found = re.fullmatch(r"(.+) takes market share from (.+) in .+", example.text)
        if found:
            assert example.entity is not None
            asked = example.text[slice(*example.entity)]
            assert asked in found.groups()
            assert example.sentiment == (2 if asked == found[1] else 0)
            seen[example.sentiment] += 1
    assert min(seen[0], seen[2]) > 2


def test_the_wordings_are_not_those_of_the_behaviour_tests() -> None:
    tests = tomllib.loads((Path(models.__file__).parent / "data" / "robustness.toml").read_text(encoding="utf-8"))
    asked = [
        text for test in tests["test"] for text in (*test.get("texts", ()), *chain.from_iterable(test.get("pairs", ())))
    ]
    patterns = [
        re.compile(re.sub(r"\\\{[abc]\\\}", ".+", re.escape(text)), re.IGNORECASE)
        for entry in asked
        if len(text := entry if isinstance(entry, str) else entry[0]) > 20
    ]
    assert len(patterns) > 40
    for example in report_sentences(3000, seed=6):
        assert not any(pattern.fullmatch(example.text.rstrip(" .")) for pattern in patterns), example.text


def test_figures_without_a_verb_are_labelled_by_which_is_larger() -> None:
    grammar = Grammar(7)
    seen: Counter[int] = Counter()
    for _ in range(400):
        text, sentiment = figures_alone(grammar, "Voltan")
        found = re.search(r"([\d.]+)\D* vs \D*([\d.]+)", text.removeprefix("Voltan"))
        if found:
            new, old = map(float, found.groups())
            assert sentiment == (2 if (new > old) != bool(_LOSS.search(text)) else 0), text
            seen[sentiment] += 1
    assert min(seen[0], seen[2]) > 10
