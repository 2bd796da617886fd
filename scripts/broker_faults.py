"""Kill Kafka brokers under running processes and compare the counts with an undisturbed run.

    python -m scripts.broker_faults BOOTSTRAP --fault "CMD" --fault "CMD" [--pause 6] [--news]

Each CMD is run by the shell in mid-stream, one after the other with a pause, e.g. to kill and restart a node. Without
`--news` contributions go to two aggregators, with it news go through a worker and an aggregator under the supervisor.
Exits with 0 when every tick, story, counted pair (and watermark) is exactly what counting in memory gives.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from consumers.topics import ensure_topics
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from tests.consumers.running import sending as open_sender
from tests.end_to_end.faults import (
    aggregators,
    counted_records,
    expected,
    make_stream,
    send,
    stored,
    wait_until_counted,
)
from tests.end_to_end.flow import flowing, make_items


def main() -> int:
    """Run the faults; 0 when the counts are exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bootstrap")
    parser.add_argument("--fault", action="append", default=[], help="shell command that does some harm")
    parser.add_argument("--pause", type=float, default=6.0, help="seconds after each fault")
    parser.add_argument("--replication", type=int, default=1)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--news", action="store_true", help="begin with news, ten a batch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(
            data_dir=folder / "data",
            kafka_bootstrap_servers=arguments.bootstrap,
            kafka_replication_factor=arguments.replication,
            kafka_session_timeout_s=6.0,
            topic_prefix=f"faults-{uuid.uuid4().hex[:8]}.",
        )
        ensure_topics(settings)
        began = time.monotonic()
        exact = (_news if arguments.news else _contributions)(arguments, settings, folder)
    print(f"{'EXACT' if exact else 'WRONG'} after {time.monotonic() - began:.0f} s")
    return 0 if exact else 1


def _contributions(arguments: argparse.Namespace, settings: Settings, folder: Path) -> bool:
    engine = open_engine(settings.database)
    upgrade(engine)
    stream = make_stream(arguments.batches, items=10)
    records = 4 * len(stream)
    with aggregators(settings, folder) as running, ThreadPoolExecutor(1) as pool:
        running.start("a")
        running.start("b")
        sending = pool.submit(send, settings, stream, 0.1)
        wait_until_counted(engine, records // 10, 120)
        for fault in arguments.fault:
            print(f"{counted_records(engine)} of {records} records counted; {fault}", flush=True)
            subprocess.run(fault, shell=True, check=True)  # noqa: S602 - the caller's own commands
            time.sleep(arguments.pause)
        sending.result()
        complete = wait_until_counted(engine, records, 180)
        exact = complete and stored(engine) == expected(settings, stream)
        if not exact:
            print(running.log())
    return exact


def _news(arguments: argparse.Namespace, settings: Settings, _folder: Path) -> bool:
    items = make_items(10 * arguments.batches)
    with flowing(settings, items, 0.003) as flow, open_sender(settings) as sender, ThreadPoolExecutor(2) as pool:
        sending = pool.submit(flow.send, sender, items, 0.2)
        flow.until(lambda: flow.stored > len(items) // 10 and flow.counting, 120)
        for fault in arguments.fault:
            print(f"{flow.stored} of {len(items)} items stored; {fault}", flush=True)
            harm = pool.submit(subprocess.run, fault, shell=True, check=True)  # noqa: S604
            flow.until(harm.done, 120)
            harm.result()
            pause_ends = time.monotonic() + arguments.pause
            flow.until(lambda end=pause_ends: time.monotonic() > end, arguments.pause + 5)  # type: ignore[misc]
        flow.until(sending.done, 300)
        sending.result()
        flow.end(sender)
        flow.until(flow.settled, 300)
        print("\n".join(flow.events))
        try:
            flow.check()
        except AssertionError as different:
            print(f"{different}\n{flow.log()}")
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
