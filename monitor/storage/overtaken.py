"""Items that somebody else has stored anew before what was stored of them first had been sent.

Two workers have to do with one item when its chart comes late, or when its partition changes hands. Each sends after it
has stored, and not in the order in which they stored: what was stored first may be sent last, and be believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec
from sqlalchemy import Connection, bindparam, select

from monitor.records import Contribution, ScoredItem
from monitor.storage.articles import article
from monitor.storage.items import RetractedKey
from monitor.storage.tables import item_keys, retracted_keys
from monitor.surges.keys import epoch_ms

__all__ = ["Overtaken", "Told", "find_overtaken", "told_of"]

_C = item_keys.c
# Made once: to put a statement together takes longer than to run it.
_KEYS_OF = select(_C.item_id, _C.key, _C.published_at, _C.p_negative, _C.score).where(
    _C.item_id.in_(bindparam("ids", expanding=True))
)

# Of one item: its keys, each with its event time (epoch ms), p(negative) and score.
Told: TypeAlias = frozenset[tuple[str, int, float, float]]


class Overtaken(msgspec.Struct, frozen=True):
    """What the store has of items now: `told` of each of them (empty for one that is gone), the scored items, and
    every key that they are no longer counted under."""

    told: dict[str, Told]
    items: list[ScoredItem]
    retracted: list[RetractedKey]


def told_of(contributions: Iterable[Contribution]) -> Told:
    """What contributions of one item tell."""
    return frozenset((c.key, c.at, c.p_negative, c.score) for c in contributions)


def find_overtaken(connection: Connection, told: Mapping[str, Told]) -> Overtaken:
    """Of the items in `told` those of which the store has something else by now; empty when there is none."""
    now: dict[str, set[tuple[str, int, float, float]]] = {item_id: set() for item_id in told}
    for item_id, key, at, p_negative, score in connection.execute(_KEYS_OF, {"ids": list(told)}):
        now[item_id].add((key, epoch_ms(at), p_negative, score))
    changed = {item_id: frozenset(found) for item_id, found in now.items() if found != told[item_id]}
    if not changed:
        return Overtaken({}, [], [])
    items = [item for item_id in sorted(changed) if (item := article(connection, item_id)) is not None]
    r = retracted_keys.c
    lost = select(r.item_id, r.key, r.published_at).where(r.item_id.in_(list(changed)))
    return Overtaken(dict(changed), items, sorted(RetractedKey(*row) for row in connection.execute(lost)))
