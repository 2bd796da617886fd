"""Holds a library that looks names up by itself to addresses that were checked.

Apprise takes one name for the connection and for the certificate, so that it cannot be handed an address. Inside
`pinned`, what the socket module answers are the checked addresses of that name, and nothing else has any: a name server
that answers differently the second time is not asked. Certificates are still checked by the name.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["pinned"]

_system = socket.getaddrinfo


# The name and its addresses; None: not pinned. A context variable: Apprise hands the context on to its own threads.
_pin: ContextVar[tuple[str, Sequence[str]] | None] = ContextVar("pinned", default=None)


def _getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
    pin = _pin.get()
    if pin is None:
        return _system(host, port, *args, **options)
    name = host.decode("idna") if isinstance(host, bytes) else str(host)
    if name.lower().rstrip(".") != pin[0]:
        raise socket.gaierror(socket.EAI_NONAME, "This name was not checked")
    return [found for address in pin[1] for found in _found(address, port, *args, **options)]


def _found(address: str, port: Any, *args: Any, **options: Any) -> list[Any]:
    try:
        return _system(address, port, *args, **options)
    except socket.gaierror:
        # Of the other family than the one that was asked for.
        return []


# `smtplib` and `urllib3` both ask the socket module by this name; whoever is not pinned notices nothing.
socket.getaddrinfo = _getaddrinfo


@contextmanager
def pinned(name: str, addresses: Sequence[str]) -> Iterator[None]:
    """Here `name` has these addresses until the block ends, and no other name has any."""
    token = _pin.set((name.lower().rstrip("."), tuple(addresses)))
    try:
        yield
    finally:
        _pin.reset(token)
