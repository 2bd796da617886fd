"""Fills a store with generated items, their keys, counts and stories, a day at a time, as fast as the store takes it.

A day is made as columns (numpy) and written as rows by the driver itself (`executemany` on SQLite, COPY on
PostgreSQL); secondary indices are dropped before and made again at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, Table

from monitor.storage import tables as t
from monitor.taxonomy import bundled_taxonomy

__all__ = ["EPOCH", "fill"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
END: Final = datetime(2026, 3, 13, tzinfo=UTC)
DAY: Final = 1440
HOUR: Final = 60
QUARTER: Final = 15
STORY_MINUTES: Final = 360
WORDS: Final = (
    "shares",
    "profit",
    "outlook",
    "regulator",
    "orders",
    "demand",
    "inquiry",
    "quarter",
    "dividend",
    "merger",
)
TABLES: Final = ("items", "item_keys", "stories", "ticks", "rollups")
Rows = Iterator[tuple[Any, ...]]
Ints = NDArray[np.int64]
LABELS: Final = ("negative", "neutral", "positive")
P_NEGATIVE: Final = (0.8, 0.1, 0.1)
P_POSITIVE: Final = (0.1, 0.1, 0.8)
SCORES: Final = (-0.7, 0.0, 0.75)


def _texts(rng: np.random.Generator, count: int, words: int) -> list[str]:
    return [" ".join(WORDS[i] for i in chosen) for chosen in rng.integers(0, len(WORDS), (count, words))]


class _Writer:
    """Hands rows to the driver, past SQLAlchemy's own work on each of them."""

    def __init__(self, connection: Any, postgresql: bool) -> None:
        self._connection = connection
        self._postgresql = postgresql

    def __call__(self, table: Table, rows: Rows) -> None:
        """Rows have the table's columns in their order."""
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        if self._postgresql:
            with (
                self._connection.cursor() as cursor,
                cursor.copy(f'copy "{table.name}" ({names}) from stdin') as copy,
            ):
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(table.columns))
            self._connection.executemany(f'insert into "{table.name}" ({names}) values ({marks})', rows)  # noqa: S608


class _Days:
    """The rows of a day; the tickers' share of the news falls as in life, and one item in four is a copy."""

    def __init__(self, tickers: int, per_day: int) -> None:
        self._rng = np.random.default_rng(1)
        self.topics = bundled_taxonomy().labels
        self.keys = [f"topic:{topic}" for topic in self.topics] + [f"ticker:T{n:04d}" for n in range(tickers)]
        # Zipf's law: the n-th ticker is in the news 1/n as often as the first.
        weights = np.cumsum(1.0 / np.arange(1, tickers + 1))
        self._weights = weights / weights[-1]
        self._titles = _texts(self._rng, 20_000, 9)
        self._bodies = _texts(self._rng, 5_000, 60)
        self._probabilities = [json.dumps({topic: 0.9}) for topic in self.topics]
        self._sources = [f"source {n}" for n in range(200)]
        self._per_day = per_day

    def write(self, writer: _Writer, first: int, begin: int) -> None:
        """Items `first` and on, spread over the day that begins at epoch minute `begin`."""
        rng, count = self._rng, self._per_day
        ids = [f"item-{number:09d}" for number in range(first, first + count)]
        offset = np.arange(count) * (DAY * 60_000) // count
        at = begin * 60_000 + offset
        topic = rng.integers(0, len(self.topics), count)
        label = np.searchsorted([0.22, 0.67], rng.random(count), side="right")
        mentions = rng.choice(3, count, p=(0.2, 0.6, 0.2))
        drawn = len(self.topics) + np.searchsorted(self._weights, rng.random((count, 2)))
        second = (mentions > 1) & (drawn[:, 0] != drawn[:, 1])
        writer(t.items, self._items(ids, at, topic, label, [mentions > 0, second], drawn))
        # One row for each pair of item and key.
        item = np.concatenate([np.arange(count), np.flatnonzero(mentions > 0), np.flatnonzero(second)])
        key = np.concatenate([topic, drawn[mentions > 0, 0], drawn[second, 1]])
        order = np.lexsort((item, key))
        self._pairs(writer, ids, item[order], key[order], at, label)

    def _items(
        self, ids: list[str], at: Ints, topic: Ints, label: Ints, named: list[NDArray[np.bool_]], drawn: Ints
    ) -> Rows:
        rng, count = self._rng, len(ids)
        title = rng.integers(0, len(self._titles), count).tolist()
        body = rng.integers(0, len(self._bodies), count).tolist()
        source = rng.integers(0, len(self._sources), count).tolist()
        times, topics, labels = at.tolist(), topic.tolist(), label.tolist()
        first, second, keys = named[0].tolist(), named[1].tolist(), drawn.tolist()
        for n, item_id in enumerate(ids):
            tickers = [self.keys[k][7:] for k, has in zip(keys[n], (first[n], second[n]), strict=True) if has]
            p = P_NEGATIVE[labels[n]]
            yield (
                item_id,
                times[n],
                self._sources[source[n]],
                f"https://news.example/{item_id}",
                self._titles[title[n]],
                self._bodies[body[n]],
                "en",
                "news",
                json.dumps(tickers),
                "[]",
                LABELS[labels[n]],
                p,
                1.0 - p - P_POSITIVE[labels[n]],
                P_POSITIVE[labels[n]],
                self.topics[topics[n]],
                self._probabilities[topics[n]],
                "[]",
                None,
                "text",
                "[]",
                "[]",
                "bench",
                times[n],
            )

    def _pairs(self, writer: _Writer, ids: list[str], item: Ints, key: Ints, at: Ints, label: Ints) -> None:
        """Keys, counts and stories of pairs in order of key and time."""
        minute = at[item] // 60_000
        # A pair begins a story unless it is a copy of the newest story under its key.
        begins = self._rng.random(len(item)) >= 0.25
        begins[np.flatnonzero(np.diff(key, prepend=-1))] = True
        at_story = np.maximum.accumulate(np.where(begins, np.arange(len(item)), 0))
        begins |= minute - minute[at_story] >= STORY_MINUTES
        p, score = np.array(P_NEGATIVE)[label[item]], np.array(SCORES)[label[item]]
        names = [self.keys[k] for k in key.tolist()]
        item_ids = [ids[i] for i in item.tolist()]
        sign = (label[item] - 1).tolist()
        p_positive = np.array(P_POSITIVE)[label[item]]
        times, minutes = at[item].tolist(), minute.tolist()
        writer(t.item_keys, zip(names, item_ids, times, p.tolist(), score.tolist(), strict=True))
        begun = np.flatnonzero(begins)
        ends = np.append(begun[1:], len(item))
        by_time = np.argsort(minute[begun], kind="stable")
        writer(
            t.stories,
            (
                (
                    minutes[n],
                    names[n],
                    f"{minutes[n]:08x}{item_ids[n]:0>24}",
                    times[n],
                    times[n],
                    end - n,
                    sign[n],
                    float(p[n]),
                    float(p_positive[n] - p[n]),
                    item_ids[n],
                    "a",
                    json.dumps({"sources": ["a"], "item_ids": item_ids[n:end]}) if end - n > 1 else "null",
                )
                for n, end in zip(begun[by_time].tolist(), ends[by_time].tolist(), strict=True)
            ),
        )
        for width in (1, HOUR, DAY):
            self._counts(writer, width, key, minute, begins, label[item], score)
        topics = key < len(self.topics)
        self._counts(writer, QUARTER, key[topics], minute[topics], begins[topics], label[item][topics], score[topics])

    def _counts(
        self,
        writer: _Writer,
        width: int,
        key: Ints,
        minute: Ints,
        begins: NDArray[np.bool_],
        label: Ints,
        score: NDArray[np.float64],
    ) -> None:
        start = minute - minute % width
        changes = np.flatnonzero((np.diff(key, prepend=-1) != 0) | (np.diff(start, prepend=-1) != 0))
        sums = [
            np.add.reduceat(values.astype(kind), changes)
            for values, kind in (
                (begins, np.int64),
                (begins & (label == 0), np.int64),
                (np.ones(len(key)), np.int64),
                (label == 0, np.int64),
                (score, np.float64),
                (np.zeros(len(key)), np.int64),
                (begins & (label == 2), np.int64),
            )
        ]
        by_time = np.argsort(start[changes], kind="stable")
        names = [self.keys[k] for k in key[changes][by_time].tolist()]
        columns = [start[changes][by_time].tolist(), names, *(values[by_time].tolist() for values in sums)]
        if width == 1:
            writer(t.ticks, zip(*columns, strict=True))
        else:
            writer(t.rollups, zip([width] * len(names), *columns, strict=True))


def _secondary(engine: Engine, *, make: bool) -> None:
    with engine.begin() as connection:
        for name in TABLES:
            for index in sorted(t.metadata.tables[name].indexes, key=lambda one: str(one.name)):
                if make:
                    index.create(connection)
                else:
                    index.drop(connection)


def fill(engine: Engine, count: int, days: int, tickers: int) -> None:
    """Write `count` items of the `days` days before `END`, under 20 topics and `tickers` tickers."""
    _secondary(engine, make=False)
    begin = (END - EPOCH) // timedelta(minutes=1) - days * DAY
    per_day = -(-count // days)
    made = _Days(tickers, per_day)
    connection = engine.raw_connection()
    postgresql = engine.dialect.name == "postgresql"
    try:
        writer = _Writer(connection.driver_connection, postgresql)
        if not postgresql:
            # Nothing is lost if the power fails: the store is made again.
            for pragma in ("journal_mode = off", "synchronous = off", "cache_size = -1000000"):
                connection.cursor().execute(f"pragma {pragma}")
        for day in range(days):
            if not postgresql:
                connection.cursor().execute("begin immediate")
            made.write(writer, day * per_day, begin + day * DAY)
            connection.commit()
    finally:
        connection.close()
    engine.dispose()
    _secondary(engine, make=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as plain:
        plain.exec_driver_sql("analyze")
