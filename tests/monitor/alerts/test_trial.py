"""Rules tried on history say what the live judge and the notifier did with the same counts."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import Engine
from typer.testing import CliRunner

from monitor.alerts.rules import Rule, Rules, read_rules
from monitor.alerts.trial import try_rules
from monitor.cli import rules as rules_module
from monitor.cli.context import root_flags
from monitor.cli.rules import app
from monitor.errors import ConfigurationError, InputError
from monitor.settings import Settings
from monitor.storage.alerts import list_alerts
from monitor.storage.engine import reading, writing
from monitor.surges.decisions import MinuteCounts
from monitor.surges.judge import JudgeConfig
from monitor.surges.live import LiveJudge
from tests.monitor.alerts.builders import new_store, put_story
from tests.monitor.surges.test_live import END, SURGE, counts, set_watermark, write_ticks  # noqa: F401 - a fixture

KEY = "ticker:AAA"
FIRED = datetime.fromtimestamp(SURGE * 60, UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def judged(folder: Path, counts: dict[int, MinuteCounts]) -> Engine:  # noqa: F811
    """A store that the live judge has been over; tests only read it."""
    store = new_store(folder)
    write_ticks(store, counts)
    with writing(store) as conn:
        for number in range(6):
            put_story(conn, KEY, number, at=FIRED + timedelta(minutes=number))
        # The stories' own counts are part of the fixture's already.
        conn.exec_driver_sql(f"update ticks set stories = 2, negative_stories = 2 where key = '{KEY}' and stories = 3")
    set_watermark(store, 0, END)
    live = LiveJudge(store, Settings(data_dir=folder), 1)
    while live.advance():
        pass
    return store


def test_a_trial_finds_what_the_live_judge_found(judged: Engine) -> None:
    with reading(judged) as conn:
        live = {alert.id: alert for alert in list_alerts(conn)}
    trial = try_rules(judged, Rules(JudgeConfig()))
    assert {firing.alert.id for firing in trial.firings} == set(live) != set()
    for firing in trial.firings:
        known = live[firing.alert.id]
        assert firing.taken == {"negative-surge": known.fired_at}
        for field in ("state", "observed", "sources", "severity", "fired_at", "resolved_at", "p_value"):
            assert getattr(firing.alert, field) == getattr(known, field), field


def test_rules_take_a_surge_when_its_evidence_suffices(judged: Engine) -> None:
    rules = Rules(
        JudgeConfig(),
        (Rule("much", keys=(KEY,), min_negative_stories=20), Rule("more", min_negative_stories=10_000)),
    )
    trial = try_rules(judged, rules, since=FIRED - timedelta(hours=1))
    (surge,) = [firing for firing in trial.firings if firing.alert.key == KEY]
    assert list(surge.taken) == ["much"]
    assert surge.announced_at is not None
    assert surge.announced_at > surge.alert.fired_at
    for other in trial.firings:
        if other.alert.key != KEY:
            assert (other.announced_at, "more wants 10000 negative stories" in other.objection) == (None, True)


def test_a_trial_judges_the_sorts_that_its_rules_watch(judged: Engine) -> None:
    trial = try_rules(judged, Rules(JudgeConfig(), (Rule("busy", surge="volume"), Rule("good", surge="positive"))))
    assert trial.firings
    assert {(firing.alert.surge, firing.alert.rule, *firing.taken) for firing in trial.firings} == {
        ("volume", "volume-surge", "busy")
    }
    for firing in trial.firings:
        assert firing.alert.observed == firing.alert.total


def test_a_trial_looks_at_the_time_it_is_asked_about(judged: Engine) -> None:
    before = try_rules(judged, Rules(JudgeConfig()), until=FIRED)
    assert not [firing for firing in before.firings if firing.alert.key == KEY]
    with pytest.raises(InputError, match="no history in that time"):
        try_rules(judged, Rules(JudgeConfig()), since=FIRED + timedelta(days=400))


def test_without_counts_there_is_nothing_to_try(store: Engine) -> None:
    with pytest.raises(InputError, match="no history"):
        try_rules(store, Rules(JudgeConfig()))


def test_what_the_verb_prints_of_a_surge_is_one_line(
    judged: Engine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rules.toml"
    names = ("a-rule-with-a-long-name", "another-rule-with-a-long-name")
    file.write_text("".join(f"[[rules]]\nname = '{name}'\nmin_sources = 99\n" for name in names))
    asked = ["test", str(file), "--since", "2d"]
    number = len(try_rules(judged, read_rules(file, JudgeConfig()), since=FIRED - timedelta(days=1)).firings)
    assert number
    monkeypatch.setenv("COLUMNS", "40")
    token = root_flags.set({"data_dir": folder})
    try:
        head, *rows = CliRunner().invoke(app, asked).stdout.splitlines()
        shown = io.StringIO()
        terminal = Console(
            width=80, file=shown, force_terminal=True, highlight=False, soft_wrap=True, color_system=None
        )
        monkeypatch.setattr(rules_module, "out", terminal)
        assert CliRunner().invoke(app, asked).exit_code == 0
    finally:
        root_flags.reset(token)
    # In a pipe all of it, whatever COLUMNS says.
    columns = ["key", "severity", "fired (UTC)", "resolved (UTC)", "stories / expected", "rules"]
    assert re.split("  +", head.strip()) == columns
    assert len(rows) == number
    (whole,) = (row.strip() for row in rows if row.startswith(f"{KEY} "))
    assert whole.endswith(f"{names[1]} wants 99 sources")
    assert f"  none: rule {names[0]} wants 99 sources" in whole
    # On a terminal the objection, which can be any length, loses its end; what is needed least goes before.
    head, *rows = (line.rstrip() for line in shown.getvalue().splitlines())
    assert re.split("  +", head) == ["key", "severity", "fired (UTC)", "stories / expected", "rules"]
    assert len(rows) == number
    assert max(map(len, rows)) == 80
    (narrow,) = (row for row in rows if row.startswith(f"{KEY} "))
    assert f"  {FIRED:%Y-%m-%d }" in narrow
    assert "  none: rule a-rule-" in narrow
    assert narrow.endswith("…")


def test_the_verb_prints_when_each_rule_would_have_fired(judged: Engine, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(f"[[rules]]\nname = 'mine'\nkeys = ['{KEY}']\n[[rules]]\nname = 'never'\nmin_sources = 99\n")
    token = root_flags.set({"data_dir": folder})
    try:
        result = CliRunner().invoke(app, ["test", str(file), "--since", "2d"])
        assert result.exit_code == 0, result.output
        assert KEY in result.output
        assert "mine" in result.output
        with pytest.raises(ConfigurationError, match="--until"):
            CliRunner().invoke(app, ["test", str(file), "--until", "soon"], catch_exceptions=False)
    finally:
        root_flags.reset(token)
