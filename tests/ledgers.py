"""What the ledger in the store says was counted."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from monitor.storage import tables as t
from monitor.surges.ledger import Counted


def counted_pairs(connection: Connection) -> dict[tuple[str, str], Counted]:
    """Every pair of key and item that is in the counts (or stale), whatever the partition."""
    rows = connection.scalars(select(t.ledger.c.pairs))
    found = [one for row in rows for one in msgspec.msgpack.decode(row, type=list[Counted])]
    pairs = {(one.key, one.item_id): one for one in found if not one.retracted}
    assert len(pairs) == len([one for one in found if not one.retracted]), "a pair is in the ledger twice"
    return pairs
