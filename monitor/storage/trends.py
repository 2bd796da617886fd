"""Counts over event time for charts and tables: read from the ticks, or for long ranges from their rollups.

The market is not counted itself: an item has one topic, so the market is the sum over all topic keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Final

import msgspec
from msgspec.structs import astuple
from sqlalchemy import ColumnElement, Connection, Select, Table, func, select, union_all

from monitor.storage.tables import rollups, ticks
from monitor.storage.upsert import bulk_upsert
from monitor.surges.ticks import TickDelta

__all__ = [
    "DAY",
    "HOUR",
    "MARKET",
    "Bucket",
    "KeyTotals",
    "TickSums",
    "add_to_rollups",
    "keys_by_volume",
    "movers",
    "newest_minute",
    "oldest_minute",
    "series",
    "series_by_key",
    "topic_keys",
    "totals",
]

MARKET: Final = "market"
QUARTER: Final = 15
HOUR: Final = 60
DAY: Final = 1440

_TOPIC: Final = "topic:"
_SUMS: Final = ("stories", "negative_stories", "items", "negative_items", "score_sum", "late", "positive_stories")
# An item-level mean is shrunk towards 0 by this many neutral items, so that a key with two items tops no list.
_SHRINKAGE: Final = 5


class TickSums(msgspec.Struct, frozen=True):
    """What a minute, an hour or a day holds under one key. `score_sum` adds up the items' scores in [-1, 1]."""

    stories: int = 0
    negative_stories: int = 0
    items: int = 0
    negative_items: int = 0
    score_sum: float = 0.0
    late: int = 0
    positive_stories: int = 0

    @property
    def mean_score(self) -> float | None:
        """Mean of the items' scores, in [-1, 1]; None without items."""
        return self.score_sum / self.items if self.items else None

    @property
    def negative_share(self) -> float | None:
        """Negative stories over all stories, in [0, 1]; None without stories."""
        return self.negative_stories / self.stories if self.stories else None


class Bucket(msgspec.Struct, frozen=True):
    """The sums from epoch minute `minute` on, over the asked step."""

    minute: int
    sums: TickSums


class KeyTotals(msgspec.Struct, frozen=True):
    """A key's sums over a range and over the range of the same length just before it."""

    key: str
    now: TickSums
    before: TickSums

    @property
    def change(self) -> float:
        """Change of the mean score, in [-2, 2], both means shrunk towards neutral: a few items move it little."""

        def shrunk(sums: TickSums) -> float:
            return sums.score_sum / (sums.items + _SHRINKAGE)

        return shrunk(self.now) - shrunk(self.before)


def add_to_rollups(connection: Connection, deltas: Mapping[tuple[str, int], TickDelta]) -> None:
    """Add what a batch added to the ticks, by key and epoch minute, to the hours and days they lie in.

    Topics have quarters of an hour, too: the market is read as the sum of all topics, over days by the quarter.
    Belongs into the transaction that writes the ticks.
    """
    quarters: dict[tuple[int, str], TickDelta] = {}
    hours: dict[tuple[int, str], TickDelta] = {}
    for (key, minute), delta in deltas.items():
        _add(hours, (minute - minute % HOUR, key), delta)
        if key.startswith(_TOPIC):
            _add(quarters, (minute - minute % QUARTER, key), delta)
    days: dict[tuple[int, str], TickDelta] = {}
    for (minute, key), delta in hours.items():
        _add(days, (minute - minute % DAY, key), delta)
    # In one order, so that two aggregators never wait for each other crosswise.
    for width, sums in ((QUARTER, quarters), (HOUR, hours), (DAY, days)):
        rows = [(width, minute, key, *astuple(sums[minute, key])) for minute, key in sorted(sums)]
        bulk_upsert(connection, rollups, rows, add=_SUMS)


def _add(sums: dict[tuple[int, str], TickDelta], place: tuple[int, str], more: TickDelta) -> None:
    known = sums.get(place)
    if known is None:
        sums[place] = copy(more)
        return
    known.stories += more.stories
    known.negative_stories += more.negative_stories
    known.items += more.items
    known.negative_items += more.negative_items
    known.score_sum += more.score_sum
    known.late += more.late
    known.positive_stories += more.positive_stories


def newest_minute(connection: Connection, *, not_after: int | None = None) -> int | None:
    """Newest epoch minute that anything was counted in; None for an empty store.

    `not_after` (the current minute) keeps an item that is dated ahead from being taken for now.
    """
    query = select(func.max(ticks.c.minute))
    if not_after is not None:
        query = query.where(ticks.c.minute <= not_after)
    found: int | None = connection.scalar(query)
    return found


def oldest_minute(connection: Connection) -> int | None:
    """Oldest epoch minute that is still known, or the first of its day where only the day is; None when empty."""
    day: int | None = connection.scalar(select(func.min(rollups.c.minute)).where(rollups.c.width == DAY))
    if day is None:
        return None
    within = select(func.min(ticks.c.minute)).where(ticks.c.minute >= day, ticks.c.minute < day + DAY)
    found: int | None = connection.scalar(within)
    return day if found is None else found


def topic_keys(connection: Connection) -> list[str]:
    """All topic keys that anything was counted under, in alphabetical order."""
    query = select(rollups.c.key).distinct().where(rollups.c.width == DAY)
    if connection.dialect.name == "sqlite":
        # As a range, which an index serves: LIKE, of either case here, has to look at every key. PostgreSQL's order
        # of texts depends on its locale, and there LIKE is quick enough.
        query = query.where(rollups.c.key >= _TOPIC, rollups.c.key < _TOPIC[:-1] + chr(ord(_TOPIC[-1]) + 1))
    else:
        query = query.where(rollups.c.key.startswith(_TOPIC, autoescape=True))
    return sorted(connection.scalars(query))


def keys_by_volume(connection: Connection, prefix: str, *, since: int, limit: int) -> list[str]:
    """Keys that begin with `prefix` (`ticker:`), those with most stories since epoch minute `since` first."""
    query = (
        select(rollups.c.key)
        .where(
            rollups.c.width == DAY,
            rollups.c.minute >= since - since % DAY,
            rollups.c.key.startswith(prefix, autoescape=True),
        )
        .group_by(rollups.c.key)
        .order_by(func.sum(rollups.c.stories).desc(), rollups.c.key)
        .limit(limit)
    )
    return list(connection.scalars(query))


def _source(step: int, keys: Sequence[str] = ()) -> tuple[Table, list[ColumnElement[bool]]]:
    """The table to sum the step from (under `keys`, where they are known), and what picks its rows.

    Quarters are kept of topics alone and lie by time: all topics' quarters are read faster than their hours, which
    are scattered among those of every ticker.
    """
    topics = bool(keys) and all(key.startswith(_TOPIC) for key in keys)
    widths = (DAY, QUARTER) if topics and len(keys) > 1 else (DAY, HOUR, QUARTER) if topics else (DAY, HOUR)
    for width in widths:
        if step % width == 0:
            return rollups, [rollups.c.width == width]
    return ticks, []


def _sums(row: Any) -> TickSums:
    values = {name: row._mapping[name] for name in _SUMS}
    return TickSums(**{name: value if name == "score_sum" else int(value) for name, value in values.items()})


def _members(connection: Connection, key: str) -> list[str]:
    return topic_keys(connection) if key == MARKET else [key]


def series(connection: Connection, key: str, start: int, end: int, step: int) -> list[Bucket]:
    """Sums of `key` (or `market`) in steps of `step` minutes over the epoch minutes [start, end), oldest first.

    Steps in which nothing was counted are left out. `step` divides a day or is a whole number of days; `start` is
    moved down to a multiple of it.
    """
    members = _members(connection, key)
    table, conditions = _source(step, members)
    bucket = (table.c.minute - table.c.minute % step).label("bucket")
    query = (
        select(bucket, *(func.sum(table.c[name]).label(name) for name in _SUMS))
        .where(
            *conditions,
            table.c.key.in_(members),
            table.c.minute >= start - start % step,
            table.c.minute < end,
        )
        .group_by(bucket)
        .order_by(bucket)
    )
    return [Bucket(row.bucket, _sums(row)) for row in connection.execute(query)]


def series_by_key(
    connection: Connection, keys: Sequence[str], start: int, end: int, step: int
) -> dict[str, list[Bucket]]:
    """`series` for several counted keys at once; a key without counts has an empty list."""
    table, conditions = _source(step, keys)
    bucket = (table.c.minute - table.c.minute % step).label("bucket")
    query = (
        select(table.c.key, bucket, *(func.sum(table.c[name]).label(name) for name in _SUMS))
        .where(*conditions, table.c.key.in_(keys), table.c.minute >= start - start % step, table.c.minute < end)
        .group_by(table.c.key, bucket)
        .order_by(table.c.key, bucket)
    )
    found: dict[str, list[Bucket]] = {key: [] for key in keys}
    for row in connection.execute(query):
        found[row.key].append(Bucket(row.bucket, _sums(row)))
    return found


def _cover(start: int, end: int, step: int) -> list[Select[Any]]:
    """Queries for the rows that make up [start, end): by minutes, or by hours and whole days where `step` allows it."""
    first, last = start + -start % DAY, end - end % DAY
    if step == HOUR and last > first:
        parts = [(HOUR, start, first), (DAY, first, last), (HOUR, last, end)]
    else:
        parts = [(step, start, end)]
    queries = []
    for width, begin, stop in parts:
        table, conditions = _source(width)
        columns = (table.c.key, *(table.c[name] for name in _SUMS))
        queries.append(select(*columns).where(*conditions, table.c.minute >= begin, table.c.minute < stop))
    return queries


def _totals(connection: Connection, prefix: str, rows: list[Select[Any]]) -> dict[str, TickSums]:
    parts = (rows[0] if len(rows) == 1 else union_all(*rows)).subquery()
    query = (
        select(parts.c.key, *(func.sum(parts.c[name]).label(name) for name in _SUMS))
        # Not as a range of keys: the rows are picked by time, an index by key would lead astray.
        .where(func.substr(parts.c.key, 1, len(prefix)) == prefix)
        .group_by(parts.c.key)
    )
    return {row.key: _sums(row) for row in connection.execute(query)}


def totals(connection: Connection, prefix: str, start: int, end: int) -> list[KeyTotals]:
    """Sums of all keys that begin with `prefix` over [start, end) and over the same length before `start`.

    Ranges over three hours begin with a whole hour, over three days with a whole day: their edges are moved down.
    Keys without a story in the range itself are left out; most stories first.
    """
    length = end - start
    step = DAY if length > 3 * DAY else HOUR if length > 3 * HOUR else 1
    start -= start % step
    now = _totals(connection, prefix, _cover(start, end, step))
    before = _totals(connection, prefix, _cover(start - (length - length % step), start, step))
    found = [KeyTotals(key, sums, before.get(key, TickSums())) for key, sums in now.items() if sums.stories]
    return sorted(found, key=lambda each: (-each.now.stories, each.key))


def movers(
    candidates: Iterable[KeyTotals], *, count: int, min_items: int = 3
) -> tuple[list[KeyTotals], list[KeyTotals]]:
    """Those whose mean score fell most and those where it rose most, at most `count` each, strongest first.

    A key needs `min_items` items over the range.
    """
    ordered = sorted((each for each in candidates if each.now.items >= min_items), key=lambda each: each.change)
    fell = [each for each in ordered[:count] if each.change < 0]
    rose = [each for each in reversed(ordered[-count:]) if each.change > 0]
    return fell, rose
