"""Chat, mail and pagers: what leaves this machine, looked at where the library hands it to the network."""

from __future__ import annotations

import asyncio
import email
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Iterator
from datetime import timedelta
from email.message import Message as Mail
from typing import Any

import msgspec
import pytest
import requests

from monitor.alerts import pinning
from monitor.alerts.chat import AppriseSender
from monitor.alerts.lifecycle import notice_body
from monitor.alerts.messages import message_of
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.records import Alert, AlertState, Digest, DigestContent, DigestEntry, Notice
from monitor.alerts.senders import Outcome
from monitor.egress.policy import EgressPolicy
from monitor.errors import ConfigurationError
from tests.monitor.alerts.builders import AT, an_alert
from tests.monitor.alerts.test_records import story

HOSTILE = "<!channel> <@U123> [win](http://evil.example) <b>bold</b> *x* `y` & <http://evil.example|click>"
SLACK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
TEAMS = (
    "https://prod-1.westus.logic.azure.com:443/workflows/641a000000000000000000000000000/triggers/manual/paths/invoke"
    "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=6A0000000000000000000000000000"
)
PAGER = "pagerduty://AAAA@bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"


def an_event(**changes: Any) -> Alert:
    stories = tuple(story(number, title=f"{HOSTILE} {number}") for number in range(7))
    return msgspec.structs.replace(an_alert(), stories=stories, **changes)


class Wire:
    """Stands where `requests` hands a prepared request to the network."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.sent: list[requests.PreparedRequest] = []
        self.redirects: list[bool] = []

    def send(self, _session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        self.sent.append(request)
        self.redirects.append(options["allow_redirects"])
        response = requests.Response()
        response.status_code, response._content, response.request = self.status, b"ok", request
        return response

    @property
    def body(self) -> Any:
        (request,) = self.sent
        return json.loads(request.body or b"")


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    made = Wire(200)
    monkeypatch.setattr(requests.Session, "send", lambda *a, **k: made.send(*a, **k))
    return made


def send(kind: ReceiverKind, url: str, body: str, policy: EgressPolicy | None = None) -> Outcome:
    sender = AppriseSender(Receiver("r", kind, url), policy or EgressPolicy())
    return asyncio.run(sender.send("msg_1", body))


def test_slack_gets_headlines_as_text_that_mentions_nobody(wire: Wire) -> None:
    assert send(ReceiverKind.SLACK, SLACK, notice_body(an_event())).delivered
    text = json.dumps(wire.body)
    assert "&lt;!channel&gt; &lt;@U123&gt;" in text
    assert "<!channel>" not in text
    assert "<@U123>" not in text
    assert "<http://evil.example|click>" not in text
    assert wire.redirects == [False]


def test_teams_gets_headlines_without_links_of_strangers(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    async def public(_self: EgressPolicy, _host: str, _port: int) -> list[str]:
        return ["93.184.216.34"]

    monkeypatch.setattr(EgressPolicy, "addresses", public)
    assert send(ReceiverKind.TEAMS, TEAMS, notice_body(an_event())).delivered
    text = json.dumps(wire.body)
    assert "[win](http://evil.example)" not in text
    assert wire.redirects == [False]


def test_teams_has_hosts_of_its_own(wire: Wire) -> None:
    outcome = send(ReceiverKind.TEAMS, "workflow://evil.example/workflow/signature", notice_body(an_event()))
    assert (outcome.delivered, outcome.error) == (False, "evil.example is no host of Microsoft Teams.")
    assert wire.sent == []


def test_a_pager_opens_and_closes_one_incident_per_alert(wire: Wire) -> None:
    assert send(ReceiverKind.PAGERDUTY, PAGER, notice_body(an_event(severity="high"))).delivered
    opened = wire.body
    assert (opened["event_action"], opened["dedup_key"], opened["payload"]["severity"]) == ("trigger", "a-1", "error")
    assert opened["links"] == [{"href": an_alert().link}]
    wire.sent.clear()
    over = an_event(state=AlertState.RESOLVED, resolved_at=AT + timedelta(hours=1))
    assert send(ReceiverKind.PAGERDUTY, PAGER, notice_body(over)).delivered
    assert (wire.body["event_action"], wire.body["dedup_key"]) == ("resolve", "a-1")


def test_a_refusal_is_a_failure_and_names_no_secret(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.status = 403
    with caplog.at_level(logging.DEBUG):
        outcome = send(ReceiverKind.SLACK, SLACK, notice_body(an_event()))
    assert (outcome.delivered, outcome.error) == (False, "The slack service did not take it.")
    assert "TIiajkdnlazkcOXrIdevi7FQ" not in caplog.text


def test_an_address_that_apprise_does_not_understand_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="slack receiver r cannot be used") as caught:
        AppriseSender(Receiver("r", ReceiverKind.SLACK, "slack://x"), EgressPolicy())
    assert "slack://x" not in str(caught.value)


class MailServer(socketserver.ThreadingTCPServer):
    """Just enough of SMTP to take a mail."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        super().__init__(("127.0.0.1", 0), _Smtp)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Smtp(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines: list[bytes] = []
                while (part := self.rfile.readline()) != b".\r\n":
                    lines.append(part)
                self.server.mails.append(email.message_from_bytes(b"".join(lines)))
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 fine\r\n")


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.shutdown()
    server.server_close()


def test_mail_is_plain_text_through_a_server_that_is_allowed(mail_server: MailServer) -> None:
    port = mail_server.server_address[1]
    url = f"mailto://127.0.0.1:{port}?from=monitor@a.example&to=desk@b.example&mode=insecure"
    refused = send(ReceiverKind.MAIL, url, notice_body(an_event()))
    assert "private address 127.0.0.1" in refused.error
    policy = EgressPolicy.parse(f"127.0.0.1:{port}")
    assert send(ReceiverKind.MAIL, url, notice_body(an_event(title="AAPL\r\nBcc: evil@c.example")), policy).delivered
    (mail,) = mail_server.mails
    assert mail["Subject"] == "WARNING: AAPL Bcc: evil c.example, 12 negative stories"
    assert (mail["To"], mail["Bcc"], mail.get_content_type()) == ("desk@b.example", None, "text/plain")
    content = mail.get_payload(decode=True).decode()
    assert f"- {HOSTILE} 0 (Wire, 3 copies, p(negative) 0.91) https://news.example/1" in content
    assert "and 2 more" in content


class Names:
    """A name server whose answers for one name change with every question."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        return REAL(self.answers.pop(0) if host == "mail.example" else host, port, *args, **options)


REAL = pinning._system


def test_mail_goes_to_the_address_that_was_checked(mail_server: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = mail_server.server_address[1]
    policy = EgressPolicy.parse(f"mail.example:{port}")
    url = f"mailto://mail.example:{port}?smtp=mail.example&from=monitor@a.example&to=desk@b.example&mode=insecure"
    names = Names("127.0.0.1", "169.254.169.254")
    monkeypatch.setattr(pinning, "_system", names)
    assert send(ReceiverKind.MAIL, url, notice_body(an_event()), policy).delivered
    assert names.answers == ["169.254.169.254"], "the name is asked for once, when it is checked"
    assert len(mail_server.mails) == 1
    outcome = send(ReceiverKind.MAIL, url, notice_body(an_event()), policy)
    assert (outcome.delivered, "never called" in outcome.error) == (False, True)


def test_whoever_is_pinned_reaches_nothing_else(mail_server: MailServer) -> None:
    port = mail_server.server_address[1]
    with pinning.pinned("Mail.Example", ["127.0.0.1"]):
        socket.create_connection(("mail.example", port), 5).close()
        for other in ("localhost", "127.0.0.1", "mail.example.evil.example"):
            with pytest.raises(socket.gaierror):
                socket.create_connection((other, port), 5)
    socket.create_connection(("127.0.0.1", port), 5).close()


def test_text_of_every_state() -> None:
    taken = an_event(state=AlertState.ACKNOWLEDGED, acknowledged_by="ada\n", acknowledged_at=AT)
    assert "Acknowledged by ada." in message_of(notice_body(taken)).body
    over = message_of(notice_body(an_event(state=AlertState.RESOLVED, resolved_at=AT)))
    assert (over.title, over.subject) == ("Resolved: AAPL", "a-1")
    assert "Over since 2026-03-02 14:30 UTC." in over.body


def test_text_of_a_digest_takes_the_gravest() -> None:
    alerts = [an_event(), an_event(id="b", severity="critical"), an_event(id="c", state=AlertState.RESOLVED)]
    entries = tuple(
        DigestEntry.of(f"msg_{number}", msgspec.json.decode(notice_body(alert), type=Notice))
        for number, alert in enumerate(alerts)
    )
    body = msgspec.json.encode(Digest(timestamp=AT, data=DigestContent(notices=entries))).decode()
    message = message_of(body)
    assert (message.title, message.severity) == ("3 alerts, 2 of them firing", "critical")
    assert len(message.body.splitlines()) == 3
