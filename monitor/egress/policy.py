"""Who may be called: the guard against server-side request forgery.

An address that a user types into a receiver must not become a way into the network that the notifier runs in. So:
https unless a host is allowed by name or network, no credentials in the address, no redirects, every address that a
name resolves to is checked, and the connection goes to an address that was checked, not to the name again. Metadata
services and other link-local addresses are refused even when a network that holds them is allowed.

The address of a feed is the operator's own word and may be private (`feed_policy`). What its server redirects to is
somebody else's, and is checked as receivers are.

References: OWASP Server-Side Request Forgery Prevention Cheat Sheet; the Standard Webhooks specification, "Server side
request forgery"; WHATWG URL, "ends in a number checker" for addresses written as 2130706433, 0x7f.1 or 0177.0.0.1.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import httpx
import idna

from monitor.errors import ConfigurationError, DeliveryError

__all__ = ["EgressBlockedError", "EgressPolicy", "Resolver", "feed_policy", "resolve"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

MAX_URL_CHARS: Final = 2_048
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this host": reaches loopback on Linux
        "169.254.0.0/16",  # link-local, the metadata services of AWS, GCP, Azure, ECS
        "100.100.100.200/32",  # metadata of Alibaba Cloud
        "168.63.129.16/32",  # Azure's host agent
        "192.0.0.192/32",  # metadata of Oracle Cloud
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "fe80::/10",
        "fec0::/10",  # site-local, abolished and still routed in places
        "fd00:ec2::/32",  # metadata of AWS over IPv6
        "fd20:ce::254/128",  # metadata of GCP over IPv6
        "ff00::/8",
    )
)
# Networks whose last four bytes are an IPv4 address: NAT64, and IPv4-translated (RFC 2765).
TRANSLATED: Final = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96")))
# NAT64 of a network's own (RFC 8215), which may also be divided as RFC 6052 has it for 48 bits: the IPv4 address lies
# around the byte in the middle.
OWN_NAT64: Final = ipaddress.ip_network("64:ff9b:1::/48")
# Reserved networks that `ipaddress` takes for global ones in some versions of Python.
NOT_GLOBAL: Final = (
    OWN_NAT64,
    *map(ipaddress.ip_network, ("192.88.99.0/24", "3fff::/20", "5f00::/16")),
)
# The middle of an ISATAP address (RFC 5214), whose last four bytes are an IPv4 address as well.
ISATAP: Final = (0x00005EFE, 0x02005EFE)
LOCAL_SUFFIXES: Final = (".localhost", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".home.arpa")

_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:/\s]+)(?::(?P<port>\d{1,5}))?")
# Names are looked up in threads of their own: a name server that hangs must not keep the store waiting.
_lookups = ThreadPoolExecutor(max_workers=16, thread_name_prefix="resolve")


class EgressBlockedError(DeliveryError):
    """The address of a receiver may not be called."""


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of `host`. Raises `OSError` when it has none."""
    found = await asyncio.get_running_loop().run_in_executor(
        _lookups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _embedded(address: Address) -> Iterable[Address]:
    """The address itself (the IPv4 one of an IPv4-mapped) and every IPv4 address that it tunnels to."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        yield address.ipv4_mapped
        return
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield from address.teredo
        low = int(address) & 0xFFFFFFFF
        translated = any(address in network for network in TRANSLATED) or 0xFFFF < int(address) <= 0xFFFFFFFF
        if translated or (int(address) >> 32) & 0xFFFFFFFF in ISATAP:
            yield ipaddress.IPv4Address(low)
        if address in OWN_NAT64:
            around = (int(address) >> 64 & 0xFFFF) << 16 | int(address) >> 40 & 0xFFFF
            # Where the address lies at the end, there is next to nothing here.
            if around >> 24:
                yield ipaddress.IPv4Address(around)


def _is_global(address: Address) -> bool:
    return address.is_global and not any(
        address.version == network.version and address in network for network in NOT_GLOBAL
    )


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class EgressPolicy:
    """What may be called besides public https addresses.

    Parameters
    ----------
    networks : private networks that may be reached, over http too when the address is given as a number.
    hosts : (host, port) that may be reached whatever they resolve to, over http too; port 0 means any.
    """

    def __init__(self, networks: Iterable[Network] = (), hosts: Iterable[tuple[str, int]] = ()) -> None:
        self._networks = tuple(networks)
        self._hosts = frozenset(hosts)

    @classmethod
    def parse(cls, text: str) -> EgressPolicy:
        """From the setting `egress_allow`: networks (CIDR), addresses, `host` or `host:port`, comma-separated.

        Raises `ConfigurationError` naming the entry that is none of these.
        """
        networks: list[Network] = []
        hosts: list[tuple[str, int]] = []
        for entry in (part.strip() for part in text.split(",")):
            if not entry:
                continue
            try:
                networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError:
                match = _HOST_PORT.fullmatch(entry)
            port = int(match["port"] or 0) if match else 0
            if match is None or port > 65535:
                raise ConfigurationError(
                    f"The entry {entry!r} of egress_allow is neither a network nor host:port.",
                    "Examples: 10.1.0.0/16, 127.0.0.1:9000, hooks.intranet:8443.",
                )
            hosts.append((match["host"].strip("[]").lower(), port))
        return cls(networks, hosts)

    def allows_host(self, host: str, port: int) -> bool:
        """True when this host and port are allowed by name."""
        return bool({(host, port), (host, 0)} & self._hosts)

    def check_url(self, url: str) -> str:
        """The address in its one canonical spelling; everything that can be said without looking the name up.

        Raises `EgressBlockedError` with the reason, which names the host but never the path: that may hold a token.
        """
        if len(url) > MAX_URL_CHARS:
            raise EgressBlockedError("The receiver's address is too long.")
        if any(c.isspace() or c == "\\" or unicodedata.category(c)[0] == "C" for c in url):
            raise EgressBlockedError("The receiver's address holds a space, a backslash or a control character.")
        try:
            parts = urlsplit(url)
            given_port = parts.port
        except ValueError as error:
            raise EgressBlockedError("The receiver's address is not a URL.") from error
        scheme = parts.scheme.lower()
        if scheme not in DEFAULT_PORTS:
            raise EgressBlockedError("The receiver's address must begin with https://.")
        if "@" in parts.netloc:
            raise EgressBlockedError("The receiver's address must not hold a user name or password.")
        if not parts.hostname or given_port == 0:
            raise EgressBlockedError("The receiver's address lacks a host or has an impossible port.")
        port = given_port or DEFAULT_PORTS[scheme]
        host = self._check_host(parts.hostname, port, bracketed="[" in parts.netloc)
        if scheme == "http" and not self._may_be_plain(host, port):
            raise EgressBlockedError(
                f"The receiver at {host}:{port} must be called over https.",
                f"Or allow it: egress_allow = {host}:{port}.",
            )
        shown = f"[{host}]" if ":" in host else host
        netloc = shown if port == DEFAULT_PORTS[scheme] else f"{shown}:{port}"
        return urlunsplit((scheme, netloc, parts.path or "/", parts.query, ""))

    def check_host(self, host: str, port: int) -> str:
        """A host that does not stand in a URL, in its one canonical spelling; everything that can be said without
        looking it up. Raises `EgressBlockedError`."""
        return self._check_host(host, port, bracketed=False)

    def _check_host(self, raw: str, port: int, *, bracketed: bool) -> str:
        address = _literal(raw)
        if address is not None and "%" not in raw:
            self.check_address(raw, port, str(address))
            return str(address)
        if ":" in raw or "%" in raw or bracketed:
            raise EgressBlockedError("The receiver's address holds a host that cannot be used.")
        try:
            host = (
                idna.encode(raw, uts46=True, transitional=False).decode("ascii").lower() if not raw.isascii() else raw
            )
        except idna.IDNAError as error:
            raise EgressBlockedError("The receiver's address holds a host name that does not exist.") from error
        if host.endswith("."):
            raise EgressBlockedError(f"The receiver's host {host} must not end with a dot.")
        if _literal(host) is not None or _NUMBER.fullmatch(host.rpartition(".")[2]):
            raise EgressBlockedError(f"The receiver's host {host} is a number in disguise.", "Write a.b.c.d or a name.")
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) or len(host) > 253:
            raise EgressBlockedError("The receiver's address holds a host name that does not exist.")
        local = "." not in host or host.endswith(LOCAL_SUFFIXES)
        if local and not self.allows_host(host, port):
            raise EgressBlockedError(
                f"The receiver's host {host} is a local name.",
                f"Allow it if it is meant: egress_allow = {host}:{port}.",
            )
        return host

    def _may_be_plain(self, host: str, port: int) -> bool:
        address = _literal(host)
        return self.allows_host(host, port) or (address is not None and self._in_networks(address))

    def _in_networks(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._networks)

    def check_address(self, host: str, port: int, text: str) -> None:
        """Raises `EgressBlockedError` when the address `text`, to which `host` resolved, may not be connected to."""
        address = ipaddress.ip_address(text.partition("%")[0])
        every = tuple(_embedded(address))
        if any(one.version == network.version and one in network for one in every for network in NEVER):
            raise EgressBlockedError(f"The receiver's host {host} leads to {address}, which is never called.")
        if self.allows_host(host, port):
            return
        if not all(_is_global(one) or self._in_networks(one) for one in every):
            raise EgressBlockedError(
                f"The receiver's host {host} leads to the private address {address}.",
                f"Allow it if it is meant: egress_allow = {host}:{port}.",
            )

    def checked(self, host: str, port: int, found: Sequence[str]) -> list[str]:
        """The addresses `found` for `host`, in their order.

        Raises `EgressBlockedError` when any of them may not be called, `OSError` when there is none.
        """
        if not found:
            raise OSError(f"{host} has no address")
        for address in found:
            self.check_address(host, port, address)
        return list(found)

    async def addresses(self, host: str, port: int, resolver: Resolver = resolve) -> list[str]:
        """Checked addresses of `host`, as `checked` says."""
        literal = _literal(host)
        return self.checked(host, port, [str(literal)] if literal is not None else await resolver(host, port))


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
