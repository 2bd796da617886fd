"""Where receivers lead, looked at when they are set up: an address that must never be called is refused then, not only
when the first alert has nowhere to go. What a name leads to may change: each attempt checks it once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.egress.policy import DEFAULT_PORTS, EgressBlockedError, EgressPolicy, Resolver, resolve
from monitor.errors import ConfigurationError

__all__ = ["check_names", "check_target", "target_of"]

LOOKUP_S: Final = 5.0


def target_of(receiver: Receiver, policy: EgressPolicy) -> tuple[str, int] | None:
    """Host and port that this receiver is called at; None where the service has its own. Nothing is looked up.

    Raises `ConfigurationError` for an address that cannot be used, `EgressBlockedError` for one that must not be.
    """
    if receiver.kind is ReceiverKind.WEBHOOK:
        parts = urlsplit(policy.check_url(receiver.url))
        return parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    # Apprise takes its time to load; most installations have webhooks alone.
    from monitor.alerts.chat import AppriseSender

    return AppriseSender(receiver, policy).target()


def check_target(receiver: Receiver, policy: EgressPolicy) -> None:
    """All that can be said of where a receiver leads without asking a name server; raises as `target_of` does."""
    target = target_of(receiver, policy)
    if target is not None:
        policy.check_host(*target)


async def check_names(
    receivers: Mapping[str, Receiver],
    policy: EgressPolicy,
    *,
    resolver: Resolver = resolve,
    timeout_s: float = LOOKUP_S,
) -> list[str]:
    """Look up where all receivers lead; returns the names of those of which no name server tells it (in `timeout_s`).

    Raises `ConfigurationError` naming the first receiver that leads where nobody may be called.
    """

    async def look(receiver: Receiver) -> bool:
        try:
            target = target_of(receiver, policy)
            if target is not None:
                async with asyncio.timeout(timeout_s):
                    await policy.addresses(*target, resolver)
        except EgressBlockedError as error:
            raise ConfigurationError(f"The receiver {receiver.name} is refused: {error.message}", error.hint) from error
        except (OSError, UnicodeError):
            # `TimeoutError` is one, too. A name with a label of over 63 characters is a `UnicodeError`.
            return False
        return True

    found = await asyncio.gather(*map(look, receivers.values()))
    return [name for name, known in zip(receivers, found, strict=True) if not known]
