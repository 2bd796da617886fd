"""A pipeline without a broker, for tests: what goes in is made by hand, and what it sends is kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass

from sqlalchemy import Engine

from consumers.intake import Origin, Refusal
from consumers.pipeline import Pipeline
from consumers.progress import PartitionProgress
from consumers.publisher import Outgoing
from models.engine import ScoringRequest
from monitor.errors import BrokerError
from monitor.pairing import Group
from monitor.records import (
    Chart,
    Contribution,
    NewsItem,
    Rejected,
    ScoredItem,
)
from monitor.storage.items import Picture
from tests.consumers.running import T0, png
from tests.consumers.word_scorer import WordScorer


@dataclass
class Record:
    """As much of a polled record as matters."""

    topic: str
    partition: int
    offset: int
    value: bytes | None = b"original"
    key: bytes | None = b"key"
    timestamp: int = 17
    headers: tuple[tuple[str, bytes], ...] = (("h", b"\xff"),)


class Bench:
    """A pipeline whose output is kept, on one partition each of news and charts."""

    def __init__(self, store: Engine, scorer: WordScorer | None = None) -> None:
        self.scorer = scorer or WordScorer()
        self.store = store
        self.progress = PartitionProgress()
        self.sent: list[tuple[list[Outgoing], list[Contribution]]] = []
        self.owned = True
        self.away = False
        self.offset = 0
        self.pipeline = Pipeline(
            self.scorer, store, send=self._send, owns=lambda _: self.owned, going_on=lambda: True, patience_s=5
        )

    def _send(self, records: list[Outgoing], contributions: list[Contribution]) -> None:
        if self.away:
            raise BrokerError("No broker.")
        self.sent.append((records, contributions))

    def origin(self, chart: Chart | None = None) -> Origin:
        """The next record."""
        self.offset += 1
        self.progress.read(self.offset, self.offset)
        record = Record("t.charts" if chart else "t.news", 0, self.offset)
        picture = Picture("image/png", 32, 24) if chart else None
        return Origin(record, self.progress, chart.chart_id if chart else "", picture)

    def group(self, item: NewsItem | None, *charts: Chart) -> Group[Origin]:
        """A group of newly read records."""
        tokens = ([self.origin()] if item else []) + [self.origin(chart) for chart in charts]
        return Group(item, {chart.chart_id: chart for chart in charts}, tokens)

    def work(self, *groups: Group[Origin], refused: list[Refusal] | None = None) -> None:
        """Submit and finish, and look whether anybody has come in between."""
        self.pipeline.submit(list(groups))
        self.pipeline.finish(refused or [], wait=True)
        self.pipeline.correct()


def chart(chart_id: str, item_id: str = "", shade: int = 100) -> Chart:
    return Chart(chart_id=chart_id, image=png(shade), published_at=T0, item_id=item_id, tickers=("AAPL",))


class Gated(WordScorer):
    """Waits before it scores a title with WAIT."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        if any("WAIT" in request.item.title for request in requests):
            assert self.gate.wait(20)
        return super().score(requests)


def until_scored(bench: Bench, *numbers: int) -> None:
    """Wait for batches by their place among those in flight."""
    assert not wait([bench.pipeline._in_flight[number].scored for number in numbers], timeout=20).not_done
