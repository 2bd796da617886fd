"""How fast the dashboard's queries are on a full store.

    python benchmarks/store.py --items 1000000 [--url sqlite:///bench.db] [--json]

Fills a store that is empty (one that is filled already is measured as it is) with items under topics and tickers, the
tickers' share of the news falling as in life (few make the news all day), copies told by several sources, then runs
each query that a page makes several times. Times are milliseconds, each with its own transaction: the first one of
every query, the median of the rest, and the median of this process's own CPU time (with SQLite that is all there is;
on a busy machine it is the figure to compare). The target is 500 ms for each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Shown
from sqlalchemy import Connection, Engine, insert

from monitor.storage import tables as t
from monitor.storage.alerts import list_alerts
from monitor.storage.articles import article, copies, headlines, stories_under
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.labels import list_labels
from monitor.storage.migrate import upgrade
from monitor.storage.status import store_status
from monitor.storage.trends import (
    DAY,
    HOUR,
    MARKET,
    TickSums,
    add_to_rollups,
    keys_by_volume,
    newest_minute,
    series,
    series_by_key,
    topic_keys,
    totals,
)
from monitor.taxonomy import bundled_taxonomy

END = datetime(2026, 3, 13, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BATCH = 20_000
ROUNDS = 5
WORDS = ("shares", "profit", "outlook", "regulator", "orders", "demand", "inquiry", "quarter", "dividend", "merger")


def minute_of(at: datetime) -> int:
    """Epoch minute."""
    return (at - EPOCH) // timedelta(minutes=1)


def batches(count: int, days: int, tickers: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows for all tables, in order of time, `BATCH` items at a time."""
    topics = bundled_taxonomy().labels
    names = [f"T{number:04d}" for number in range(tickers)]
    # Zipf's law: the n-th ticker is in the news 1/n as often as the first.
    weights = list(accumulate(1 / (rank + 1) for rank in range(tickers)))
    gap = timedelta(days=days) / count
    open_stories: dict[str, tuple[str, datetime]] = {}
    for start in range(0, count, BATCH):
        found: dict[str, Any] = {"items": [], "item_keys": [], "stories": {}, "ticks": {}}
        for number in range(start, min(count, start + BATCH)):
            at = END - timedelta(days=days) + number * gap
            topic = topics[rng.randrange(len(topics))]
            mentioned = set(rng.choices(names, cum_weights=weights, k=rng.choice((0, 1, 1, 1, 2))))
            p = rng.random()
            label = "negative" if p < 0.22 else "neutral" if p < 0.67 else "positive"
            p_negative, score = (0.8, -0.7) if label == "negative" else (0.1, 0.0 if label == "neutral" else 0.75)
            item_id = f"item-{number:09d}"
            found["items"].append(
                {
                    "id": item_id,
                    "published_at": at,
                    "source": f"source {rng.randrange(200)}",
                    "url": f"https://news.example/{number}",
                    "title": " ".join(rng.choices(WORDS, k=9)),
                    "body": " ".join(rng.choices(WORDS, k=60)),
                    "lang": "en",
                    "kind": "news",
                    "tickers": sorted(mentioned),
                    "chart_ids": [],
                    "sentiment": label,
                    "p_negative": p_negative,
                    "p_neutral": 0.9 - p_negative,
                    "p_positive": 0.1,
                    "topic": topic,
                    "topic_probabilities": {topic: 0.9},
                    "entities": [],
                    "chart": None,
                    "modality": "text",
                    "flags": [],
                    "model_version": "bench",
                    "scored_at": at,
                }
            )
            for key in (f"topic:{topic}", *(f"ticker:{name}" for name in sorted(mentioned))):
                add_key(found, open_stories, key, item_id, at, label == "negative", p_negative, score, rng)
        yield found


def add_key(
    found: dict[str, Any],
    open_stories: dict[str, tuple[str, datetime]],
    key: str,
    item_id: str,
    at: datetime,
    negative: bool,
    p_negative: float,
    score: float,
    rng: random.Random,
) -> None:
    """What one item adds under one key: one in four is a copy of the key's newest story."""
    minute = minute_of(at)
    story_id, begun = open_stories.get(key, ("", at))
    copy = story_id != "" and at - begun < timedelta(hours=6) and rng.random() < 0.25
    if not copy:
        story_id = f"{key}|{item_id}"[:64]
        open_stories[key] = (story_id, at)
        ms = minute * 60_000
        found["stories"][story_id] = {
            "id": story_id,
            "key": key,
            "partition": 0,
            "first_at": ms,
            "last_at": ms,
            "minute": minute,
            "negative": negative,
            "items": 1,
            "sources": ["a"],
            "title": item_id,
            "url": "",
            "source": "a",
            "item_id": item_id,
            "item_ids": [item_id],
            "p_negative": p_negative,
            "signature": [1, 2, 3, 4],
        }
    found["item_keys"].append(
        {"key": key, "item_id": item_id, "published_at": at, "p_negative": p_negative, "score": score}
    )
    known = found["ticks"].get((key, minute), TickSums())
    found["ticks"][key, minute] = TickSums(
        known.stories + (not copy),
        known.negative_stories + (negative and not copy),
        known.items + 1,
        known.negative_items + negative,
        known.score_sum + score,
    )


def fill(engine: Engine, count: int, days: int, tickers: int) -> None:
    """Write the rows; those of minutes that two batches share are added up by leaving a batch's last minute open."""
    rng = random.Random(1)
    held: dict[tuple[str, int], TickSums] = {}
    for found in batches(count, days, tickers, rng):
        ticks = found["ticks"]
        last = max(minute for _, minute in ticks)
        for place, sums in held.items():
            more = ticks.get(place, TickSums())
            ticks[place] = TickSums(*(getattr(sums, f) + getattr(more, f) for f in sums.__struct_fields__))
        held = {place: ticks.pop(place) for place in [p for p in ticks if p[1] == last]}
        with writing(engine) as connection:
            for name in ("items", "item_keys"):
                connection.execute(insert(t.metadata.tables[name]), found[name])
            connection.execute(insert(t.stories), list(found["stories"].values()))
            store_ticks(connection, ticks)
    with writing(engine) as connection:
        store_ticks(connection, held)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("analyze")


def store_ticks(connection: Connection, ticks: dict[tuple[str, int], TickSums]) -> None:
    """Ticks and rollups."""
    if ticks:
        rows = [
            {"key": key, "minute": minute, **{name: getattr(sums, name) for name in sums.__struct_fields__}}
            for (key, minute), sums in ticks.items()
        ]
        connection.execute(insert(t.ticks), rows)
        add_to_rollups(connection, ticks)


def queries(end: int) -> dict[str, Callable[[Connection], Any]]:
    """What the pages ask, `end` being the end of the data (epoch minute)."""

    def span(minutes: int) -> dict[str, datetime]:
        return {"start": EPOCH + timedelta(minutes=end - minutes), "end": EPOCH + timedelta(minutes=end)}

    return {
        "newest minute": newest_minute,
        "topic keys": topic_keys,
        "tickers by volume": lambda c: keys_by_volume(c, "ticker:", since=end - 30 * DAY, limit=2000),
        "market, 24 h by minute": lambda c: series(c, MARKET, end - DAY, end, 1),
        "market, 3 d by 15 min": lambda c: series(c, MARKET, end - 3 * DAY, end, 15),
        "market, 7 d by 15 min": lambda c: series(c, MARKET, end - 7 * DAY, end, 15),
        "market, 30 d by hour": lambda c: series(c, MARKET, end - 30 * DAY, end, HOUR),
        "market, 90 d by day": lambda c: series(c, MARKET, end - 90 * DAY, end, DAY),
        "ticker, 7 d by 15 min": lambda c: series(c, "ticker:T0000", end - 7 * DAY, end, 15),
        "topics' lines, 24 h": lambda c: series_by_key(c, topic_keys(c), end - DAY, end, HOUR),
        "movers, 1 h": lambda c: totals(c, "ticker:", end - 60, end),
        "movers, 24 h": lambda c: totals(c, "ticker:", end - DAY, end),
        "movers, 3 d": lambda c: totals(c, "ticker:", end - 3 * DAY, end),
        "movers, 30 d": lambda c: totals(c, "ticker:", end - 30 * DAY, end),
        "articles of the market": lambda c: headlines(c, key=MARKET, **span(DAY)),
        "articles of a ticker": lambda c: headlines(c, key="ticker:T0000", **span(30 * DAY)),
        "articles, a word": lambda c: headlines(c, key=MARKET, search="inquiry", **span(30 * DAY)),
        "articles, a word in none": lambda c: headlines(c, key=MARKET, search="zebra", **span(30 * DAY)),
        "articles of a ticker, a word in none": lambda c: headlines(
            c, key="ticker:T0000", search="zebra", **span(30 * DAY)
        ),
        "an article": lambda c: article(c, "item-000000000"),
        "stories of a ticker, 4 h, copies": lambda c: copies(
            c, [s.id for s in stories_under(c, "ticker:T0000", end - 240, end, negative_only=True, limit=50)]
        ),
        "stories of the market, 4 h": lambda c: stories_under(c, MARKET, end - 240, end, negative_only=True, limit=50),
        "alerts": lambda c: list_alerts(c, limit=500),
        "labels": lambda c: list_labels(c, limit=500),
        "status": lambda c: store_status(c.engine),
    }


def measure(engine: Engine) -> list[dict[str, Any]]:
    """Each query's first and median time in milliseconds."""
    with reading(engine) as connection:
        end = (newest_minute(connection) or 0) + 1
    found = []
    for name, query in queries(end).items():
        times, busy = [], []
        for _ in range(ROUNDS + 1):
            begun, cpu = time.perf_counter(), time.process_time()
            with reading(engine) as connection:
                query(connection)
            times.append((time.perf_counter() - begun) * 1000)
            busy.append((time.process_time() - cpu) * 1000)
        found.append(
            {
                "query": name,
                "first_ms": round(times[0], 1),
                "median_ms": round(statistics.median(times[1:]), 1),
                "cpu_ms": round(statistics.median(busy), 1),
            }
        )
    return found


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--tickers", type=int, default=2000)
    parser.add_argument("--url", help="SQLAlchemy URL; without it SQLite in a folder that is removed afterwards")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(given.url or f"sqlite:///{Path(folder) / 'bench.db'}")
        upgrade(engine)
        begun = time.perf_counter()
        if store_status(engine).items == 0:
            fill(engine, given.items, given.days, given.tickers)
        filled_s = time.perf_counter() - begun
        times = measure(engine)
        with reading(engine) as connection:
            rows = {
                name: connection.exec_driver_sql(f"select count(*) from {name}").scalar_one()  # noqa: S608
                for name in ("items", "item_keys", "ticks", "rollups", "stories")
            }
        engine.dispose()
    if given.json:
        json.dump({"rows": rows, "filled_s": round(filled_s), "queries": times}, sys.stdout)
        return
    shown = Shown("query", "first, ms", "median, ms", "CPU, ms", title=f"{rows}, filled in {filled_s:.0f} s")
    for each in times:
        shown.add_row(each["query"], str(each["first_ms"]), str(each["median_ms"]), str(each["cpu_ms"]))
    Console().print(shown)


if __name__ == "__main__":
    main()
