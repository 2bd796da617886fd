"""The ledger: which items have been counted under which key, so that one that comes again counts once.

An item that comes again has the same event time, so its own minute says where to look; items whose minute is still
open are looked up in the counter's memory. Only late contributions ever ask the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

__all__ = ["STALE", "Counted", "Ledger", "MemoryLedger"]

STALE: Final = -1


class Counted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is remembered of a counted pair of key and item.

    `minute` is the epoch minute that it was counted in, `STALE` if in none; `retracted` says that it has been taken
    out of that minute's sums again.
    """

    key: str
    item_id: str
    minute: int
    score: float
    negative: bool
    retracted: bool = False


class Ledger(Protocol):
    """Remembers what was counted, by the minute of the item's own event time."""

    def find(self, minute: int, key: str, item_id: str) -> Counted | None:
        """What was counted of this pair, whose own epoch minute is `minute`; None if nothing was."""

    def put(self, minute: int, counted: Counted) -> None:
        """Remember a pair whose own epoch minute is `minute`; replaces what was remembered of it."""

    def put_all(self, minute: int, counted: list[Counted]) -> None:
        """`put` for many pairs of one minute; the list is the ledger's own from then on."""


class MemoryLedger:
    """A ledger in memory, for replays."""

    def __init__(self) -> None:
        self._minutes: dict[int, dict[tuple[str, str], Counted]] = {}

    def find(self, minute: int, key: str, item_id: str) -> Counted | None:
        """See `Ledger`."""
        return self._minutes.get(minute, {}).get((key, item_id))

    def put(self, minute: int, counted: Counted) -> None:
        """See `Ledger`."""
        pairs = self._minutes.get(minute)
        if pairs is None:
            pairs = self._minutes[minute] = {}
        pairs[counted.key, counted.item_id] = counted

    def put_all(self, minute: int, counted: list[Counted]) -> None:
        """See `Ledger`."""
        self._minutes.setdefault(minute, {}).update({(one.key, one.item_id): one for one in counted})

    def forget(self, before: int) -> None:
        """Forget items of epoch minutes before `before`: if they came again they would be stale."""
        for minute in [minute for minute in self._minutes if minute < before]:
            del self._minutes[minute]

    def __iter__(self) -> Iterator[Counted]:
        return (counted for pairs in self._minutes.values() for counted in pairs.values())
