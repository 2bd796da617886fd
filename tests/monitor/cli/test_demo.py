"""What the demo says: the stream, each alert in full, its end in one line."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitor.alerts.demo_receiver import DemoReceiver
from monitor.alerts.records import (
    Alert,
    AlertState,
    AlertStory,
    Digest,
    DigestContent,
    DigestEntry,
    Notice,
    expectation,
)
from monitor.cli.context import current_settings, root_flags
from monitor.cli.demo import STORIES_SHOWN, SURGE_BUDGET, _claim_data_dir, _demo_settings, _stream, told
from monitor.settings import Settings
from scripts.build_demo_stream import planted
from tests.monitor.alerts.builders import AT, an_alert


def payload(notice: Any) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(notice))  # type: ignore[no-any-return]


def notice(event: str, alert: Alert) -> Notice:
    return Notice(type=f"alert.{event}", timestamp=AT, data=alert)


def surging(**changes: Any) -> Alert:
    stories = tuple(
        AlertStory(
            item_id=f"i{n}", title=f"[bold]{n}", url="", source="s", published_at=AT, copies=1 + n % 2, p_negative=0.9
        )
        for n in range(STORIES_SHOWN + 2)
    )
    return msgspec.structs.replace(an_alert(), stories=stories, **changes)


def test_an_alert_is_told_with_its_first_stories() -> None:
    head, *lines = told(payload(notice("firing", surging())))
    assert head == (
        "\n[alert.firing] ticker:AAPL (warning): 12 negative stories in 15 min, 1.5 expected (p = 1.0e-06); "
        "signature verified"
    )
    assert lines[:2] == ["    0.90  [bold]0", "    0.90  [bold]1 (2 copies)"]
    assert len(lines) == STORIES_SHOWN + 1
    assert lines[-1] == f"    and 2 more: {an_alert().link}"


def test_the_end_of_an_alert_is_one_line_with_its_length_and_count() -> None:
    over = surging(state=AlertState.RESOLVED, resolved_at=AT + timedelta(hours=9, minutes=6, seconds=30))
    assert told(payload(notice("resolved", over))) == [
        "\n[alert.resolved] ticker:AAPL (warning): over after 9 h 06 min; at its worst 12 negative stories in 15 min"
    ]


def test_a_digest_is_told_line_by_line() -> None:
    entries = tuple(DigestEntry.of(f"m{n}", notice("firing", surging())) for n in range(2))
    head, *lines = told(payload(Digest(timestamp=AT, data=DigestContent(notices=entries))))
    assert head == "\n[alert.digest] 2 notices; signature verified"
    assert lines == [f"    alert.firing ticker:AAPL (warning): 12 stories, {expectation(1.5)} expected"] * 2


def test_the_stream_holds_the_surge_that_is_announced() -> None:
    stream = _stream()
    assert stream.surge == planted()
    start = datetime.fromisoformat(stream.surge["start"])
    items = map(json.loads, stream.path.read_text(encoding="utf-8").splitlines())
    within = [
        item
        for item in items
        if stream.surge["key"].removeprefix("ticker:") in item["tickers"]
        and start <= datetime.fromisoformat(item["published_at"]) <= start + timedelta(minutes=stream.surge["minutes"])
    ]
    assert len({item["title"] for item in within}) >= stream.surge["stories"]
    assert "24 negative stories about Infosys (ticker:INFY) in 84 minutes from 6 March, 14:02 UTC on" in (
        stream.introduction()
    )


@pytest.mark.parametrize(("given", "held"), [(None, SURGE_BUDGET), ("0.02", 0.02)])
def test_the_demo_has_a_budget_of_its_own_unless_one_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, held: float
) -> None:
    monkeypatch.setenv("SENTIMENT_MONITOR_DASHBOARD_PORT", "0")
    if given:
        monkeypatch.setenv("SENTIMENT_MONITOR_SURGE_BUDGET", given)
    token = root_flags.set({"data_dir": tmp_path})
    with DemoReceiver() as receiver:
        settings = _demo_settings(receiver)
    # Other commands on its folder go by it, unless they are told something else; so does the next demo.
    _claim_data_dir(settings)
    assert current_settings().surge_budget == held
    assert current_settings(surge_budget=0.5).surge_budget == 0.5
    # Another store or broker is not the demo's, nor is the file of a backtest.
    usual = float(given or Settings.model_fields["surge_budget"].default)
    assert current_settings("backtest").surge_budget == usual
    assert current_settings(database_url=f"sqlite:///{tmp_path / 'own.db'}").surge_budget == usual
    assert current_settings(kafka_bootstrap_servers="kafka:9092").surge_budget == usual
    _claim_data_dir(settings)
    # The next demo begins afresh.
    monkeypatch.delenv("SENTIMENT_MONITOR_SURGE_BUDGET", raising=False)
    assert "surge_budget" not in current_settings("demo").model_fields_set
    root_flags.reset(token)
    assert settings.surge_budget == held
    # The processes get it too.
    assert float(settings.environment()["SENTIMENT_MONITOR_SURGE_BUDGET"]) == held
