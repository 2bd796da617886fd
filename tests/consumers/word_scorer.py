"""A deterministic classifier for tests of the worker: counts words, needs no weights, can be told to fail."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from models.engine import ScoringRequest
from monitor.records import ChartScore, Modality, Rejected, ScoredItem, SentimentScore, TopicScore, Trend

POISON = "POISON"
REFUSED = "REFUSED"
POISON_IMAGE = b"poison-image"
BAD_WORDS = frozenset(["loss", "fraud", "cuts", "probe"])


class WordScorer:
    """Negative for bad words; "earnings" or "macro" by the id's hash. A title with POISON raises, REFUSED is rejected.

    `broken` makes every call raise, `seconds` is how long an item takes.
    """

    def __init__(self, *, seconds: float = 0.0, version: str = "words-1") -> None:
        self.broken: Exception | None = None
        self.calls: list[int] = []
        self.seen: list[str] = []
        self.model_version = version
        self.token_budget = 4096
        self.promoted: str | None = None
        self.refused = REFUSED
        self._seconds = seconds

    def refresh(self) -> bool:
        """Take up `promoted`."""
        if self.promoted is None:
            return False
        self.model_version, self.promoted = self.promoted, None
        return True

    def wait_for_room(self, seconds: float) -> None:
        """Nothing waits here but for the calls themselves."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        """One answer a request."""
        self.calls.append(len(requests))
        time.sleep(self._seconds * len(requests))
        if self.broken is not None:
            raise self.broken
        return [self._one(request) for request in requests]

    def _one(self, request: ScoringRequest) -> ScoredItem | Rejected:
        item = request.item
        if POISON in item.title or any(POISON_IMAGE in chart.image for chart in request.charts):
            raise RuntimeError("index out of range in self")
        if self.refused in item.title:
            return Rejected(code="unscorable", reason="It is refused.")
        self.seen.append(item.id)
        bad = bool(set(item.text.lower().split()) & BAD_WORDS)
        digest = hashlib.sha256(b"".join(chart.image for chart in request.charts)).digest()[0] / 1000
        p = (0.7 - digest, 0.2, 0.1 + digest) if bad else (0.1 + digest, 0.6, 0.3 - digest)
        topic = "earnings" if hashlib.sha256(item.id.encode()).digest()[0] % 2 else "macro"
        chart = request.charts[0] if request.charts else None
        return ScoredItem(
            id=item.id,
            published_at=item.published_at,
            sentiment=SentimentScore.of(p),
            topic=TopicScore(label=topic, probabilities={topic: 1.0}),
            modality=Modality.TEXT if chart is None else Modality.BOTH if item.text else Modality.CHART,
            model_version=self.model_version,
            scored_at=datetime.now(UTC),
            title=item.title,
            body=item.body,
            source=item.source,
            url=item.url,
            lang=item.lang,
            tickers=item.tickers,
            kind=item.kind,
            chart_ids=item.chart_ids,
            chart=None
            if chart is None
            else ChartScore(chart_id=chart.chart_id, label=Trend.UP, down=0.1, flat=0.1, up=0.8, p_chart=0.9),
        )
