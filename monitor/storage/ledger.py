"""The ledger of one contributions partition in the store: one row for the items of a minute that were counted together.

A row is keyed by the items' own minute and the minute they were counted in, which differ for late items. Rows of
closed minutes are written once; they are read again only when something comes late.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from monitor.storage import tables as t
from monitor.storage.upsert import upsert
from monitor.surges.ledger import Counted

__all__ = ["StoredLedger"]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Counted])


class StoredLedger:
    """A `monitor.surges.ledger.Ledger` for one transaction; nothing is written before `flush`."""

    def __init__(self, connection: Connection, partition: int) -> None:
        self._connection = connection
        self._partition = partition
        # Minutes that were asked for, as stored and changed since; what was put into others.
        self._known: dict[int, dict[tuple[str, str], Counted]] = {}
        self._new: dict[int, list[Counted]] = {}
        self._changed: set[tuple[int, int]] = set()

    def find(self, minute: int, key: str, item_id: str) -> Counted | None:
        """See `Ledger`."""
        pairs = self._known.get(minute)
        if pairs is None:
            pairs = self._known[minute] = self._read(minute)
            for counted in self._new.pop(minute, ()):
                self._keep(minute, pairs, counted)
        return pairs.get((key, item_id))

    def put(self, minute: int, counted: Counted) -> None:
        """See `Ledger`."""
        pairs = self._known.get(minute)
        if pairs is not None:
            self._keep(minute, pairs, counted)
            return
        new = self._new.get(minute)
        if new is None:
            self._new[minute] = [counted]
        else:
            new.append(counted)

    def put_all(self, minute: int, counted: list[Counted]) -> None:
        """See `Ledger`."""
        if minute in self._known:
            for one in counted:
                self.put(minute, one)
        elif minute in self._new:
            self._new[minute].extend(counted)
        elif counted:
            self._new[minute] = counted

    def flush(self) -> None:
        """Write what was put. Call it once, at the end of the transaction."""
        rows: dict[tuple[int, int], list[Counted]] = {place: [] for place in self._changed}
        for minute, pairs in self._known.items():
            for counted in pairs.values():
                if (minute, counted.minute) in rows:
                    rows[minute, counted.minute].append(counted)
        for minute, news in self._new.items():
            # Each minute is closed once, so that the rows of those counted in it are new.
            for counted in news:
                rows.setdefault((minute, counted.minute), []).append(counted)
        upsert(
            self._connection,
            t.ledger,
            (
                {
                    "partition": self._partition,
                    "minute": minute,
                    "counted_in": counted_in,
                    "pairs": _encoder.encode(found),
                }
                for (minute, counted_in), found in rows.items()
            ),
        )

    def _keep(self, minute: int, pairs: dict[tuple[str, str], Counted], counted: Counted) -> None:
        pairs[counted.key, counted.item_id] = counted
        self._changed.add((minute, counted.minute))

    def _read(self, minute: int) -> dict[tuple[str, str], Counted]:
        c = t.ledger.c
        query = select(c.pairs).where(c.partition == self._partition, c.minute == minute)
        rows = self._connection.scalars(query)
        return {(counted.key, counted.item_id): counted for row in rows for counted in _decoder.decode(row)}
