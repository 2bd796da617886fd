"""One key's counts as a plain series (`timestamp,value`), of any sampling interval.

A series has no stories and no other keys to compare with: what is left is the Gamma-Poisson test on the count, in two
windows, one row and one hour of rows. Two things differ from the judging of stories, both for long series of large
bursty counts: the past bursts are not winsorised but widen the key's own dispersion (its shape is that of its
discounted mean and variance), and a row counts only if it beats every score of the last day.

    raw = -log10(windows * min over windows of P(Y >= y)),   anomaly score = raw / (raw + HALF) or 0 in the hold-off

A row's score is computed from that row and earlier ones only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import numpy as np

from monitor.alerts.records import AlertWindow
from monitor.errors import InputError
from monitor.records import parse_time
from monitor.surges.backtest import BacktestAlert
from monitor.surges.budget import bar_from_history
from monitor.surges.decisions import episode_id
from monitor.surges.episodes import severity_of
from monitor.surges.keys import epoch_ms
from monitor.surges.mixture import mid_p
from monitor.surges.ticks import MINUTE_MS

__all__ = ["SERIES_KEY", "Row", "ScoredRow", "SeriesJudge", "read_rows"]

SERIES_KEY: Final = "series"
HOLD_OFF: Final = timedelta(days=1)
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
# The score that maps to one half.
HALF: Final = 3.0
HALF_LIFE_DAYS: Final = 7.0
# A slowly sampled series has few rows in a week: then the half-life is this many rows.
HALF_LIFE_ROWS: Final = 200.0
SEASON_HALF_LIFE_DAYS: Final = 28.0
SEASON_ROWS: Final = 24.0
# Rows before which the mean and variance say too little to judge by.
MIN_ROWS: Final = 24
MAX_RAW: Final = 300.0


class Row(NamedTuple):
    """One line: the timestamp as it was written, the time it means (UTC), the count."""

    timestamp: str
    at: datetime
    value: float


class ScoredRow(NamedTuple):
    """A row's `raw` = -log10 of its p-value, and its `anomaly_score` in [0, 1] with the hold-off applied."""

    row: Row
    raw: float
    anomaly_score: float


def read_rows(lines: Iterable[str], name: str, skipped: list[str] | None = None) -> Iterator[Row]:
    """Rows of a CSV with the header `timestamp,value` (further columns are ignored).

    Raises `InputError` naming the line of a wrong row (or puts the sentence into `skipped` and goes on), and when the
    header is another.
    """
    header: list[str] | None = None
    before: datetime | None = None
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip().strip('"') for cell in line.lstrip("\ufeff").split(",")]
        if header is None:
            header = [cell.lower() for cell in cells]
            if "timestamp" not in header or "value" not in header:
                raise InputError(f"{name} lacks the columns timestamp and value.", "The first line must name them.")
            continue
        if not line.strip():
            continue
        problem, row = _row(cells, header)
        if row is not None and before is not None and row.at < before:
            problem, row = "the rows are not in order of time", None
        if row is not None:
            before = row.at
            yield row
            continue
        message = f"Line {number} of {name} cannot be used: {problem}."
        if skipped is None:
            raise InputError(message, "Mend the line, or leave wrong lines out with --skip-bad.")
        skipped.append(message)
    if header is None:
        raise InputError(f"{name} is empty.", "It must begin with the line timestamp,value.")


def _row(cells: list[str], header: list[str]) -> tuple[str, Row | None]:
    if len(cells) < len(header):
        return "it has too few columns", None
    timestamp, text = cells[header.index("timestamp")], cells[header.index("value")]
    try:
        at = parse_time(timestamp)
        value = float(text)
    except (ValueError, OverflowError):
        return f"{text[:40]!r} is not a number", None
    if at is None:
        return f"{timestamp[:40]!r} is not a time", None
    if not math.isfinite(value) or value < 0.0:
        return f"{text[:40]!r} is not a count", None
    return "", Row(timestamp, at, value)


class _Moments:
    """Discounted mean and variance of counts relative to the season."""

    def __init__(self) -> None:
        self.weight = self.total = self.squares = 0.0

    def learn(self, value: float, keep: float) -> None:
        self.weight = self.weight * keep + 1.0
        self.total = self.total * keep + value
        self.squares = self.squares * keep + value * value

    def tail(self, value: float, season: float) -> float:
        """Mid-p of a count this high where `season` times the mean is expected."""
        mean = max(self.total / self.weight, 0.5 / self.weight)
        variance = max(self.squares / self.weight - mean * mean, 0.0)
        # Never narrower than Poisson, nor than the mean itself is known.
        excess = max(variance - mean, mean * mean / self.weight)
        mean_now = np.array(mean * season)
        return float(mid_p(np.array(value), mean_now, np.array(mean * mean / excess)))


class SeriesJudge:
    """Scores rows in turn and keeps the `alerts` that they raise.

    Parameters
    ----------
    budget : false alarms allowed per day.
    bar : raw score to alert at; None: set online from the series' own earlier peaks.
    """

    def __init__(self, budget: float, bar: float | None = None) -> None:
        self.alerts: list[BacktestAlert] = []
        self.peaks: list[float] = []
        self._budget = budget
        self._bar = bar
        self._first: datetime | None = None
        self._last: datetime | None = None
        self._interval = 0.0
        self._rows = 0
        self._row, self._hour = _Moments(), _Moments()
        self._recent: deque[Row] = deque()
        self._waiting: deque[tuple[Row, float]] = deque()
        # Raw scores of the last day that no later one has beaten, falling: the first is the largest.
        self._day: deque[tuple[datetime, float]] = deque()
        self._observed = np.zeros(24)
        self._expected = np.zeros(24)

    @property
    def days(self) -> float:
        """Days of the series so far."""
        return (self._last - self._first).total_seconds() / DAY_S if self._first and self._last else 0.0

    def step(self, row: Row) -> ScoredRow:
        """Score the next row."""
        if self._last is not None:
            gap = (row.at - self._last).total_seconds()
            if gap > 0.0:
                self._interval = gap if self._interval == 0.0 else min(self._interval, gap)
        self._first = self._first or row.at
        self._last = row.at
        self._rows += 1
        self._learn_waiting(row.at)
        raw, hour = self._raw(row)
        while self._day and self._day[0][0] <= row.at - HOLD_OFF:
            self._day.popleft()
        beats = not self._day or raw > self._day[0][1]
        while self._day and self._day[-1][1] <= raw:
            self._day.pop()
        self._day.append((row.at, raw))
        score = raw / (raw + HALF) if beats else 0.0
        if beats and raw > 0.0:
            self._alert(row, raw, hour)
        self._waiting.append((row, hour))
        return ScoredRow(row, raw, score)

    def _season(self, at: datetime) -> float:
        hour = at.hour
        return float((self._observed[hour] + SEASON_ROWS) / (self._expected[hour] + SEASON_ROWS))

    def _raw(self, row: Row) -> tuple[float, float]:
        """-log10 of the p-value, and the count of the last hour."""
        self._recent.append(row)
        while self._recent[0].at <= row.at - timedelta(seconds=HOUR_S):
            self._recent.popleft()
        hour = sum(r.value for r in self._recent)
        if self._rows <= MIN_ROWS or self._row.weight < MIN_ROWS / 2:
            return 0.0, hour
        season = self._season(row.at)
        tails = [self._row.tail(row.value, season)]
        if self._interval <= HOUR_S / 2:
            tails.append(self._hour.tail(hour, season))
        p = min(tails) * len(tails)
        return min(max(-math.log10(max(p, 1e-300)), 0.0), MAX_RAW), hour

    def _learn_waiting(self, now: datetime) -> None:
        """Rows are learned an hour late: what goes on is not held against itself."""
        while self._waiting and self._waiting[0][0].at <= now - timedelta(seconds=HOUR_S):
            row, hour = self._waiting.popleft()
            rows_a_day = DAY_S / self._interval if self._interval else 1.0
            keep = 0.5 ** (1.0 / max(HALF_LIFE_DAYS * rows_a_day, HALF_LIFE_ROWS))
            season = self._season(row.at)
            self._row.learn(row.value / season, keep)
            self._hour.learn(hour / season, keep)
            if self._interval <= HOUR_S:
                mean = max(self._row.total / self._row.weight, 1e-9)
                slot = row.at.hour
                fade = 0.5 ** (24.0 / (SEASON_HALF_LIFE_DAYS * max(rows_a_day, 24.0)))
                # In units of a mean row, and a burst counts as a few: the season is what is usual.
                self._observed[slot] = self._observed[slot] * fade + min(row.value / mean, 3.0)
                self._expected[slot] = self._expected[slot] * fade + 1.0

    def _alert(self, row: Row, raw: float, hour: float) -> None:
        bar = self._bar
        firing = self.alerts and self.alerts[-1].resolved_at is not None and row.at < self.alerts[-1].resolved_at
        if bar is None and not firing:
            bar = bar_from_history(self.peaks, max(self.days, 1.0), self._budget)
        self.peaks.append(raw)
        if firing or bar is None or raw < bar:
            return
        minute = epoch_ms(row.at) // MINUTE_MS
        mean = self._row.total / max(self._row.weight, 1e-9) * self._season(row.at)
        self.alerts.append(
            BacktestAlert(
                id=episode_id(SERIES_KEY, SERIES_KEY, minute),
                key=SERIES_KEY,
                rule="series",
                severity=severity_of(raw, bar),
                started_at=row.at,
                fired_at=row.at,
                resolved_at=row.at + HOLD_OFF,
                window=AlertWindow(minutes=60, start=row.at - timedelta(hours=1), end=row.at),
                observed=round(row.value),
                expected=round(mean, 4),
                total=round(hour),
                share=0.0,
                expected_share=0.0,
                p_value=10.0**-raw,
                score=round(raw, 4),
                sources=0,
                stories=(),
            )
        )
