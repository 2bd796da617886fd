"""Dead letters: what was refused comes back as it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka.structs import TopicPartition
from sqlalchemy import Engine
from typer.testing import CliRunner

from consumers import dead_letters
from consumers.broker.process import running_broker
from consumers.clients import consumer
from consumers.dead_letters import read_original, replay
from consumers.intake import Origin, Refusal
from consumers.progress import PartitionProgress
from consumers.publisher import Publisher, dead_letter_record
from monitor.cli.context import root_flags
from monitor.cli.dead_letters import app
from monitor.errors import BrokerError, InputError
from monitor.records import Rejected
from monitor.settings import Settings
from monitor.storage.dead_letters import DeadLetter, LetterId, dead_letter_list, store_dead_letters
from monitor.storage.engine import reading, writing
from tests.consumers.running import committed, letters, news, records, sending, stored, until, working
from tests.consumers.word_scorer import REFUSED, WordScorer

pytestmark = pytest.mark.kafka

NASTY = b"\x1b[31m\x00{not json\xff"


def bury(settings: Settings, store: Engine, found: list) -> list[LetterId]:  # type: ignore[type-arg]
    """What the worker does with refused records, twice: as if they had been delivered again."""
    rejected = Rejected(code="bad_json", reason="It is not JSON.")
    refusals = [Refusal(Origin(record, PartitionProgress()), rejected) for record in found]
    ids = [LetterId(r.topic, r.partition, r.offset) for r in found]
    publisher = Publisher(settings, 30)
    for _ in range(2):
        publisher.send([dead_letter_record(refusal.origin.record, refusal.rejected) for refusal in refusals])
        with writing(store) as connection:
            store_dead_letters(
                connection,
                [DeadLetter(id=i, code="bad_json", reason="It is not JSON.", failed_at=datetime.now(UTC)) for i in ids],
            )
    publisher.close()
    return ids


def test_bytes_key_headers_and_partition_survive_the_round_trip(kafka_settings: Settings, store: Engine) -> None:
    with sending(kafka_settings) as sender:
        sender.raw("news", NASTY, b"\x00key", {"trace": b"\xff", "code": "mine"})
        sender.raw("charts", None, b"k")
        sender.raw("news", b"{", None)
    first = sorted(records(kafka_settings, "news") + records(kafka_settings, "charts"), key=lambda r: r.value or b"")
    ids = bury(kafka_settings, store, first)
    assert len(records(kafka_settings, "dead-letters")) == 6
    with reading(store) as connection:
        assert sorted(letter.id for letter in dead_letter_list(connection)) == sorted(ids)
    shown = read_original(kafka_settings, ids[1])
    assert shown is not None
    assert (shown.value, shown.key, dict(shown.headers)) == (NASTY, b"\x00key", {"trace": b"\xff", "code": b"mine"})
    sent, gone = replay(kafka_settings, store, None)
    assert (sent, gone) == (3, [])
    after = records(kafka_settings, "news") + records(kafka_settings, "charts")
    old = [(r.topic, r.partition, r.key, r.value, r.headers) for r in first]
    new = [
        (r.topic, r.partition, r.key, r.value, r.headers)
        for r in after
        if (r.topic, r.partition, r.offset) not in {(i.topic, i.partition, i.offset) for i in ids}
    ]
    assert sorted(old, key=str) == sorted(new, key=str)
    # Once is enough, unless one is named.
    assert replay(kafka_settings, store, None) == (0, [])
    assert replay(kafka_settings, store, ids[0])[0] == 1
    with pytest.raises(InputError):
        replay(kafka_settings, store, LetterId("nowhere", 0, 0))


def test_a_letter_is_looked_for_from_when_it_was_refused(
    kafka_settings: Settings, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "CLOCKS_DIFFER", timedelta())
    with sending(kafka_settings) as sender:
        sender.raw("news", b"{", b"early")
    (early,) = bury(kafka_settings, store, records(kafka_settings, "news"))
    time.sleep(0.01)
    between = datetime.now(UTC)
    with sending(kafka_settings) as sender:
        sender.raw("news", b"{", b"late")
    (late,) = bury(kafka_settings, store, [r for r in records(kafka_settings, "news") if r.key == b"late"])
    with closing(consumer(kafka_settings, None)) as client:
        assert {one.id for one in dead_letters._everything(kafka_settings, client, between)} == {late}
        assert {one.id for one in dead_letters._everything(kafka_settings, client)} == {early, late}
        assert not list(dead_letters._everything(kafka_settings, client, datetime.now(UTC) + timedelta(hours=1)))
    # A time that is wrong costs no more than reading all.
    for failed_at in (between, None):
        found = read_original(kafka_settings, early, failed_at)
        assert found is not None
        assert found.key == b"early"


def test_a_broker_that_dies_midway_is_not_waited_for_without_end(
    make_settings: Callable[..., Settings], store: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "PATIENCE_S", 1.0)
    with ExitStack() as running:
        address = running.enter_context(running_broker(tmp_path / "broker"))
        settings = make_settings(kafka_bootstrap_servers=address)
        with sending(settings) as sender:
            sender.raw("news", b"{", b"k")
        bury(settings, store, records(settings, "news"))
        with closing(consumer(settings, None, max_poll_records=1)) as client:
            letters_there = dead_letters._everything(settings, client)
            next(letters_there)
            # Read on from a place that has not been fetched.
            client.seek(TopicPartition(settings.topic("dead-letters"), 0), 0)
            running.close()
            with pytest.raises(BrokerError, match="No Kafka broker answers"):
                list(letters_there)


def test_letters_whose_bytes_are_gone_stay_and_are_named(kafka_settings: Settings, store: Engine) -> None:
    lost = LetterId(kafka_settings.topic("news"), 0, 77)
    with sending(kafka_settings) as sender:
        sender.raw("news", b"{", b"k")
    ids = bury(kafka_settings, store, records(kafka_settings, "news"))
    with writing(store) as connection:
        store_dead_letters(connection, [DeadLetter(id=lost, code="x", reason="y", failed_at=datetime.now(UTC))])
    assert replay(kafka_settings, store, None, code="x") == (0, [lost])
    assert replay(kafka_settings, store, None) == (1, [lost])
    with reading(store) as connection:
        assert [(x.id, x.replayed_at is None) for x in dead_letter_list(connection, waiting=True)] == [(lost, True)]
        assert ids[0] in {x.id for x in dead_letter_list(connection)}


def test_a_mended_worker_scores_what_is_replayed(kafka_settings: Settings, store: Engine) -> None:
    with sending(kafka_settings) as sender:
        sender.item(news(1, title=REFUSED))
        sender.item(news(2))
        sender.flush()
        with working(kafka_settings, WordScorer(), store):
            until(lambda: len(letters(store)) == 1 and "i2" in stored(store))
            until(lambda: sum(committed(kafka_settings).values()) == 2)
        mended = WordScorer()
        mended.refused = "nothing"
        assert replay(kafka_settings, store, None)[0] == 1
        with working(kafka_settings, mended, store):
            until(lambda: "i1" in stored(store))
    assert len(letters(store)) == 1


def test_the_commands(kafka_settings: Settings, store: Engine) -> None:
    with sending(kafka_settings) as sender:
        sender.raw("news", NASTY, b"k", {"h": b"\x1b[2J"})
    (letter,) = bury(kafka_settings, store, records(kafka_settings, "news"))
    root_flags.set(
        {
            "data_dir": kafka_settings.data_dir,
            "kafka_bootstrap_servers": kafka_settings.kafka_bootstrap_servers,
            "topic_prefix": kafka_settings.topic_prefix,
        }
    )
    run = CliRunner().invoke
    listed = run(app, ["list", "--json"])
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [str(letter)]
    assert str(letter) in run(app, ["list"]).stdout
    shown = run(app, ["show", str(letter)])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert "\\x1b[31m\\x00{not json\\xff" in shown.stdout
    assert run(app, ["show", str(letter), "--raw"]).stdout_bytes == NASTY
    assert isinstance(run(app, ["show", "nonsense"]).exception, InputError)
    assert run(app, ["replay"]).exit_code != 0
    assert "Sent 1 record again" in run(app, ["replay", str(letter)]).stdout
    assert len(records(kafka_settings, "news")) == 2
