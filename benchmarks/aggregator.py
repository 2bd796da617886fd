"""How many contributions a second one aggregator counts: decoding, story clustering and the store; then the process.

    python benchmarks/aggregator.py [--items 40000] [--batch 128] [--keys 1000 ...] [--process] [--database sqlite:///...]

Contributions come as the worker sends them: one record a partition and scoring batch, a third of the items copies.
Prints one JSON list, an object for each number of keys: contributions per second of wall clock and of this process's
CPU time, and the latter for the counting alone; then how long another process takes to load what is open, and how much
memory that holds: per key that has open stories, and per open story (which is what a key of very many, a topic, costs).

With `--process` the same records are then worked off by the real process (Faust, reading and judging included) from
the embedded broker into a store of its own, and its contributions per second are told, too. Each number of keys is
measured in a process of its own, with at least four items a key, so that nearly every key is met.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import tempfile
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from _processes import process_rate
from sqlalchemy import Engine

from consumers.aggregator import collect_seldom, decode_batch
from monitor.records import Contribution, ContributionBatch, Rejected, SourceWatermark, encode
from monitor.storage.checkpoint import ContributionRecord, PartitionCheckpoint
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.stories import signature
from monitor.surges.counting import Counter, CounterState, CountingConfig
from monitor.surges.keys import partition_of
from monitor.surges.ledger import MemoryLedger
from monitor.surges.ticks import MINUTE_MS

PARTITIONS = 4
# As many as the aggregator takes from a partition at once while it catches up.
RECORDS_TOGETHER = 100
# An item has one ticker: with fewer many tickers would not be met.
ITEMS_A_KEY = 4
TOPICS = 20
WORDS = [f"word{number}" for number in range(3000)]


def make_records(items: int, batch: int, tickers: int) -> dict[int, list[bytes]]:
    """Encoded records by partition: two keys an item, 100 items a minute of event time."""
    rnd = random.Random(1)
    told: list[tuple[str, bytes, tuple[str, str]]] = []
    records: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    for start in range(0, items, batch):
        found: dict[int, list[Contribution]] = {partition: [] for partition in range(PARTITIONS)}
        at = 28_400_000 * MINUTE_MS
        for number in range(start, min(start + batch, items)):
            at = 28_400_000 * MINUTE_MS + number * MINUTE_MS // 100
            if told and rnd.random() < 0.33:
                told.append(rnd.choice(told[-200:]))
            else:
                keys = (f"ticker:T{rnd.randrange(tickers)}", f"topic:{rnd.randrange(min(TOPICS, tickers))}")
                title = " ".join(rnd.choices(WORDS, k=10))
                told.append((title, signature(title), keys))
            title, sketch, keys = told[-1]
            for key in keys:
                found[partition_of(key, PARTITIONS)].append(
                    Contribution(
                        key=key,
                        item_id=f"item-{number}",
                        at=at,
                        p_negative=0.3,
                        score=0.1,
                        negative=rnd.random() < 0.2,
                        signature=sketch,
                        source="wire",
                    )
                )
        for partition, contributions in found.items():
            sources = (SourceWatermark("news:0", at, False),)
            made = ContributionBatch(contributions=tuple(contributions), sources=sources, source_count=1)
            records[partition].append(encode(made))
    return records


def decoded(values: list[bytes]) -> list[ContributionBatch]:
    """Batches of records that are known to be good."""
    return [batch for batch in map(decode_batch, values) if not isinstance(batch, Rejected)]


def load(engine: Engine, config: CountingConfig) -> list[PartitionCheckpoint]:
    """What a process holds that takes the partitions over."""
    loaded = [PartitionCheckpoint(engine, partition, config) for partition in range(PARTITIONS)]
    for checkpoint in loaded:
        checkpoint.apply([])
    return loaded


def measured(items: int, batch: int, tickers: int, database: str, process: bool) -> dict[str, Any]:
    """The figures for one number of keys, in a process that has measured nothing else."""
    records, config = make_records(items, batch, tickers), CountingConfig()
    # As the process itself does.
    collect_seldom()
    began = time.process_time()
    for values in records.values():
        counter = Counter(config, CounterState(sources={}))
        for start in range(0, len(values), RECORDS_TOGETHER):
            counter.apply(decoded(values[start : start + RECORDS_TOGETHER]), MemoryLedger())
    del counter
    counting_s = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(database or f"sqlite:///{Path(folder) / 'monitor.db'}")
        upgrade(engine)
        checkpoints = {partition: PartitionCheckpoint(engine, partition, config) for partition in records}
        contributions = 0
        began, cpu_began = time.perf_counter(), time.process_time()
        for start in range(0, max(map(len, records.values())), RECORDS_TOGETHER):
            for partition, values in records.items():
                batches = decoded(values[start : start + RECORDS_TOGETHER])
                numbered = [ContributionRecord(start + index, batch) for index, batch in enumerate(batches)]
                contributions += checkpoints[partition].apply(numbered).contributions
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        del checkpoints
        gc.collect()
        began = time.perf_counter()
        load(engine, config)
        recovery_s = time.perf_counter() - began
        tracemalloc.start()
        loaded = load(engine, config)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        keys, stories = (sum(counts) for counts in zip(*(checkpoint.held for checkpoint in loaded), strict=True))
        engine.dispose()
    found: dict[str, Any] = {
        "keys": keys,
        "contributions": contributions,
        "seconds": round(seconds, 2),
        "contributions_per_s": round(contributions / seconds),
        "contributions_per_cpu_s": round(contributions / cpu_s),
        "counting_only_per_cpu_s": round(contributions / counting_s),
        "open_stories_per_key": round(stories / keys, 1),
        "recovery_s": round(recovery_s, 2),
        "bytes_per_key": round(held / keys),
        "bytes_per_open_story": round(held / stories),
        "database": engine.dialect.name,
    }
    if process:
        sizes = {
            partition: [len(one.contributions) for one in decoded(values)] for partition, values in records.items()
        }
        for name, value in process_rate(records, sizes).items():
            found[f"process_{name}"] = value
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=128, help="items of a scoring batch")
    parser.add_argument(
        "--keys", type=int, nargs="+", default=[1000], help="tickers, beside as many topics, at most 20"
    )
    parser.add_argument("--database", default="", help="SQLAlchemy URL of an empty database; default: a SQLite file")
    parser.add_argument("--process", action="store_true", help="measure the real process, too")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = []
    for tickers in given.keys:
        asked = (max(given.items, ITEMS_A_KEY * tickers), given.batch, tickers, given.database, given.process)
        with ProcessPoolExecutor(1, mp_context=context) as alone:
            found.append(alone.submit(measured, *asked).result())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
