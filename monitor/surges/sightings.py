"""What a judge sees, whatever the bar: what it decides follows as soon as the bar is known.

The bar is looked at in one place only: whether a key above calm fires, and how severe that is
(`monitor.surges.episodes`). What is normal, the scores, and where excursions begin and end do not hang on it. So a
stream can be judged while its bar is still being worked out from a history: `Sightings` keeps the few minutes that may
matter, and `decide` gives the decisions of a judge that had had the bar from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

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
    """The sightings of one judge that may decide something at some bar. The bar is the same for the whole stream.

    Those are the highest so far of their excursion: an episode fires, grows worse or rises with a record only. Of
    topics, whose least bar changes, and where there is a hold-off, all are kept.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._events: list[Sighting | _End] = []
        self._highest: dict[str, float] = {}
        # The last minute that each key was seen in.
        self.last_seen: dict[str, int] = {}

    def saw(self, sighting: Sighting) -> None:
        """A key is above calm; in order of minutes."""
        key, score = sighting.key, sighting.score
        record = score > self._highest.get(key, 0.0)
        if record:
            self._highest[key] = score
        if record or sighting.least_bar or self._config.hold_off_minutes:
            self._events.append(sighting)
            self.last_seen[key] = sighting.minute

    def ended(self, minute: int, key: str) -> None:
        """The key's excursion is over."""
        if self._highest.pop(key, None) is not None:
            self._events.append(_End(minute, key))

    def decide(self, bar: float) -> Iterator[Decision]:
        """What a judge with this bar decides, in its order. A resolve has the figures of the last sighting kept."""
        config = self._config
        excursions = Excursions(config.calm_minutes, config.hold_off_minutes)
        numbers: dict[str, int] = {}
        last: dict[str, Sighting] = {}
        for minute, events in groupby(self._events, key=lambda event: event.minute):
            decisions: list[Decision] = []
            for event in events:
                number = numbers.setdefault(event.key, len(numbers))
                if isinstance(event, _End):
                    excursion = excursions.end(minute, number)
                    if excursion.fired >= 0:
                        decisions.append(decision_of(config, "resolve", minute, excursion, last[event.key]))
                    continue
                last[event.key] = event
                made = excursions.above(minute, number, event.score, event.row, max(bar, event.least_bar))
                if made is not None:
                    decisions.append(decision_of(config, made[0], minute, made[1], event))
            decisions.sort(key=lambda decision: (decision.key, decision.action))
            yield from decisions
