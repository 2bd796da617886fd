"""One key's counts as a plain series (`timestamp,value`), of any sampling interval.

A series has no stories and no other keys to compare with: what is left is the Gamma-Poisson test on the count, in two
windows, one row and one hour of rows. Two things differ from the judging of stories, both for long series of large
bursty counts: the past bursts are not winsorised but widen the key's own dispersion (its shape is that of its
discounted mean and variance), and a row counts only if it beats every score of the last day.

    raw = -log10(windows * min over windows of P(Y >= y)),   anomaly score = raw / (raw + HALF) or 0 in the hold-off

A row's score is computed from that row and earlier ones only. A row without a count (an empty cell, a negative one) or
out of place in time scores 0, and nothing is learned from it.
"""

from __future__ import annotations

import csv
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Final, NamedTuple

import numpy as np

from monitor.alerts.records import AlertWindow
from monitor.errors import InputError
from monitor.records import EARLIEST, parse_time
from monitor.surges.backtest import BacktestAlert
from monitor.surges.budget import bar_from_history
from monitor.surges.decisions import episode_id
from monitor.surges.episodes import severity_of
from monitor.surges.keys import epoch_ms
from monitor.surges.mixture import mid_p
from monitor.surges.ticks import MAX_GAP_MINUTES, MINUTE_MS, Reached

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
# The sampling interval is the median of so many gaps: neither one gap nor one hasty row makes another of it.
RECENT_GAPS: Final = 25

_SECONDS = re.compile(r"\d{9,10}(?:\.\d+)?")
_MILLISECONDS = re.compile(r"\d{12,13}")


class Row(NamedTuple):
    """One line: the timestamp as it was written, the time it means (UTC), the count. `problem` says why it cannot be
    judged, empty for nearly all: `value` is not a number then, and `cell` what stood there."""

    timestamp: str
    at: datetime
    value: float
    problem: str = ""
    cell: str = ""


class ScoredRow(NamedTuple):
    """A row's `raw` = -log10 of its p-value, and its `anomaly_score` in [0, 1] with the hold-off applied."""

    row: Row
    raw: float
    anomaly_score: float


def read_rows(lines: Iterable[str], name: str, skipped: list[str] | None = None) -> Iterator[Row]:
    """Rows of a CSV with the header `timestamp,value` (further columns are ignored). Timestamps are RFC 3339 with or
    without a zone (UTC then), dates, or seconds or milliseconds since 1970.

    A row whose value is no count, or whose time lies before that of the row before it, or months after both its
    neighbours', has a `problem`. Raises `InputError` naming the line of a row that cannot be read at all (or puts the
    sentence into `skipped` and goes on), and when the header is another.
    """
    header: list[str] | None = None
    order = _Order()
    for number, line in enumerate(lines, start=1):
        if not line.strip("\ufeff \t\r\n"):
            continue
        cells = [cell.strip() for cell in next(csv.reader([line.lstrip("\ufeff")], skipinitialspace=True))]
        if header is None:
            header = [cell.lower() for cell in cells]
            if "timestamp" not in header or "value" not in header:
                raise InputError(f"{name} lacks the columns timestamp and value.", "The first line must name them.")
            continue
        row = _row(cells, header)
        if isinstance(row, Row):
            yield order.checked(row)
            continue
        message = f"Line {number} of {name} cannot be used: {row}."
        if skipped is None:
            raise InputError(message, "Mend the line, or leave wrong lines out with --skip-bad.")
        skipped.append(message)
    if header is None:
        raise InputError(f"{name} is empty.", "It must begin with the line timestamp,value.")


def _row(cells: list[str], header: list[str]) -> Row | str:
    """The row, or why it cannot be read."""
    if len(cells) < len(header):
        return "it has too few columns"
    timestamp, cell = cells[header.index("timestamp")], cells[header.index("value")]
    at = _time(timestamp)
    if at is None:
        return f"{timestamp[:40]!r} is not a time"
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        return f"{cell[:40]!r} is not a number"
    if not math.isfinite(value) or value < 0.0:
        return Row(timestamp, at, math.nan, f"{cell[:40]!r} is not a count" if cell else "there is no value", cell)
    return Row(timestamp, at, value)


def _time(text: str) -> datetime | None:
    try:
        if _SECONDS.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
        if _MILLISECONDS.fullmatch(text):
            return datetime.fromtimestamp(int(text) / 1000.0, UTC)
        return parse_time(text)
    except OverflowError:
        return None


class _Order:
    """Which rows are in their place in time: one wrong date must not put all rows after it out of theirs."""

    def __init__(self) -> None:
        self._reached = Reached(MAX_GAP_MINUTES * MINUTE_MS)
        self._last: datetime | None = None

    def checked(self, row: Row) -> Row:
        self._reached.read(max(epoch_ms(row.at), 0))
        if row.problem:
            return row
        problem = ""
        if row.at < EARLIEST:
            problem = "its time lies before 1990"
        elif self._last is not None and row.at < self._last:
            problem = "its time lies before that of the row before it"
        elif self._reached.ahead == epoch_ms(row.at):
            problem = "its time lies months after that of the row before it"
        if problem:
            return row._replace(value=math.nan, problem=problem, cell=f"{row.value:.10g}")
        self._last = row.at
        return row


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


class _Window(NamedTuple):
    """So many seconds up to a row with what they count, and what such a window usually does."""

    seconds: float
    value: float
    moments: _Moments


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
        # Seconds between rows, and what that was of late.
        self._interval = 0.0
        self._gaps: deque[float] = deque(maxlen=RECENT_GAPS)
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
        if row.problem:
            return ScoredRow(row, 0.0, 0.0)
        if self._last is not None:
            gap = (row.at - self._last).total_seconds()
            if gap > 0.0:
                self._gaps.append(gap)
                self._interval = median(self._gaps)
        self._first = self._first or row.at
        self._last = row.at
        self._rows += 1
        self._learn_waiting(row.at)
        raw, window = self._raw(row)
        while self._day and self._day[0][0] <= row.at - HOLD_OFF:
            self._day.popleft()
        beats = not self._day or raw > self._day[0][1]
        while self._day and self._day[-1][1] <= raw:
            self._day.pop()
        self._day.append((row.at, raw))
        score = raw / (raw + HALF) if beats else 0.0
        if beats and raw > 0.0:
            self._alert(row, raw, window)
        self._waiting.append((row, self._last_hour()))
        return ScoredRow(row, raw, score)

    def _season(self, at: datetime) -> float:
        hour = at.hour
        return float((self._observed[hour] + SEASON_ROWS) / (self._expected[hour] + SEASON_ROWS))

    def _last_hour(self) -> float:
        return sum(row.value for row in self._recent)

    def _raw(self, row: Row) -> tuple[float, _Window]:
        """-log10 of the p-value, and the window that is more surprising than the other."""
        self._recent.append(row)
        while self._recent[0].at <= row.at - timedelta(seconds=HOUR_S):
            self._recent.popleft()
        alone = _Window(self._interval or HOUR_S, row.value, self._row)
        if self._rows <= MIN_ROWS or self._row.weight < MIN_ROWS / 2:
            return 0.0, alone
        season = self._season(row.at)
        windows = [alone]
        if self._interval <= HOUR_S / 2:
            windows.append(_Window(HOUR_S, self._last_hour(), self._hour))
        tails = [window.moments.tail(window.value, season) for window in windows]
        p = min(tails) * len(tails)
        best = windows[tails.index(min(tails))]
        return min(max(-math.log10(max(p, 1e-300)), 0.0), MAX_RAW), best

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

    def _alert(self, row: Row, raw: float, window: _Window) -> None:
        bar = self._bar
        firing = self.alerts and self.alerts[-1].resolved_at is not None and row.at < self.alerts[-1].resolved_at
        if bar is None and not firing:
            bar = bar_from_history(self.peaks, max(self.days, 1.0), self._budget)
        self.peaks.append(raw)
        if firing or bar is None or raw < bar:
            return
        minute = epoch_ms(row.at) // MINUTE_MS
        mean = window.moments.total / max(window.moments.weight, 1e-9) * self._season(row.at)
        minutes = max(round(window.seconds / 60.0), 1)
        self.alerts.append(
            BacktestAlert(
                id=episode_id(SERIES_KEY, SERIES_KEY, minute),
                key=SERIES_KEY,
                rule="series",
                severity=severity_of(raw, bar),
                started_at=row.at,
                fired_at=row.at,
                resolved_at=row.at + HOLD_OFF,
                window=AlertWindow(minutes=minutes, start=row.at - timedelta(minutes=minutes), end=row.at),
                observed=round(window.value),
                expected=round(mean, 4),
                total=round(window.value),
                share=0.0,
                expected_share=0.0,
                p_value=10.0**-raw,
                score=round(raw, 4),
                sources=0,
                stories=(),
            )
        )
