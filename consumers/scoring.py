"""Scores groups and isolates what the classifier cannot digest, so that one bad row never holds up the others.

Knows the classifier by its interface only and no Kafka at all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from models.charts.images import decode_image
from models.engine import ScoringRequest
from monitor.errors import ModelError, MonitorError
from monitor.pairing import Group
from monitor.records import NewsItem, Rejected, ScoredItem
from monitor.telemetry import get_logger

__all__ = ["Scored", "Scoring", "score_groups"]

log = get_logger(__name__)

T = TypeVar("T")

_PROBE = NewsItem(id="probe", published_at=datetime(2020, 1, 1, tzinfo=UTC), title="Shares were little changed.")


class Scoring(Protocol):
    """What the worker needs of a classifier."""

    @property
    def model_version(self) -> str:
        """Version of the model in force."""

    @property
    def token_budget(self) -> int:
        """Tokens that it computes together at the most: a batch has twice as many."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        """One answer a request, in order; raises when it fails as a whole."""

    def wait_for_room(self, seconds: float) -> None:
        """While something waits that goes before a short text that comes now, for so many seconds at the most."""

    def refresh(self) -> bool:
        """Take up a newly promoted version; True if there was one."""


@dataclass(slots=True)
class Scored(Generic[T]):
    """Outcome of a batch.

    `entries` are the groups that were scored, `refused` why a group could not be: either all of it (its item), or
    the named charts of a group that is in `entries` without them.
    """

    entries: list[tuple[Group[T], ScoredItem]] = field(default_factory=list)
    refused: list[tuple[Group[T], frozenset[str], Rejected]] = field(default_factory=list)


def _short_of_memory() -> ModelError:
    return ModelError(
        "There is not enough memory to score even one item.",
        "Nothing was lost: it is read again after a restart. Give the process more memory, or lower "
        "worker_batch_items, worker_image_bytes and score_cache_rows.",
    )


def _request(group: Group[T]) -> ScoringRequest:
    item, charts = group.to_score()
    return ScoringRequest(item=item, charts=charts)


class _Isolation:
    """Calls the classifier; halves a failing batch until the failing rows are alone."""

    def __init__(self, scorer: Scoring) -> None:
        self._scorer = scorer
        self.succeeded = False
        self.error: Exception | None = None

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        if not requests:
            return []
        try:
            answers = self._scorer.score(requests)
        except MonitorError:
            raise
        except Exception as error:
            if len(requests) > 1:
                middle = len(requests) // 2
                return [*self.score(requests[:middle]), *self.score(requests[middle:])]
            if isinstance(error, MemoryError):
                # Even by itself: but a row is not to blame for what the machine lacks.
                raise _short_of_memory() from error
            self.error = error
            reason = f"The classifier fails on it: {type(error).__name__}: {str(error)[:200]}"
            return [Rejected(code="scoring_failed", reason=reason)]
        if len(answers) != len(requests):
            raise ModelError(f"The classifier gave {len(answers)} answers to {len(requests)} items.")
        self.succeeded = True
        return answers

    def check(self) -> None:
        """Raises `ModelError` when nothing at all can be scored: then it is not the rows that are at fault."""
        if self.error is None or self.succeeded:
            return
        try:
            answers = self._scorer.score([ScoringRequest(item=_PROBE, charts=())])
        except MonitorError:
            raise
        except Exception as error:
            raise ModelError(
                f"The classifier fails on every item: {type(error).__name__}: {str(error)[:200]}.",
                "Nothing was lost: unscored items are read again after a restart.",
            ) from error
        if isinstance(answers[0], Rejected):
            raise ModelError(f"The classifier refuses every item: {answers[0].reason}")


def score_groups(scorer: Scoring, groups: Sequence[Group[T]]) -> Scored[T]:
    """Score groups. A row that fails is tried again without its charts, so that an item is not lost for a chart's sake.

    Raises `ModelError` (or what the classifier raises of `MonitorError`) when the classifier as a whole is broken.
    """
    isolation = _Isolation(scorer)
    out: Scored[T] = Scored()
    failed: list[tuple[Group[T], Rejected]] = []
    for group, answer in zip(groups, isolation.score([_request(group) for group in groups]), strict=True):
        if isinstance(answer, Rejected):
            failed.append((group, answer))
        else:
            _without_damaged_charts(group, answer, out)
            out.entries.append((group, answer))
    isolation.check()
    for group, rejected in failed:
        log.warning("the classifier refuses a record", item=group.key, code=rejected.code, reason=rejected.reason)
        _without_bad_charts(isolation, group, rejected, out)
    return out


def _without_damaged_charts(group: Group[T], answer: ScoredItem, out: Scored[T]) -> None:
    """Refuse the charts of an item that cannot be decoded. The one that the classifier has taken can be."""
    taken = answer.chart.chart_id if answer.chart is not None else ""
    for chart_id in [chart_id for chart_id in group.charts if chart_id != taken]:
        # Its size was looked at when it came in.
        try:
            verdict = decode_image(group.charts[chart_id].image, max_pixels=sys.maxsize)
        except MemoryError as error:
            raise _short_of_memory() from error
        if isinstance(verdict, Rejected):
            _refuse_chart(group, chart_id, verdict, out)


def _refuse_chart(group: Group[T], chart_id: str, verdict: Rejected, out: Scored[T]) -> None:
    out.refused.append((group, frozenset({chart_id}), verdict))
    group.refused.add(chart_id)
    del group.charts[chart_id]


def _without_bad_charts(isolation: _Isolation, group: Group[T], rejected: Rejected, out: Scored[T]) -> None:
    if group.item is None or not group.charts:
        out.refused.append((group, frozenset(group.charts), rejected))
        return
    alone = isolation.score([ScoringRequest(item=group.item, charts=())])[0]
    if isinstance(alone, Rejected):
        # It is the text: its charts are scored by themselves.
        out.refused.append((group, frozenset(), alone))
        return
    item = group.item
    verdicts = isolation.score([ScoringRequest(item=item, charts=(chart,)) for chart in group.charts.values()])
    bad = {cid: v for cid, v in zip(group.charts, verdicts, strict=True) if isinstance(v, Rejected)}
    for chart_id, verdict in bad.items():
        _refuse_chart(group, chart_id, verdict, out)
    again = isolation.score([_request(group)])[0] if group.charts and bad else alone
    out.entries.append((group, alone if isinstance(again, Rejected) else again))
