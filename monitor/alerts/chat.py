"""Slack, Teams, mail and PagerDuty, through Apprise."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Final
from urllib.parse import quote

import apprise

from monitor.alerts.messages import Message, message_of
from monitor.alerts.pinning import pinned
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.records import AlertState
from monitor.alerts.senders import TIMEOUT_S, Outcome
from monitor.egress.policy import EgressBlockedError, EgressPolicy
from monitor.errors import ConfigurationError

__all__ = ["AppriseSender"]

TEAMS_HOSTS: Final = (".logic.azure.com", ".powerplatform.com")
PAGERDUTY_SEVERITY: Final = {"warning": "warning", "high": "error", "critical": "critical"}
MAIL_PORT: Final = 587

# Apprise writes addresses, which are secrets here, into its debug lines.
logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
# A library that blocks: its calls run in threads of their own, so that mail servers that hang hold nothing else up.
_calls = ThreadPoolExecutor(max_workers=16, thread_name_prefix="apprise")


class AppriseSender:
    """Sends notices as text to one receiver.

    Text is passed as plain text, so that Apprise escapes headlines for the service. Nothing is read from files, no
    redirect is followed. What Apprise cannot do is not pretended: there is no Retry-After and no status here.

    Raises `ConfigurationError` when Apprise does not understand the receiver's address.
    """

    def __init__(self, receiver: Receiver, policy: EgressPolicy, *, timeout_s: float = TIMEOUT_S) -> None:
        self._receiver = receiver
        self._policy = policy
        self._timeout_s = timeout_s
        self._asset = apprise.AppriseAsset(
            app_id="sentiment-monitor",
            app_desc="Surges in the news",
            app_url="",
            image_url_mask="",
            image_url_logo="",
            http_redirects=False,
            allow_templates=False,
            interpret_escapes=False,
            secure_logging=True,
            plugin_paths=None,
            storage_mode=apprise.PersistentStoreMode.MEMORY,
        )
        self._service({})

    def _service(self, parameters: dict[str, str]) -> Any:
        """The service with parameters of one message put into its address."""
        url = self._receiver.url
        if parameters:
            query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        service = apprise.Apprise.instantiate(url, asset=self._asset, suppress_exceptions=True)
        if service is None:
            raise ConfigurationError(
                f"The address of the {self._receiver.kind} receiver {self._receiver.name} cannot be used.",
                "It must be one of Apprise's: https://appriseit.com/services/",
            )
        return service

    def target(self) -> tuple[str, int] | None:
        """Host and port that the service connects to; None where a user does not choose it. Raises
        `EgressBlockedError` for a Teams address that is not Microsoft's."""
        return self._target(self._service({}))

    def _target(self, service: Any) -> tuple[str, int] | None:
        if self._receiver.kind is ReceiverKind.TEAMS:
            port = service.port or 443
            if not service.host.endswith(TEAMS_HOSTS) and not self._policy.allows_host(service.host, port):
                raise EgressBlockedError(f"{service.host} is no host of Microsoft Teams.")
            return service.host, port
        if self._receiver.kind is ReceiverKind.MAIL:
            return service.smtp_host, service.port or MAIL_PORT
        return None

    async def _checked(self, service: Any) -> tuple[str, list[str]] | None:
        """The host that the service connects to, with its checked addresses; None where a user does not choose it.

        Raises `EgressBlockedError` or `OSError`.
        """
        target = self._target(service)
        return None if target is None else (target[0], await self._policy.addresses(*target))

    def _parameters(self, message: Message) -> dict[str, str]:
        if self._receiver.kind is not ReceiverKind.PAGERDUTY:
            return {}
        return {
            "dedup": message.subject,
            "action": "resolve" if message.state is AlertState.RESOLVED else "trigger",
            "severity": PAGERDUTY_SEVERITY.get(message.severity, "warning"),
            "click": message.link,
        }

    async def send(self, webhook_id: str, body: str) -> Outcome:  # noqa: ARG002 - these services have no such id
        """One attempt."""
        message = message_of(body)
        try:
            async with asyncio.timeout(self._timeout_s):
                service = self._service(self._parameters(message))
                checked = await self._checked(service)
                loop = asyncio.get_running_loop()
                error = await loop.run_in_executor(_calls, self._notify, service, message, checked)
        except EgressBlockedError as blocked:
            return Outcome(delivered=False, error=blocked.message)
        except TimeoutError:
            return Outcome(delivered=False, error=f"No answer within {self._timeout_s:g} s.")
        except OSError:
            return Outcome(delivered=False, error="The receiver's name cannot be resolved.", unreached=True)
        return Outcome(delivered=not error, error=error)

    def _notify(self, service: Any, message: Message, checked: tuple[str, list[str]] | None) -> str:
        """Empty when the service took it, else why not, in words that hold no address. Connects to the checked
        addresses only, where there are such."""
        sender = apprise.Apprise(asset=self._asset)
        sender.add(service)
        kind = apprise.NotifyType.WARNING if message.state is AlertState.FIRING else apprise.NotifyType.SUCCESS
        with pinned(*checked) if checked else nullcontext():
            result = sender.notify(
                title=message.title, body=message.body, notify_type=kind, body_format=apprise.NotifyFormat.TEXT
            )
        return "" if result else f"The {self._receiver.kind} service did not take it."

    async def aclose(self) -> None:
        """Nothing is held between messages."""
