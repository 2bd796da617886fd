"""What a replay without known surges tells of false alarms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from monitor.records import ScoredItem
from monitor.surges.backtest import Backtest, Stretch
from monitor.surges.budget import height_from_history
from monitor.surges.config import JudgeConfig
from monitor.surges.counting import CountingConfig
from monitor.surges.lines import read_scored
from monitor.surges.sorts import NEGATIVE

__all__ = ["WARM_DAYS", "History", "Measured", "measure_file", "measure_histories", "measure_history"]

# The first days of a history are for learning what is normal: their peaks say little about later ones.
WARM_DAYS: Final = 8


class History(msgspec.Struct, frozen=True):
    """What a replay without known surges of a sort tells of false alarms: peaks of excursions, and key-days judged."""

    peaks: tuple[float, ...]
    key_days: float
    surge: str = NEGATIVE

    @property
    def height(self) -> float:
        """How many times as high the tail of peaks is as the shipped one. Raises `ValueError` without key-days."""
        return height_from_history(self.peaks, self.key_days)


class Measured(NamedTuple):
    """What a file of history tells, what is wrong with the lines that were left out, and which dates were refused."""

    histories: list[History]
    skipped: list[str]
    absurd: list[str]


def measure_history(items: Iterable[ScoredItem], counting: CountingConfig, judging: JudgeConfig) -> History:
    """`measure_histories` of one sort."""
    return measure_histories(items, counting, [judging])[0]


def measure_histories(
    items: Iterable[ScoredItem], counting: CountingConfig, judging: Sequence[JudgeConfig]
) -> list[History]:
    """Replay a history, once for all judges; its first `WARM_DAYS` days, or third if that is less, are not counted, nor
    are those after a gap of months."""
    replay = Backtest(counting, *judging)
    for item in items:
        replay.add(item)
    replay.finish()
    return [_history(watch.stretches, watch.config.surge) for watch in replay.watches]


def measure_file(
    file: Path,
    counting: CountingConfig,
    judging: Sequence[JudgeConfig],
    skip_bad: bool,
    lines: Iterable[bytes] | None = None,
) -> Measured:
    """`measure_histories` of the scored items in `file` (or of its `lines`), for another process.

    Raises `InputError` naming the first wrong line unless `skip_bad`.
    """
    skipped: list[str] | None = [] if skip_bad else None
    absurd: list[str] = []
    if lines is None:
        with file.open("rb") as opened:
            measured = measure_histories(read_scored(opened, str(file), skipped, absurd), counting, judging)
    else:
        measured = measure_histories(read_scored(lines, str(file), skipped, absurd), counting, judging)
    return Measured(measured, skipped or [], absurd)


def _history(stretches: Sequence[Stretch], surge: str) -> History:
    peaks: list[float] = []
    key_days = 0.0
    for stretch in stretches:
        begin, (end, judged) = stretch.begin, stretch.key_days[-1]
        warm = begin + min(WARM_DAYS * 24 * 60, (end - begin) // 3)
        # Key-days are known at midnights: peaks are taken from the same one on.
        since, before = max((known for known in stretch.key_days if known[0] <= warm), default=(begin, 0.0))
        peaks += [peak for minute, peak in stretch.peaks if minute >= since]
        key_days += judged - before
    return History(tuple(peaks), key_days, surge)
