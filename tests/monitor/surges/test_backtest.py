"""Back-tests end to end: quality on a small generated stream, the bar, lines of either form, and the verb."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from monitor.errors import InputError
from monitor.records import Rejected, Sentiment
from monitor.surges.backtest import Backtest, BacktestAlert, History, measure_history
from monitor.surges.counting import CountingConfig
from monitor.surges.judge import JudgeConfig
from monitor.surges.keys import contributions
from monitor.surges.lines import decode_scored, read_scored
from tests.monitor.surges.builders import stream

DAYS, KEYS = 7, 20


def lines(items: list[dict[str, object]]) -> list[bytes]:
    return [json.dumps(item).encode() for item in items]


def alerts_of(items: list[dict[str, object]], config: JudgeConfig) -> list[BacktestAlert]:
    run = Backtest(CountingConfig(), config)
    for item in read_scored(lines(items), "items"):
        run.add(item)
    run.finish()
    return run.alerts


@pytest.fixture(scope="module")
def history() -> History:
    items, _ = stream(1, KEYS, DAYS, surges=0)
    return measure_history(read_scored(lines(items), "history"), CountingConfig(), JudgeConfig())


@pytest.fixture(scope="module")
def planted() -> tuple[list[dict[str, object]], list[tuple[str, datetime, datetime, float]]]:
    return stream(2, KEYS, DAYS, surges=12)


@pytest.fixture(scope="module")
def found(
    history: History, planted: tuple[list[dict[str, object]], list[tuple[str, datetime, datetime, float]]]
) -> list[BacktestAlert]:
    return alerts_of(planted[0], JudgeConfig(bar=history.bar(0.03)))


def test_planted_surges_are_found_and_little_else(
    found: list[BacktestAlert], planted: tuple[list[dict[str, object]], list[tuple[str, datetime, datetime, float]]]
) -> None:
    surges = [surge for surge in planted[1] if surge[3] >= 6]
    hour = timedelta(hours=1)

    def hits(alert: BacktestAlert) -> bool:
        return any(key == alert.key and begin <= alert.fired_at <= end + hour for key, begin, end, _ in planted[1])

    caught = [s for s in surges if any(a.key == s[0] and s[1] <= a.fired_at <= s[2] + hour for a in found)]
    assert len(surges) >= 6
    assert len(caught) >= 0.8 * len(surges)
    false = [a for a in found if a.key.startswith("ticker:") and not hits(a)]
    # 20 keys, 6 days judged, a budget of .03: 4 are allowed, with room for chance.
    assert len(false) <= 8


def test_an_alert_carries_its_evidence(found: list[BacktestAlert]) -> None:
    for alert in found:
        assert alert.started_at < alert.fired_at
        assert alert.window.end - alert.window.start == timedelta(minutes=alert.window.minutes)
        assert alert.observed > alert.expected
        assert len(alert.stories) == min(alert.observed, 20)
        assert all(alert.window.start <= story.published_at < alert.window.end for story in alert.stories)
        assert alert.sources >= 1


def test_cutting_the_input_or_repeating_lines_changes_nothing(history: History) -> None:
    items, _ = stream(3, 12, 4, surges=4, quiet_days=2)
    config = JudgeConfig(bar=2.0)
    once = alerts_of(items, config)
    twice = alerts_of([item for item in items for _ in range(2)], config)
    swapped = list(items)
    at = [datetime.fromisoformat(str(item["published_at"])) for item in items]
    for i in range(0, len(items) - 1, 2):
        if at[i + 1] - at[i] < timedelta(seconds=50):
            swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
    decided = lambda alerts: [(a.id, a.fired_at, a.resolved_at, a.observed, a.score) for a in alerts]  # noqa: E731
    assert len(once) > 3
    assert decided(twice) == decided(once)
    assert decided(alerts_of(swapped, config)) == decided(once)


def test_a_history_sets_a_bar_that_falls_with_the_budget(history: History) -> None:
    assert history.key_days == pytest.approx(KEYS * DAYS * 2 / 3, rel=0.15)
    assert 1.5 < history.bar(0.1) < history.bar(0.01) < history.bar(0.001) < 9.0


def test_both_forms_of_a_line_are_taken() -> None:
    short = decode_scored(
        b'{"id":"1","published_at":"2026-01-05T10:00:00Z","source":"s","title":"t","tickers":["aapl"],'
        b'"topic":"earnings","sentiment":"negative","p_negative":0.8}'
    )
    long = decode_scored(
        b'{"id":"1","published_at":"2026-01-05T10:00:00Z","source":"s","title":"t","tickers":["AAPL"],'
        b'"topic":{"label":"earnings","probabilities":{"earnings":1.0}},'
        b'"sentiment":{"label":"negative","negative":0.8,"neutral":0.1,"positive":0.1},'
        b'"entities":[{"name":"Tesla","ticker":"TSLA","sentiment":{"label":"positive","negative":0.1,"neutral":0.2,'
        b'"positive":0.7}}]}'
    )
    assert not isinstance(short, Rejected)
    assert not isinstance(long, Rejected)
    assert [c.key for c in contributions(short)] == ["ticker:AAPL", "topic:earnings"]
    rows = {c.key: (c.negative, c.p_negative) for c in contributions(long)}
    # The ticker that was linked counts with the sentiment towards it.
    assert rows == {"ticker:AAPL": (True, 0.8), "ticker:TSLA": (False, 0.1), "topic:earnings": (True, 0.8)}
    assert short.sentiment.label is Sentiment.NEGATIVE


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"published_at":"yesterday","topic":"x","sentiment":"negative"}',
        b'{"published_at":"2026-01-05T10:00:00Z","topic":"x","sentiment":"awful"}',
        b'{"published_at":"2026-01-05T10:00:00Z","topic":"x","sentiment":"negative","p_negative":2}',
        b'{"published_at":"2026-01-05T10:00:00Z","sentiment":"negative"}',
        b'{"published_at":"2026-01-05T10:00:00Z","topic":"x","sentiment":"negative","tickers":"AAPL"}',
        b'{"published_at":"2026-01-05T10:00:00Z","topic":"x","sentiment":"negative","title":3}',
        b"\xff\xfe",
    ],
)
def test_a_wrong_line_is_named_or_left_out(line: bytes) -> None:
    skipped: list[str] = []
    assert list(read_scored([b"\n", line], "f.jsonl", skipped)) == []
    assert "Line 2 of f.jsonl" in skipped[0]
    with pytest.raises(InputError, match=r"Line 2 of f\.jsonl"):
        list(read_scored([b"\n", line], "f.jsonl"))


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "monitor.cli.app", "backtest", *arguments], input=stdin, capture_output=True, check=False
    )


def test_the_verb_reads_a_pipe_and_prints_alerts() -> None:
    items, _ = stream(5, 6, 3, surges=3, factor=40.0, quiet_days=1)
    got = run("-", "--budget", "0.5", "--surge", "negative", "--surge", "volume", stdin=b"\n".join(lines(items)))
    assert got.returncode == 0, got.stderr
    told = [json.loads(line) for line in got.stdout.splitlines()]
    assert {alert["surge"] for alert in told} == {"negative", "volume"}
    assert b"negative alerts at a bar of" in got.stderr
    alerts = [alert for alert in told if alert["surge"] == "negative"]
    assert {"id", "key", "fired_at", "resolved_at", "severity", "stories", "observed", "expected"} <= set(alerts[0])
    assert [a["fired_at"] for a in alerts] == sorted(a["fired_at"] for a in alerts)
    again = alerts_of(items, JudgeConfig(budget=0.5))
    assert [msgspec.to_builtins(a.id) for a in again] == [a["id"] for a in alerts]


def test_the_verb_names_a_wrong_line_and_refuses_scores_of_items(tmp_path: Path) -> None:
    wrong = run("-", stdin=b'{"published_at":1}\n')
    assert wrong.returncode == 3
    assert b"Line 1 of standard input" in wrong.stderr
    assert b"Traceback" not in wrong.stderr
    refused = run("-", "--scores", str(tmp_path / "s.csv"), stdin=b"{}\n")
    assert refused.returncode == 2
    assert b"--scores is for a CSV" in refused.stderr
    unknown = run("-", "--surge", "neutral", stdin=b"{}\n")
    assert unknown.returncode == 2
    assert b"There are: negative, positive, volume" in unknown.stderr
