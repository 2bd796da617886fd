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


def test_the_table_is_read_and_wrong_rows_are_named() -> None:
    good = ["timestamp,value\n", "2015-02-26 21:42:53,104\n", "\n", "2015-02-26T21:47:53Z,0.5\n"]
    assert [row.value for row in read_rows(good, "a.csv")] == [104.0, 0.5]
    for wrong in ("2015-02-26 21:00:00,x", "never,1", "2015-02-26 22:00:00,-1", "2015-02-26 22:00:00,nan", "1"):
        with pytest.raises(InputError, match=r"Line 5 of a\.csv"):
            list(read_rows([*good, wrong], "a.csv"))
    with pytest.raises(InputError, match="order of time"):
        list(read_rows([*good, "2014-01-01,1"], "a.csv"))
    with pytest.raises(InputError, match="timestamp and value"):
        list(read_rows(["a,b\n"], "a.csv"))
    with pytest.raises(InputError, match="empty"):
        list(read_rows([], "a.csv"))
