"""The scoring worker from the broker to the store against its engine alone, and how long an item takes through it.

    python benchmarks/worker.py [--items 2000] [--rounds 3] [--workers 1 2 3] [--json]

The broker is the embedded one in a process of its own, the store SQLite with full synchronisation (`--broker` and
`--database` name others). In each round the engine alone scores the texts in batches as the worker does, without
cache; then the same texts lie on the topic and a worker process works them off. A worker's rate is that between the
first and the last batch that it stores. `share` is the worker's rate over the engine's in the same round. With half of
the rate found, items are then sent one by one, and the time from the broker's append to the commit of the store is
told. `--workers` measures several workers in one group; with more of them than processor cores they share these.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from engine import texts_of
from sqlalchemy import Connection, Engine, event, func, select

from consumers import pipeline
from consumers.broker.process import running_broker
from consumers.clients import producer
from consumers.topics import NEWS, ensure_topics
from consumers.worker import Worker
from models.engine import ScoringRequest, open_scorer
from monitor.records import NewsItem, encode
from monitor.settings import Settings, load_settings
from monitor.storage.engine import open_engine, reading
from monitor.storage.items import store_scored
from monitor.storage.migrate import upgrade
from monitor.storage.tables import items
from monitor.telemetry import configure_logging

WAIT_S = 600


def items_of(texts: list[str], prefix: str) -> list[NewsItem]:
    """One item a text."""
    now = datetime.now(UTC)
    return [NewsItem(id=f"{prefix}-{n}", published_at=now, title=text) for n, text in enumerate(texts)]


def serve_broker(folder: str, port: Any, stop: Any) -> None:
    """A broker until told to stop."""
    with running_broker(Path(folder), default_partitions=4) as address:
        port.put(address)
        stop.wait()


def serve_worker(given: dict[str, Any], threads: int, ready: Any, stop: Any, out: Any) -> None:
    """A worker until told to stop; gives (id, time of the commit) of what it stored."""
    torch.set_num_threads(threads)
    settings = load_settings(**given)
    configure_logging(settings, "worker")
    store = open_engine(settings.database)
    stored: list[tuple[str, float]] = []
    pending: list[str] = []

    def noted(connection: Connection, scored: Any, pictures: Any) -> Any:
        pending.extend(item.id for _, item, _ in scored)
        return store_scored(connection, scored, pictures)

    @event.listens_for(store, "commit")
    def committed(_connection: Connection) -> None:
        now = time.time()
        stored.extend((item_id, now) for item_id in pending)
        pending.clear()

    pipeline.store_scored = noted
    scorer = open_scorer(settings, store)
    ready.put(os.getpid())
    Worker(settings, scorer, store, stop.is_set).run()
    out.put(stored)


@contextlib.contextmanager
def workers(given: dict[str, Any], count: int) -> Iterator[list[tuple[str, float]]]:
    """Worker processes for the time of a block; what they stored is in the list afterwards."""
    context = multiprocessing.get_context("spawn")
    ready, out, stop = context.Queue(), context.Queue(), context.Event()
    threads = max(1, torch.get_num_threads() // count)
    started = [
        context.Process(target=serve_worker, args=(given, threads, ready, stop, out), daemon=True) for _ in range(count)
    ]
    for process in started:
        process.start()
    for _ in started:
        ready.get(timeout=WAIT_S)
    stored: list[tuple[str, float]] = []
    try:
        yield stored
    finally:
        stop.set()
        for _ in started:
            stored.extend(out.get(timeout=WAIT_S))
        for process in started:
            process.join(timeout=30)


def send(settings: Settings, sent: list[NewsItem], per_s: float = 0.0) -> dict[str, float]:
    """Produce items, all at once or at a rate; the times at which the broker had them (epoch seconds)."""
    client = producer(settings, linger_ms=0) if per_s else producer(settings)
    times: dict[str, float] = {}
    began = time.perf_counter()
    for number, item in enumerate(sent):
        if per_s:
            time.sleep(max(0.0, began + number / per_s - time.perf_counter()))
        future = client.send(settings.topic(NEWS), encode(item), item.id.encode())
        future.add_callback(lambda _result, name=item.id: times.setdefault(name, time.time()))
    client.flush(timeout=60)
    client.close()
    return times


def wait_until_stored(store: Engine, count: int) -> None:
    """Until so many items are stored; `TimeoutError` after ten minutes."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with reading(store) as connection:
            if connection.execute(select(func.count()).select_from(items)).scalar_one() >= count:
                return
        time.sleep(0.2)
    raise TimeoutError(f"fewer than {count} items were stored")


def rate_of(stored: list[tuple[str, float]]) -> float:
    """Items a second between the first and the last commit; those of the first do not count."""
    times = sorted(at for _, at in stored)
    return sum(at > times[0] for at in times) / max(times[-1] - times[0], 1e-9)


def engine_rate(settings: Settings, texts: list[str]) -> float:
    """Items a second of the engine alone, in batches as the worker's."""
    scorer = open_scorer(settings)
    requests = [ScoringRequest(item) for item in items_of(texts, "engine")]
    step = settings.worker_batch_items
    scorer.score(requests[:step])
    began = time.perf_counter()
    for start in range(0, len(requests), step):
        scorer.score(requests[start : start + step])
    return len(requests) / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--broker", default="", help="bootstrap servers; default: an embedded broker")
    parser.add_argument("--database", default="", help="SQLAlchemy URL of an empty database; default: SQLite")
    parser.add_argument("--precision", default="auto")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    address, stop = context.Queue(), context.Event()
    found: dict[str, Any] = {"items": asked.items, "threads": torch.get_num_threads(), "rounds": []}
    texts = texts_of(None, asked.items)
    with tempfile.TemporaryDirectory() as folder:
        broker = context.Process(target=serve_broker, args=(f"{folder}/broker", address, stop), daemon=True)
        if not asked.broker:
            broker.start()
        given: dict[str, Any] = {
            "kafka_bootstrap_servers": asked.broker or address.get(timeout=60),
            "data_dir": Path(folder),
            "score_cache_rows": 0,
            "cpu_precision": asked.precision,
            "log_level": "error",
        }
        try:
            for number in range(asked.rounds):
                for count in asked.workers:
                    found["rounds"].append(one_round(given, texts, count, f"r{number}w{count}-", asked.database))
            rates = [one["items_per_s"] for one in found["rounds"] if one["workers"] == 1]
            if rates:
                found["latency_ms_at_half_load"] = latency(given, texts, statistics.median(rates) / 2)
        finally:
            stop.set()
    for count in asked.workers:
        shares = [one["share"] for one in found["rounds"] if one["workers"] == count]
        found[f"share_with_{count}"] = [round(f(shares), 3) for f in (statistics.median, min, max)]
    print(json.dumps(found))


def one_round(given: dict[str, Any], texts: list[str], count: int, prefix: str, database: str) -> dict[str, Any]:
    """The engine alone, then workers on topics and a store of their own."""
    url = database or f"sqlite:///{given['data_dir']}/{prefix}.db"
    mine = given | {"topic_prefix": prefix, "database_url": url}
    settings = load_settings(**mine)
    alone = engine_rate(settings, texts)
    store = open_engine(settings.database)
    upgrade(store)
    ensure_topics(settings)
    with reading(store) as connection:
        before = connection.execute(select(func.count()).select_from(items)).scalar_one()
    with workers(mine, count) as stored:
        # What is there when they start would be handed out before all have joined.
        time.sleep(3.0)
        send(settings, items_of(texts, prefix))
        wait_until_stored(store, before + len(texts))
    store.dispose()
    rate = rate_of(stored)
    return {
        "workers": count,
        "engine_items_per_s": round(alone, 1),
        "items_per_s": round(rate, 1),
        "share": round(rate / alone, 3),
    }


def latency(given: dict[str, Any], texts: list[str], per_s: float) -> dict[str, Any]:
    """Milliseconds from append to commit, for at most half a minute of items at `per_s`, once the worker works."""
    mine = given | {"topic_prefix": "latency-", "database_url": f"sqlite:///{given['data_dir']}/latency.db"}
    settings = load_settings(**mine)
    store = open_engine(settings.database)
    upgrade(store)
    ensure_topics(settings)
    some = items_of(texts, "latency")[: max(20, int(30 * per_s))]
    appended: dict[str, float] = {}
    first = items_of(texts, "first")[:64]
    with workers(mine, 1) as stored:
        # The first items find a worker that has not joined its group and computed nothing yet.
        send(settings, first)
        wait_until_stored(store, len(first))
        sender = threading.Thread(target=lambda: appended.update(send(settings, some, per_s)))
        sender.start()
        sender.join()
        wait_until_stored(store, len(first) + len(some))
    store.dispose()
    taken = sorted(1000 * (at - appended[item_id]) for item_id, at in stored if item_id in appended)
    return {
        "items": len(taken),
        "per_s": round(per_s, 1),
        "p50": round(taken[len(taken) // 2], 1),
        "p99": round(taken[int(len(taken) * 0.99)], 1),
        "max": round(taken[-1], 1),
    }


if __name__ == "__main__":
    main()
