"""The sorts of surge that a rule may watch, and what they are called.

- `negative`: surprisingly many negative stories, given the key's other stories;
- `positive`: surprisingly many positive stories, given the others: the same statistic;
- `volume`: surprisingly many stories, whatever they say.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NEGATIVE", "POSITIVE", "SURGES", "VOLUME", "counted", "detector", "stories_of"]

NEGATIVE: Final = "negative"
POSITIVE: Final = "positive"
VOLUME: Final = "volume"
SURGES: Final = (NEGATIVE, POSITIVE, VOLUME)


def detector(surge: str) -> str:
    """The name under which the judge of a sort finds its surges: the `rule` of its alerts, a part of their ids."""
    return f"{surge}-surge"


def stories_of(surge: str) -> str:
    """What a surge of this sort has surprisingly many of, in words."""
    return "stories" if surge == VOLUME else f"{surge} stories"


def counted(surge: str, number: int) -> str:
    """So many of them, in short: `12 negative`, `12 stories`."""
    return f"{number} {'stories' if surge == VOLUME else surge}"
