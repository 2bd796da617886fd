"""What it costs to write an item as the store fills up; prints one JSON list.

    python benchmarks/growth.py [--sizes 1000 10000 100000 1000000] [--tickers 2000] [--url postgresql+psycopg://...]

A store is filled to each size in turn (`benchmarks/_filling.py`), then items are written as the scoring worker writes
them, in batches of 128, one transaction each. Microseconds of wall clock and of this process's CPU per item. With
`--url` one size only, into an empty database.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from _filling import END, fill
from sqlalchemy import Engine

from monitor.pairing import Group
from monitor.records import Modality, NewsItem, ScoredItem, SentimentScore, TopicScore
from monitor.storage.engine import open_engine, writing
from monitor.storage.items import store_scored
from monitor.storage.migrate import upgrade
from monitor.surges.keys import contributions
from monitor.taxonomy import bundled_taxonomy

BATCH = 128
PER_DAY = 166_667


def scored(number: int) -> ScoredItem:
    """An item after those of the generator."""
    topics = bundled_taxonomy().labels
    return ScoredItem(
        id=f"new-{number:09d}",
        published_at=END + timedelta(seconds=number),
        sentiment=SentimentScore.of([0.7, 0.2, 0.1]),
        topic=TopicScore(
            label=topics[number % len(topics)], probabilities={name: 1.0 / len(topics) for name in topics}
        ),
        modality=Modality.TEXT,
        model_version="bench",
        scored_at=END,
        title="shares of the bank fall after a profit warning",
        body="orders demand inquiry quarter dividend merger " * 10,
        source="wire",
        tickers=(f"T{number % 2000:04d}",),
    )


def write(engine: Engine, count: int) -> tuple[float, float]:
    """Microseconds of wall clock and of CPU for an item."""
    items = [scored(number) for number in range(count)]
    began, cpu = time.perf_counter(), time.process_time()
    for start in range(0, count, BATCH):
        batch: list[Any] = [
            (Group(NewsItem(id=item.id, published_at=item.published_at), {}, []), item, contributions(item))
            for item in items[start : start + BATCH]
        ]
        with writing(engine) as connection:
            store_scored(connection, batch, {})
    return 1e6 * (time.perf_counter() - began) / count, 1e6 * (time.process_time() - cpu) / count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--tickers", type=int, default=2000)
    parser.add_argument("--written", type=int, default=4096)
    parser.add_argument("--url", help="SQLAlchemy URL of an empty database")
    given = parser.parse_args()
    found = []
    for size in given.sizes[:1] if given.url else given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            engine = open_engine(given.url or f"sqlite:///{Path(folder) / 'store.db'}")
            upgrade(engine)
            fill(engine, size, max(1, size // PER_DAY), given.tickers)
            wall, cpu = write(engine, given.written)
            engine.dispose()
        found.append({"items": size, "wall_us": round(wall), "cpu_us": round(cpu)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
