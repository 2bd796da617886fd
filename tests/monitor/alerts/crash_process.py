"""A process that judges and delivers, and dies where it is told to: `python -m tests.monitor.alerts.crash_process`.

It imports everything once and forks for each line of standard input (the arguments of `work` as JSON), so that a death
costs no more than a fork. For each it prints the child's process id, and then how it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from monitor.alerts.config import load_notifications
from monitor.alerts.delivery import Dispatcher
from monitor.alerts.senders import open_senders
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.surges.live import LiveJudge
from tests.monitor.surges.test_live import set_watermark


def on_commits(engine: Engine, act: Callable[[int, str], None]) -> None:
    """Have `act(number, "before" or "after")` called around each commit of a transaction that writes."""
    this = threading.local()
    counter = {"commits": 0}
    commit = engine.dialect.do_commit

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        this.writes = connection.get_execution_options().get("sqlite_immediate", False)

    def counted(connection: Any) -> None:
        if not getattr(this, "writes", False):
            commit(connection)
            return
        counter["commits"] += 1
        number = counter["commits"]
        act(number, "before")
        commit(connection)
        act(number, "after")

    engine.dialect.do_commit = counted  # type: ignore[method-assign]


def settings_of(folder: str, receiver: str, secret: str) -> Settings:
    """Settings of a run; the rules make surges short, so that a case has few minutes to judge."""
    return Settings(
        data_dir=Path(folder),
        rules_file=str(Path(folder) / "rules.toml"),
        webhook_urls=receiver,
        webhook_secret=secret,
        egress_allow="127.0.0.1/32",
    )


async def deliver(engine: Engine, settings: Settings, clock: Callable[[], datetime]) -> None:
    """Deliver until nothing is left to do at this moment of the clock."""
    config = load_notifications(settings)
    dispatcher = Dispatcher(engine, config, open_senders(config), clock=clock)
    await dispatcher.start()
    while await dispatcher.step():
        await dispatcher.drain()
    await dispatcher.close()


def judge(engine: Engine, settings: Settings, to: int) -> None:
    """Judge every minute before `to`."""
    set_watermark(engine, 0, to)
    live = LiveJudge(engine, settings, 1)
    while live.advance():
        pass
    live.release()


def work(settings: Settings, engine: Engine, minutes: list[int], now: datetime) -> None:
    """Judge up to each of the minutes in turn, and deliver what came of it."""
    for minute in minutes:
        judge(engine, settings, minute)
        asyncio.run(deliver(engine, settings, lambda: now))


def _child(order: dict[str, Any]) -> None:
    settings = settings_of(order["folder"], order["receiver"], order["secret"])
    engine = open_engine(settings.database)

    def act(number: int, when: str) -> None:
        if [number, when] == order["die"]:
            os.kill(os.getpid(), signal.SIGKILL)

    on_commits(engine, act)
    work(settings, engine, order["minutes"], datetime.fromisoformat(order["now"]))


def main() -> None:
    """Fork for each order."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            # What it logs is no answer.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            try:
                _child(json.loads(line))
                code = 0
            finally:
                os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
