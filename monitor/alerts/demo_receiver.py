"""A small receiver of webhooks on this machine: what `demo` delivers to, and an example of a correct receiver.

It verifies signatures with the specification's own library, answers 401 to what is not signed by the secret, and takes
a webhook-id that it has seen before as a repetition.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import msgspec
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

__all__ = ["DemoReceiver", "Received", "new_secret"]

MAX_BODY_BYTES: Final = 1 << 20


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook that was accepted: its webhook-id and decoded body. `repeated` says that its id had come before."""

    id: str
    payload: dict[str, Any]
    at: datetime
    repeated: bool

    @property
    def type(self) -> str:
        """The notice's type, such as `alert.firing`."""
        return str(self.payload.get("type", ""))


def new_secret() -> str:
    """A fresh signing secret in the specification's form."""
    return f"whsec_{base64.b64encode(os.urandom(32)).decode()}"


class DemoReceiver:
    """Listens on the loopback interface from construction until `close`; use it as a context manager.

    Parameters
    ----------
    port : where to listen; 0 takes any free one.
    secret : the signing secret; empty: a fresh one, see the attribute.
    """

    def __init__(self, port: int = 0, secret: str = "") -> None:
        self.secret = secret or new_secret()
        self._verifier = Webhook(self.secret)
        self._received: list[Received] = []
        self._refused = 0
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its address, to be put into `webhook_urls`."""
        return f"http://127.0.0.1:{self.port}/alerts"

    @property
    def received(self) -> Sequence[Received]:
        """What was accepted so far, in order, repetitions included."""
        with self._changed:
            return tuple(self._received)

    @property
    def refused(self) -> int:
        """How many requests were turned away for a bad signature."""
        with self._changed:
            return self._refused

    def wait_for(self, predicate: Callable[[Sequence[Received]], bool], timeout: float) -> bool:
        """Wait until `predicate` holds for what was received; False when it does not within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(tuple(self._received)), timeout)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> DemoReceiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self, data: bytes, headers: dict[str, str]) -> int:
        try:
            body = self._verifier.verify(data, headers)
        # On top of its own error the library lets through what malformed headers cause.
        except (WebhookVerificationError, ValueError):
            with self._changed:
                self._refused += 1
            return 401
        webhook_id = next(value for name, value in headers.items() if name.lower() == "webhook-id")
        with self._changed:
            repeated = any(known.id == webhook_id for known in self._received)
            self._received.append(Received(id=webhook_id, payload=body, at=datetime.now(UTC), repeated=repeated))
            self._changed.notify_all()
        return 204

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        accept = self._accept

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                try:
                    length = int(self.headers.get("content-length", ""))
                except ValueError:
                    length = -1
                if not 0 <= length <= MAX_BODY_BYTES:
                    self.send_error(413 if length > 0 else 411)
                    return
                self.send_response(accept(self.rfile.read(length), dict(self.headers.items())))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
                """Nothing: the demo prints what arrives."""

        return Handler
