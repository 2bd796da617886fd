"""One count series: scores from the past only, the hold-off, any interval, the table's form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import InputError
from monitor.surges.series import Row, ScoredRow, SeriesJudge, read_rows

START = datetime(2015, 2, 26, 21, 42, tzinfo=UTC)


def series(seed: int, rows: int, step: timedelta) -> list[Row]:
    g = np.random.default_rng(seed)
    values = g.negative_binomial(2, 0.05, rows)
    return [Row(str(i), START + i * step, float(v)) for i, v in enumerate(values)]


def scored(rows: list[Row]) -> list[ScoredRow]:
    judge = SeriesJudge(0.01)
    return [judge.step(row) for row in rows]


@pytest.mark.parametrize("step", [timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)])
def test_a_burst_beyond_the_past_scores_highest(step: timedelta) -> None:
    rows = series(1, 800, step)
    rows[700] = rows[700]._replace(value=2000.0)
    got = scored(rows)
    assert max(got, key=lambda s: s.anomaly_score).row is rows[700]
    assert got[700].anomaly_score > 0.6
    assert all(0.0 <= s.anomaly_score <= 1.0 for s in got)


def test_past_bursts_widen_the_dispersion() -> None:
    plain, bursty = series(2, 1500, timedelta(minutes=5)), series(2, 1500, timedelta(minutes=5))
    for i in range(100, 1400, 130):
        bursty[i] = bursty[i]._replace(value=1500.0)
    for rows in (plain, bursty):
        rows[1490] = rows[1490]._replace(value=1500.0)
    assert scored(bursty)[1490].raw < 0.5 * scored(plain)[1490].raw


def test_for_a_day_only_a_larger_surprise_scores() -> None:
    rows = series(3, 900, timedelta(minutes=5))
    for i, value in ((600, 1500.0), (700, 700.0), (800, 60000.0)):
        rows[i] = rows[i]._replace(value=value)
    got = scored(rows)
    assert got[600].anomaly_score > 0.5
    assert got[700].anomaly_score == 0.0
    assert got[800].anomaly_score > 0.5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 50), st.integers(30, 299), st.floats(0.0, 1e6))
def test_a_row_is_scored_from_itself_and_earlier_ones_only(seed: int, cut: int, value: float) -> None:
    rows = series(seed, 300, timedelta(minutes=5))
    changed = [*rows[:cut], *(row._replace(value=value) for row in rows[cut:])]
    assert scored(changed)[:cut] == scored(rows)[:cut]


GOOD = ["timestamp,value\n", "2015-02-26 21:42:53,104\n", "\n", "2015-02-26T21:47:53Z,0.5\n"]


def test_the_table_is_read_and_wrong_rows_are_named() -> None:
    assert [row.value for row in read_rows(["\n", "\ufeff\n", *GOOD], "a.csv")] == [104.0, 0.5]
    for wrong in ("2015-02-26 22:00:00,x", "never,1", "1"):
        with pytest.raises(InputError, match=r"Line 5 of a\.csv"):
            list(read_rows([*GOOD, wrong], "a.csv"))
    with pytest.raises(InputError, match="timestamp and value"):
        list(read_rows(["a,b\n"], "a.csv"))
    with pytest.raises(InputError, match="empty"):
        list(read_rows([], "a.csv"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2015-02-26 22:00:00,", "no value"),
        ("2015-02-26 22:00:00,nan", "not a count"),
        ("2015-02-26 22:00:00,inf", "not a count"),
        ("2015-02-26 22:00:00,-1", "not a count"),
        ("2014-01-01,1", "before that of the row before it"),
        ("1980-01-01,1", "before 1990"),
        ("2099-01-01,1", "months after"),
    ],
)
def test_a_row_that_cannot_be_judged_says_why_and_the_next_one_is_judged(line: str, problem: str) -> None:
    rows = list(read_rows([*GOOD, line + "\n", "2015-02-26 22:52:53,7\n"], "a.csv"))
    assert [row.value for row in rows if not row.problem] == [104.0, 0.5, 7.0]
    assert problem in rows[2].problem
    assert (rows[2].timestamp, rows[2].cell) == tuple(line.split(","))


def test_a_row_that_cannot_be_judged_scores_nothing_and_teaches_nothing() -> None:
    rows = series(4, 400, timedelta(minutes=5))
    judge, spoilt = SeriesJudge(0.01), []
    for number, row in enumerate(rows):
        if number % 7 == 3:
            bad = judge.step(row._replace(value=float("nan"), problem="there is no value"))
            assert (bad.raw, bad.anomaly_score) == (0.0, 0.0)
        spoilt.append(judge.step(row))
    assert spoilt == scored(rows)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1424986973", "2015-02-26T21:42:53+00:00"),
        ("1424986973.5", "2015-02-26T21:42:53.500000+00:00"),
        ("1424986973000", "2015-02-26T21:42:53+00:00"),
        ("2015-02-26 21:42:53", "2015-02-26T21:42:53+00:00"),
        ("2015-02-26T23:42:53+02:00", "2015-02-26T21:42:53+00:00"),
        ("2015-02-26", "2015-02-26T00:00:00+00:00"),
    ],
)
def test_times_come_in_the_usual_forms(text: str, time: str) -> None:
    (row,) = read_rows(["timestamp,value\n", f'"{text}",1\n'], "a.csv")
    assert (row.timestamp, row.at) == (text, datetime.fromisoformat(time))


def test_one_hasty_row_does_not_change_the_interval() -> None:
    """Hourly rows have no window of an hour beside that of a row, whatever one stray row says."""
    rows = series(5, 400, timedelta(hours=1))
    stray = Row("stray", rows[99].at + timedelta(seconds=1), rows[99].value)
    assert [s.raw for s in scored([*rows[:100], stray, *rows[100:]])][201:] == pytest.approx(
        [s.raw for s in scored(rows)][200:], rel=0.25, abs=0.1
    )


@pytest.mark.parametrize(
    ("interval", "length", "value", "rows"), [(1, 60, 120.0, 40), (60, 60, 2e3, 1), (1440, 1440, 2e3, 1)]
)
def test_an_alert_names_the_window_that_fired_with_its_own_mean(
    interval: int, length: int, value: float, rows: int
) -> None:
    made = series(6, 1600, timedelta(minutes=interval))
    usual = float(np.mean([row.value for row in made[:1500]])) * length / interval
    for i in range(1500, 1500 + rows):
        made[i] = made[i]._replace(value=made[i].value + value)
    judge = SeriesJudge(0.01, bar=7.0)
    for row in made:
        judge.step(row)
    alert = next(alert for alert in judge.alerts if alert.fired_at >= made[1500].at)
    assert alert.window.minutes == length
    assert alert.window.end - alert.window.start == timedelta(minutes=length)
    assert alert.expected == pytest.approx(usual, rel=0.5)
    assert alert.observed > 1.2 * alert.expected
