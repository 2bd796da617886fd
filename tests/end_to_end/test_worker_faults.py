"""Workers that are killed, frozen and joined by others end where an undisturbed one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from monitor.records import ContributionBatch, NewsItem, decode_strict
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading
from monitor.storage.migrate import upgrade
from monitor.storage.tables import charts, item_keys, items
from tests.conftest import BOOTSTRAP_SERVERS
from tests.consumers.running import (
    Sender,
    committed,
    letters,
    news,
    png,
    records,
    sending,
    until,
    working,
)
from tests.consumers.word_scorer import POISON, WordScorer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ITEMS = 900
ROOT = Path(__file__).parents[2]


def stream(sender: Sender) -> int:
    """The same stream every time: items, charts with and without items, broken ones. Returns the number of records."""
    sent = 0
    for number in range(ITEMS):
        with_chart = number % 12 == 0
        item: NewsItem = news(number, chart_ids=(f"c{number}",) if with_chart else ())
        if with_chart and number % 24:
            # Before its item; else after it.
            sender.chart(f"c{number}", png(number % 250), item.id)
        sender.item(item)
        if with_chart and not number % 24:
            sender.chart(f"c{number}", png(number % 250), item.id)
        sent += 2 if with_chart else 1
        if number % 100 == 7:
            sender.raw("news", b"{broken %d" % number, b"k%d" % number)
            sender.raw("charts", b"no picture %d" % number, b"k", {"published_at": item.published_at.isoformat()})
            sender.chart(f"alone{number}", png(number % 250), at=item.published_at)
            sender.item(news(number + 10_000, title=f"{POISON} {number}"))
            sender.item(item)  # once more
            sent += 5
    sender.flush()
    return sent


def outcome(settings: Settings, store: Engine) -> dict[str, Any]:
    """Everything that a run leaves behind, without the moments at which it happened and without the topic prefix."""
    with reading(store) as connection:
        rows = {
            row["id"]: {name: value for name, value in row.items() if name != "scored_at"}
            for row in map(dict, connection.execute(select(items)).mappings())
        }
        keys = {tuple(row) for row in connection.execute(select(item_keys))}
        pictures = {row.chart_id: (row.item_id, row.image) for row in connection.execute(select(charts))}
    pairs = {
        (one.key, one.item_id)
        for record in records(settings, "contributions")
        for one in decode_strict(ContributionBatch, record.value).contributions
    }
    dead = {(t.removeprefix(settings.topic_prefix), p, o): code for (t, p, o), code in letters(store).items()}
    return {"items": rows, "keys": keys, "charts": pictures, "dead": dead, "pairs": pairs}


def count(store: Engine) -> int:
    with reading(store) as connection:
        return int(connection.execute(select(func.count()).select_from(items)).scalar_one())


class Herd:
    """Worker processes on one store and one topic prefix."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """One more."""
        names = (
            "data_dir",
            "kafka_bootstrap_servers",
            "topic_prefix",
            "kafka_session_timeout_s",
            "worker_batch_items",
            "worker_pairing_wait_s",
        )
        env = {f"SENTIMENT_MONITOR_{name.upper()}": str(getattr(self._settings, name)) for name in names}
        log = self._log(len(self.processes)).open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.worker_process", "0.002"],
            cwd=ROOT,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("SENTIMENT_MONITOR_")}, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self.processes.append(process)
        return process

    def _log(self, number: int) -> Path:
        return self._settings.data_dir.parent / f"worker{number}.log"

    def works(self, process: subprocess.Popen[bytes]) -> bool:
        """It is up: until then a signal ends it at once."""
        return b"worker started" in self._log(self.processes.index(process)).read_bytes()

    def end(self) -> None:
        """Whatever is left, at once."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def herd(settings: Settings) -> Iterator[Herd]:
    """Processes that do not outlive the test."""
    found = Herd(settings)
    try:
        yield found
    finally:
        found.end()


@pytest.mark.timeout(240)
def test_kills_freezes_and_rebalances_change_nothing(
    broker: str, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    # A dead member's partitions are free after its session: Apache Kafka allows 6 s at the least.
    session = 6.0 if os.environ.get(BOOTSTRAP_SERVERS) else 2.0

    def settings(name: str) -> Settings:
        return make_settings(
            data_dir=tmp_path / name / "data",
            kafka_bootstrap_servers=broker,
            topic_prefix=f"{tmp_path.name[-20:]}-{os.getpid()}-{name}-".replace("[", "").replace("]", ""),
            kafka_session_timeout_s=session,
            worker_batch_items=32,
        )

    calm, rough = settings("calm"), settings("rough")
    stores = {}
    for one in (calm, rough):
        stores[one.topic_prefix] = open_engine(one.database)
        upgrade(stores[one.topic_prefix])
    quiet, store = stores[calm.topic_prefix], stores[rough.topic_prefix]

    with sending(calm) as sender, working(calm, WordScorer(), quiet):
        sent = stream(sender)
        until(lambda: sum(committed(calm).values()) == sent, 60)
    expected = outcome(calm, quiet)
    assert len(expected["items"]) == ITEMS + ITEMS // 100
    assert len(expected["dead"]) == 3 * ITEMS // 100
    assert sum(row["modality"] == "both" for row in expected["items"].values()) == ITEMS // 12

    with sending(rough) as sender:
        assert stream(sender) == sent
    with herd(rough) as workers:
        first = workers.start()
        until(lambda: count(store) > ITEMS * 0.1, 60)
        first.kill()
        second = workers.start()
        until(lambda: count(store) > ITEMS * 0.3, 60)
        second.kill()
        third, fourth = workers.start(), workers.start()
        until(lambda: count(store) > ITEMS * 0.5, 60)
        third.send_signal(signal.SIGSTOP)
        # Past its session: a zombie that comes back with a batch that others have scored meanwhile.
        time.sleep(session + 1.5)
        third.send_signal(signal.SIGCONT)
        fifth = workers.start()
        fourth.kill()
        until(lambda: sum(committed(rough).values()) == sent, 90)
        # The third may have done all of it while the fifth was still coming up.
        until(lambda: workers.works(fifth), 30)
        for process in (third, fifth):
            process.terminate()
        assert [process.wait(30) for process in (third, fifth)] == [0, 0]
    found = outcome(rough, store)
    for part, whole in expected.items():
        assert found[part] == whole, part
    for engine in stores.values():
        engine.dispose()
