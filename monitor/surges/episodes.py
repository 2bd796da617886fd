"""From scores to episodes: an *excursion* begins when a key's score reaches the calm level and ends when it has stayed
below for a while; the first time it also reaches the bar, an episode fires, and it resolves with the excursion.

So there is at most one episode to an excursion (hysteresis: the level to resolve lies far below the bar), and how
many episodes a bar would have given is the number of excursions with a higher peak, which is how the bar is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["SEVERITIES", "Excursion", "Excursions", "severity_of"]

SEVERITIES: Final = ("warning", "high", "critical")
# Orders of magnitude of the p-value beyond the bar from which an episode is high and critical.
HIGH, CRITICAL = 1.5, 4.0
# An episode is reported again when its score has risen by this much.
RISE: Final = 1.0


def severity_of(score: float, bar: float) -> str:
    """`warning`, `high` or `critical` by how far the score lies above the bar."""
    return SEVERITIES[(score >= bar + HIGH) + (score >= bar + CRITICAL)]


class Excursion(msgspec.Struct):
    """One key's time above the calm level. Minutes are epoch minutes; `fired` is -1 while there is no episode.

    `window` is the row of the window that was most surprising when last above calm; `reported` the score and
    `severity` those of the last decision.
    """

    start: int
    peak: float
    last: int
    window: int
    fired: int = -1
    reported: float = 0.0
    severity: str = ""


class Excursions:
    """The excursions under way, by key index."""

    def __init__(self, calm_minutes: int, hold_off_minutes: int) -> None:
        self._calm_minutes = calm_minutes
        self._hold_off_minutes = hold_off_minutes
        self.under_way: dict[int, Excursion] = {}
        # Key index to the minute until which no new episode may fire.
        self.held_off: dict[int, int] = {}

    def above(
        self, minute: int, index: int, score: float, window: int, bar: float
    ) -> tuple[Literal["fire", "update"], Excursion] | None:
        """A key's score is at or above calm in this minute; what that decides."""
        excursion = self.under_way.get(index)
        if excursion is None:
            excursion = self.under_way[index] = Excursion(start=minute, peak=score, last=minute, window=window)
        excursion.peak = max(excursion.peak, score)
        excursion.last = minute
        excursion.window = window
        if excursion.fired < 0:
            if score < bar or minute < self.held_off.get(index, minute):
                return None
            excursion.fired = minute
            excursion.reported = score
            excursion.severity = severity_of(score, bar)
            return "fire", excursion
        severity = severity_of(score, bar)
        worse = SEVERITIES.index(severity) > SEVERITIES.index(excursion.severity)
        if not worse and score < excursion.reported + RISE:
            return None
        excursion.reported = max(score, excursion.reported)
        if worse:
            excursion.severity = severity
        return "update", excursion

    def ended(self, minute: int) -> Iterator[tuple[int, Excursion]]:
        """Take out and yield the excursions that have been calm for long enough, by key index."""
        over = [index for index, e in self.under_way.items() if minute - e.last >= self._calm_minutes]
        for index in over:
            yield index, self.end(minute, index)
        if self.held_off:
            self.held_off = {index: until for index, until in self.held_off.items() if until > minute}

    def end(self, minute: int, index: int) -> Excursion:
        """Take out the excursion of a key, which is over."""
        excursion = self.under_way.pop(index)
        if excursion.fired >= 0 and self._hold_off_minutes:
            self.held_off[index] = minute + self._hold_off_minutes
        return excursion

    def renumber(self, new: NDArray[np.int64]) -> None:
        """Key indices have changed: `new[old]` is the index now."""
        self.under_way = {int(new[index]): e for index, e in self.under_way.items()}
        self.held_off = {int(new[index]): until for index, until in self.held_off.items()}

    def state(self) -> dict[str, Any]:
        """Everything held, for a snapshot."""
        return {
            "under_way": [[index, msgspec.to_builtins(e)] for index, e in self.under_way.items()],
            "held_off": [[index, until] for index, until in self.held_off.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.under_way = {int(index): msgspec.convert(e, Excursion) for index, e in state["under_way"]}
        self.held_off = {int(index): int(until) for index, until in state["held_off"]}
