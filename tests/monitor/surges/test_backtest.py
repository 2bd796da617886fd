"""Back-tests end to end: quality on a small generated stream, the bar, lines of either form, and the verb."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from monitor.alerts.rules import load_rules
from monitor.cli.backtest import _past
from monitor.errors import InputError, RuleError
from monitor.records import Rejected, Sentiment
from monitor.settings import Settings
from monitor.surges.backtest import Backtest, BacktestAlert
from monitor.surges.counting import CountingConfig
from monitor.surges.history import History, measure_history
from monitor.surges.judge import Decision, Judge, JudgeConfig, MinuteCounts
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
    return alerts_of(planted[0], JudgeConfig(budget=0.03, height=history.height))


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


def test_a_history_shows_how_high_the_tail_is(history: History) -> None:
    assert history.key_days == pytest.approx(KEYS * DAYS * 2 / 3, rel=0.15)
    assert 0.6 < history.height < 1.6
    with pytest.raises(ValueError, match="key-days"):
        _ = History((), 0.0).height


def test_a_history_that_comes_later_gives_the_alerts_of_one_known_from_the_beginning(
    planted: tuple[list[dict[str, object]], list[tuple[str, datetime, datetime, float]]],
) -> None:
    sorts = ("negative", "volume")
    items = list(read_scored(lines(planted[0]), "items"))

    def run(heights: tuple[float | None, float | None], *, later: bool, hold_off: int) -> Backtest:
        judging = [JudgeConfig(budget=0.1, height=height, hold_off_minutes=hold_off) for height in heights]
        made = Backtest(
            CountingConfig(),
            *(config.watching(surge) for config, surge in zip(judging, sorts, strict=True)),
            history_later=later,
        )
        for item in items:
            made.add(item)
        made.finish()
        return made

    for hold_off in (0, 600):
        later = run((None, None), later=True, hold_off=hold_off)
        assert later.alerts == []
        later.decide((0.2, 0.5))
        known = run((0.2, 0.5), later=False, hold_off=hold_off)
        assert {alert.key.partition(":")[0] for alert in known.alerts} == {"ticker", "topic", "market"}
        assert len({alert.surge for alert in known.alerts}) == 2
        assert later.alerts == known.alerts
        assert [watch.bar for watch in later.watches] == [watch.bar for watch in known.watches]


def test_one_item_far_ahead_of_all_others_changes_nothing(
    planted: tuple[list[dict[str, object]], list[tuple[str, datetime, datetime, float]]],
) -> None:
    config = JudgeConfig(bar=2.5)
    items = list(read_scored(lines(planted[0]), "items"))
    for days in (3, 30):
        ahead = msgspec.structs.replace(
            items[100], id="ahead", published_at=items[100].published_at + timedelta(days=days), title="quite another"
        )
        run = Backtest(CountingConfig(), config)
        for number, item in enumerate(items):
            run.add(item)
            if number == 100:
                # Sent twice, as a queue may: that bears nothing out.
                run.add(ahead)
                run.add(ahead)
        run.finish()
        assert (run.alone, run.late, run.stale) == (1, 0, 0)
        known = alerts_of(planted[0], config)
        assert known
        if days == 30:
            assert [a.id for a in run.alerts] == [a.id for a in known]
        else:
            assert abs(len(run.alerts) - len(known)) <= 1


def test_after_a_gap_of_months_judging_begins_anew_without_stepping_through_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, _ = stream(3, 12, 4, surges=4, quiet_days=2)
    config = JudgeConfig(bar=2.0)
    gap = timedelta(days=4000)
    moved = [
        {**item, "published_at": (datetime.fromisoformat(str(item["published_at"])) - gap).isoformat(), "id": f"old{n}"}
        for n, item in enumerate(made)
    ]
    steps = 0
    step = Judge.step

    def counted(self: Judge, minute: int, counts: MinuteCounts) -> list[Decision]:
        nonlocal steps
        steps += 1
        return step(self, minute, counts)

    monkeypatch.setattr(Judge, "step", counted)
    alerts = alerts_of([*moved, *made], config)
    once = alerts_of(made, config)
    assert len(once) > 3
    told = lambda alert: (alert.key, alert.observed, alert.score, alert.severity)  # noqa: E731
    assert [told(a) for a in alerts] == [told(a) for a in once] * 2
    assert [a.id for a in alerts[len(once) :]] == [a.id for a in once]
    assert all(alert.resolved_at for alert in alerts[: len(once)])
    assert steps < 4 * 4 * 1440
    measured = measure_history(read_scored(lines([*moved, *made]), "history"), CountingConfig(), config)
    single = measure_history(read_scored(lines(made), "history"), CountingConfig(), config)
    assert measured.key_days == pytest.approx(2 * single.key_days, rel=0.1)
    assert set(single.peaks) <= set(measured.peaks)


def test_absurd_dates_are_refused_and_said_like_live(history: History) -> None:
    made, _ = stream(3, 12, 4, surges=4, quiet_days=2)
    config = JudgeConfig(bar=2.0)
    absurd = ["1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z", "9999-12-31T23:59:59-10:00"]
    spoilt = list(made)
    for place, date in zip((0, 50, 51), absurd, strict=True):
        spoilt.insert(place, {**made[0], "published_at": date, "id": date})
    refused: list[str] = []
    read = list(read_scored(lines(spoilt), "spoilt", None, refused))
    assert read == list(read_scored(lines(made), "made"))
    assert [date in message for date, message in zip(absurd, refused, strict=True)] == [True, False, True]
    assert "Line 51 of spoilt" in refused[1]
    got = run("-", "--budget", "0.5", stdin=b"\n".join(lines(spoilt)))
    assert got.returncode == 0, got.stderr
    assert b"3 refused for their date" in got.stderr
    assert alerts_of(made, config)
    with pytest.raises(InputError, match="before 1990 or in the future"):
        list(read_scored(lines(spoilt), "spoilt"))


def test_a_stream_that_is_all_still_to_come_is_simulated() -> None:
    made, _ = stream(3, 3, 2, surges=0, quiet_days=0)
    moved = [{**item, "published_at": f"2098{str(item['published_at'])[4:]}"} for item in made]
    assert len(list(read_scored(lines(moved), "moved"))) == len(made)


def test_a_history_is_measured_the_same_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = stream(1, 6, 3, surges=0, quiet_days=1)
    file = tmp_path / "history.jsonl"
    file.write_bytes(b"\n".join(lines(made)))
    judging = [JudgeConfig()]
    found = []
    for bytes_ in (1 << 40, 0):
        monkeypatch.setattr("monitor.cli.backtest._WORTH_A_PROCESS", bytes_)
        with ExitStack() as stack:
            found.append(_past(stack, file, CountingConfig(), judging, False)())
    assert found[0] == found[1]
    assert found[0].histories[0].peaks
    file.write_bytes(b"\n".join([*lines(made), b"{"]))
    with ExitStack() as stack, pytest.raises(InputError, match=rf"Line {len(made) + 1} of .*history"):
        _past(stack, file, CountingConfig(), judging, False)()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"id": "", "url": "http://x.example"},
        {"p_negative": None},
        {"p_negative": 1},
        {"tickers": [], "sentiment": "positive", "p_negative": 0.25},
        {"tickers": None, "source": None},
        {"published_at": "2026-01-05"},
        {"published_at": "2026-01-05T10:00:00+02:00", "model_version": "m", "more": {"a": [1]}},
        {"entities": [{"name": "Tesla", "ticker": "TSLA", "sentiment": "negative"}]},
        {"p_negative": 2},
        {"topic": ""},
        {"published_at": "1969-01-05T10:00:00Z"},
        {"sentiment": "awful"},
        {"tickers": "AAPL"},
    ],
)
def test_the_short_way_reads_a_line_as_the_long_one_does(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps(
        {
            "id": "1",
            "published_at": "2026-01-05T10:00:00Z",
            "source": "s",
            "title": "t",
            "tickers": ["aapl", "$MSFT"],
            "topic": "earnings",
            "sentiment": "negative",
            "p_negative": 0.8,
            **change,
        }
    ).encode()
    short = decode_scored(line)
    monkeypatch.setattr("monitor.surges.lines._short_form", lambda _line: None)
    assert short == decode_scored(line)


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


def test_the_block_that_a_history_prints_gives_the_same_alerts_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_settings: Callable[..., Settings]
) -> None:
    past, _ = stream(1, 6, 4, surges=0, quiet_days=1)
    items, _ = stream(5, 6, 3, surges=3, factor=40.0, quiet_days=1)
    history, file, rules = (tmp_path / name for name in ("history.jsonl", "items.jsonl", "rules.toml"))
    history.write_bytes(b"\n".join(lines(past)))
    file.write_bytes(b"\n".join(lines(items)))
    sorts = ("--surge", "negative", "--surge", "volume", "--budget", "0.1")
    first = run(str(file), "--history", str(history), *sorts)
    assert first.returncode == 0, first.stderr
    block = first.stderr.decode()[first.stderr.index(b"[judge]") :]
    rules.write_text(block)
    heights = dict(load_rules(make_settings(rules_file=str(rules))).judge.heights)
    assert set(heights) == {"negative", "volume"}
    monkeypatch.setenv("SENTIMENT_MONITOR_RULES_FILE", str(rules))
    again = run(str(file), *sorts)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout != b""
    for wrong in ("{ neutral = 3.0 }", "{ negative = 0 }", "{ negative = nan }"):
        rules.write_text(f"[judge]\nheights = {wrong}\n")
        with pytest.raises(RuleError, match="line 2"):
            load_rules(make_settings(rules_file=str(rules)))


def test_scores_are_under_their_name_only_when_they_are_complete(tmp_path: Path) -> None:
    table, scores, out = (tmp_path / name for name in ("in.csv", "scores.csv", "alerts.jsonl"))
    rows = [f"2026-01-05 {minute // 60:02}:{minute % 60:02}:00,{minute % 7}" for minute in range(300)]
    rows[100:102] = ["2026-01-05 01:40:00,", "2026-01-04 01:41:00,nan"]
    table.write_text("\n".join(["", "timestamp,value", *rows]))
    scores.write_text("before")
    done = run(str(table), "--scores", str(scores), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert b"2 rows could not be judged" in done.stderr
    told = scores.read_text().splitlines()
    assert len(told) == 301
    assert told[101:103] == ["2026-01-05 01:40:00,,0.000000", "2026-01-04 01:41:00,nan,0.000000"]
    table.write_text("\n".join(["timestamp,value", *rows, "never,1"]))
    wrong = run(str(table), "--scores", str(scores), "--out", str(out))
    assert wrong.returncode == 3
    assert b"Line 302" in wrong.stderr
    assert scores.read_text().splitlines() == told
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alerts.jsonl", "in.csv", "scores.csv"]


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
