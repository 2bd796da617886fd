"""From the judge's decision to the receiver's 200: killed, locked out or cut off at every step, nothing is lost.

What a run without faults does is recorded first: the webhook-id of each notice. Every other run must leave exactly
these behind, each notice arrived at least once and under its id alone, firing before resolved.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from monitor.alerts.demo_receiver import DemoReceiver, new_secret
from monitor.errors import StorageError
from monitor.settings import Settings
from monitor.storage.alerts import audit_trail
from monitor.storage.engine import open_engine, reading
from monitor.storage.tables import deliveries, episodes, outbox
from monitor.surges.decisions import MinuteCounts
from monitor.surges.live import LiveJudge
from tests.monitor.alerts.builders import new_store
from tests.monitor.alerts.crash_process import judge, on_commits, settings_of, work
from tests.monitor.surges.test_live import SURGE, counts, expire_lease, set_watermark, write_ticks  # noqa: F401

SECRET = new_secret()
NOW = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
FIRED, OVER = SURGE + 12, SURGE + 90
RULES = "[judge]\nwindows = [15]\ncalm_minutes = 10\n"


@dataclass(frozen=True)
class Ways:
    """What a run without faults leaves behind: (episode, type) to webhook-id; which of its commits carried a decision
    or were the dispatcher's, and how many requests it took."""

    ids: dict[tuple[str, str], str]
    steps: list[int]
    requests: int


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, counts: dict[int, MinuteCounts]) -> Path:  # noqa: F811
    """A folder whose store has been judged up to the surge."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "rules.toml").write_text(RULES)
    store = new_store(folder)
    write_ticks(store, counts)
    set_watermark(store, 0, SURGE - 1)
    live = LiveJudge(store, settings_of(str(folder), "", ""), 1)
    while live.advance():
        pass
    live.release()
    store.dispose()
    return folder


@pytest.fixture(scope="module")
def ways(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Ways:
    """The run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    steps: list[int] = []
    known = 0

    def note(number: int, when: str) -> None:
        nonlocal known
        if when == "after":
            with closing(sqlite3.connect(folder / "monitor.db")) as other:
                (announced,) = other.execute("select count(*) from outbox").fetchone()
            if announced > known or threading.current_thread().name.startswith("store"):
                steps.append(number)
            known = announced

    with DemoReceiver(secret=SECRET) as receiver:
        settings = settings_of(str(folder), receiver.url, SECRET)
        engine = open_engine(settings.database)
        on_commits(engine, note)
        work(settings, engine, [FIRED, OVER], NOW)
        engine.dispose()
        got = receiver.received
    assert [one.type for one in got] == ["alert.firing", "alert.resolved"]
    ids = {(one.payload["data"]["id"], one.type): one.id for one in got}
    assert len(steps) > 8
    return Ways(ids, steps, len(got))


class Killable:
    """The process of `crash_process`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.monitor.alerts.crash_process"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _say(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def run(self, folder: Path, receiver: str, die: list[Any], started: Callable[[int], None] = lambda _: None) -> int:
        """The exit code of one run."""
        assert self._process.stdin is not None
        order = {
            "folder": str(folder),
            "receiver": receiver,
            "secret": SECRET,
            "die": die,
            "minutes": [FIRED, OVER],
            "now": NOW.isoformat(),
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        started(self._say())
        return self._say()

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def killable() -> Iterator[Killable]:
    running = Killable()
    yield running
    running.close()


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "run"))


def go_on(settings: Settings) -> None:
    """Another process takes over a while later, and works until the receiver has everything."""
    engine = open_engine(settings.database)
    with reading(engine) as conn:
        last = conn.exec_driver_sql("select judged_to from judge").scalar_one()
    expire_lease(engine)
    for step, minute in enumerate(minute for minute in (FIRED, OVER) if minute > last or minute == OVER):
        work(settings, engine, [minute], NOW + timedelta(minutes=1 + step))
    engine.dispose()


def check(settings: Settings, receiver: DemoReceiver, ways: Ways) -> None:
    """Everything arrived, under its one id, in order; the store says so as well."""
    first = [one for one in receiver.received if not one.repeated]
    assert {(one.payload["data"]["id"], one.type): one.id for one in first} == ways.ids
    assert [one.type for one in first] == ["alert.firing", "alert.resolved"]
    assert len(receiver.received) <= ways.requests + 1
    engine = open_engine(settings.database)
    with reading(engine) as conn:
        (episode,) = conn.scalars(select(episodes.c.id)).all()
        told = conn.scalars(select(outbox.c.event).order_by(outbox.c.id)).all()
        assert [event for event in told if not event.startswith("raised:")] == ["firing", "resolved"]
        assert len(set(told)) == len(told)
        states = {row.id: row.state for row in conn.execute(select(deliveries.c.id, deliveries.c.state))}
        trail = [line["event"] for line in audit_trail(conn, episode)]
    engine.dispose()
    assert states == dict.fromkeys(ways.ids.values(), "delivered")
    assert {name: trail.count(name) for name in ("pending", "firing", "taken", "resolved", "delivered")} == {
        "pending": 1,
        "firing": 1,
        "taken": 1,
        "resolved": 1,
        "delivered": 2,
    }


def test_killed_around_every_commit(
    prepared: Path, tmp_path: Path, ways: Ways, killable: Killable, subtests: pytest.Subtests
) -> None:
    for number in ways.steps:
        for when in ("before", "after"):
            with subtests.test(commit=number, when=when), DemoReceiver(secret=SECRET) as receiver:
                folder = shutil.copytree(prepared, tmp_path / f"{number}-{when}")
                settings = settings_of(str(folder), receiver.url, SECRET)
                assert killable.run(Path(folder), receiver.url, [number, when]) == -signal.SIGKILL
                go_on(settings)
                check(settings, receiver, ways)


class Interrupting(DemoReceiver):
    """Kills the sender while its request is under way: before it answers, or as soon as it has answered."""

    def __init__(self, request: int) -> None:
        self.pid = 0
        self._request = request
        super().__init__(secret=SECRET)

    def _accept(self, data: bytes, headers: dict[str, str]) -> int:
        status = super()._accept(data, headers)
        if len(self.received) == self._request and self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0
        return status


@pytest.mark.parametrize("request_number", [1, 2])
def test_killed_while_the_receiver_takes_it(folder: Path, ways: Ways, killable: Killable, request_number: int) -> None:
    with Interrupting(request_number) as receiver:
        settings = settings_of(str(folder), receiver.url, SECRET)

        def started(pid: int) -> None:
            receiver.pid = pid

        assert killable.run(folder, receiver.url, [], started) == -signal.SIGKILL
        assert len(receiver.received) == request_number
        go_on(settings)
        check(settings, receiver, ways)
        assert len(receiver.received) == ways.requests + 1, "what was answered is sent again, under its id"


def lock_at(engine: Engine, database: Path, number: int) -> Callable[[], None]:
    """Have another connection hold the store's lock when the transaction `number` that writes wants to begin, until
    the next one does; returns what lets go of it."""
    other = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    begun = 0

    @event.listens_for(engine, "before_cursor_execute")
    def begin(*arguments: Any) -> None:
        nonlocal begun
        if arguments[2] == "BEGIN IMMEDIATE":
            begun += 1
            if other.in_transaction:
                other.execute("rollback")
            if begun == number:
                other.execute("begin immediate")

    return other.close


def test_locked_out_of_the_store_at_every_step(
    prepared: Path, tmp_path: Path, ways: Ways, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr("monitor.storage.engine.BUSY_TIMEOUT_S", 0)
    monkeypatch.setattr("monitor.alerts.delivery.STORE_PAUSE_S", 0.01)
    for number in ways.steps:
        with subtests.test(transaction=number), DemoReceiver(secret=SECRET) as receiver:
            folder = shutil.copytree(prepared, tmp_path / str(number))
            settings = settings_of(str(folder), receiver.url, SECRET)
            engine = open_engine(settings.database)
            let_go = lock_at(engine, Path(folder) / "monitor.db", number)
            for minute in (FIRED, OVER):
                for attempt in range(3):
                    try:
                        work(settings, engine, [minute], NOW + timedelta(minutes=attempt))
                    except StorageError:
                        expire_lease(engine)
                    else:
                        break
            let_go()
            engine.dispose()
            check(settings, receiver, ways)
            assert len(receiver.received) == ways.requests


def test_a_decision_that_is_recorded_again_changes_nothing(folder: Path, ways: Ways) -> None:
    """The judge's process is killed after its commit and before it knows of it; the next one steps over the ticks."""
    with DemoReceiver(secret=SECRET) as receiver:
        settings = settings_of(str(folder), receiver.url, SECRET)
        engine = open_engine(settings.database)
        for _ in range(3):
            expire_lease(engine)
            judge(engine, settings, FIRED)
        engine.dispose()
        go_on(settings)
        check(settings, receiver, ways)
        assert len(receiver.received) == ways.requests
