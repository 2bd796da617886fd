"""Counts over event time for charts and tables: read from the ticks, or for long ranges from their rollups.

The market is not counted itself: an item has one topic, so the market is the sum over all topic keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from msgspec.structs import astuple
from numpy.typing import NDArray
from sqlalchemy import Connection, Select, func, literal, literal_column, select, union_all

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

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


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
    """A key's sums over a range, and its items and scores over the range of the same length just before it."""

    key: str
    stories: int
    negative_stories: int
    items: int
    score_sum: float
    items_before: int = 0
    score_sum_before: float = 0.0

    @property
    def mean_score(self) -> float | None:
        """Mean of the items' scores, in [-1, 1]; None without items."""
        return self.score_sum / self.items if self.items else None

    @property
    def mean_before(self) -> float | None:
        """`mean_score` over the range before."""
        return self.score_sum_before / self.items_before if self.items_before else None

    @property
    def negative_share(self) -> float | None:
        """Negative stories over all stories, in [0, 1]; None without stories."""
        return self.negative_stories / self.stories if self.stories else None

    @property
    def change(self) -> float:
        """Change of the mean score, in [-2, 2], both means shrunk towards neutral: a few items move it little."""
        now = self.score_sum / (self.items + _SHRINKAGE)
        return now - self.score_sum_before / (self.items_before + _SHRINKAGE)


def add_to_rollups(connection: Connection, deltas: Mapping[tuple[str, int], TickDelta]) -> None:
    """Add what a batch added to the ticks, by key and epoch minute, to the hours and days they lie in.

    Topics have quarters of an hour, too: the market is read as the sum of all topics, over days by the quarter.
    Belongs into the transaction that writes the ticks.
    """
    if not deltas:
        return
    names = sorted({key for key, _ in deltas})
    number = {name: place for place, name in enumerate(names)}
    keys = np.array([number[key] for key, _ in deltas])
    minutes = np.array([minute for _, minute in deltas])
    sums = np.array([astuple(delta) for delta in deltas.values()])
    of_topics = np.array([name.startswith(_TOPIC) for name in names])[keys]
    hours = _rolled_up(keys, minutes, sums, HOUR)
    quarters = _rolled_up(keys[of_topics], minutes[of_topics], sums[of_topics], QUARTER)
    for width, (key, begin, total) in ((QUARTER, quarters), (HOUR, hours), (DAY, _rolled_up(*hours, DAY))):
        columns = [
            column if name == "score_sum" else column.astype(np.int64)
            for name, column in zip(_SUMS, total.T, strict=True)
        ]
        # In one order (of minute and key), so that two aggregators never wait for each other crosswise.
        rows = zip(begin.tolist(), key.tolist(), *(column.tolist() for column in columns), strict=True)
        bulk_upsert(
            connection, rollups, [(width, minute, names[place], *counts) for minute, place, *counts in rows], add=_SUMS
        )


def _rolled_up(keys: _Ints, minutes: _Ints, sums: _Floats, width: int) -> tuple[_Ints, _Ints, _Floats]:
    """Rows (n) of a key's number, a minute and sums (n, 7), added up over `width` minutes: by minute, then key."""
    begin = minutes - minutes % width
    size = int(keys.max(initial=0)) + 1
    places, of = np.unique(begin * size + keys, return_inverse=True)
    total: _Floats = np.stack([np.bincount(of, column, minlength=len(places)) for column in sums.T], axis=1)
    return places % size, places // size, total


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
    # As a literal: the index holds the days alone, and for a parameter it would not be considered.
    query = select(rollups.c.key).distinct().where(rollups.c.width == literal_column(str(DAY)))
    if connection.dialect.name == "sqlite":
        # As a range, which an index serves: LIKE, of either case here, has to look at every key. PostgreSQL's order
        # of texts depends on its locale, and there LIKE is quick enough.
        query = query.where(rollups.c.key >= _TOPIC, rollups.c.key < _TOPIC[:-1] + chr(ord(_TOPIC[-1]) + 1))
    else:
        query = query.where(rollups.c.key.startswith(_TOPIC, autoescape=True))
    return sorted(connection.scalars(query))


def keys_by_volume(connection: Connection, prefix: str, *, since: int, limit: int) -> list[str]:
    """Keys that begin with `prefix` (`ticker:`), those with most stories since epoch minute `since` first."""
    # Grouped by what follows the prefix, not by the key: rows are picked by time, an index by key would lead astray.
    name = func.substr(rollups.c.key, len(prefix) + 1)
    query = (
        select(name)
        .where(
            rollups.c.width == DAY,
            rollups.c.minute >= since - since % DAY,
            func.substr(rollups.c.key, 1, len(prefix)) == prefix,
        )
        .group_by(name)
        .order_by(func.sum(rollups.c.stories).desc(), name)
        .limit(limit)
    )
    return [prefix + found for found in connection.scalars(query)]


def _source(keys: Sequence[str], start: int, end: int, step: int) -> Select[Any]:
    """The sums under `keys` in the epoch minutes [start, end), by columns of their names, `key` and `bucket` (the first
    minute of a step): from the widest rollup that the steps are made of, or from the ticks.

    Quarters are kept of topics alone: all topics' quarters are read faster than their hours, which are scattered among
    those of every ticker.
    """
    topics = all(key.startswith(_TOPIC) for key in keys)
    widths = (DAY, QUARTER) if topics and len(keys) > 1 else (DAY, HOUR, QUARTER) if topics else (DAY, HOUR)
    width = next((width for width in widths if step % width == 0), 1)
    table = ticks if width == 1 else rollups
    bucket = (table.c.minute - table.c.minute % step).label("bucket")
    start -= start % step
    query = select(table.c.key, bucket, *(table.c[name] for name in _SUMS)).where(table.c.key.in_(keys))
    if width > 1:
        query = query.where(table.c.width == width)
    if width == QUARTER:
        return query.where(table.c.minute >= start, table.c.minute < end)
    # Rows lie by time: those of these keys are sought at each step of it, all others are passed over.
    minutes = select(literal(start - start % width).label("minute")).where(literal(start) < end)
    times = minutes.cte("times", recursive=True)
    times = times.union_all(select(times.c.minute + width).where(times.c.minute + width < end))
    return query.join_from(times, table, table.c.minute == times.c.minute)


def _sums(values: Iterable[Any]) -> TickSums:
    """From what the database adds up: PostgreSQL's sums of integers are decimals."""
    stories, negative_stories, items, negative_items, score_sum, late, positive_stories = values
    return TickSums(
        int(stories),
        int(negative_stories),
        int(items),
        int(negative_items),
        score_sum,
        int(late),
        int(positive_stories),
    )


def _members(connection: Connection, key: str) -> list[str]:
    return topic_keys(connection) if key == MARKET else [key]


def series(connection: Connection, key: str, start: int, end: int, step: int) -> list[Bucket]:
    """Sums of `key` (or `market`) in steps of `step` minutes over the epoch minutes [start, end), oldest first.

    Steps in which nothing was counted are left out. `step` divides a day or is a whole number of days; `start` is
    moved down to a multiple of it.
    """
    rows = _source(_members(connection, key), start, end, step).subquery()
    query = select(rows.c.bucket, *(func.sum(rows.c[name]).label(name) for name in _SUMS)).group_by(rows.c.bucket)
    return [Bucket(bucket, _sums(sums)) for bucket, *sums in connection.execute(query.order_by(rows.c.bucket))]


def series_by_key(
    connection: Connection, keys: Sequence[str], start: int, end: int, step: int
) -> dict[str, list[Bucket]]:
    """`series` for several counted keys at once; a key without counts has an empty list."""
    rows = _source(keys, start, end, step).subquery()
    place = (rows.c.key, rows.c.bucket)
    query = select(*place, *(func.sum(rows.c[name]).label(name) for name in _SUMS)).group_by(*place).order_by(*place)
    found: dict[str, list[Bucket]] = {key: [] for key in keys}
    for key, bucket, *sums in connection.execute(query):
        found[key].append(Bucket(bucket, _sums(sums)))
    return found


def _cover(start: int, end: int, step: int, names: Sequence[str]) -> list[Select[Any]]:
    """Queries for the rows that make up [start, end), their key and sums of these names: by minutes, or by hours and
    whole days where `step` allows it."""
    first, last = start + -start % DAY, end - end % DAY
    if step == HOUR and last > first:
        parts = [(HOUR, start, first), (DAY, first, last), (HOUR, last, end)]
    else:
        parts = [(step, start, end)]
    queries = []
    for width, begin, stop in parts:
        table = ticks if width == 1 else rollups
        query = select(table.c.key, *(table.c[name] for name in names))
        query = query.where(table.c.minute >= begin, table.c.minute < stop)
        queries.append(query if width == 1 else query.where(table.c.width == width))
    return queries


def _totals(
    connection: Connection, prefix: str, start: int, end: int, step: int, names: Sequence[str]
) -> dict[str, Sequence[Any]]:
    """The sums of these names over [start, end) by key, of all keys that begin with `prefix`."""
    rows = _cover(start, end, step, names)
    parts = (rows[0] if len(rows) == 1 else union_all(*rows)).subquery()
    query = (
        select(parts.c.key, *(func.sum(parts.c[name]) for name in names))
        # Not as a range of keys: the rows are picked by time, an index by key would lead astray.
        .where(func.substr(parts.c.key, 1, len(prefix)) == prefix)
        .group_by(parts.c.key)
    )
    return {key: sums for key, *sums in connection.execute(query)}


def totals(connection: Connection, prefix: str, start: int, end: int) -> list[KeyTotals]:
    """Sums of all keys that begin with `prefix` over [start, end) and over the same length before `start`.

    Ranges over three hours begin with a whole hour, over three days with a whole day: their edges are moved down.
    Keys without a story in the range itself are left out; most stories first.
    """
    length = end - start
    step = DAY if length > 3 * DAY else HOUR if length > 3 * HOUR else 1
    start -= start % step
    # Only what is shown: rows of tens of thousands of keys and days are added up.
    now = _totals(connection, prefix, start, end, step, ("stories", "negative_stories", "items", "score_sum"))
    before = _totals(connection, prefix, start - (length - length % step), start, step, ("items", "score_sum"))
    found = []
    for key, (stories, negative_stories, items, score_sum) in now.items():
        if stories:
            items_before, score_before = before.get(key, (0, 0.0))
            counts = int(stories), int(negative_stories), int(items), float(score_sum)
            found.append(KeyTotals(key, *counts, int(items_before), float(score_before)))
    return sorted(found, key=lambda each: (-each.stories, each.key))


def movers(
    candidates: Iterable[KeyTotals], *, count: int, min_items: int = 3
) -> tuple[list[KeyTotals], list[KeyTotals]]:
    """Those whose mean score fell most and those where it rose most, at most `count` each, strongest first.

    A key needs `min_items` items over the range.
    """
    ordered = sorted((each for each in candidates if each.items >= min_items), key=lambda each: each.change)
    fell = [each for each in ordered[:count] if each.change < 0]
    rose = [each for each in reversed(ordered[-count:]) if each.change > 0]
    return fell, rose
