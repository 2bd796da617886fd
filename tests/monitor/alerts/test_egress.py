"""Hostile addresses: a table of what must never be called, by spelling and by what a name resolves to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.alerts.demo_receiver import DemoReceiver, new_secret
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.senders import Outcome, WebhookSender
from monitor.egress.policy import EgressBlockedError, EgressPolicy
from monitor.egress.transport import GuardedTransport
from monitor.errors import ConfigurationError

PUBLIC = EgressPolicy()
EVERYTHING_PRIVATE = EgressPolicy.parse("0.0.0.0/0, ::/0")

HOSTILE = [
    # plain http, other schemes, no host
    "http://hooks.example/x",
    "ftp://hooks.example/x",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "//hooks.example/x",
    "https:///x",
    "https://",
    "https:hooks.example",
    "",
    "https://hooks.example:0/",
    "https://hooks.example:99999/",
    "https://hooks.example:-1/",
    # who is really called
    "https://hooks.example@127.0.0.1/",
    "https://user:password@hooks.example/",
    "https://hooks.example\\@127.0.0.1/",
    "https://hooks.example/\r\nHost: internal",
    "https://hooks.example /",
    "https://hooks.example\u202e/",
    "https://127.0.0.1\u0000.hooks.example/",
    # loopback, private, shared, reserved
    "https://127.0.0.1/",
    "https://127.255.255.254/",
    "https://10.0.0.1/",
    "https://172.16.5.4/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://198.18.0.1/",
    "https://240.0.0.1/",
    "https://0.0.0.0/",
    "https://0.1.2.3/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    # numbers in disguise
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://1.2.3.4.5/",
    "https://010.8.8.8/",
    "https://0xA9FEA9FE/",
    "https://１２７.０.０.１/",
    "https://①②⑦.⓪.⓪.①/",
    "https://127。0。0。1/",
    # IPv6
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[::7f00:1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::169.254.169.254]/",
    "https://[2002:7f00:1::]/",
    "https://[2002:a9fe:a9fe::1]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[fd12:3456::1]/",
    "https://[ff02::1]/",
    "https://[::1/",
    # more ways to write an IPv4 address into an IPv6 one
    "https://[::ffff:0:127.0.0.1]/",
    "https://[::ffff:0:a9fe:a9fe]/",
    "https://[64:ff9b:1::10.0.0.1]/",
    "https://[64:ff9b:1::8.8.8.8]/",
    "https://[64:ff9b:1:a9fe:a9:fe08:808:808]/",
    "https://[3fff::1]/",
    "https://[5f00::1]/",
    "https://192.88.99.1/",
    "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "https://[fe80::5efe:127.0.0.1]/",
    "https://[2606:4700::5efe:10.0.0.1]/",
    "https://[2001:db8::1]/",
    "https://[fec0::1]/",
    "https://[0:0:0:0:0:ffff:7f00:0001]/",
    "https://[0000:0000:0000:0000:0000:0000:0000:0001]/",
    "https://[::127.0.0.1]/",
    "https://[127.0.0.1]/",
    "https://[v1.fe80]/",
    # what parsers disagree about
    "https:127.0.0.1/",
    "https:/127.0.0.1/",
    "https:\\\\127.0.0.1\\",
    "https://127.0.0.1:443@hooks.example/",
    "https://hooks.example:443@127.0.0.1:443/",
    "https://@127.0.0.1/",
    "https://hooks.example:@10.0.0.1/",
    "https://127.0.0.1#@hooks.example/",
    "https://127.0.0.1?@hooks.example/",
    "https://hooks.example%2f@127.0.0.1/",
    "https://127.0.0.1%23.hooks.example/",
    "https://hooks.example:443:80/",
    "https://hooks.example:８０/",
    "https://hooks.example:0x1bb/",
    "https://[::1]hooks.example/",
    "https://hooks.example[::1]/",
    "https://ho\toks.example/",
    "https://hooks.example\n.evil.example/",
    # characters that are dropped, folded or look like others
    "https://127。0｡0．1/",
    "https://169｡254｡169｡254/",
    "https://local\u00adhost/",
    "https://local\u200bhost/",
    "https://loc\u200dalhost/",
    "https://ℓocalhost/",
    "https://𝐥𝐨𝐜𝐚𝐥𝐡𝐨𝐬𝐭/",
    "https://٣.١.١.١/",
    "https://127.0.0.1\u3002/",
    "https://hooks\u2024example\u2025/",
    # other schemes
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "data:text/plain,x",
    "javascript:alert(1)",
    "jar:https://hooks.example!/x",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "ws://hooks.example/",
    "httpſ://hooks.example/",
    # metadata services
    "https://169.254.169.254/latest/meta-data/",
    "https://169.254.170.2/v2/credentials",
    "https://[fd00:ec2::254]/latest/",
    "https://[::ffff:169.254.169.254]/",
    "https://100.100.100.200/",
    "https://metadata.google.internal/",
    # local names
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "https://app.localhost/",
    "https://printer.local/",
    "https://db.internal/",
    "https://intranet/",
    "https://hooks.example./",
    "https://hooks..example/",
    "https://.hooks.example/",
    "https://ho%6fks.example/",
    "https://xn--/",
    "https://" + "a" * 2100,
]

# Spellings that are hostile only by where they lead: names of public zones that answer with any address one asks for.
REBINDING = [
    "https://127.0.0.1.nip.io/",
    "https://localtest.me/",
    "https://10-0-0-1.sslip.io/",
    "https://xn--e1afmkfd.example/",
]

METADATA = [url for url in HOSTILE if any(part in url for part in ("169.254.1", "fd00:ec2", "100.100.100", "a9fe"))]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_addresses_are_refused_when_saved(url: str) -> None:
    with pytest.raises(EgressBlockedError):
        PUBLIC.check_url(url)


@pytest.mark.parametrize("url", [*METADATA, "https://0.0.0.0/", "https://[::]/", "https://[fe80::1]/"])
def test_metadata_services_are_refused_even_when_everything_is_allowed(url: str) -> None:
    with pytest.raises(EgressBlockedError):
        EVERYTHING_PRIVATE.check_url(url)
    host = url.removeprefix("https://").partition("/")[0]
    with pytest.raises(EgressBlockedError):
        EgressPolicy.parse(host).check_url(url)


@pytest.mark.parametrize(
    ("url", "spelling"),
    [
        ("https://hooks.example/a?b=c", "https://hooks.example/a?b=c"),
        ("HTTPS://Hooks.Example", "https://hooks.example/"),
        ("https://hooks.example:443/", "https://hooks.example/"),
        ("https://hooks.example:8443/#x", "https://hooks.example:8443/"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700::1111]/", "https://[2606:4700::1111]/"),
    ],
)
def test_public_addresses_have_one_spelling(url: str, spelling: str) -> None:
    assert PUBLIC.check_url(url) == spelling
    assert PUBLIC.check_url(spelling) == spelling


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_addresses_are_refused_when_sent_to_and_nobody_is_asked(url: str) -> None:
    """As if such an address had got into the configuration past the check."""

    async def never(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host}:{port} was looked up")

    async def send() -> Outcome:
        receiver = Receiver("r", ReceiverKind.WEBHOOK, url, (new_secret(),))
        sender = WebhookSender(receiver, PUBLIC, resolver=never)
        try:
            return await sender.send("msg_1", "{}")
        finally:
            await sender.aclose()

    outcome = asyncio.run(send())
    assert (outcome.delivered, outcome.status) == (False, None)
    assert outcome.error


@pytest.mark.parametrize("url", REBINDING)
@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fd00::1"])
def test_a_public_name_that_leads_to_a_private_address_is_refused(url: str, address: str) -> None:
    assert PUBLIC.check_url(url) == url
    with pytest.raises(EgressBlockedError):
        post(GuardedTransport(PUBLIC, resolver=resolver([address])), url)


def test_what_is_allowed_and_no_more() -> None:
    policy = EgressPolicy.parse(" 10.1.0.0/16, 127.0.0.1:9000 ,hooks.intranet:8443, [::1]:9001, queue ")
    for url in (
        "http://10.1.2.3:80/",
        "https://10.1.2.3/",
        "http://127.0.0.1:9000/",
        "http://hooks.intranet:8443/",
        "https://hooks.intranet:8443/",
        "http://[::1]:9001/",
        "http://queue:1234/",
    ):
        policy.check_url(url)
    for url in ("http://10.2.0.1/", "http://127.0.0.1:9001/", "https://hooks.intranet/", "http://[::1]/"):
        with pytest.raises(EgressBlockedError):
            policy.check_url(url)


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "http://x", "a b", "host:99999", "host:port", "10.1.0.1/16"])
def test_a_wrong_entry_is_named(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="egress_allow") as caught:
        EgressPolicy.parse(f"10.0.0.0/8,{entry}")
    assert repr(entry) in str(caught.value)


@given(st.integers(0, 2**32 - 1))
def test_no_spelling_of_a_number_passes_unless_it_is_a_public_address(number: int) -> None:
    octets = [number >> shift & 255 for shift in (24, 16, 8, 0)]
    plain = ".".join(map(str, octets))
    try:
        PUBLIC.check_address("x", 443, plain)
        public = True
    except EgressBlockedError:
        public = False
    mapped = f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]"
    for host, allowed in ((plain, public), (mapped, public), (str(number), False), (hex(number), False)):
        if allowed:
            PUBLIC.check_url(f"https://{host}/")
        else:
            with pytest.raises(EgressBlockedError):
                PUBLIC.check_url(f"https://{host}/")


def resolver(*answers: list[str]) -> Callable[[str, int], Awaitable[list[str]]]:
    """A name server whose answer changes with every question."""
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        return left.pop(0)

    return resolve


def post(transport: GuardedTransport, url: str) -> int:
    async def send() -> int:
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=5) as client:
            return (await client.post(url, content=b"{}")).status_code

    return asyncio.run(send())


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.0.0.7", "::1", "169.254.169.254", "::ffff:127.0.0.1", "fe80::1%eth0"])
def test_a_name_is_refused_when_any_of_its_addresses_is(bad: str) -> None:
    transport = GuardedTransport(PUBLIC, resolver=resolver(["93.184.216.34", bad]))
    with pytest.raises(EgressBlockedError):
        post(transport, "https://hooks.example/")


def test_a_name_that_resolves_elsewhere_later_is_refused_then() -> None:
    with DemoReceiver() as receiver:
        policy = EgressPolicy.parse(f"198.51.100.9/32,hooks.example:{receiver.port}")
        rebinding = resolver(["127.0.0.1"], ["169.254.169.254"])
        url = f"http://hooks.example:{receiver.port}/"
        assert post(GuardedTransport(policy, resolver=rebinding), url) == 401
        with pytest.raises(EgressBlockedError):
            post(GuardedTransport(policy, resolver=rebinding), url)
        assert receiver.refused == 1


def test_the_checked_address_is_the_one_connected_to_under_the_name() -> None:
    asked: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    with DemoReceiver() as receiver:
        policy = EgressPolicy.parse(f"hooks.example:{receiver.port}")
        assert post(GuardedTransport(policy, resolver=resolve), f"http://hooks.example:{receiver.port}/") == 401
        assert asked == [("hooks.example", receiver.port)]


def test_the_transport_itself_refuses_what_was_not_checked_when_saved() -> None:
    with pytest.raises(EgressBlockedError):
        post(GuardedTransport(PUBLIC), "http://127.0.0.1:1/")
    with pytest.raises(httpx.TransportError):
        post(GuardedTransport(EgressPolicy.parse("127.0.0.1:1")), "http://127.0.0.1:1/")
