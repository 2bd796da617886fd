"""The real aggregator process on a broker and a store of their own: how fast it works off a backlog."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from consumers.aggregator import run_aggregator
from consumers.broker.process import running_broker
from consumers.clients import producer
from consumers.topics import CONTRIBUTIONS, ensure_topics
from monitor.settings import Settings, load_settings
from monitor.storage.engine import open_engine, reading
from monitor.storage.migrate import upgrade
from monitor.storage.tables import partitions
from monitor.telemetry import configure_logging

__all__ = ["process_rate"]

# Contributions of the first n records of a partition, for every n.
Sizes = dict[int, list[int]]

WAIT_S = 1800.0
LOOKED_S = 0.05


def _serve_broker(folder: str, count: int, address: Any, stop: Any) -> None:
    configure_logging(Settings(log_level="error"), "broker")
    with running_broker(Path(folder), default_partitions=count) as at:
        address.put(at)
        stop.wait()


def _serve_aggregator(given: dict[str, Any], asked: Any, spent: Any) -> None:
    """The aggregator, as the command starts it; tells its processor time (seconds) whenever it is asked."""
    settings = load_settings(**given)
    configure_logging(settings, "aggregator")

    def tell() -> None:
        while asked.get():
            spent.put(time.process_time())

    threading.Thread(target=tell, daemon=True).start()
    run_aggregator(settings)


def _counted(store: Engine, sizes: Sizes) -> int:
    """Contributions of the records that are counted in all partitions."""
    with reading(store) as connection:
        offsets = connection.execute(select(partitions.c.partition, partitions.c.next_offset)).all()
    return sum(sizes[partition][offset] for partition, offset in offsets)


def _wait(store: Engine, sizes: Sizes, wanted: int, process: Any) -> tuple[float, int]:
    """When (`time.perf_counter`) more than `wanted` contributions, or all, were counted; and how many."""
    deadline = time.perf_counter() + WAIT_S
    most = sum(cumulative[-1] for cumulative in sizes.values())
    while (now := time.perf_counter()) < deadline:
        counted = _counted(store, sizes)
        if counted > wanted or counted == most:
            return now, counted
        if not process.is_alive():
            raise RuntimeError(f"the aggregator ended with exit code {process.exitcode}")
        time.sleep(LOOKED_S)
    raise TimeoutError(f"no more than {counted} contributions were counted")


def _send(settings: Settings, records: dict[int, list[bytes]]) -> None:
    """Produce records to their partitions."""
    client = producer(settings)
    sent = [
        client.send(settings.topic(CONTRIBUTIONS), value, partition=partition)
        for partition, values in records.items()
        for value in values
    ]
    client.flush(timeout=600)
    for one in sent:
        one.get(timeout=60)
    client.close()


def process_rate(records: dict[int, list[bytes]], sizes: dict[int, list[int]], database: str = "") -> dict[str, Any]:
    """Contributions a second of one process that works off `records` (by partition): wall clock, and its own CPU time.

    `sizes` are the contributions of each record. All records lie on the topic before the process starts; it is measured
    from its first commit on, so that joining the group is left out. Broker and store share the machine.
    """
    cumulative = {partition: [0, *accumulate(counts)] for partition, counts in sizes.items()}
    context = multiprocessing.get_context("spawn")
    address, asked, spent, stop = context.Queue(), context.Queue(), context.Queue(), context.Event()
    with tempfile.TemporaryDirectory() as folder:
        broker = context.Process(
            target=_serve_broker, args=(f"{folder}/broker", len(records), address, stop), daemon=True
        )
        broker.start()
        given: dict[str, Any] = {
            "kafka_bootstrap_servers": address.get(timeout=60),
            "kafka_partitions": len(records),
            "data_dir": Path(folder),
            "database_url": database or f"sqlite:///{folder}/monitor.db",
            "log_level": "error",
        }
        settings = load_settings(**given)
        configure_logging(settings, "bench")
        store = open_engine(settings.database)
        upgrade(store)
        ensure_topics(settings)
        _send(settings, records)
        process = context.Process(target=_serve_aggregator, args=(given, asked, spent), daemon=True)
        process.start()
        try:
            began, before = _wait(store, cumulative, 0, process)
            asked.put(True)
            cpu_before = spent.get(timeout=60)
            ended, after = _wait(store, cumulative, sum(each[-1] for each in cumulative.values()), process)
            asked.put(True)
            cpu_s = spent.get(timeout=60) - cpu_before
        finally:
            if process.pid is not None and process.is_alive():
                process.terminate()
                process.join(timeout=60)
            stop.set()
            broker.join(timeout=60)
            store.dispose()
    seconds, counted = ended - began, after - before
    return {
        "contributions": counted,
        "contributions_per_s": round(counted / max(seconds, 1e-9)),
        "contributions_per_cpu_s": round(counted / max(cpu_s, 1e-9)),
    }
