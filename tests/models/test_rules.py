"""Rules over the model: what they change, what they leave, and that they say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rules import Match, Rule, SentimentRules, load_rules
from monitor.errors import ConfigurationError
from monitor.records import Sentiment, SentimentScore

GOOD = SentimentScore.of([0.1, 0.2, 0.7])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Trading in shares of Acme halted pending news", "trading_halt"),
        ("NYSE suspends trading of Acme", "trading_halt"),
        ("Hertz files for Chapter 11", "bankruptcy"),
        ("EVERGRANDE DEFAULTS ON OFFSHORE BONDS", "default"),
        ("Company misses bond payment", "default"),
        ("Auditor raises substantial doubt about its ability to continue as a going concern", "going_concern"),
        ("Acme receives Nasdaq delisting notice", "delisting"),
        ("Acme to restate its 2019 results", "restatement"),
        ("SHAREHOLDER ALERT: law firm reminds investors", "law_firm_notice"),
        ("Guaranteed returns, join my telegram", "promotion"),
    ],
)
def test_a_bundled_rule_speaks(text: str, rule: str) -> None:
    assert rule in {found.rule.name for found in load_rules().matching(text)}


@pytest.mark.parametrize(
    "text",
    [
        "Trading in Acme resumed after halt lifted",
        "Hertz emerges from bankruptcy",
        "Acme avoids default on its bonds",
        "Acme regains compliance after delisting notice",
        "Acme denies it files for bankruptcy",
        "Shares rise on strong earnings",
        "",
    ],
)
def test_the_bundled_rules_are_silent(text: str) -> None:
    assert load_rules().matching(text) == []


def test_a_rule_cuts_the_positive_side_and_says_so() -> None:
    rules = load_rules().matching("Car rental giant Hertz files for bankruptcy on Friday")
    limited, (note,) = SentimentRules.apply(rules, GOOD)
    assert (note.name, note.effect, note.words) == ("bankruptcy", "not_positive", "files for bankruptcy")
    assert note.why.startswith("Insolvency is never good news")
    assert (note.before, note.entity) == (GOOD, "")
    assert [limited.negative, limited.neutral, limited.positive] == pytest.approx([0.8 / 3, 1.6 / 3, 0.2])
    assert limited.label is Sentiment.NEUTRAL
    assert SentimentRules.apply(rules, GOOD, "Hertz")[1][0].entity == "Hertz"
    bad = SentimentScore.of([0.8, 0.1, 0.1])
    assert SentimentRules.apply(rules, bad) == (bad, ())


def test_a_flag_changes_nothing_but_always_shows() -> None:
    rules = load_rules().matching("guaranteed returns")
    sentiment, (note,) = SentimentRules.apply(rules, GOOD)
    assert sentiment == GOOD
    assert (note.name, note.effect, note.before) == ("promotion", "flag", None)


def test_two_rules_each_say_what_they_found() -> None:
    rules = load_rules().matching("Acme files for bankruptcy and defaults on its bonds")
    limited, notes = SentimentRules.apply([Match(m.rule, m.words) for m in rules], GOOD)
    assert {note.name for note in notes} == {"bankruptcy"}
    assert [m.rule.name for m in rules] == ["bankruptcy", "default"]
    assert limited.positive == pytest.approx(0.2)


@given(
    st.lists(st.floats(0.001, 1), min_size=3, max_size=3),
    st.sampled_from(["not_positive", "not_negative"]),
    st.floats(0, 0.33),
)
def test_a_cut_side_never_wins_and_probabilities_stay_probabilities(
    p: list[float], effect: str, ceiling: float
) -> None:
    rule = Rule(name="r", pattern="x", effect=effect, why="", ceiling=ceiling)  # type: ignore[arg-type]
    limited, _ = SentimentRules.apply([Match(rule, "x")], SentimentScore.of([x / sum(p) for x in p]))
    values = [limited.negative, limited.neutral, limited.positive]
    assert sum(values) == pytest.approx(1.0)
    side = 2 if effect == "not_positive" else 0
    assert values[side] <= ceiling + 1e-9
    assert max(values) > values[side]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[[rule]]\nname='a'\npattern='('\neffect='flag'\nwhy=''", "a has a wrong pattern"),
        ("[[rule]]\nname='a'\npattern='x'\neffect='explode'\nwhy=''", "Invalid enum value"),
        ("[[rule]]\nname='a'\npattern='x'\neffect='flag'\nwhy=''\nceiling=0.9", "needs a ceiling"),
        ("[[rule]]\nname='a'\npattern='x'\neffect='flag'\nwhy=''\ncolour='red'", "unknown field"),
        ("[[rule]]\nname='a'\npattern='x'\neffect='flag'\nwhy=''\n" * 2, "same name"),
        ("[[rule", "not valid"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=told):
        load_rules(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_rules(tmp_path / "none.toml")
