"""News items and charts over HTTP: `POST /items`, `POST /charts`, `GET /healthz`.

An answer of 202 means that the sink has everything for good. Senders prove themselves with a bearer token. Whoever is
connected and does not come to the point gives its place up after a while.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from monitor.errors import BrokerError, ConfigurationError, RecordTooLargeError
from monitor.records import Chart, NewsItem, Rejected, decode_chart, news_item
from monitor.telemetry import get_logger

__all__ = ["Limits", "check_exposure", "create_app", "server_config"]

log = get_logger(__name__)

Sink = Callable[[Sequence[NewsItem | Chart]], None]

# From the connection, or the last answer, to a complete head; and from there to the end of the body.
HEAD_S: Final = 10.0
BODY_S: Final = 60.0
MAX_CONNECTIONS: Final = 200
MAX_HEAD_BYTES: Final = 32 << 10

_CHART_FIELDS: Final = ("chart_id", "item_id", "published_at", "tickers")
_SIGNATURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    max_items_bytes: int = 8 << 20
    max_items: int = 1000
    max_chart_bytes: int = 4 << 20
    # What fits into one record of the topic.
    max_item_bytes: int = 1 << 20


def check_exposure(host: str, token: str, *, allow_open: bool) -> None:
    """Raises `ConfigurationError` unless there is a token, or anybody on this machine alone is explicitly let in."""
    if token:
        return
    loopback = host == "localhost"
    with suppress(ValueError):
        loopback = loopback or ip_address(host).is_loopback
    if not (loopback and allow_open):
        raise ConfigurationError(
            "`feed http` needs a token that senders have to show.",
            "Set http_feed_token, or give --no-token while it listens on 127.0.0.1 only.",
        )


def _error(status: int, code: str, reason: str, **headers: str) -> Response:
    return JSONResponse({"error": {"code": code, "reason": reason}}, status, headers=headers)


class _TooLargeError(Exception):
    pass


async def _read(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes of it in memory. Raises `_TooLargeError`, and `TimeoutError` after `BODY_S`."""
    async with asyncio.timeout(BODY_S):
        return await _body(request, limit)


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _TooLargeError
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _TooLargeError
    return bytes(body)


def _too_slow() -> Response:
    reason = f"The body did not come within {BODY_S:g} s."
    return _error(408, "too_slow", reason, Connection="close")


class _Ingest:
    def __init__(self, sink: Sink, token: str, limits: Limits) -> None:
        self._sink = sink
        self._token = token.encode()
        self._limits = limits

    def _refused(self, request: Request) -> Response | None:
        if not self._token:
            return None
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), self._token):
            return None
        return _error(
            401, "unauthorized", "A valid bearer token is needed.", **{"WWW-Authenticate": 'Bearer realm="feed"'}
        )

    async def items(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        try:
            body = await _read(request, self._limits.max_items_bytes)
        except _TooLargeError:
            return _error(413, "oversized", f"The limit is {self._limits.max_items_bytes} bytes.")
        except TimeoutError:
            return _too_slow()
        except ClientDisconnect:
            return Response(status_code=400)
        try:
            decoded = msgspec.json.decode(body.decode("utf-8"))
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            return _error(400, "bad_json", "The body is not JSON.")
        given: list[Any] = decoded if isinstance(decoded, list) else [decoded]
        if not given or len(given) > self._limits.max_items:
            return _error(400, "bad_count", f"Send 1 to {self._limits.max_items} items.")
        now = datetime.now(UTC)
        results = [self._checked(fields, now) for fields in given]
        bad = [
            {"index": index, "code": found.code, "reason": found.reason}
            for index, found in enumerate(results)
            if isinstance(found, Rejected)
        ]
        if bad:
            # All or none: a sender that mends the bad ones may send the whole list again.
            return JSONResponse({"error": {"code": "bad_items", "reason": "Nothing was taken."}, "items": bad}, 422)
        items = [found for found in results if isinstance(found, NewsItem)]
        return await self._take(items, {"ids": [item.id for item in items]})

    def _checked(self, fields: object, now: datetime) -> NewsItem | Rejected:
        item = news_item(fields, now)
        if isinstance(item, NewsItem) and len(msgspec.json.encode(item)) > self._limits.max_item_bytes:
            return Rejected(code="oversized", reason=f"The item is larger than {self._limits.max_item_bytes} bytes.")
        return item

    async def charts(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        limit = self._limits.max_chart_bytes
        try:
            image = await _read(request, limit)
        except _TooLargeError:
            return _error(413, "oversized", f"The limit is {limit} bytes.")
        except TimeoutError:
            return _too_slow()
        except ClientDisconnect:
            return Response(status_code=400)
        if image and not image.startswith(_SIGNATURES):
            return _error(415, "unsupported_image", "The image is none of PNG, JPEG and WebP.")
        fields = {name: request.query_params.get(name, "") for name in _CHART_FIELDS}
        for name in _CHART_FIELDS:
            fields[name] = request.headers.get(f"x-{name.replace('_', '-')}", fields[name])
        headers = [(name, value.encode("utf-8", "surrogateescape")) for name, value in fields.items() if value]
        chart = decode_chart(image, headers, datetime.now(UTC), limit)
        if isinstance(chart, Rejected):
            return _error(422, chart.code, chart.reason)
        return await self._take([chart], {"chart_id": chart.chart_id})

    async def _take(self, records: Sequence[NewsItem | Chart], answer: dict[str, Any]) -> Response:
        try:
            await run_in_threadpool(self._sink, records)
        except RecordTooLargeError as error:
            return _error(413, "oversized", error.message)
        except BrokerError as error:
            log.error("nothing could be handed on", error=str(error))
            return _error(503, "unavailable", "The broker does not answer; send it again.", **{"Retry-After": "5"})
        return JSONResponse(answer, 202)


async def _healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def create_app(sink: Sink, *, token: str, limits: Limits) -> Starlette:
    """The ASGI application. `sink` takes records, returns when they are safe and raises `BrokerError` when not; it is
    called on other threads. An empty `token` lets everybody in (see `check_exposure`)."""
    ingest = _Ingest(sink, token, limits)
    return Starlette(
        routes=[
            Route("/items", ingest.items, methods=["POST"]),
            Route("/charts", ingest.charts, methods=["POST"]),
            Route("/healthz", _healthz, methods=["GET"]),
        ]
    )


class _TimedProtocol(H11Protocol):
    """uvicorn's own, which waits for ever for the head of a first request, and for the rest of one that has begun."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """The clock runs from when a head is waited for to when it is there; bytes that come meanwhile do not help."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def server_config(application: Starlette, *, grace_s: float, connections: int = MAX_CONNECTIONS) -> uvicorn.Config:
    """How the application is served: `connections` at a time, `grace_s` seconds to finish when told to stop."""
    return uvicorn.Config(
        application,
        http=_TimedProtocol,
        log_config=None,
        log_level="warning",
        access_log=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=int(grace_s),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
