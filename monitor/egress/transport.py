"""Two ways to call through the one policy (`monitor.egress.policy`): receivers in an event loop, feeds in a thread.

Both back-ends connect to addresses that were checked, and to nothing else; host header and TLS server name stay those
of the URL.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeAlias
from urllib.request import getproxies

import httpcore
import httpx

from monitor.egress.policy import EgressBlockedError, EgressPolicy, Resolver, resolve

__all__ = ["GuardedTransport", "guarded_transport", "resolve_now"]

SyncResolver: TypeAlias = Callable[[str, int], list[str]]


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, policy: EgressPolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._policy.addresses(host, port, self._resolver)
        except OSError as error:
            raise httpcore.ConnectError(f"The name {host} cannot be resolved.") from error
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address.")

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise EgressBlockedError("A receiver cannot be a local socket.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> Any:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


@cache
def _tls() -> ssl.SSLContext:
    """One for all receivers: to read the certificates of all authorities takes longer than to send a notice."""
    return httpx.create_ssl_context()


class GuardedTransport(httpx.AsyncBaseTransport):
    """An httpx transport through which nothing but allowed addresses can be reached, whatever the client asks for.

    Raises `EgressBlockedError` for a forbidden address and `httpx.TransportError` when the network fails.
    """

    def __init__(self, policy: EgressPolicy, *, resolver: Resolver = resolve, max_connections: int = 16) -> None:
        self._policy = policy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=max_connections,
            max_keepalive_connections=0,
            network_backend=_AsyncBackend(policy, resolver),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, having checked its address once more."""
        self._policy.check_url(str(request.url))
        assert isinstance(request.stream, httpx.AsyncByteStream)
        outgoing = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await self._pool.handle_async_request(outgoing)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise httpx.TransportError(f"{type(error).__name__}: {error}", request=request) from error
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


def resolve_now(host: str, port: int) -> list[str]:
    """All addresses of `host`. Raises `OSError` when it has none."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class _SyncBackend(httpcore.NetworkBackend):
    def __init__(self, policy: EgressPolicy, resolver: SyncResolver) -> None:
        self._policy = policy
        self._resolver = resolver
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._policy.checked(host, port, self._resolver(host, port))
        except EgressBlockedError as error:
            raise httpcore.ConnectError(
                f"it leads to {host}:{port}, which is no public address; name it in egress_allow if it is meant"
            ) from error
        except OSError as error:
            raise httpcore.ConnectError(f"The name {host} cannot be resolved.") from error
        failure: Exception | None = None
        for address in addresses:
            try:
                return self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address.")


def guarded_transport(policy: EgressPolicy, *, resolver: SyncResolver = resolve_now) -> httpx.HTTPTransport | None:
    """A transport that reaches nothing but what `policy` allows, redirects included.

    None where the environment names a proxy (`HTTPS_PROXY` ...): then it is the proxy that decides who is called.
    """
    if any(getproxies().get(scheme) for scheme in ("http", "https", "all")):
        return None
    transport = httpx.HTTPTransport()
    # httpx has no other place for a network of one's own; its translation of errors is worth keeping.
    transport._pool = httpcore.ConnectionPool(
        ssl_context=httpx.create_ssl_context(), network_backend=_SyncBackend(policy, resolver)
    )
    return transport
