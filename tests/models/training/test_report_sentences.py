from __future__ import annotations

import re
from collections import Counter
from itertools import chain

import pytest

from models.training.contrast_sentences import figures_alone
from models.training.report_grammar import Grammar
from models.training.report_sentences import report_sentences
from models.training.robustness import load_suite

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


# What says nothing about whose wording it is: function words, when, and in which unit.
_NO_CONTENT = frozenset(
    re.findall(
        r"\w+",
        """a an the of in on at to for by and or its it is are was were be been has have had will would with from as
        that this than then there no not never does do did say after before per up down while but he she they their our
        which who year quarter quarterly month period review financial full first second third fourth annual earlier ago
        previous last corresponding same january september today eur usd sek gbp rs euro euros million mln mn billion bn
        crore cr yen percent pct cent""",
    )
)
_FORMS = {"rose": "rise", "fell": "fall", "grew": "grow", "shrank": "shrink", "lost": "lose", "won": "win"} | {
    "sold": "sell", "held": "hold", "went": "go", "said": "say",
}  # fmt: skip


def content_words(text: str) -> frozenset[str]:
    """The stems of the words that a text is made of, without companies and figures."""
    plain = re.sub(r"\{[abc]\}|voltan", " ", text.lower()).replace("n't", " not")
    words = (_FORMS.get(word, word) for word in re.findall(r"[a-z]{2,}", plain))
    return frozenset(re.sub(r"(?<=...)(?:ies|ing|ed|es|s|e)$", "", word) for word in words if word not in _NO_CONTENT)


def nearly_repeats(asked: frozenset[str], made_up: frozenset[str]) -> bool:
    """Whether most of what is asked stands in a sentence, and makes up half of it."""
    shared = len(asked & made_up)
    return shared >= 0.75 * len(asked) and shared >= 0.5 * len(made_up)


@pytest.mark.parametrize(
    ("asked", "made_up", "near"),
    [
        ("{c} does not expect a loss this year", "Voltan does not expect a loss for the full year 2024.", True),
        ("{c} net loss widens to 3.1 million from 1.9 million", "Net loss widened to $5m from $3m", True),
        ("{c} appoints a new head of communications", "Voltan has appointed a new head of its tyres business", True),
        ("Debt of {c} shrinks", "Debt at Voltan shrinks by 26.4%", True),
        ("{c} fails to win the contract", "Voltan lost a contract to supply tyres in Espoo", False),
    ],
)
def test_a_near_copy_is_known_by_its_content_words(asked: str, made_up: str, near: bool) -> None:
    assert nearly_repeats(content_words(asked), content_words(made_up)) == near


def test_the_wordings_are_not_those_of_the_behaviour_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        text: content_words(text)
        for test in load_suite().test
        if test.kind not in ("unreadable", "empty")
        for text in (*(each if isinstance(each, str) else each[0] for each in test.texts), *chain(*test.pairs))
    }
    assert len(asked) > 50
    monkeypatch.setattr(Grammar, "name", lambda self: "Voltan")
    made_up = {content_words(example.text): example.text for example in report_sentences(6000, seed=6)}
    made_up.pop(frozenset(), None)
    near = [(text, one) for text, own in asked.items() for words, one in made_up.items() if nearly_repeats(own, words)]
    assert not near


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
