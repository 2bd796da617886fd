"""Whatever stands in a file of rules or receivers: it is taken, or refused with a line; never a traceback."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from monitor.alerts.config import load_notifications
from monitor.alerts.demo_receiver import new_secret
from monitor.alerts.rulebook import rule_from
from monitor.alerts.rules import RuleEntry, parse_rules, read_rules
from monitor.errors import RuleError
from monitor.settings import Settings
from monitor.surges.judge import JudgeConfig
from tests.monitor.alerts.test_config import GOOD
from tests.monitor.alerts.test_rules import RULES

BASE = JudgeConfig()
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FIELDS = [*RuleEntry.__struct_fields__, "min_stories", "calm_minutes", "hold_off_minutes", "colour", ""]
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["*", "ticker:*", "market", "high", "XNYS", "open", "mon", "08:30", "UTC", "Europe/Zurich", "/", ".."]
    ),
    st.integers(-(2**70), 2**70),
    st.integers(0, 60),
    st.floats(),
    st.booleans(),
    st.just(datetime(2026, 3, 2, 12, tzinfo=UTC)),
    st.just(date(2026, 3, 2)),
    st.just(time(8, 30)),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=6,
)
ENTRIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6)


def toml(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value)
    return value.isoformat() if isinstance(value, date | time) else repr(value)


def taken_or_refused(text: str) -> None:
    found, refused = None, None
    try:
        found = parse_rules(text, BASE, "rules.toml")
    except RuleError as error:
        refused = error
    if found is not None:
        # What was taken can be kept, and means the same then.
        assert all(rule_from(rule.definition, found.judge) == rule for rule in found.rules)
    else:
        assert refused is not None
        assert 1 <= refused.line <= max(1, len(text.splitlines()))
        assert refused.message.startswith(f"rules.toml, line {refused.line}")
        assert len(refused.message) < 5_000


@QUICK
@given(st.text())
@example('[[rules]]\nname = "a"\nkeys = [' + "'*'," * 600 + "]\n")
@example("[[rules]]\nname = 1" + "0" * 5000)
@example("rules:\n  - name: tickers\n    keys: ['ticker:*']\n")
@example("\ufeff[[rules]]\nname='x'")
@example("[[rules]]\r\nname = 'x'\r\nkeys = 3")
def test_any_text(text: str) -> None:
    taken_or_refused(text)


@QUICK
@given(
    st.fixed_dictionaries(
        {}, optional={"rules": st.lists(ENTRIES, max_size=3) | VALUES, "judge": ENTRIES | VALUES, "x": VALUES}
    )
)
def test_any_tree(tree: dict[str, Any]) -> None:
    taken_or_refused("".join(f"{name} = {toml(value)}\n" for name, value in tree.items()))
    if isinstance(tree.get("rules"), list):
        headed = "".join(
            "[[rules]]\n" + "".join(f"{json.dumps(name)} = {toml(value)}\n" for name, value in entry.items())
            for entry in tree["rules"]
            if isinstance(entry, dict)
        )
        taken_or_refused(headed)


def damaged(text: str, data: st.DataObject) -> str:
    """A text in which a few stretches have been replaced."""
    pieces = st.text(max_size=6) | st.sampled_from(list("[]\"'=,#\n.:/@")) | st.just("")
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(len(text), begin + 12)))
        text = text[:begin] + data.draw(pieces) + text[end:]
    return text


@QUICK
@given(data=st.data())
def test_a_right_file_that_was_damaged(data: st.DataObject) -> None:
    taken_or_refused(damaged(RULES, data))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_of_receivers(data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DESK_SECRET", SECRET)
    monkeypatch.setitem(os.environ, "PAGER_URL", "pagerduty://AAAA@bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
    file = tmp_path / "receivers.toml"
    file.write_text(damaged(GOOD, data), encoding="utf-8")
    message = ""
    try:
        load_notifications(Settings(data_dir=tmp_path, receivers_file=str(file)))
    except RuleError as error:
        message = str(error)
    assert not message or re.search(r"receivers\.toml, line \d+", message)
    assert SECRET not in message


SECRET = new_secret()


@pytest.mark.parametrize(
    ("data", "line"), [(b"[[rules]]\nname = '\xff'\n", 2), (b"\xff\xfe[\x00", 1), (b"#" * (1 << 21), 1), (b"\x00", 1)]
)
def test_bytes_that_are_no_text(tmp_path: Path, data: bytes, line: int) -> None:
    file = tmp_path / "rules.toml"
    file.write_bytes(data)
    with pytest.raises(RuleError) as caught:
        read_rules(file, BASE)
    assert caught.value.line == line


@pytest.mark.parametrize("path", ["", "nowhere.toml", "a\0b"])
def test_a_file_that_cannot_be_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(RuleError, match="cannot be read"):
        read_rules(tmp_path / path, BASE)
