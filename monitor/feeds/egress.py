"""Where the requests for feeds may lead.

The address of a feed is the operator's own word and may be private. What its server redirects to is somebody else's:
it must not become a way into the network that the poller runs in. So every connection but those to the addresses that
were named is checked as receivers are (`monitor.alerts.egress`), and goes to the address that was checked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import getproxies

import httpcore
import httpx

from monitor.alerts.egress import DEFAULT_PORTS, EgressBlockedError, EgressPolicy

__all__ = ["feed_policy", "guarded_transport", "resolve"]


def feed_policy(urls: Iterable[str], egress_allow: str) -> EgressPolicy:
    """What may be called: public addresses, what `egress_allow` names, and the hosts and ports of the feeds themselves.

    Raises `ConfigurationError` when `egress_allow` cannot be read.
    """
    own = []
    for url in map(httpx.URL, urls):
        host = url.raw_host.decode("ascii")
        port = url.port or DEFAULT_PORTS[url.scheme]
        own.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return EgressPolicy.parse(",".join([egress_allow, *own]))


def resolve(host: str, port: int) -> list[str]:
    """All addresses of `host`. Raises `OSError` when it has none."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class _Backend(httpcore.NetworkBackend):
    """Connects to checked addresses only. Host header and TLS server name stay those of the URL."""

    def __init__(self, policy: EgressPolicy, resolver: Callable[[str, int], list[str]]) -> None:
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
            found = self._resolver(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"The name {host} cannot be resolved.") from error
        failure: Exception = httpcore.ConnectError(f"{host} has no address.")
        for address in found:
            try:
                self._policy.check_address(host, port, address)
            except EgressBlockedError as error:
                raise httpcore.ConnectError(
                    f"it leads to {host}:{port}, which is no public address; name it in egress_allow if it is meant"
                ) from error
        for address in found:
            try:
                return self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def guarded_transport(
    policy: EgressPolicy, *, resolver: Callable[[str, int], list[str]] = resolve
) -> httpx.HTTPTransport | None:
    """A transport that reaches nothing but what `policy` allows, redirects included.

    None where the environment names a proxy (`HTTPS_PROXY` ...): then it is the proxy that decides who is called.
    """
    if any(getproxies().get(scheme) for scheme in ("http", "https", "all")):
        return None
    transport = httpx.HTTPTransport()
    # httpx has no other place for a network of one's own; its translation of errors is worth keeping.
    transport._pool = httpcore.ConnectionPool(
        ssl_context=httpx.create_ssl_context(), network_backend=_Backend(policy, resolver)
    )
    return transport
