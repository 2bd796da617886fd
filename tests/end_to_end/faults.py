"""A stream of contributions with a known outcome, and aggregator processes to be killed, frozen and restarted.

`expected` counts the stream in memory, undisturbed; `stored` reads what is in the store. Both must be equal whatever
was done to the processes in between.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, func, select

from consumers.clients import producer
from consumers.topics import CONTRIBUTIONS
from monitor.records import Contribution, ContributionBatch, SourceWatermark, encode
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.engine import reading
from monitor.stories import Story, add_copies, signature
from monitor.surges.counting import Counter, CounterState, CountingConfig
from monitor.surges.keys import partition_of
from monitor.surges.ledger import MemoryLedger
from monitor.surges.ticks import MINUTE_MS
from tests.ledgers import counted_pairs

BEGIN_MS = 28_400_000 * MINUTE_MS
_WORDS = ("profit", "warning", "bank", "fraud", "probe", "shares", "fall", "outlook", "merger", "strike", "debt")


class Record(NamedTuple):
    """One record for one partition of `contributions`."""

    partition: int
    batch: ContributionBatch


def make_stream(batches: int, items: int, partitions: int = 4, seed: int = 1) -> list[list[Record]]:
    """Scoring batches in the order of sending: each a list of records, one a partition, as a worker sends them.

    Two input partitions report their progress; event time passes at a minute a batch, with items out of order, some
    of them late and some stale; a third of the items are copies of a story. The last batch says that all is quiet.
    """
    rnd = random.Random(seed)
    told: list[str] = []
    stream: list[list[Record]] = []
    for number in range(batches):
        now = BEGIN_MS + number * MINUTE_MS
        by_partition: dict[int, list[Contribution]] = {p: [] for p in range(partitions)}
        for index in range(items):
            late = rnd.choice([0, 0, 0, 0, 0, 30, 90, 600, 2000])
            at = now + rnd.randrange(MINUTE_MS) - late * MINUTE_MS // 10
            if told and rnd.random() < 0.33:
                title = rnd.choice(told[-20:])
            else:
                title = " ".join(rnd.choices(_WORDS, k=12)) + f" {number}-{index}"
                told.append(title)
            negative = rnd.random() < 0.4
            for key in (f"ticker:T{rnd.randrange(40)}", f"topic:{rnd.randrange(5)}"):
                by_partition[partition_of(key, partitions)].append(
                    Contribution(
                        key=key,
                        item_id=f"item-{number}-{index}",
                        at=at,
                        p_negative=0.75 if negative else 0.25,
                        score=-0.5 if negative else 0.5,
                        negative=negative,
                        positive=not negative,
                        signature=signature(title),
                        source=rnd.choice(["wire", "paper", "blog"]),
                        title=title,
                    )
                )
        last = number == batches - 1
        sources = tuple(SourceWatermark(name, now + MINUTE_MS - 1, last, last) for name in ("news:0", "charts:0"))
        stream.append(
            [
                Record(p, ContributionBatch(contributions=tuple(found), sources=sources, source_count=2))
                for p, found in by_partition.items()
            ]
        )
    return stream


def send(settings: Settings, stream: Sequence[list[Record]], pause_s: float = 0.0) -> None:
    """Produce the stream as it is, with a pause after each batch."""
    client = producer(settings, linger_ms=0)
    try:
        for batch in stream:
            for record in batch:
                client.send(settings.topic(CONTRIBUTIONS), encode(record.batch), partition=record.partition)
            time.sleep(pause_s)
        client.flush()
    finally:
        client.close()


Outcome = dict[str, dict[Any, Any]]


def expected(settings: Settings, stream: Sequence[list[Record]]) -> Outcome:
    """Ticks, counted pairs and stories of an undisturbed count in memory."""
    config = CountingConfig.of(settings)
    counters: dict[int, Counter] = {}
    ledgers: dict[int, MemoryLedger] = {}
    ticks: dict[tuple[str, int], list[float]] = {}
    stories: dict[str, Story] = {}
    for record in (record for batch in stream for record in batch):
        counter = counters.setdefault(record.partition, Counter(config, CounterState(sources={})))
        changes = counter.apply([record.batch], ledgers.setdefault(record.partition, MemoryLedger()))
        for place, d in changes.ticks.items():
            tick = ticks.setdefault(place, [0.0] * 7)
            delta = (d.stories, d.negative_stories, d.items, d.negative_items, d.score_sum, d.late, d.positive_stories)
            ticks[place] = [a + b for a, b in zip(tick, delta, strict=True)]
        stories |= changes.stories
        for story_id, copies in changes.copies.items():
            add_copies(stories[story_id], copies)
    return {
        "ticks": {place: tuple(tick) for place, tick in ticks.items()},
        "counted": {
            (one.key, one.item_id): (one.minute, one.negative) for ledger in ledgers.values() for one in ledger
        },
        "stories": {
            s.id: (s.key, s.minute, s.first.negative, s.items, s.first.item_id, s.sources) for s in stories.values()
        },
        "watermarks": {partition: counter.state.watermark for partition, counter in counters.items()},
    }


def stored(engine: Engine) -> Outcome:
    """The same, from the store."""
    with reading(engine) as connection:
        ticks, stories, places = (
            connection.execute(select(table)).mappings().all() for table in (t.ticks, t.stories, t.partitions)
        )
        counted = counted_pairs(connection)
    names = ("stories", "negative_stories", "items", "negative_items", "score_sum", "late", "positive_stories")
    return {
        "ticks": {(row["key"], row["minute"]): tuple(float(row[name]) for name in names) for row in ticks},
        "counted": {pair: (one.minute, one.negative) for pair, one in counted.items()},
        "stories": {
            r["id"]: (r["key"], r["minute"], r["sign"] < 0, r["items"], r["item_id"], _sources(r)) for r in stories
        },
        "watermarks": {row["partition"]: row["watermark"] for row in places},
    }


def _sources(story: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(story["copies"]["sources"] if story["copies"] else [story["source"]])


def counted_records(engine: Engine) -> int:
    """Records that all partitions together have worked off."""
    with reading(engine) as connection:
        return int(connection.scalar(select(func.coalesce(func.sum(t.partitions.c.next_offset), 0))) or 0)


def wait_until_counted(engine: Engine, records: int, seconds: float = 90.0) -> bool:
    """Until that many records have been worked off; False when it takes too long."""
    deadline = time.monotonic() + seconds
    while counted_records(engine) < records:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Aggregators:
    """Aggregator processes, by name."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "SENTIMENT_MONITOR_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "SENTIMENT_MONITOR_DATABASE_URL": settings.database,
            "SENTIMENT_MONITOR_TOPIC_PREFIX": settings.topic_prefix,
            "SENTIMENT_MONITOR_KAFKA_SESSION_TIMEOUT_S": str(settings.kafka_session_timeout_s),
            "SENTIMENT_MONITOR_JUDGE_LEASE_S": str(settings.judge_lease_s),
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a process; its log is `name`.log in the folder."""
        environment = {**self._environment, "SENTIMENT_MONITOR_DATA_DIR": str(self._folder / name)}
        with (self._folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "monitor.cli.app", "aggregator"], env=environment, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def terminate(self, name: str, seconds: float = 30.0) -> int:
        """SIGTERM; returns the exit code."""
        process = self.running.pop(name)
        process.terminate()
        return process.wait(seconds)

    def freeze(self, name: str, seconds: float) -> None:
        """SIGSTOP for a while, then SIGCONT."""
        self.running[name].send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.running[name].send_signal(signal.SIGCONT)

    def log(self) -> str:
        """What the processes have written."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("*.log")))


@contextmanager
def aggregators(settings: Settings, folder: Path) -> Iterator[Aggregators]:
    """Processes that are gone when the block ends."""
    running = Aggregators(settings, folder)
    try:
        yield running
    finally:
        for name in list(running.running):
            running.kill(name)
