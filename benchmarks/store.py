"""How fast the dashboard's queries are on a full store.

    python benchmarks/store.py --items 1000000 [--url sqlite:///bench.db] [--json]

Fills a store that is empty (one that is filled already is measured as it is) with items under topics and tickers, the
tickers' share of the news falling as in life (few make the news all day), copies told by several sources, then runs
each query that a page makes several times. Times are milliseconds, each with its own transaction: the first one of
every query, the median of the rest, and the median of this process's own CPU time (with SQLite that is all there is;
on a busy machine it is the figure to compare). The target is 200 ms for each with 10 million items.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from _filling import EPOCH, fill
from rich.console import Console
from rich.table import Table as Shown
from sqlalchemy import Connection, Engine

from monitor.storage.alerts import list_alerts
from monitor.storage.articles import article, copies, headlines, stories_under
from monitor.storage.engine import open_engine, reading
from monitor.storage.labels import list_labels
from monitor.storage.migrate import upgrade
from monitor.storage.status import store_status
from monitor.storage.trends import (
    DAY,
    HOUR,
    MARKET,
    keys_by_volume,
    newest_minute,
    series,
    series_by_key,
    topic_keys,
    totals,
)

ROUNDS = 5


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
            c, stories_under(c, "ticker:T0000", end - 240, end, surge="negative", limit=50)
        ),
        "stories of the market, 4 h": lambda c: stories_under(c, MARKET, end - 240, end, surge="negative", limit=50),
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
