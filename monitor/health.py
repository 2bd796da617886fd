"""Metrics and health of a process over HTTP: `/metrics` (Prometheus), `/live` and `/ready`.

A process is ready while its main loop has given a sign of life (`beat`) within `stale_s` seconds and nothing has been
reported broken (`fail`). An agent that crashes in silence is thereby seen from outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, make_wsgi_app

from monitor.errors import ConfigurationError

__all__ = ["Health"]

REQUEST_TIMEOUT_S: Final = 10.0

StartResponse = Callable[..., Any]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection: one that says nothing holds up neither the probes nor the end of the process."""

    daemon_threads = True
    block_on_close = False


class _Quiet(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Probes come every few seconds: they are not worth a log line."""


class Health:
    """Sign of life of one process, served when `port` is above 0.

    Used as a context manager; without a port it only keeps the state. Raises `ConfigurationError` when the port is
    in use.
    """

    def __init__(self, port: int, *, stale_s: float = 30.0, host: str = "0.0.0.0") -> None:  # noqa: S104
        self._port, self._host, self._stale_s = port, host, stale_s
        self._last_beat: float | None = None
        self._broken = ""
        self._server: WSGIServer | None = None

    def beat(self) -> None:
        """The main loop is turning."""
        self._last_beat = time.monotonic()

    def fail(self, reason: str) -> None:
        """Something is broken for good: not ready any more."""
        self._broken = reason

    @property
    def problem(self) -> str:
        """Why the process is not ready; empty when it is."""
        if self._broken:
            return self._broken
        if self._last_beat is None:
            return "starting"
        quiet = time.monotonic() - self._last_beat
        return f"no sign of life for {quiet:.0f} s" if quiet > self._stale_s else ""

    def __enter__(self) -> Health:
        if self._port:
            try:
                self._server = make_server(
                    self._host, self._port, self._answer, server_class=_Server, handler_class=_Quiet
                )
            except OSError as error:
                raise ConfigurationError(
                    f"The port {self._port} for metrics cannot be used: {error.strerror}.",
                    "Set metrics_port to a free port, or to 0 for none.",
                ) from error
            threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def port(self) -> int:
        """The port that is served; 0 when none is."""
        return self._server.server_port if self._server is not None else 0

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            metrics: Iterable[bytes] = make_wsgi_app(REGISTRY)(environ, start_response)
            return metrics
        if path not in ("/live", "/ready"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"not found\n"]
        problem = self.problem if path == "/ready" else ""
        start_response("503 Service Unavailable" if problem else "200 OK", [("Content-Type", "text/plain")])
        return [(problem or "ok").encode() + b"\n"]
