"""Receivers, routes and mute times from files: one bad file per mistake, each named with its line."""

from __future__ import annotations

from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest

from monitor.alerts.config import load_notifications
from monitor.alerts.demo_receiver import new_secret
from monitor.alerts.receivers import ReceiverKind, check_secrets, redacted
from monitor.errors import ConfigurationError, RuleError
from monitor.settings import Settings
from tests.monitor.alerts.builders import an_alert

SECRET = new_secret()

GOOD = """
[[receivers]]
name = "desk"
url = "https://hooks.example/desk"
secret = "env:DESK_SECRET"

[[receivers]]
name = "pager"
kind = "pagerduty"
url = "env:PAGER_URL"
rate_per_minute = 6

[[mutes]]
name = "nights"
days = ["mon", "tue"]
start = "22:00"
end = "06:30"
timezone = "Europe/Zurich"

[[mutes]]
name = "closed"
calendar = "XNYS"

[[routes]]
receivers = ["desk"]
group_by = ["kind"]
group_wait = "30s"
mutes = ["nights", "closed"]

[[routes]]
receivers = ["desk"]
keys = ["ticker:*"]
severities = ["critical"]
repeat = "4h"
escalate_after = "15m"
escalate_to = ["pager"]
inhibit = false
"""


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_SECRET", SECRET)
    monkeypatch.setenv("PAGER_URL", "pagerduty://AAAA@bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
    monkeypatch.setenv("BAD_SECRET", "whsec_AAAA")
    monkeypatch.setenv("MAIL_URL", "mailtos://u:p@mail.example?to=desk@b.example")
    monkeypatch.setenv("MAIL_METADATA", "mailto://u:p@169.254.169.254:80?to=desk@b.example")
    monkeypatch.setenv("MAIL_RELAY", "mailtos://u:p@mail.example?smtp=10.0.0.1&to=desk@b.example")
    monkeypatch.setenv("MAIL_NUMBER", "mailto://u:p@2130706433?to=desk@b.example")
    monkeypatch.setenv("MAIL_LOCAL", "mailto://u:p@localhost?to=desk@b.example")
    monkeypatch.setenv("TEAMS_ELSEWHERE", "workflows://teams.example:443/abcdefghijklmnop/sig")
    monkeypatch.setenv("PAGER_HALF", "pagerduty://AAAA")


def settings_of(tmp_path: Path, text: str = "", **values: Any) -> Settings:
    if text:
        file = tmp_path / "receivers.toml"
        file.write_text(text)
        values["receivers_file"] = str(file)
    return Settings(data_dir=tmp_path, **values)


def test_a_full_file_is_taken_up(tmp_path: Path) -> None:
    config = load_notifications(settings_of(tmp_path, GOOD))
    assert set(config.receivers) == {"desk", "pager"}
    assert (config.receivers["desk"].secrets, config.receivers["pager"].kind) == ((SECRET,), ReceiverKind.PAGERDUTY)
    first, second = config.routes
    assert (first.group_wait, first.mutes[0].week.start, first.mutes[0].week.end) == (
        timedelta(seconds=30),
        time(22),
        time(6, 30),
    )
    assert first.mutes[1].hours is not None
    assert (second.repeat, second.escalate_after) == (timedelta(hours=4), timedelta(minutes=15))
    assert (second.escalate_to, second.inhibit) == (("pager",), False)


def test_secrets_are_nowhere_to_be_seen(tmp_path: Path) -> None:
    config = load_notifications(settings_of(tmp_path, GOOD))
    shown = repr(config) + repr({name: r.definition for name, r in config.receivers.items()})
    assert SECRET not in shown
    assert "bbbbbbbb" not in shown
    assert "hooks.example/desk" not in shown
    assert config.receivers["desk"].definition["address"] == "https://hooks.example/…"


def test_mail_to_a_public_host_is_taken(tmp_path: Path) -> None:
    assert set(load_notifications(settings_of(tmp_path, MAIL)).receivers) == {"m"}


def test_settings_alone_make_receivers_that_get_everything(tmp_path: Path) -> None:
    urls = "https://a.example/1, https://b.example/2"
    config = load_notifications(settings_of(tmp_path, webhook_urls=urls, webhook_secret=SECRET))
    assert list(config.receivers) == ["webhook-1", "webhook-2"]
    (route,) = config.routes
    assert route.matches(an_alert())
    assert not route.inhibit


def test_a_file_without_routes_sends_everything_to_its_receivers(tmp_path: Path) -> None:
    text = GOOD.partition("[[mutes]]")[0]
    (route,) = load_notifications(settings_of(tmp_path, text)).routes
    assert (route.receivers, route.inhibit) == (("desk", "pager"), True)


RECEIVER = '[[receivers]]\nname = "desk"\nurl = "https://hooks.example/"\nsecret = "env:DESK_SECRET"\n'
MAIL = '[[receivers]]\nname = "m"\nkind = "mail"\nurl = "env:MAIL_URL"\n'
ROUTE = '[[routes]]\nreceivers = ["desk"]\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[[receivers]\n", 1, "not valid TOML"),
        ("\n[[receiver]]\nname = 'x'\n", 2, "'receiver' is an unknown part"),
        ("\n\nreceivers = 3\n", 3, "'receivers' must be written as [[receivers]]"),
        ("\n[[receivers]]\nname = 'x'\n", 2, "url"),
        (RECEIVER + "colour = 'red'\n", 5, "colour"),
        (RECEIVER.replace('"desk"', "7"), 2, "Expected `str`"),
        (RECEIVER.replace('"desk"', '""'), 2, "1 to 128"),
        (RECEIVER + "kind = 'pigeon'\n", 5, "pigeon"),
        (RECEIVER + RECEIVER, 6, "another receiver of this name"),
        (RECEIVER + "rate_per_minute = 0\n", 5, "above 0"),
        (RECEIVER.replace("https:", "http:"), 3, "over https"),
        (RECEIVER.replace("hooks.example", "169.254.169.254"), 3, "never called"),
        (RECEIVER.replace("hooks.example", "10.0.0.1"), 3, "private address"),
        (RECEIVER.replace("env:DESK_SECRET", "whsec_c2VjcmV0c2VjcmV0c2VjcmV0"), 4, "must be a reference"),
        (RECEIVER.replace("env:DESK_SECRET", "env:NOBODY"), 4, "NOBODY is not set"),
        (RECEIVER.replace("env:DESK_SECRET", "env:BAD_SECRET"), 4, "shorter than 16 bytes"),
        (RECEIVER.replace("env:DESK_SECRET", "file:/does/not/exist"), 4, "cannot be read"),
        ('[[receivers]]\nname = "m"\nkind = "mail"\nurl = "mailto://u:p@h"\n', 4, "is a secret"),
        ('[[receivers]]\nname = "m"\nkind = "slack"\nurl = "env:PAGER_URL"\n', 4, "must begin with slack://"),
        (
            '[[receivers]]\nname = "m"\nkind = "pagerduty"\nurl = "env:PAGER_URL"\nsecret = "env:X"\n',
            5,
            "only a webhook",
        ),
        (MAIL.replace("MAIL_URL", "MAIL_METADATA"), 4, "never called"),
        (MAIL.replace("MAIL_URL", "MAIL_RELAY"), 4, "private address 10.0.0.1"),
        (MAIL.replace("MAIL_URL", "MAIL_NUMBER"), 4, "number in disguise"),
        (MAIL.replace("MAIL_URL", "MAIL_LOCAL"), 4, "local name"),
        (MAIL.replace("mail", "teams").replace("MAIL_URL", "TEAMS_ELSEWHERE"), 4, "no host of Microsoft Teams"),
        (MAIL.replace("mail", "pagerduty").replace("MAIL_URL", "PAGER_HALF"), 4, "cannot be used"),
        (RECEIVER + "[[routes]]\nreceivers = []\n", 6, "at least one receiver"),
        (RECEIVER + "[[routes]]\nreceivers = ['desc']\n", 6, "'desc' is none of desk"),
        (RECEIVER + ROUTE + "severities = ['bad']\n", 7, "'bad' is none of warning, high, critical"),
        (RECEIVER + ROUTE + "events = ['fired']\n", 7, "'fired' is none of"),
        (RECEIVER + ROUTE + "mutes = ['nights']\n", 7, "there are none"),
        (RECEIVER + ROUTE + "group_by = ['colour']\n", 7, "'colour' is none of"),
        (RECEIVER + ROUTE + "group_wait = '30s'\n", 7, "needs group_by"),
        (RECEIVER + ROUTE + "repeat = 'often'\n", 7, "'often' is not a length of time"),
        (RECEIVER + ROUTE + "escalate_after = '15m'\n", 7, "belong together"),
        (RECEIVER + ROUTE + "escalate_to = ['nobody']\n", 7, "'nobody' is none of desk"),
        ("[[mutes]]\nname = 'n'\ndays = ['monday']\n", 3, "'monday' is none of mon"),
        ("[[mutes]]\nname = 'n'\nstart = '25:00'\n", 3, "'25:00' is not a time of day"),
        ("[[mutes]]\nname = 'n'\ntimezone = 'Mars/Olympus'\n", 3, "no time zone"),
        ("[[mutes]]\nname = 'n'\ncalendar = 'MOON'\n", 3, "'MOON' is none of"),
        ("[[mutes]]\nname = 'n'\nwhen = 'ajar'\n", 3, "'ajar' is none of open, closed"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(RuleError) as caught:
        load_notifications(settings_of(tmp_path, text))
    message = str(caught.value)
    assert words in message
    assert f"receivers.toml, line {line}" in message
    assert caught.value.line == line
    assert SECRET not in message
    assert "bbbbbbbb" not in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"webhook_urls": "https://a.example/"}, "needs a signing secret"),
        ({"webhook_urls": "https://a.example/", "webhook_secret": "whsec_AAAA"}, "shorter than 16 bytes"),
        ({"webhook_urls": "https://a.example/,http://b.example/", "webhook_secret": SECRET}, "Entry 2 of webhook_urls"),
        ({"egress_allow": "everybody else"}, "'everybody else' of egress_allow"),
        ({"receivers_file": "nowhere.toml"}, "nowhere.toml cannot be read"),
        ({"rules_file": "nowhere.toml"}, "nowhere.toml cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=r".") as caught:
        load_notifications(settings_of(tmp_path, **values))
    assert words in str(caught.value)


def test_a_file_may_not_take_the_name_of_a_plain_webhook(tmp_path: Path) -> None:
    text = RECEIVER.replace('"desk"', '"webhook-1"')
    with pytest.raises(ConfigurationError, match="Give it another name"):
        load_notifications(settings_of(tmp_path, text, webhook_urls="https://a.example/", webhook_secret=SECRET))


def test_secrets_may_be_rotated() -> None:
    assert check_secrets(f" {SECRET}  {SECRET} ") == (SECRET, SECRET)
    assert check_secrets(SECRET.removeprefix("whsec_")) == (SECRET.removeprefix("whsec_"),)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h.example:8443/token?x=y", "https://h.example:8443/…"),
        ("slack://TokenA/TokenB/TokenC", "slack://…"),
        ("mailtos://user:secret@mail.example?to=a@b.example", "mailtos://mail.example/…"),
        ("https://[broken", "…"),
    ],
)
def test_addresses_are_shown_without_what_may_be_a_token(url: str, shown: str) -> None:
    assert redacted(url) == shown
