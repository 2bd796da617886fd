"""Runs the whole product as real processes over the Kafka protocol, undisturbed or with processes killed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from monitor.alerts.demo_receiver import DemoReceiver
from monitor.cli.processes import process_specs, start_all
from monitor.settings import Settings, load_settings
from monitor.storage import tables as t
from monitor.storage.engine import open_engine, reading
from monitor.storage.status import store_status
from monitor.supervisor import ProcessSpec, Supervisor
from tests.ledgers import counted_pairs

ROLES = ("worker", "aggregator", "notifier")


@dataclass
class Outcome:
    """What a run leaves behind, as far as it must not depend on how the run went."""

    items: dict[str, tuple[Any, ...]]
    scores: dict[str, float]
    item_keys: set[tuple[str, str]]
    counted: set[tuple[str, str]]
    ticks: dict[tuple[str, int], tuple[int, int, int, int]]
    dead_letters: set[tuple[str, int, int]]
    episodes: dict[str, tuple[Any, ...]]
    received: list[tuple[str, str]]
    webhook_ids: list[str]


def pipeline_settings(data_dir: Path, receiver: DemoReceiver, **more: Any) -> Settings:
    """Settings of one run: its own data folder and topics; the broker is that of the test session's environment."""
    servers = os.environ.get("SENTIMENT_MONITOR_TEST_BOOTSTRAP_SERVERS", "")
    given: dict[str, Any] = {
        "data_dir": data_dir,
        "topic_prefix": f"t{secrets.token_hex(4)}-",
        "webhook_urls": receiver.url,
        "webhook_secret": receiver.secret,
        "egress_allow": f"127.0.0.1:{receiver.port}",
        "broker_port": 0,
        # Each data folder measures for itself which precision is fastest here: two runs could choose differently.
        "cpu_precision": "fp32",
        # A killed process's partitions are free after its session; Apache Kafka takes none below 6 s.
        "kafka_session_timeout_s": 6.0 if servers else 3.0,
    }
    return load_settings(**(given | ({"kafka_bootstrap_servers": servers} if servers else {}) | more))


def run_pipeline(
    data_dir: Path,
    stream: Path,
    *,
    kills: Sequence[tuple[float, str]] = (),
    limit_s: float = 240.0,
    **more: Any,
) -> Outcome:
    """Replay `stream` through the processes and wait until all of it is stored, counted, judged and delivered.

    `kills` are (share of the items stored, role): the role's process is killed with SIGKILL when that share is reached,
    and the supervisor starts it again.
    """
    lines = [json.loads(line) for line in stream.read_text(encoding="utf-8").splitlines() if line.strip()]
    secret = "whsec_" + b64encode(secrets.token_bytes(24)).decode()
    with DemoReceiver(secret=secret) as receiver:
        settings = pipeline_settings(data_dir, receiver, **more)
        engine = open_engine(settings.database)
        supervisor = Supervisor(
            process_specs(settings, ROLES), settings.environment(), data_dir / "logs", settings.shutdown_s
        )
        try:
            start_all(supervisor, settings)
            feed = (sys.executable, "-m", "monitor.cli.app", "feed", "jsonl", str(stream), "--speed", "0")
            supervisor.add(ProcessSpec("feed", feed, restart=False))
            waiting = list(kills)

            def stored(share: float) -> bool:
                return store_status(engine).items >= share * len(lines)

            end = time.monotonic() + limit_s
            _until(lambda: not waiting or _kill_when_due(supervisor, waiting, stored), supervisor, end)
            _until(lambda: supervisor.finished("feed") and _settled(engine, len(lines)), supervisor, end)
            return _outcome(settings, receiver)
        finally:
            supervisor.stop()
            engine.dispose()


def _kill_when_due(supervisor: Supervisor, waiting: list[tuple[float, str]], stored: Callable[[float], bool]) -> bool:
    share, role = waiting[0]
    if stored(share):
        os.kill(supervisor.pid(role), signal.SIGKILL)
        waiting.pop(0)
    return not waiting


def _settled(engine: Any, total: int) -> bool:
    """All items stored, every pair counted, all closed minutes judged, nothing left to deliver."""
    status = store_status(engine)
    if status.items < total or status.undelivered or status.watermark is None or status.judged_to is None:
        return False
    with reading(engine) as connection:
        pairs = len(connection.execute(select(t.item_keys.c.item_id)).all())
    newest = _newest(engine)
    return status.counted >= pairs and status.judged_to >= newest


def _newest(engine: Any) -> Any:
    with reading(engine) as connection:
        return (
            connection.execute(select(t.items.c.published_at).order_by(t.items.c.published_at.desc()).limit(1))
            .scalar_one()
            .replace(second=0, microsecond=0)
        )


def _until(condition: Callable[[], bool], supervisor: Supervisor, end: float) -> None:
    while not condition():
        supervisor.check()
        if time.monotonic() > end:
            logs = "\n".join(f"--- {p.name}\n{p.read_text()[-1500:]}" for p in supervisor.log_dir.glob("*.log"))
            raise AssertionError(f"the pipeline did not settle in time\n{logs}")
        time.sleep(0.2)


def _outcome(settings: Settings, receiver: DemoReceiver) -> Outcome:
    engine = open_engine(settings.database)
    with reading(engine) as c:
        found = c.execute(select(t.items)).all()
        items = {r.id: (r.sentiment, r.topic, r.modality) for r in found}
        scores = {r.id: r.p_negative for r in found}
        keys = {(r.key, r.item_id) for r in c.execute(select(t.item_keys))}
        counted = set(counted_pairs(c))
        ticks = {
            (r.key, r.minute): (r.stories, r.negative_stories, r.items, r.negative_items)
            for r in c.execute(select(t.ticks))
        }
        dead = {(r.topic, r.partition, r.offset) for r in c.execute(select(t.dead_letters))}
        episodes = {
            r.id: (r.rule, r.key, r.started_at, r.fired_at, r.resolved_at) for r in c.execute(select(t.episodes))
        }
    engine.dispose()
    received = sorted((m.payload["data"]["id"], m.payload["type"]) for m in receiver.received)
    return Outcome(items, scores, keys, counted, ticks, dead, episodes, received, [m.id for m in receiver.received])
