"""Rules: what they take, the mistakes in them, and those that are kept in the store."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from monitor.alerts.config import load_notifications
from monitor.alerts.rulebook import in_force, rule_from, take_up
from monitor.alerts.rules import BUILT_IN, Rule, Rules, load_rules
from monitor.errors import ConfigurationError, RuleError
from monitor.settings import Settings
from monitor.storage.audit import changes
from monitor.storage.engine import writing
from monitor.storage.rules import delete_rule, list_rules, mute_rule, muted_rules, save_rule, switch_rule
from monitor.surges.judge import JudgeConfig
from tests.monitor.alerts.builders import AT, an_alert

RULES = """
[judge]
min_stories = 4
windows = [15, 60]

[[rules]]
name = "tickers"
keys = ["ticker:*"]
exclude = ["ticker:TEST*"]
severities = ["high", "critical"]
windows = [15]
min_negative_stories = 5
min_sources = 3
min_share = 0.5
max_p_value = 0.001
calendar = "XNYS"
days = ["mon", "tue"]
start = "14:00"
end = "16:00"

[[rules]]
name = "off"
enabled = false
"""


def rules_of(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    return Settings(data_dir=tmp_path, rules_file=str(file))


def test_a_rule_takes_surges_of_the_sort_that_it_watches(tmp_path: Path) -> None:
    text = """
[[rules]]
name = "good news"
surge = "positive"
min_positive_stories = 5
min_share = 0.5

[[rules]]
name = "busy"
surge = "volume"
min_stories = 30

[[rules]]
name = "off"
surge = "volume"
enabled = false
"""
    rules = load_rules(rules_of(tmp_path, text))
    assert rules.watched == ("negative", "positive", "volume")
    assert [rule.name for rule in rules.rules] == ["negative-surge", "good news", "busy", "off"], (
        "the built-in one stays"
    )

    def taken(**changes: Any) -> list[str]:
        return [rule.name for rule in rules.verdict(msgspec.structs.replace(an_alert(), **changes), AT).taken_by]

    assert taken() == ["negative-surge"]
    assert taken(surge="positive") == ["good news"]
    assert taken(surge="positive", observed=4) == taken(surge="positive", share=0.4) == []
    assert taken(surge="volume", total=30) == ["busy"]
    few = rules.verdict(msgspec.structs.replace(an_alert(), surge="volume", total=29), AT)
    assert few.objection == "rule busy wants 30 stories; off is switched off"
    alone = load_rules(rules_of(tmp_path, "[[rules]]\nname = 'bad'\n"))
    assert alone.watched == ("negative",)
    good = alone.verdict(msgspec.structs.replace(an_alert(), surge="positive"), AT)
    assert good.objection == "there is no rule that watches positive stories"
    for rule in rules.rules:
        assert rule_from(rule.definition, rules.judge) == rule


def test_rules_say_what_is_announced(tmp_path: Path) -> None:
    rules = load_rules(rules_of(tmp_path, RULES))
    assert (rules.judge.min_stories, rules.judge.windows) == (4, (15, 60))
    good = msgspec.structs.replace(an_alert(), severity="high", observed=5, sources=3)
    assert [rule.name for rule in rules.verdict(good, AT).taken_by] == ["tickers"]
    longer = msgspec.structs.replace(good.window, minutes=60)
    for change, words in (
        ({"key": "topic:macro"}, "is not about topic:macro"),
        ({"key": "ticker:TEST1"}, "leaves ticker:TEST1 out"),
        ({"severity": "warning"}, "takes high, critical alone"),
        ({"window": longer}, "looks at windows of 15 minutes"),
        ({"observed": 4}, "wants 5 negative stories"),
        ({"sources": 2}, "wants 3 sources"),
        ({"share": 0.4}, "wants a negative share of 50%"),
        ({"p_value": 0.01}, "wants a p-value of 0.001 at most"),
    ):
        verdict = rules.verdict(msgspec.structs.replace(good, **change), AT)
        assert (verdict.taken_by, verdict.objection) == ((), f"rule tickers {words}; off is switched off")
    for later, words in (
        (timedelta(hours=12), "tickers waits until XNYS is open"),
        (timedelta(hours=2), "tickers waits for its hours, 14:00 to 16:00 UTC"),
        (timedelta(days=2), "tickers waits for its hours"),
    ):
        assert words in rules.verdict(good, AT + later).objection
    assert "tickers is muted" in rules.verdict(good, AT, {"tickers"}).objection


def test_a_definition_gives_the_same_rule_again(tmp_path: Path) -> None:
    rules = load_rules(rules_of(tmp_path, RULES))
    for rule in rules.rules:
        assert rule_from(rule.definition, rules.judge) == rule
    assert BUILT_IN.definition.keys() == {"name", "description", "min_sources"}


def test_without_a_file_the_built_in_rule_takes_everything(tmp_path: Path) -> None:
    rules = load_rules(Settings(data_dir=tmp_path, surge_budget=0.5))
    assert (rules.rules, rules.judge.budget) == ((BUILT_IN,), 0.5)
    assert rules.verdict(an_alert(), AT).taken_by == (BUILT_IN,)
    assert load_rules(rules_of(tmp_path, "[judge]\nmin_stories = 9\n")).rules == (BUILT_IN,)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[judge]\nbudget = 0.1\n", 2, "budget"),
        ("[judge]\nwindows = [7]\n", 2, "multiple of 15 minutes"),
        ("[judge]\nwindows = [15, 15]\n", 2, "stands there twice"),
        ("[judge]\nwindows = [1500000]\n", 2, "must not be above"),
        ("[judge]\nmin_stories = -1\n", 2, "must not be below 0"),
        ("[judge]\nalpha = 0.05\n", 2, "alpha"),
        ("[[judge]]\nmin_stories = 1\n", 1, "'judge' must be written as [judge]"),
        ("\n[rules]\nname = 'x'\n", 2, "'rules' must be written as [[rules]]"),
        ("\n\nx = 1\n[[rules]]\n", 3, "'x' is an unknown part"),
        ("\nrules = [{name = 'a'}, {name = 'a'}]\n", 2, "another rule of this name"),
        ("\njudge.windows = [7]\n", 2, "multiple of 15 minutes"),
        ("[[rules]]\nname = 'x'\n[[rules]\n", 3, "not valid TOML"),
        ("[[rules]]\nname = 'x'\nsurge = 'neutral'\n", 3, "'neutral' is none of negative, positive, volume"),
        ("[[rules]]\nname = 'x'\nsurge = 3\n", 3, "surge"),
        ("[[rules]]\nsurge = 'positive'\nname = 'x'\nmin_negative_stories = 2\n", 4, "surge = 'negative'"),
        ("[[rules]]\nname = 'x'\nmin_positive_stories = 2\n", 3, "this one watches 'negative'"),
        ("[[rules]]\nname = 'x'\nsurge = 'volume'\n\nmin_share = 0.2\n", 5, "says nothing about a surge of volume"),
        ("[[rules]]\nname = 'x'\nmin_stories = -2\n", 3, "must not be below 0"),
        ("[[rules]]\nname = 'x", 2, "not valid TOML"),
        ("[[rules]]\nname = " + "[" * 5000, 1, "nested too deeply"),
        ("[[rules]]\nkeys = ['*']\n", 1, "name"),
        ("[[rules]]\nname = ' x'\n", 2, "no space around"),
        ("[[rules]]\nname = 'x'\nkeys = 'ticker:*'\n", 3, "Expected `array`"),
        ("[[rules]]\nname = 'x'\nkeys = ['tickers:*']\n", 3, "'tickers:*' matches no key"),
        ("[[rules]]\nname = 'x'\nkeys = []\n", 3, "one pattern at least"),
        ("[[rules]]\nname = 'x'\n[[rules]]\nname = 'x'\n", 4, "another rule of this name"),
        ("[[rules]]\nname = 'x'\nseverities = ['info']\n", 3, "'info' is none of"),
        ("[[rules]]\nname = 'x'\nwindows = [45]\n", 3, "'45' is none of 15, 30, 60"),
        ("[[rules]]\nname = 'x'\nmin_sources = -1\n", 3, "must not be below 0"),
        ("[[rules]]\nname = 'x'\nmin_share = nan\n", 3, "must not be below 0"),
        ("[[rules]]\nname = 'x'\nmax_p_value = 1.5\n", 3, "must not be above 1"),
        ("[[rules]]\nname = 'x'\ncalendar = 'MOON'\n", 3, "'MOON' is none of"),
        ("[[rules]]\nname = 'x'\ntimezone = '../etc/passwd'\n", 3, "no time zone"),
        ("[[rules]]\nname = 'x'\nstart = '8 o clock'\n", 3, "not a time of day"),
        ("[[rules]]\nname = 'x'\nstart = 08:30:00\n", 3, "Expected `str`"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(RuleError) as caught:
        load_rules(rules_of(tmp_path, text))
    assert words in str(caught.value)
    assert f"rules.toml, line {line}" in str(caught.value)
    assert caught.value.line == line


def test_a_rule_tells_receivers_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        RuleError, match=r"rules.toml, line 4, rules 'x': .*receiver 'desk', which is not set up"
    ) as told:
        load_notifications(rules_of(tmp_path, "\n[[rules]]\nname = 'x'\nreceivers = ['desk']\n"))
    assert told.value.line == 4
    assert told.value.hint == "There are: none."


def names(store: Engine, configured: Rules) -> list[str]:
    with writing(store) as conn:
        return [rule.name for rule in in_force(conn, configured).rules if rule.enabled]


def test_rules_of_the_store_hold_beside_those_of_the_file(any_store: Engine) -> None:
    file = Rules(JudgeConfig(), (Rule("a"), Rule("b")))
    own = Rule("c", min_sources=4).definition
    with writing(any_store) as conn:
        take_up(conn, file, AT)
        save_rule(conn, own, author="ada", now=AT)
        save_rule(conn, own | {"min_sources": 5}, author="bob", now=AT)
        save_rule(conn, {"name": "broken", "calendar": "MOON"}, author="bob", now=AT)
        with pytest.raises(ConfigurationError, match="in the rules file"):
            save_rule(conn, {"name": "a"}, author="ada", now=AT)
        with pytest.raises(ConfigurationError, match="not kept in the store"):
            delete_rule(conn, "a", by="ada", now=AT)
        with pytest.raises(ConfigurationError, match="rules file"):
            switch_rule(conn, "a", on=False, by="ada", now=AT)
        assert in_force(conn, file).rules[-1].min_sources == 5
    assert names(any_store, file) == ["a", "b", "c"]
    with writing(any_store) as conn:
        take_up(conn, Rules(JudgeConfig(), (Rule("b"),)), AT)
        switch_rule(conn, "c", on=False, by="ada", now=AT)
    assert names(any_store, Rules(JudgeConfig(), (Rule("b"),))) == ["b"]
    with writing(any_store) as conn:
        delete_rule(conn, "c", by="ada", now=AT)
        assert [rule.name for rule in list_rules(conn)] == ["b", "broken"]
        told = [(change.actor, change.event) for change in changes(conn, subject="rule:c")]
        assert told == [("ada", "removed"), ("ada", "switched off"), ("bob", "changed"), ("ada", "added")]


def test_the_built_in_rule_can_be_switched_off_and_stays_off(any_store: Engine) -> None:
    built_in = Rules(JudgeConfig())
    with writing(any_store) as conn:
        take_up(conn, built_in, AT)
        switch_rule(conn, BUILT_IN.name, on=False, by="ada", now=AT)
        take_up(conn, built_in, AT)
    assert names(any_store, built_in) == []
    with writing(any_store) as conn:
        switch_rule(conn, BUILT_IN.name, on=True, by="ada", now=AT)
    assert names(any_store, built_in) == [BUILT_IN.name]


def test_the_built_in_rule_waits_for_a_second_publisher_where_any_is_known(tmp_path: Path) -> None:
    alert = an_alert()
    for least, sources, taken in ((2, 2, True), (2, 1, False), (2, 0, True), (1, 1, True), (3, 2, False)):
        rules = load_rules(Settings(data_dir=tmp_path, surge_min_sources=least))
        verdict = rules.verdict(msgspec.structs.replace(alert, sources=sources), AT)
        assert bool(verdict.taken_by) is taken, (least, sources)
        assert verdict.objection == ("" if taken else f"rule negative-surge wants {least} sources")
    # A rule that somebody has written waits for what it says.
    own = load_rules(rules_of(tmp_path, "[[rules]]\nname = 'own'\nmin_sources = 2\n"))
    assert not own.verdict(msgspec.structs.replace(alert, sources=0), AT).taken_by
    assert load_rules(rules_of(tmp_path, "[[rules]]\nname = 'own'\n")).verdict(alert, AT).taken_by


def test_another_number_of_sources_is_taken_up_and_a_switch_stays(any_store: Engine) -> None:
    with writing(any_store) as conn:
        take_up(conn, Rules(JudgeConfig()), AT)
        switch_rule(conn, BUILT_IN.name, on=False, by="ada", now=AT)
        more = Rules(JudgeConfig()).with_built_in(3)
        for _ in range(2):
            take_up(conn, more, AT)
        (known,) = list_rules(conn)
        assert (known.definition["min_sources"], known.enabled) == (3, False)
        assert len(changes(conn)) == 3
        assert not in_force(conn, more).watched


def test_muting_ends_by_itself_and_by_hand(store: Engine) -> None:
    with writing(store) as conn:
        take_up(conn, Rules(JudgeConfig()), AT)
        mute_rule(conn, BUILT_IN.name, AT + timedelta(hours=1), AT, by="ada")
        assert muted_rules(conn, AT + timedelta(minutes=59)) == {BUILT_IN.name}
        assert muted_rules(conn, AT + timedelta(hours=1)) == frozenset()
        mute_rule(conn, BUILT_IN.name, AT, AT, by="ada")
        assert muted_rules(conn, AT) == frozenset()
        with pytest.raises(ConfigurationError, match="no rule nope"):
            mute_rule(conn, "nope", AT, AT, by="ada")
        events: list[Any] = [change.event for change in changes(conn)]
        assert events == ["unmuted", "muted", "added"]
