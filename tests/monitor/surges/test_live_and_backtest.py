"""The live way of scored items, over partitions and the store, and the back-test give the same alerts of every sort."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, func, select, update

from monitor.records import Contribution, ContributionBatch, ScoredItem, SourceWatermark
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.checkpoint import ContributionRecord, PartitionCheckpoint
from monitor.storage.engine import reading, writing
from monitor.surges.backtest import Backtest, BacktestAlert
from monitor.surges.counting import CountingConfig
from monitor.surges.judge import JudgeConfig
from monitor.surges.keys import contributions, epoch_ms, partition_of
from monitor.surges.lines import read_scored
from monitor.surges.live import LiveJudge
from monitor.surges.sorts import SURGES
from tests.monitor.surges.builders import stream

PARTITIONS, BATCH = 4, 150


RULES = "".join(f"[[rules]]\nname = '{surge}'\nsurge = '{surge}'\n" for surge in SURGES)


def back_tested(items: list[ScoredItem], settings: Settings) -> list[BacktestAlert]:
    run = Backtest(CountingConfig.of(settings), *(JudgeConfig.of(settings).watching(surge) for surge in SURGES))
    for item in items:
        run.add(item)
    run.finish()
    return run.alerts


class Live:
    """The aggregator's parts, fed as a worker feeds them: one record for every partition and batch of items."""

    def __init__(self, store: Engine, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.judge = LiveJudge(store, settings, PARTITIONS)
        self.partitions = self.new_partitions()
        self.offsets = [0] * PARTITIONS

    def new_partitions(self) -> list[PartitionCheckpoint]:
        counting = CountingConfig.of(self.settings)
        return [PartitionCheckpoint(self.store, number, counting) for number in range(PARTITIONS)]

    def take(self, batch: list[ScoredItem], at: int, *, idle: bool = False) -> None:
        by_partition: dict[int, list[Contribution]] = defaultdict(list)
        for item in batch:
            for contribution in contributions(item):
                by_partition[partition_of(contribution.key, PARTITIONS)].append(contribution)
        for number, partition in enumerate(self.partitions):
            counted = ContributionBatch(
                contributions=tuple(by_partition[number]),
                sources=(SourceWatermark("news:0", at, idle, idle),),
                source_count=1,
            )
            partition.apply([ContributionRecord(self.offsets[number], counted)])
            self.offsets[number] += 1
            self.judge.advance()
        while self.judge.advance():
            pass

    def die(self) -> None:
        """Another process begins with what is stored."""
        with writing(self.store) as connection:
            connection.execute(update(t.judge).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))
        self.judge = LiveJudge(self.store, self.settings, PARTITIONS)
        self.partitions = self.new_partitions()


def test_a_replay_through_the_store_gives_the_alerts_of_the_back_test(
    store: Engine, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    made, _ = stream(3, 12, 4, surges=4, quiet_days=2)
    for item in made:
        # What is bad news for one half of the companies is good news for the other.
        if item["sentiment"] == "negative" and int(str(item["tickers"])[3:-2]) % 2:
            item |= {"sentiment": "positive", "p_negative": 0.1}
    items = list(read_scored((json.dumps(item).encode() for item in made), "made"))
    (tmp_path / "rules.toml").write_text(RULES)
    settings = make_settings(surge_budget=0.5, judge_snapshot_s=1e-9, rules_file=str(tmp_path / "rules.toml"))
    expected = back_tested(items, settings)
    assert {alert.key.partition(":")[0] for alert in expected} == {"ticker", "topic", "market"}
    assert {alert.surge for alert in expected} == set(SURGES)
    assert len({alert.id for alert in expected}) == len(expected)
    for alert in expected:
        sure = {"negative": [s.p_negative for s in alert.stories], "positive": [s.p_positive for s in alert.stories]}
        assert min(sure.get(alert.surge, [0.9])) == 0.9
    assert any(alert.resolved_at for alert in expected)

    live = Live(store, settings)
    for number, begin in enumerate(range(0, len(items), BATCH)):
        batch = items[begin : begin + BATCH]
        latest = epoch_ms(batch[-1].published_at)
        live.take(batch, latest)
        if number % 4 == 1:
            live.die()
            live.take(batch, latest)  # the worker sends again what it had not committed
    live.take([], epoch_ms(items[-1].published_at), idle=True)

    with reading(store) as connection:
        episodes = connection.execute(select(t.episodes).order_by(t.episodes.c.fired_at, t.episodes.c.id)).all()
        announced = connection.execute(
            select(t.outbox.c.event, func.count()).where(t.outbox.c.event.in_(["firing", "resolved"])).group_by("event")
        )
        events = {event: count for event, count in announced.all()}  # noqa: C416 - a Row is no pair to `dict`
    assert [(row.id, row.key, row.fired_at, row.resolved_at) for row in episodes] == sorted(
        ((alert.id, alert.key, alert.fired_at, alert.resolved_at) for alert in expected), key=lambda a: (a[2], a[0])
    )
    assert {row.id: row.severity for row in episodes} == {alert.id: alert.severity for alert in expected}
    evidence = {row.id: row.evidence for row in episodes}
    for alert in expected:
        told = evidence[alert.id]
        assert (told["surge"], told["observed"], told["total"]) == (alert.surge, alert.observed, alert.total)
        assert alert.surge != "positive" or {story["p_positive"] for story in told["stories"]} == {0.9}
    assert events == {"firing": len(expected), "resolved": sum(alert.resolved_at is not None for alert in expected)}
