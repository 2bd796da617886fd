"""What a judge sees, whatever the bar: what it decides follows as soon as the bar is known.

The bar is looked at in one place only: whether a key above calm fires, and how severe that is
(`monitor.surges.episodes`). What is normal, the scores, where excursions begin and end and what is learned of their
peaks do not hang on it. So a stream can be judged while its history is still being measured: `Sightings` keeps the
minutes above calm, and `decide` gives the decisions of a judge that had known the history from the beginning.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

from monitor.surges.budget import HISTORY_PEAKS, AlarmRate
from monitor.surges.config import JudgeConfig
from monitor.surges.decisions import Action, Decision, episode_id
from monitor.surges.episodes import Excursion, Excursions

__all__ = ["Sighting", "Sightings", "decision_of", "end_of_minute"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Sighting(NamedTuple):
    """A key at or above calm in an epoch minute, with the figures of the window that has most to say (its `row`).

    `least_bar` is below what this key is not alerted at, whatever the bar: 0 but for topics.
    """

    minute: int
    key: str
    score: float
    row: int
    observed: int
    stories: int
    expected: float
    expected_share: float
    least_bar: float = 0.0


class _End(NamedTuple):
    """The excursion of a key is over at the end of an epoch minute."""

    minute: int
    key: str


def end_of_minute(minute: int) -> datetime:
    """When an epoch minute is over."""
    return _EPOCH + timedelta(minutes=minute + 1)


def decision_of(config: JudgeConfig, action: Action, minute: int, excursion: Excursion, sighting: Sighting) -> Decision:
    """What was decided about a key at the end of `minute`, by what was seen of it."""
    stories, score = sighting.stories, sighting.score
    return Decision(
        action=action,
        episode_id=episode_id(config.rule, sighting.key, excursion.start),
        rule=config.rule,
        surge=config.surge,
        key=sighting.key,
        at=end_of_minute(minute),
        started_at=end_of_minute(excursion.start - 1),
        fired_at=end_of_minute(excursion.fired),
        window_minutes=config.windows[sighting.row],
        observed=sighting.observed,
        expected=sighting.expected,
        stories=stories,
        share=float(sighting.observed / stories) if stories else 0.0,
        expected_share=sighting.expected_share,
        p_value=10.0**-score,
        score=score,
        severity=excursion.severity,
    )


class Sightings:
    """What one judge saw of keys above calm, and what it had learned of peaks at the time."""

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._events: list[Sighting | _End] = []
        # From which minute on so many low peaks in so many key-days were known.
        self._learned: list[tuple[int, dict[str, Any]]] = []
        # The last minute that each key was seen in.
        self.last_seen: dict[str, int] = {}
        # That of the last minute, when it has been decided.
        self.bar = 0.0

    def learned(self, minute: int, alarms: AlarmRate) -> None:
        """A block begins, with what is known of peaks."""
        self._learned.append((minute, alarms.state()))

    def saw(self, sighting: Sighting) -> None:
        """A key is above calm; in order of minutes."""
        self._events.append(sighting)
        self.last_seen[sighting.key] = sighting.minute

    def ended(self, minute: int, key: str) -> None:
        """The key's excursion is over."""
        self._events.append(_End(minute, key))

    def decide(self, height: float) -> Iterator[Decision]:
        """What a judge decides whose history has a tail of this height, in its order. A resolve has the figures of the
        last sighting."""
        config = self._config
        excursions = Excursions(config.calm_minutes, config.hold_off_minutes)
        alarms = AlarmRate(config.alarm_half_life_days, height, HISTORY_PEAKS)
        numbers: dict[str, int] = {}
        last: dict[str, Sighting] = {}
        known = 0
        for minute, events in groupby(self._events, key=lambda event: event.minute):
            known = self._know(alarms, known, minute)
            decisions: list[Decision] = []
            for event in events:
                number = numbers.setdefault(event.key, len(numbers))
                if isinstance(event, _End):
                    excursion = excursions.end(minute, number)
                    if excursion.fired >= 0:
                        decisions.append(decision_of(config, "resolve", minute, excursion, last[event.key]))
                    continue
                last[event.key] = event
                made = excursions.above(minute, number, event.score, event.row, max(self.bar, event.least_bar))
                if made is not None:
                    decisions.append(decision_of(config, made[0], minute, made[1], event))
            decisions.sort(key=lambda decision: (decision.key, decision.action))
            yield from decisions
        self._know(alarms, known, sys.maxsize)

    def _know(self, alarms: AlarmRate, known: int, minute: int) -> int:
        """Take up what is known of peaks in `minute`, of which the first `known` were; returns how many are now."""
        before = known
        while known < len(self._learned) and self._learned[known][0] <= minute:
            known += 1
        if known > before:
            alarms.load(self._learned[known - 1][1])
            self.bar = max(alarms.bar(self._config.budget), self._config.calm_score)
        return known
