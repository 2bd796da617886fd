"""A replay gives the alerts that the rules would have announced."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from monitor.alerts.announced import announced
from monitor.alerts.rules import Rules, parse_rules
from monitor.cli.backtest import backtest
from monitor.surges.backtest import BacktestAlert
from monitor.surges.judge import JudgeConfig
from tests.monitor.alerts.builders import AT, an_alert
from tests.monitor.surges.builders import stream

FOUND = BacktestAlert(
    score=6.0,
    **{
        name: getattr(an_alert(), name)
        for name in BacktestAlert.__struct_fields__
        if name not in ("score", "surge", "resolved_at")
    },
    # 15:30 UTC, an hour after it fired: New York opens at 14:30 then.
    resolved_at=AT + timedelta(hours=1),
)


def rules(text: str) -> Rules:
    return parse_rules(f"[[rules]]\nname = 'one'\n{text}", JudgeConfig())


@pytest.mark.parametrize(
    ("text", "changes", "is_announced"),
    [
        ("", {}, True),
        ("keys = ['ticker:A*']", {}, True),
        ("keys = ['topic:*']", {}, False),
        ("min_sources = 7", {}, True),
        ("min_sources = 8", {}, False),
        ("severities = ['critical']", {}, False),
        ("enabled = false\n[[rules]]\nname = 'two'\nkeys = ['market']", {}, False),
        # Its hours begin while it fires, or only afterwards.
        ("start = '15:00'\nend = '16:00'", {}, True),
        ("start = '16:00'\nend = '17:00'", {}, False),
        ("start = '15:00'\nend = '16:00'", {"resolved_at": None}, False),
        # Asked for by name, though no rule watches it.
        ("", {"surge": "volume", "rule": "volume-surge"}, True),
    ],
)
def test_a_rule_takes_it_while_it_fires(text: str, changes: dict[str, Any], is_announced: bool) -> None:
    found = msgspec.structs.replace(FOUND, **changes)
    assert announced(rules(text), found) is is_announced


def test_one_publishers_alert_is_left_out_where_two_are_asked_for() -> None:
    built_in = Rules(JudgeConfig())
    assert announced(built_in, msgspec.structs.replace(FOUND, sources=1))
    two = Rules(JudgeConfig(), ()).with_built_in(2)
    assert announced(two, FOUND)
    assert not announced(two, msgspec.structs.replace(FOUND, sources=1))


def test_the_verb_leaves_out_what_no_rule_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, _ = stream(3, 12, 4, surges=4, quiet_days=2)
    file, written = tmp_path / "items.jsonl", tmp_path / "rules.toml"
    file.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in items))
    monkeypatch.setenv("SENTIMENT_MONITOR_RULES_FILE", str(written))
    app = typer.Typer()
    app.command()(backtest)
    found: dict[str, list[str]] = {}
    for name, text in (("all", ""), ("none", "min_sources = 1000"), ("topics", "keys = ['topic:*']")):
        written.write_text(f"[[rules]]\nname = 'one'\n{text}\n")
        out = tmp_path / f"{name}.jsonl"
        done = CliRunner().invoke(app, [str(file), "--budget", "0.5", "--out", str(out)])
        assert done.exit_code == 0, done.output
        found[name] = [msgspec.json.decode(line)["key"] for line in out.read_bytes().splitlines()]
    assert len(found["all"]) > len(found["topics"]) > len(found["none"]) == 0
    assert {key.partition(":")[0] for key in found["topics"]} == {"topic"}
