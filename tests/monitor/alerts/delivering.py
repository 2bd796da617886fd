"""What the tests of delivery share: a clock that the test moves, real HTTP receivers, dispatchers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqlalchemy import Engine

from monitor.alerts.config import NotificationConfig
from monitor.alerts.delivery import Dispatcher
from monitor.alerts.demo_receiver import new_secret
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.routing import Route
from monitor.alerts.senders import open_senders
from monitor.egress.policy import EgressPolicy
from monitor.storage import deliveries
from monitor.storage.alerts import record_decisions
from monitor.storage.engine import reading, writing
from tests.monitor.alerts.builders import DASHBOARD, decision

SECRET = new_secret()
POLICY = EgressPolicy.parse("127.0.0.1/32")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class ScriptedReceiver:
    """A real HTTP server whose answers the test decides; keeps headers and bodies of what it got."""

    def __init__(self, answer: Callable[[int], tuple[int, dict[str, str]] | None]) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.requests.append(({name.lower(): value for name, value in self.headers.items()}, json.loads(body)))
                reply = answer(len(outer.requests))
                if reply is None:
                    outer.released.wait(10)
                    return
                self.send_response(reply[0])
                for name, value in reply[1].items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    @property
    def types(self) -> list[str]:
        return [body["type"] for _, body in self.requests]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


def config_of(*receivers: Receiver, **route: Any) -> NotificationConfig:
    names = tuple(receiver.name for receiver in receivers)
    return NotificationConfig({r.name: r for r in receivers}, (Route(receivers=names, **route),), POLICY)


def webhook(url: str, name: str = "desk", rate: float = 120.0) -> Receiver:
    return Receiver(name, ReceiverKind.WEBHOOK, url, (SECRET,), rate)


def dispatcher(store: Engine, config: NotificationConfig, clock: Clock, **options: Any) -> Dispatcher:
    return Dispatcher(store, config, open_senders(config), clock=clock, **options)


def record(store: Engine, *decisions: Any) -> None:
    with writing(store) as conn:
        record_decisions(conn, decisions, dashboard_url=DASHBOARD)


async def settle(runner: Dispatcher) -> None:
    """Steps until there is nothing left to do at this moment of the clock."""
    while await runner.step():
        await runner.drain()


def states(store: Engine) -> dict[tuple[str, str], str]:
    with reading(store) as conn:
        rows = deliveries.of_episode(conn, decision().episode_id)
    return {(row.receiver, row.event): row.state for row in rows}
