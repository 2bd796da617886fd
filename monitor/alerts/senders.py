"""One attempt at handing a notice to a receiver. A sender never raises: whatever happens is an `Outcome`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final, Protocol

import httpcore
import httpx
import msgspec
from standardwebhooks.webhooks import Webhook

from monitor.alerts.config import NotificationConfig
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.egress.policy import EgressBlockedError, EgressPolicy, Resolver, resolve
from monitor.egress.transport import GuardedTransport

__all__ = ["TIMEOUT_S", "Outcome", "Sender", "WebhookSender", "open_senders"]

TIMEOUT_S: Final = 20.0
MAX_RETRY_AFTER_S: Final = 86_400.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt. `error` is empty when it was delivered; `retry_after_s` is what the receiver asked for;
    `gone` says that it wants nothing any more, `unreached` that no connection came about: the notice itself had no part
    in it."""

    delivered: bool
    status: int | None = None
    error: str = ""
    retry_after_s: float | None = None
    gone: bool = False
    unreached: bool = False


class Sender(Protocol):
    """Hands notices to one receiver."""

    async def send(self, webhook_id: str, body: str) -> Outcome:
        """One attempt, bounded in time."""

    async def aclose(self) -> None:
        """Give back what it holds."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None when there is none that makes sense."""
    if not value:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


class WebhookSender:
    """POSTs signed notices as the Standard Webhooks specification has it.

    A status of 200 to 299 is success; all else, a redirect too, is failure; 410 means gone. The whole attempt, looking
    the name up included, takes `timeout_s` seconds at the most. Of the answer only status and headers are read.
    """

    def __init__(
        self,
        receiver: Receiver,
        policy: EgressPolicy,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], datetime] = _utc_now,
        resolver: Resolver = resolve,
    ) -> None:
        self._url = receiver.url
        self._policy = policy
        self._signers = [Webhook(secret) for secret in receiver.secrets]
        self._timeout_s = timeout_s
        self._clock = clock
        self._client = httpx.AsyncClient(
            transport=GuardedTransport(policy, resolver=resolver),
            follow_redirects=False,
            trust_env=False,
            # To connect takes less than the whole, so that a host that is away can be told from a slow one.
            timeout=httpx.Timeout(timeout_s, connect=timeout_s / 2),
            headers={"user-agent": f"sentiment-monitor/{version('sentiment-monitor')}"},
        )

    def headers(self, webhook_id: str, body: str, at: datetime) -> dict[str, str]:
        """Id, time and signatures (one for every secret in use) of an attempt at the time `at`."""
        return {
            "content-type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signer.sign(webhook_id, at, body) for signer in self._signers),
        }

    async def send(self, webhook_id: str, body: str) -> Outcome:
        """One attempt; see the class."""
        now = self._clock()
        try:
            # As it is written, before a client reads it in its own way; the transport checks where it leads.
            url = self._policy.check_url(self._url)
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(
                    "POST", url, content=body.encode(), headers=self.headers(webhook_id, body, now)
                ) as answer,
            ):
                status, retry_after = answer.status_code, answer.headers.get("retry-after")
        except EgressBlockedError as error:
            return Outcome(delivered=False, error=error.message)
        except (TimeoutError, httpx.TimeoutException):
            return Outcome(delivered=False, error=f"No answer within {self._timeout_s:g} s.")
        except httpx.InvalidURL:
            return Outcome(delivered=False, error="The receiver's address is not a URL.")
        except httpx.HTTPError as error:
            # Of httpx's own words only the kind: a message may quote the address, which may hold a token.
            cause = error.__cause__ or error
            return Outcome(
                delivered=False,
                error=f"The receiver cannot be reached ({type(cause).__name__}).",
                unreached=isinstance(cause, httpcore.ConnectError | httpcore.ConnectTimeout),
            )
        if 200 <= status < 300:
            return Outcome(delivered=True, status=status)
        redirected = " (redirects are not followed)" if 300 <= status < 400 else ""
        return Outcome(
            delivered=False,
            status=status,
            error=f"The receiver answered {status}{redirected}.",
            retry_after_s=_retry_after(retry_after, now),
            gone=status == 410,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def open_senders(config: NotificationConfig) -> dict[str, Sender]:
    """A sender for every receiver, by name. Raises `ConfigurationError` for an address that cannot be used."""
    return {name: _sender(receiver, config.policy) for name, receiver in config.receivers.items()}


def _sender(receiver: Receiver, policy: EgressPolicy) -> Sender:
    if receiver.kind is ReceiverKind.WEBHOOK:
        return WebhookSender(receiver, policy)
    # Apprise takes its time to load; most installations have webhooks alone.
    from monitor.alerts.chat import AppriseSender

    return AppriseSender(receiver, policy)
