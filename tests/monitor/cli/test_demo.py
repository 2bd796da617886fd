"""What the demo says: the stream, each alert in full, its end in one line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.progress import Progress
from sqlalchemy import Engine, insert

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
from monitor.cli.context import current_settings, open_store, root_flags
from monitor.cli.demo import (
    STORIES_SHOWN,
    SURGE_BUDGET,
    _claim_data_dir,
    _demo_settings,
    _doing,
    _Run,
    _stream,
    told,
)
from monitor.errors import MonitorError
from monitor.settings import Settings, load_settings
from monitor.storage import tables
from monitor.storage.alerts import record_decisions
from monitor.storage.engine import writing
from monitor.supervisor import ProcessSpec, Supervisor
from scripts.build_demo_stream import planted
from tests.monitor.alerts.builders import AT, DASHBOARD, an_alert, decision


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
    told = stream.introduction()
    assert "24 stories about Infosys (ticker:INFY) that people labelled negative, in 84 minutes from 6 March, " in told


def test_why_the_alert_counts_other_than_what_was_planted_is_said(replay: tuple[Replay, Engine]) -> None:
    _, engine = replay
    surge = _stream().surge["key"]
    with writing(engine) as connection:
        for number, fired in enumerate((23, 4)):
            one = decision(key=surge, episode_id=f"e{number}", observed=fired)
            record_decisions(connection, [one], dashboard_url=DASHBOARD)
    with DemoReceiver() as receiver:
        shown = _Run(load_settings(None), receiver, engine, Supervisor([], {}, Path()))
        assert (shown.counted(surge), shown.counted("ticker:ZZZ")) == (23, 0)
    assert _stream().outcome(23) == (
        "It counted 23 stories at its worst, those that the model scored negative; 24 were planted, which people had "
        "labelled so."
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


Replay = Callable[..., str]


@pytest.fixture
def replay(tmp_path: Path) -> Any:
    """`replay(until_alert, patience, **settings)` with the feed at its end: a demo that has stored all there is."""
    engine = open_store(load_settings(data_dir=tmp_path))
    supervisor = Supervisor([ProcessSpec("feed", (sys.executable, "-c", ""), restart=False)], {}, tmp_path)
    supervisor.start()
    supervisor._children["feed"].process.wait()

    def run(
        until_alert: bool,
        patience: float = 60,
        *,
        stored: bool = True,
        progress: Progress | None = None,
        **settings: Any,
    ) -> str:
        # Every item is stored when there is none.
        stream = _stream()._replace(items=0 if stored else 5)
        settings = {"data_dir": tmp_path, "surge_budget": SURGE_BUDGET} | settings
        bar = progress or Progress(disable=True)
        with DemoReceiver() as receiver:
            shown = _Run(load_settings(None, **settings), receiver, engine, supervisor)
            deadline = time.monotonic() + patience
            return shown.replay(stream, deadline, until_alert, bar, bar.add_task(""))

    yield run, engine
    supervisor.stop()
    engine.dispose()


def test_the_bar_says_what_goes_on(replay: tuple[Replay, Engine]) -> None:
    run, _ = replay
    for stored, said in ((False, "loading the model"), (True, "counting, judging")):
        bar = Progress(disable=True)
        with pytest.raises(MonitorError):
            run(True, 0, stored=stored, progress=bar)
        assert [task.description for task in bar.tasks] == [said]
    assert {_doing(stored, 5).rstrip() for stored in (1, 4)} == {"replaying news"}


def judge_all(engine: Engine) -> None:
    last = int(_stream().last_minute.timestamp()) // 60
    row = {"name": "surges", "judged_to": last, "version": 1, "lease_holder": "", "lease_until": AT}
    with writing(engine) as connection:
        connection.execute(insert(tables.judge).values(row))


def test_a_demo_that_finds_nothing_says_so_and_which_settings_are_its_own(replay: tuple[Replay, Engine]) -> None:
    run, engine = replay
    judge_all(engine)
    said = run(False, model="own", surge_budget=1e-9)
    assert said.endswith(
        "no alert about ticker:INFY came: the judge has found no surge. This demo has settings of its own: model, "
        "surge_budget."
    )
    with pytest.raises(MonitorError, match="the judge has found no surge") as told_once:
        run(True)
    assert "alerts why ticker:INFY --at 2026-03-06T15:26" in str(told_once.value)
    assert "of its own" not in str(told_once.value)


def test_a_demo_that_takes_too_long_says_what_is_missing(replay: tuple[Replay, Engine]) -> None:
    run, _ = replay
    with pytest.raises(MonitorError) as late:
        run(True, 0, stored=False)
    assert str(late.value).startswith(
        "The demo was not done within the time allowed: 0 of 5 items are stored; nothing is judged; no alert about "
        "ticker:INFY has arrived."
    )
