"""Where receivers lead is looked up when they are set up."""

from __future__ import annotations

import asyncio

import pytest

from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.targets import check_names, target_of
from monitor.egress.policy import EgressPolicy
from monitor.errors import ConfigurationError
from tests.monitor.alerts.test_chat import PAGER, SLACK, TEAMS

MAIL = "mailtos://u:p@{host}?to=desk@b.example"
PUBLIC = "93.184.216.34"


def receivers(**urls: str) -> dict[str, Receiver]:
    kinds = {"https": ReceiverKind.WEBHOOK, "mailtos": ReceiverKind.MAIL, "pagerduty": ReceiverKind.PAGERDUTY}
    return {name: Receiver(name, kinds[url.partition(":")[0]], url) for name, url in urls.items()}


def look(
    found: dict[str, Receiver], answers: dict[str, list[str]], allowed: str = "", timeout_s: float = 5.0
) -> list[str]:
    async def resolver(host: str, _port: int) -> list[str]:
        if host == "hangs.example":
            await asyncio.sleep(60)
        if host not in answers:
            raise OSError("no such name")
        return answers[host]

    return asyncio.run(check_names(found, EgressPolicy.parse(allowed), resolver=resolver, timeout_s=timeout_s))


@pytest.mark.parametrize(
    ("url", "host", "address"),
    [
        ("https://127.0.0.1.nip.example/hook?token=t0ken", "127.0.0.1.nip.example", "127.0.0.1"),
        ("https://rebound.example:8443/", "rebound.example", "10.1.2.3"),
        ("https://meta.example/", "meta.example", "169.254.169.254"),
        ("https://six.example/", "six.example", "::ffff:192.168.0.1"),
        (MAIL.format(host="mail.example"), "mail.example", "10.0.0.1"),
    ],
)
def test_a_name_that_leads_where_nobody_may_be_called_is_refused(url: str, host: str, address: str) -> None:
    found = receivers(good="https://good.example/", bad=url)
    with pytest.raises(ConfigurationError, match="The receiver bad is refused") as told:
        look(found, {"good.example": [PUBLIC], host: [PUBLIC, address]})
    assert host in str(told.value)
    assert "t0ken" not in str(told.value)
    assert look(found, {"good.example": [PUBLIC], host: [PUBLIC]}) == []


def test_what_is_allowed_by_name_may_be_private_and_never_a_metadata_service() -> None:
    found = receivers(desk="https://hooks.example:8443/")
    assert look(found, {"hooks.example": ["10.0.0.1"]}, "hooks.example:8443") == []
    with pytest.raises(ConfigurationError, match="never called"):
        look(found, {"hooks.example": ["169.254.169.254"]}, "hooks.example:8443")


def test_without_a_name_server_it_is_told_and_nothing_more() -> None:
    found = receivers(away="https://away.example/", slow="https://hangs.example/", pager=PAGER)
    assert look(found, {}, timeout_s=0.05) == ["away", "slow"]
    assert look(receivers(address=f"https://{PUBLIC}/"), {}) == []


def test_services_with_hosts_of_their_own_are_not_looked_up() -> None:
    for kind, url in ((ReceiverKind.SLACK, SLACK), (ReceiverKind.PAGERDUTY, PAGER)):
        assert target_of(Receiver("r", kind, url), EgressPolicy()) is None
    host, port = target_of(Receiver("r", ReceiverKind.TEAMS, TEAMS), EgressPolicy()) or ("", 0)
    assert (host, port) == ("prod-1.westus.logic.azure.com", 443)
