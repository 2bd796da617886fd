"""Receivers: who is told, and the secrets that it takes.

They come from the settings `webhook_urls` and `webhook_secret` (plain webhooks that get every alert) and from the TOML
file `receivers_file`. In that file a secret, or an address that is a secret itself, is a reference: `env:NAME` or
`file:PATH`. Neither is stored in the database or written to a log.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from monitor.alerts.tomlfile import Entry
from monitor.egress.policy import EgressBlockedError, EgressPolicy
from monitor.errors import ConfigurationError
from monitor.settings import Settings

__all__ = ["Receiver", "ReceiverKind", "check_secrets", "receivers_from_entries", "receivers_from_settings", "redacted"]

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix that the specification gives to secrets
# The specification asks for 24 to 64 random bytes; shorter ones are taken down to 128 bits, longer ones as they are.
MIN_SECRET_BYTES: Final = 16
HINT: Final = "Make one: python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
DEFAULT_RATE: Final = 120.0


class ReceiverKind(StrEnum):
    """How a receiver is spoken to. All but `WEBHOOK` go through Apprise, whose URL forms they take."""

    WEBHOOK = "webhook"
    SLACK = "slack"
    TEAMS = "teams"
    MAIL = "mail"
    PAGERDUTY = "pagerduty"


SCHEMES: Final = {
    ReceiverKind.SLACK: ("slack",),
    ReceiverKind.TEAMS: ("workflow", "workflows"),
    ReceiverKind.MAIL: ("mailto", "mailtos"),
    ReceiverKind.PAGERDUTY: ("pagerduty",),
}


@dataclass(frozen=True)
class Receiver:
    """One receiver, ready for use. `secrets` sign webhooks: the first is the current one, others are being rotated
    out. `rate_per_minute` notices at the most; more are put together into digests."""

    name: str
    kind: ReceiverKind
    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    rate_per_minute: float = DEFAULT_RATE

    @property
    def definition(self) -> dict[str, Any]:
        """What the store and the dashboard may know of it."""
        return {"kind": self.kind.value, "address": redacted(self.url), "rate_per_minute": self.rate_per_minute}


class ReceiverEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[receivers]]` of the file."""

    name: str
    url: str
    kind: ReceiverKind = ReceiverKind.WEBHOOK
    secret: str = ""
    rate_per_minute: float = DEFAULT_RATE


def redacted(url: str) -> str:
    """Scheme and host of an address: paths and queries of webhooks hold tokens."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "…"
    if parts.scheme not in ("http", "https", "mailto", "mailtos"):
        # In Apprise's forms the host is a token.
        return f"{parts.scheme}://…"
    return f"{parts.scheme}://{host}{port}/…"


def check_secrets(text: str) -> tuple[str, ...]:
    """One or more space-separated signing secrets. Raises `ValueError` saying what is wrong, never quoting them."""
    secrets = tuple(text.split())
    if not secrets:
        raise ValueError("a webhook needs a signing secret")
    for secret in secrets:
        try:
            # As the specification's libraries read it: base64, with or without padding.
            raw = base64.b64decode(secret.removeprefix(SECRET_PREFIX) + "==", validate=False)
        except (binascii.Error, ValueError) as error:
            raise ValueError("the signing secret is not base64") from error
        if len(raw) < MIN_SECRET_BYTES:
            raise ValueError(f"the signing secret is shorter than {MIN_SECRET_BYTES} bytes")
    return secrets


def resolve_reference(text: str) -> str:
    """What `env:NAME` or `file:PATH` points to. Raises `ValueError` when that is missing or empty, or no reference."""
    kind, _, name = text.partition(":")
    if kind == "env":
        value = os.environ.get(name, "")
        if not value.strip():
            raise ValueError(f"the environment variable {name} is not set")
        return value.strip()
    if kind == "file":
        try:
            value = Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the file {name} cannot be read") from error
        if not value:
            raise ValueError(f"the file {name} is empty")
        return value
    raise ValueError("a secret must be a reference: env:NAME or file:PATH")


def receivers_from_settings(settings: Settings, policy: EgressPolicy) -> list[Receiver]:
    """The receivers of `webhook_urls`, named `webhook-1`, `webhook-2`, ... Raises `ConfigurationError`."""
    urls = [url.strip() for url in settings.webhook_urls.split(",") if url.strip()]
    if not urls:
        return []
    try:
        secrets = check_secrets(settings.webhook_secret.get_secret_value())
    except ValueError as error:
        raise ConfigurationError(f"The setting webhook_secret is wrong: {error}.", HINT) from error
    receivers = []
    for number, url in enumerate(urls, start=1):
        try:
            checked = policy.check_url(url)
        except EgressBlockedError as error:
            raise ConfigurationError(f"Entry {number} of webhook_urls: {error.message}", error.hint) from error
        receivers.append(Receiver(f"webhook-{number}", ReceiverKind.WEBHOOK, checked, secrets))
    return receivers


def _receiver(entry: Entry, policy: EgressPolicy) -> Receiver:
    fields = entry.convert(ReceiverEntry)
    if not fields.name or len(fields.name) > 128 or not fields.name.isprintable():
        entry.fail("the name must have 1 to 128 printable characters", "name")
    if fields.rate_per_minute <= 0:
        entry.fail("rate_per_minute must be above 0", "rate_per_minute")
    url = fields.url
    if url.startswith(("env:", "file:")):
        try:
            url = resolve_reference(url)
        except ValueError as error:
            entry.fail(str(error), "url")
    elif fields.kind is not ReceiverKind.WEBHOOK:
        entry.fail(f"the address of a {fields.kind} receiver is a secret: write env:NAME or file:PATH", "url")
    if fields.kind is not ReceiverKind.WEBHOOK:
        if fields.secret:
            entry.fail("only a webhook has a signing secret", "secret")
        if urlsplit(url).scheme not in SCHEMES[fields.kind] and not _is_native(fields.kind, url):
            entry.fail(
                f"the address of a {fields.kind} receiver must begin with {SCHEMES[fields.kind][-1]}://",
                "url",
                "These are Apprise's URLs: https://appriseit.com/services/",
            )
        return Receiver(fields.name, fields.kind, url, (), fields.rate_per_minute)
    try:
        secrets = check_secrets(resolve_reference(fields.secret))
    except ValueError as error:
        entry.fail(str(error), "secret", HINT)
    try:
        url = policy.check_url(url)
    except EgressBlockedError as error:
        entry.fail(error.message.removesuffix("."), "url", error.hint)
    return Receiver(fields.name, fields.kind, url, secrets, fields.rate_per_minute)


def _is_native(kind: ReceiverKind, url: str) -> bool:
    """Addresses as Slack and Microsoft hand them out; Apprise understands them, too."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" or parts.username:
        return False
    if kind is ReceiverKind.SLACK:
        return host == "hooks.slack.com"
    return kind is ReceiverKind.TEAMS and host.endswith((".logic.azure.com", ".powerplatform.com"))


def receivers_from_entries(entries: Sequence[Entry], policy: EgressPolicy) -> list[Receiver]:
    """The receivers of a file, each name once. Raises `ConfigurationError` naming file, line and entry."""
    receivers: dict[str, Receiver] = {}
    for entry in entries:
        receiver = _receiver(entry, policy)
        if receiver.name in receivers:
            entry.fail("there is another receiver of this name", "name")
        receivers[receiver.name] = receiver
    return list(receivers.values())
