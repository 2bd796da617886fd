"""The scoring worker with real models: the one that ships, and small ones that are promoted while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consumers.worker import Worker
from models.engine import ScoringRequest, open_scorer
from models.registry import promote, rollback
from monitor.records import Rejected, ScoredItem
from monitor.settings import Settings
from monitor.taxonomy import bundled_taxonomy
from tests.consumers.running import T0, Running, committed, letters, news, png, sending, stored, until
from tests.models.tiny import tiny_backbone, tiny_model

pytestmark = pytest.mark.kafka


@pytest.mark.slow
def test_real_scores_end_in_the_store(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"device": "cpu", "cpu_precision": "fp32"})
    with sending(settings) as sender:
        sender.item(news(1, title="Apple shares plunge after profit warning and fraud probe", tickers=("AAPL",)))
        sender.item(news(2, title="Microsoft profit rises sharply and beats expectations", tickers=("MSFT",)))
        sender.item(news(3, title="The company will hold its annual meeting on Tuesday", chart_ids=("c3",), tickers=()))
        sender.chart("c3", png(200, (224, 160)), "i3")
        sender.chart("alone", png(90, (224, 160)), at=T0)
        sender.raw("news", b"{", b"k")
        sender.flush()
        scorer = open_scorer(settings, store)
        sees = scorer.model.network.vision is not None
        running = Running(settings, scorer, store)
        try:
            # Without eyes a chart with a text is left out, and one alone cannot be scored.
            until(lambda: len(stored(store)) == (4 if sees else 3) and len(letters(store)) == (1 if sees else 2), 90)
            until(lambda: sum(committed(settings).values()) == 6)
        finally:
            running.end()
    assert running.error is None
    assert isinstance(running.worker, Worker)
    rows = stored(store)
    assert (rows["i1"].sentiment, rows["i2"].sentiment) == ("negative", "positive")
    assert rows["i3"].modality == ("both" if sees else "text")
    assert not sees or rows["chart:alone"].modality == "chart"
    assert {row.topic for row in rows.values()} <= {topic.name for topic in bundled_taxonomy().topics}
    for row in rows.values():
        assert row.p_negative + row.p_neutral + row.p_positive == pytest.approx(1, abs=1e-3)
        assert row.model_version


def test_a_running_worker_follows_the_registry(kafka_settings: Settings, store: Engine, tmp_path: Path) -> None:
    """Promotions and a rollback, as `models promote` makes them, reach a worker that is not restarted."""
    settings = kafka_settings.model_copy(update={"device": "cpu", "cpu_precision": "fp32", "worker_model_poll_s": 0.1})
    backbone = tiny_backbone(tmp_path / "backbone")
    folders = [tmp_path / "first", tmp_path / "second"]
    files = [tiny_model(folder, backbone, name=folder.name, seed=seed) for seed, folder in enumerate(folders)]
    first, second = (file.version for file in files)
    promote(settings, store, str(folders[0]), actor="test", reason="first")
    scorer = open_scorer(settings, store)
    with sending(settings) as sender:
        running = Running(settings, scorer, store)
        try:

            def scored_under(version: str, number: int) -> None:
                until(lambda: scorer.model_version == version)
                sender.item(news(number, title="The same words under every model", tickers=()))
                sender.flush()
                # Committed: while the group settles down, an item may be read and scored twice.
                until(lambda: sum(committed(settings).values()) == number)

            scored_under(first, 1)
            promote(settings, store, str(folders[1]), actor="test", reason="better")
            scored_under(second, 2)
            rollback(settings, store, actor="test")
            scored_under(first, 3)
        finally:
            running.end()
    assert running.error is None
    rows = stored(store)
    assert [rows[f"i{n}"].model_version for n in (1, 2, 3)] == [first, second, first]
    # The version is not only a name: other weights answer, and after the rollback the old ones again.
    assert abs(rows["i1"].p_negative - rows["i2"].p_negative) > 1e-4
    assert rows["i3"].p_negative == pytest.approx(rows["i1"].p_negative, abs=1e-6)


def test_a_model_is_exchanged_in_the_midst_of_a_backlog(
    kafka_settings: Settings, store: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = kafka_settings.model_copy(
        update={"device": "cpu", "cpu_precision": "fp32", "worker_model_poll_s": 0.1, "worker_batch_items": 16}
    )
    backbone = tiny_backbone(tmp_path / "backbone")
    folders = [tmp_path / "first", tmp_path / "second"]
    files = [tiny_model(folder, backbone, name=folder.name, seed=seed) for seed, folder in enumerate(folders)]
    first, second = (file.version for file in files)
    promote(settings, store, str(folders[0]), actor="test", reason="first")
    scorer = open_scorer(settings, store)
    score, together = scorer.score, []

    def noted(requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        time.sleep(0.05)
        answers = score(requests)
        together.append({answer.model_version for answer in answers if isinstance(answer, ScoredItem)})
        return answers

    monkeypatch.setattr(scorer, "score", noted)
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for number in range(sent, sent + count):
            sender.item(news(number, title=f"Headline {number} of a backlog"))
        sent += count
        sender.flush()

    with sending(settings) as sender:
        send(300)
        running = Running(settings, scorer, store)
        try:
            until(lambda: len(stored(store)) > 30)
            promote(settings, store, str(folders[1]), actor="test", reason="better")
            # Until it is taken up there is always more to do.
            while scorer.model_version == first and sent < 3000:
                send(20)
                time.sleep(0.1)
            send(300)
            until(lambda: sum(committed(settings).values()) == sent, 90)
        finally:
            running.end()
    assert running.error is None
    rows = stored(store)
    assert set(rows) == {f"i{number}" for number in range(sent)}
    versions = [row.model_version for row in rows.values()]
    assert (versions.count(first) > 30, versions.count(second) > 30) == (True, True)
    assert {version for call in together for version in call} == {first, second}
    assert max(map(len, together)) == 1
