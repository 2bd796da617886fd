"""What a judge says of a key, in a word and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from monitor.surges.config import JudgeConfig
from monitor.surges.decisions import WindowStanding
from monitor.surges.sorts import VOLUME, stories_of

__all__ = ["verdict_of"]


def verdict_of(
    config: JudgeConfig,
    *,
    fired: int,
    age: int,
    score: float,
    bar: float,
    windows: Sequence[WindowStanding],
    best: WindowStanding,
) -> tuple[str, str]:
    """Why a key fires or does not: the verdict and the reason of `Standing`.

    `fired` is the epoch minute that its episode fired in, -1 without one; `age` the minutes since it was first seen;
    `best` the window that has most to say.
    """
    if fired >= 0:
        return (
            "firing",
            f"An episode has been firing since {datetime.fromtimestamp((fired + 1) * 60, UTC):%Y-%m-%d %H:%M:%S} UTC.",
        )
    if age < config.min_age_minutes:
        needed = config.min_age_minutes / 60
        return "too_young", f"Known for {age / 60:.1f} hours only; it is judged after {needed:.0f}."
    most = max(window.observed for window in windows)
    if most < config.min_stories:
        return "too_few_stories", f"{most} {stories_of(config.surge)}; an alert needs {config.min_stories}."
    there = (
        f"there are {best.stories} stories in {best.minutes} minutes"
        if config.surge == VOLUME
        else f"{best.observed} of {best.stories} stories in {best.minutes} minutes are {config.surge}"
    )
    told = f"{there}, where {best.expected:.1f} were expected"
    if score >= bar:
        return "above_bar", f"The score {score:.2f} has reached the bar {bar:.2f} ({told}), in the hold-off."
    return "below_bar", f"The score {score:.2f} is below the bar {bar:.2f}: {told}."
