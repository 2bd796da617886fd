"""What happens to a batch: scored, stored in one transaction, sent, and only then done.

Knows nothing of the consumer: groups come in, and their records are marked as done when everything that follows from
them is in the store and on the broker. Scoring runs on threads of its own, ahead of storing: one batch is prepared
while another is computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import stamina
from sqlalchemy import Connection, Engine

from consumers import worker_metrics as metrics
from consumers.intake import Origin, Refusal
from consumers.publisher import Outgoing, dead_letter_record, scored_record
from consumers.scoring import Scored, Scoring, score_groups
from monitor.errors import StorageError
from monitor.pairing import Group
from monitor.records import Contribution, ScoredItem
from monitor.storage.dead_letters import DeadLetter, LetterId, store_dead_letters
from monitor.storage.engine import reading, writing
from monitor.storage.items import RetractedKey, join_stored, lock_pairing, store_scored
from monitor.surges.keys import contributions, retraction
from monitor.telemetry import get_logger

__all__ = ["Pipeline"]

log = get_logger(__name__)

T = TypeVar("T")
Entry = tuple[Group[Origin], ScoredItem, Sequence[Contribution]]

MAX_IN_FLIGHT: Final = 3
SCORING_THREADS: Final = 2
# The other half of a pair turns up in the store once, while a batch is being scored; more often means it is chased.
MAX_JOINS: Final = 5


@dataclass(slots=True)
class _Batch:
    groups: list[Group[Origin]]
    scored: Future[Scored[Origin]]
    started: float


class Pipeline:
    """Scores, stores and sends.

    Parameters
    ----------
    send : hands over records and the contributions of the batch; returns when the broker has them.
    owns : False for a record whose partition was taken away; it is no longer this worker's business.
    going_on : asked while an outage is waited out; False gives up.
    patience_s : how long an outage of the store is waited for.
    """

    def __init__(
        self,
        scorer: Scoring,
        store: Engine,
        *,
        send: Callable[[list[Outgoing], list[Contribution]], None],
        owns: Callable[[Origin], bool],
        going_on: Callable[[], bool],
        patience_s: float,
    ) -> None:
        self._scorer = scorer
        self._store = store
        self._send = send
        self._owns = owns
        self._going_on = going_on
        self._patience_s = patience_s
        self._pool = ThreadPoolExecutor(SCORING_THREADS, thread_name_prefix="scorer")
        self._in_flight: deque[_Batch] = deque()
        self._refresh: Future[bool] | None = None

    @property
    def room(self) -> bool:
        """Another batch may be handed over."""
        return len(self._in_flight) < MAX_IN_FLIGHT

    @property
    def holds(self) -> bool:
        """A batch is being scored, or is scored and not stored yet."""
        return bool(self._in_flight)

    @property
    def busy(self) -> bool:
        """One batch is being computed and another one prepared: a third would only wait."""
        return sum(not batch.scored.done() for batch in self._in_flight) >= SCORING_THREADS

    def wait(self, seconds: float) -> None:
        """Until the oldest batch is scored; not at all when there is none."""
        if self._in_flight:
            wait([self._in_flight[0].scored], timeout=seconds)

    @property
    def image_bytes(self) -> int:
        """Bytes of the images that are being scored."""
        return sum(len(c.image) for batch in self._in_flight for g in batch.groups for c in g.charts.values())

    def close(self) -> None:
        """Wait for the scoring that has begun; drop what has not."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def refresh(self) -> None:
        """Look for a newly promoted model, between two batches. A bad one is reported and the old one kept."""
        if self._refresh is not None and self._refresh.done():
            error = self._refresh.exception()
            if error is not None:
                log.error("the newly promoted model cannot be used", error=str(error))
            elif self._refresh.result():
                log.info("model taken up", model=self._scorer.model_version)
            self._refresh = None
        if self._refresh is None:
            self._refresh = self._pool.submit(self._scorer.refresh)

    def submit(self, groups: Sequence[Group[Origin]]) -> None:
        """Complete groups from the store and start to score them. Raises `StorageError` after a long outage."""
        joined, _ = self._patiently(reading, lambda connection: join_stored(connection, groups))
        self._in_flight.append(_Batch(joined, self._start(joined), time.monotonic()))

    def drop_unbegun(self) -> None:
        """Drop the batches whose scoring has not begun; their records are not done and are read again."""
        self._in_flight = deque(batch for batch in self._in_flight if not batch.scored.cancel())

    def finish(self, refused: list[Refusal], *, wait: bool) -> None:
        """Store and send the batches that are scored (`wait`: all), and the refused records.

        Raises `StorageError` or `BrokerError` after a long outage and `ModelError` when nothing can be scored; nothing
        is marked as done then.
        """
        while self._in_flight and (wait or self._in_flight[0].scored.done()):
            batch = self._in_flight.popleft()
            outcome = batch.scored.result()
            metrics.SCORING_SECONDS.observe(time.monotonic() - batch.started)
            self._complete(outcome, refused)
            refused = []
        if refused:
            self._complete(Scored(), refused)

    def _start(self, groups: Sequence[Group[Origin]]) -> Future[Scored[Origin]]:
        return self._pool.submit(score_groups, self._scorer, groups)

    def _complete(self, outcome: Scored[Origin], refused: list[Refusal]) -> None:
        began = time.monotonic()
        answers, refusals = self._sort_out(outcome)
        refusals = [*refused, *refusals]
        entries: list[Entry] = []
        retracted: list[RetractedKey] = []
        for join in range(MAX_JOINS):
            entries = [
                (group, item, contributions(item))
                for group, item in answers.values()
                if any(self._owns(origin) for origin in group.tokens)
            ]
            refusals = [refusal for refusal in refusals if self._owns(refusal.origin)]
            merged, changed, retracted = self._write(entries, refusals, chase=join < MAX_JOINS - 1)
            if not changed:
                break
            # The other half of a pair was stored meanwhile: score the pair, then try again.
            answers = {group.key: (group, answers[group.key][1]) for group in merged if group.key not in changed}
            more, refused = self._sort_out(self._start([group for group in merged if group.key in changed]).result())
            answers |= more
            refusals += refused
        self._publish(entries, refusals, retracted)
        metrics.STORING_SECONDS.observe(time.monotonic() - began)

    def _sort_out(self, outcome: Scored[Origin]) -> tuple[dict[str, tuple[Group[Origin], ScoredItem]], list[Refusal]]:
        """Scored items by key, and the records that the classifier refused."""
        answers = {group.key: (group, item) for group, item in outcome.entries}
        refusals: list[Refusal] = []
        orphans: list[Group[Origin]] = []
        for group, chart_ids, rejected in outcome.refused:
            gone = [o for o in group.tokens if (o.chart_id in chart_ids if chart_ids else not o.chart_id)]
            refusals += [Refusal(origin, rejected) for origin in gone]
            group.tokens = [origin for origin in group.tokens if origin not in gone]
            if not chart_ids:
                # Its item is refused: a chart is worth scoring by itself.
                for chart_id, chart in group.charts.items():
                    mine = [origin for origin in group.tokens if origin.chart_id == chart_id]
                    orphans += [Group(None, {chart_id: chart}, mine)] if mine else []
        if orphans:
            more, refused = self._sort_out(self._start(orphans).result())
            answers |= more
            refusals += refused
        return answers, refusals

    def _write(
        self, entries: Sequence[Entry], refusals: Sequence[Refusal], *, chase: bool
    ) -> tuple[list[Group[Origin]], set[str], list[RetractedKey]]:
        """Store a batch, unless the store has the other half of a pair: then those groups are returned, completed.

        Also returns the keys that the stored items no longer count under.
        """
        groups = [group for group, _, _ in entries]
        pictures = {o.chart_id: o.picture for group in groups for o in group.tokens if o.picture is not None}
        letters = [_letter(refusal) for refusal in refusals]

        def write(connection: Connection) -> tuple[list[Group[Origin]], set[str], list[RetractedKey]]:
            lock_pairing(connection, exclusive=any(group.charts or group.missing for group in groups))
            merged, changed = join_stored(connection, groups) if chase else (groups, set())
            if changed:
                return merged, changed, []
            retracted = store_scored(connection, entries, pictures)
            store_dead_letters(connection, letters)
            return merged, changed, retracted

        return self._patiently(writing, write)

    def _publish(
        self, entries: Sequence[Entry], refusals: Sequence[Refusal], retracted: Sequence[RetractedKey]
    ) -> None:
        outgoing = [scored_record(item) for _, item, _ in entries]
        outgoing += [dead_letter_record(refusal.origin.record, refusal.rejected) for refusal in refusals]
        # Done before it is sent: what is sent tells how far this batch brings each partition. Nothing is committed
        # before `send` has returned, and if it raises the worker ends.
        for group, _, _ in entries:
            for origin in group.tokens:
                origin.done()
        for refusal in refusals:
            refusal.origin.done()
        # Taken back before anything is added: a record tells one key's story in order.
        taken_back = [retraction(one.key, one.item_id, one.published_at) for one in retracted]
        self._send(outgoing, taken_back + [one for _, _, found in entries for one in found])
        for _, item, _ in entries:
            metrics.SCORED.labels(item.modality.value).inc()
        for refusal in refusals:
            metrics.DEAD_LETTERS.labels(refusal.rejected.code).inc()
            log.warning("dead letter", id=str(_letter(refusal).id), reason=refusal.rejected.reason)

    def _patiently(
        self,
        transaction: Callable[[Engine], AbstractContextManager[Connection]],
        work: Callable[[Connection], T],
    ) -> T:
        """Run a transaction; an outage of the store is waited out."""
        waiting = stamina.retry_context(
            on=self._worth_waiting, attempts=None, timeout=self._patience_s, wait_initial=0.1, wait_max=3.0
        )
        for attempt in waiting:
            with attempt, transaction(self._store) as connection:
                result = work(connection)
        return result

    def _worth_waiting(self, error: Exception) -> bool:
        if isinstance(error, StorageError) and self._going_on():
            metrics.RETRIES.labels("store").inc()
            log.warning("the store does not answer, trying again", error=str(error))
            return True
        return False


def _letter(refusal: Refusal) -> DeadLetter:
    record = refusal.origin.record
    return DeadLetter(
        id=LetterId(record.topic, record.partition, record.offset),
        code=refusal.rejected.code,
        reason=refusal.rejected.reason,
        failed_at=datetime.now(UTC),
    )
