"""The scoring worker from the broker to the store against its engine alone, and how long an item takes through it.

    python benchmarks/worker.py [--items 2000] [--rounds 3] [--workers 1 2 3] [--json]

The broker is the embedded one in a process of its own, the store SQLite with full synchronisation (`--broker` and
`--database` name others). In each round the engine alone scores the texts in batches and from as many threads as the
worker does, without cache, in an order drawn once; then the same texts lie on the topic and a worker process works them
off. A worker's rate is that between the first and the last batch that it stores. `share` is the worker's rate over the
engine's in the same round: broker and benchmark take their part of the same cores. `cpu_ms` is the processor time an
item takes of each, `cpu_share` the engine's over the worker's: what the share comes to where the worker has the machine
to itself, as far as it keeps all cores busy. At half of the rate that one worker had in that round (or `--per-s`),
items are then sent one by one, in the same round, since a machine is now fast, now slow, and the time from the broker's
append to the commit of the store is told: of all items, of short ones and of those with a body. `--workers` measures
several workers in one group; with more of them than processor cores they share these. The machine's load average is
told beside everything that other work disturbs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from confluent_kafka import Producer
from engine import texts_of
from sqlalchemy import Connection, Engine, event, func, select

from consumers import pipeline
from consumers.broker.process import running_broker
from consumers.threads import share_the_interpreter
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


Stored = tuple[str, float, float]


def serve_broker(folder: str, port: Any, asked: Any, spent: Any) -> None:
    """A broker until told to stop by a False; to a True it tells the processor time that it has taken, in seconds."""
    with running_broker(Path(folder), default_partitions=4) as address:
        port.put(address)
        while asked.get():
            spent.put(time.process_time())


class Spending:
    """Processor time of the broker (none when it is not ours) and of this process."""

    def __init__(self, asked: Any, spent: Any, *, ours: bool) -> None:
        self._asked = asked
        self._spent = spent
        self._ours = ours

    def read(self) -> tuple[float, float]:
        """Seconds up to now."""
        broker = 0.0
        if self._ours:
            self._asked.put(True)
            broker = self._spent.get(timeout=60)
        return broker, time.process_time()


def serve_worker(given: dict[str, Any], threads: int, ready: Any, stop: Any, out: Any) -> None:
    """A worker until told to stop; gives (id, time of the commit, processor time until then) of what it stored."""
    torch.set_num_threads(threads)
    settings = load_settings(**given)
    configure_logging(settings, "worker")
    store = open_engine(settings.database)
    stored: list[Stored] = []
    # One thread stores while another one looks something up: their transactions end apart.
    pending: dict[int, list[str]] = {}

    def noted(connection: Connection, scored: Any, pictures: Any) -> Any:
        pending.setdefault(threading.get_ident(), []).extend(item.id for _, item, _ in scored)
        return store_scored(connection, scored, pictures)

    @event.listens_for(store, "commit")
    def committed(_connection: Connection) -> None:
        now, spent = time.time(), time.process_time()
        stored.extend((item_id, now, spent) for item_id in pending.pop(threading.get_ident(), ()))

    pipeline.store_scored = noted
    scorer = open_scorer(settings, store)
    scorer.warm_up()
    share_the_interpreter()
    ready.put(os.getpid())
    Worker(settings, scorer, store, stop.is_set).run()
    out.put(stored)


@contextlib.contextmanager
def workers(given: dict[str, Any], count: int) -> Iterator[list[list[Stored]]]:
    """Worker processes for the time of a block; what each of them stored is in the list afterwards."""
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
    stored: list[list[Stored]] = []
    try:
        yield stored
    finally:
        stop.set()
        stored.extend(out.get(timeout=WAIT_S) for _ in started)
        for process in started:
            process.join(timeout=30)


def send(settings: Settings, sent: list[NewsItem], per_s: float = 0.0) -> dict[str, float]:
    """Produce items, all at once or at a rate; the times at which the broker said that it had them (epoch seconds).

    By a client in C (`pip install '.[bench]'`), without encryption or login: it takes little of the processor cores
    that it shares with what is measured.
    """
    # Partitions as other clients choose them, by the key's murmur2 hash.
    client = Producer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "acks": "all",
            "linger.ms": 0 if per_s else 50,
            "partitioner": "murmur2_random",
        }
    )
    topic, times = settings.topic(NEWS), {}
    values = [(item.id, encode(item)) for item in sent]

    def acknowledged(error: Any, message: Any) -> None:
        if error is not None:
            raise RuntimeError(f"an item could not be sent: {error}")
        times[message.key().decode()] = time.time()

    # So that the first one does not wait for it.
    client.list_topics(topic, timeout=60)
    began = time.perf_counter()
    for number, (item_id, value) in enumerate(values):
        while per_s and (left := began + number / per_s - time.perf_counter()) > 0:
            client.poll(left)
        client.produce(topic, value, item_id, on_delivery=acknowledged)
        client.poll(0)
    if client.flush(60):
        raise TimeoutError("the broker did not take all items within a minute")
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


def rate_of(stored: list[list[Stored]]) -> tuple[float, float]:
    """Items a second between the first and the last commit, and processor time of the workers an item, milliseconds.

    Items of the first commit do not count.
    """
    times = sorted(at for mine in stored for _, at, _ in mine)
    rate = sum(at > times[0] for at in times) / max(times[-1] - times[0], 1e-9)
    spent = sum(mine[-1][2] - mine[0][2] for mine in stored if mine)
    counted = sum(at > mine[0][1] for mine in stored for _, at, _ in mine)
    return rate, 1000 * spent / max(counted, 1)


def engine_rate(settings: Settings, texts: list[str]) -> tuple[float, float]:
    """Items a second of the engine alone, called as the worker calls it, and its processor time an item, ms."""
    scorer = open_scorer(settings)
    scorer.warm_up()
    # As the worker's process.
    share_the_interpreter()
    requests = [ScoringRequest(item) for item in items_of(texts, "engine")]
    step = settings.worker_batch_items
    scorer.score(requests[:step])
    began, spent = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(pipeline.SCORING_THREADS) as pool:
        list(pool.map(scorer.score, [requests[start : start + step] for start in range(0, len(requests), step)]))
    taken, spent = time.perf_counter() - began, time.process_time() - spent
    return len(requests) / taken, 1000 * spent / len(requests)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--broker", default="", help="bootstrap servers; default: an embedded broker")
    parser.add_argument("--database", default="", help="SQLAlchemy URL of an empty database; default: SQLite")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--per-s", type=float, default=0.0, help="items a second for the latency; default: half load")
    parser.add_argument("--latency-only", action="store_true", help="needs --per-s")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    address, ask, spent = context.Queue(), context.Queue(), context.Queue()
    found: dict[str, Any] = {"items": asked.items, "threads": torch.get_num_threads(), "rounds": [], "latency_ms": []}
    texts = texts_of(None, asked.items)
    # They come data set by data set, of different lengths: as a stream, mixed.
    random.Random(0).shuffle(texts)
    with tempfile.TemporaryDirectory() as folder:
        broker = context.Process(target=serve_broker, args=(f"{folder}/broker", address, ask, spent), daemon=True)
        if not asked.broker:
            broker.start()
        given: dict[str, Any] = {
            "kafka_bootstrap_servers": asked.broker or address.get(timeout=60),
            "data_dir": Path(folder),
            "score_cache_rows": 0,
            "cpu_precision": asked.precision,
            "log_level": "error",
        }
        spending = Spending(ask, spent, ours=not asked.broker)
        try:
            for number in range(asked.rounds):
                per_s = asked.per_s
                for count in () if asked.latency_only else asked.workers:
                    one = one_round(given, texts, count, f"r{number}w{count}-", asked.database, spending)
                    found["rounds"].append(one)
                    if count == 1:
                        per_s = asked.per_s or one["items_per_s"] / 2
                if per_s:
                    found["latency_ms"].append(latency(given, texts, per_s, number))
        finally:
            ask.put(False)
    for count in asked.workers:
        for name in ("share", "cpu_share"):
            shares = [one[name] for one in found["rounds"] if one["workers"] == count]
            if not shares:
                continue
            found[f"{name}_with_{count}"] = [round(f(shares), 3) for f in (statistics.median, min, max)]
    print(json.dumps(found))


def one_round(
    given: dict[str, Any], texts: list[str], count: int, prefix: str, database: str, spending: Spending
) -> dict[str, Any]:
    """The engine alone, then workers on topics and a store of their own."""
    url = database or f"sqlite:///{given['data_dir']}/{prefix}.db"
    mine = given | {"topic_prefix": prefix, "database_url": url}
    settings = load_settings(**mine)
    alone, engine_ms = engine_rate(settings, texts)
    store = open_engine(settings.database)
    upgrade(store)
    ensure_topics(settings)
    with reading(store) as connection:
        before = connection.execute(select(func.count()).select_from(items)).scalar_one()
    with workers(mine, count) as stored:
        # What is there when they start would be handed out before all have joined.
        time.sleep(3.0)
        send(settings, items_of(texts, prefix))
        spent = spending.read()
        wait_until_stored(store, before + len(texts))
        broker_ms, benchmark_ms = (1000 * (b - a) / len(texts) for a, b in zip(spent, spending.read(), strict=True))
    store.dispose()
    rate, worker_ms = rate_of(stored)
    cpu_ms = {"engine": engine_ms, "worker": worker_ms, "broker": broker_ms, "benchmark": benchmark_ms}
    return {
        "workers": count,
        "engine_items_per_s": round(alone, 1),
        "items_per_s": round(rate, 1),
        "share": round(rate / alone, 3),
        "cpu_ms": {name: round(value, 2) for name, value in cpu_ms.items()},
        "cpu_share": round(engine_ms / worker_ms, 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


def latency(given: dict[str, Any], texts: list[str], per_s: float, number: int) -> dict[str, Any]:
    """Milliseconds from append to commit, for at most half a minute of items at `per_s`, once the worker works."""
    name = f"latency{number}"
    mine = given | {"topic_prefix": f"{name}-", "database_url": f"sqlite:///{given['data_dir']}/{name}.db"}
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
    with_body = {item.id for item in some if "\n" in item.title}
    taken = {
        item_id: 1000 * (at - appended[item_id]) for mine in stored for item_id, at, _ in mine if item_id in appended
    }
    return {
        "per_s": round(per_s, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "all": quantiles(list(taken.values())),
        "short": quantiles([ms for item_id, ms in taken.items() if item_id not in with_body]),
        "long": quantiles([ms for item_id, ms in taken.items() if item_id in with_body]),
    }


def quantiles(taken: list[float]) -> dict[str, float]:
    """Of some times, rounded."""
    taken = sorted(taken)
    found = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    at = {name: round(taken[int(len(taken) * share)], 1) for name, share in found.items() if taken}
    return {"items": len(taken), **at, "max": round(max(taken, default=0.0), 1)}


if __name__ == "__main__":
    main()
