"""What happens to a batch: scored, stored in one transaction, sent, and only then done.

Knows nothing of the consumer: groups come in, and their records are marked as done when everything that follows from
them is in the store and on the broker. Scoring runs on threads of its own, ahead of storing: a batch is prepared while
others are computed, and batches of long texts have threads apart from those of short ones. What is scored first
is stored first, but never before an earlier batch that has an item or a chart in common with it.

One thread may hand batches over while another one finishes them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar

import stamina
from sqlalchemy import Connection, Engine

from consumers import worker_metrics as metrics
from consumers.intake import Origin, Refusal, weight
from consumers.publisher import Outgoing, dead_letter_record, scored_record
from consumers.scoring import Scored, Scoring, score_groups
from monitor.errors import StorageError
from monitor.pairing import Group
from monitor.records import Contribution, ScoredItem
from monitor.storage.dead_letters import DeadLetter, LetterId, store_dead_letters
from monitor.storage.engine import reading, writing
from monitor.storage.items import RetractedKey, join_stored, lock_pairing, store_scored
from monitor.storage.overtaken import Told, find_overtaken, told_of
from monitor.surges.keys import contributions_of, retraction
from monitor.telemetry import get_logger

__all__ = ["Pipeline"]

log = get_logger(__name__)

T = TypeVar("T")
Entry = tuple[Group[Origin], ScoredItem, Sequence[Contribution]]

# Batches of one kind (short or long texts) that are scored side by side, each on a thread: while some are computed, one
# is prepared. The classifier puts small ones together.
SCORING_THREADS: Final = 3
# Items that may wait to be stored: the store or the broker is slow, and scoring ahead gains nothing.
MAX_UNSTORED: Final = 1024
# The other half of a pair turns up in the store once, while a batch is being scored; more often means it is chased.
MAX_JOINS: Final = 5


@dataclass(slots=True, eq=False)
class _Batch:
    """`ids` are those of its items and charts, whether they are in it or only named."""

    groups: list[Group[Origin]]
    ids: frozenset[str]
    weight: int
    long: bool
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
    on_scored : called, on any thread, when there is something to finish.
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
        on_scored: Callable[[], None] = lambda: None,
    ) -> None:
        self._scorer = scorer
        self._store = store
        self._send = send
        self._owns = owns
        self._going_on = going_on
        self._patience_s = patience_s
        self._on_scored = on_scored
        self._pools = {
            long: ThreadPoolExecutor(SCORING_THREADS, thread_name_prefix="long" if long else "scorer")
            for long in (False, True)
        }
        # Loading a model takes seconds: no batch waits for that.
        self._refresher = ThreadPoolExecutor(1, thread_name_prefix="refresh")
        self._turn = threading.Lock()
        self._in_flight: list[_Batch] = []
        self._refresh: Future[bool] | None = None
        # What was sent of each item and is still to be compared with the store.
        self._told: dict[str, Told] = {}

    def takes(self, *, long: bool = False) -> bool:
        """Another batch of short or of long texts may be handed over."""
        with self._turn:
            unstored = sum(len(batch.groups) for batch in self._in_flight if batch.scored.done())
        return unstored < MAX_UNSTORED and self._unscored(long) < SCORING_THREADS

    @property
    def scores(self) -> bool:
        """A batch is being scored."""
        return any(not batch.scored.done() for batch in self._snapshot())

    def scoring_for(self, now: float) -> float:
        """How long the oldest batch that is being scored has been, seconds; `now` on the monotonic clock."""
        return max((now - batch.started for batch in self._snapshot() if not batch.scored.done()), default=0.0)

    def wait(self, seconds: float, *, until_idle: bool = False) -> None:
        """Until a batch is scored (`until_idle`: all are), for so long at the most.

        Not at all when none is being scored.
        """
        waiting = [batch.scored for batch in self._snapshot() if not batch.scored.done()]
        if waiting:
            wait(waiting, timeout=seconds, return_when=ALL_COMPLETED if until_idle else FIRST_COMPLETED)

    @property
    def held_bytes(self) -> int:
        """Bytes of the texts and images that are being scored or stored."""
        return sum(batch.weight for batch in self._snapshot())

    def _snapshot(self) -> list[_Batch]:
        with self._turn:
            return list(self._in_flight)

    def _unscored(self, long: bool) -> int:
        return sum(batch.long == long and not batch.scored.done() for batch in self._snapshot())

    def close(self) -> None:
        """Wait for the scoring that has begun; drop what has not."""
        for pool in (*self._pools.values(), self._refresher):
            pool.shutdown(wait=True, cancel_futures=True)

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
            self._refresh = self._refresher.submit(self._scorer.refresh)

    def submit(self, groups: Sequence[Group[Origin]], *, long: bool = False) -> None:
        """Complete groups from the store and start to score them; `long` ones do not hold up the others.

        Raises `StorageError` after a long outage.
        """
        joined, _ = self._patiently(reading, lambda connection: join_stored(connection, groups))
        weighs, started = sum(map(weight, joined)), time.monotonic()
        scored = self._start(joined, long=long)
        with self._turn:
            self._in_flight.append(_Batch(joined, _ids(joined), weighs, long, scored, started))

        def done(scored: Future[Scored[Origin]]) -> None:
            if not scored.cancelled() and scored.exception() is None:
                # Here and not where it is stored: it may wait for the store.
                metrics.SCORING_SECONDS.observe(time.monotonic() - started)
            self._on_scored()

        scored.add_done_callback(done)

    def drop_unbegun(self) -> None:
        """Drop the batches whose scoring has not begun; their records are not done and are read again."""
        with self._turn:
            self._in_flight = [batch for batch in self._in_flight if not batch.scored.cancel()]

    def finish(self, refused: list[Refusal], *, wait: bool) -> None:
        """Store and send the batches that are scored now, and the refused records; `wait`: all batches.

        Without `wait` it comes back after one transaction, and says by `on_scored` when there is more.
        Raises `StorageError` or `BrokerError` after a long outage and `ModelError` when nothing can be scored; nothing
        is marked as done then.
        """
        while ready := self._ready(wait):
            try:
                outcome: Scored[Origin] = Scored()
                for batch in ready:
                    scored = batch.scored.result()
                    outcome.entries += scored.entries
                    outcome.refused += scored.refused
                self._complete(outcome, refused)
            finally:
                with self._turn:
                    self._in_flight = [batch for batch in self._in_flight if batch not in ready]
            refused = []
            if not wait:
                break
        if refused:
            self._complete(Scored(), refused)
        if not wait and self._ready(False):
            self._on_scored()

    def _ready(self, waiting: bool) -> list[_Batch]:
        """Batches to be stored together: those that are scored and have nothing in common with an earlier one.

        `waiting`: at least one, when there is any at all.
        """
        while True:
            found: list[_Batch] = []
            before: set[str] = set()
            batches = self._snapshot()
            for batch in batches:
                if batch.scored.done() and not batch.scored.cancelled() and before.isdisjoint(batch.ids):
                    found.append(batch)
                before |= batch.ids
            if found or not waiting or not batches:
                return found
            self.wait(1.0)

    def _start(self, groups: Sequence[Group[Origin]], *, long: bool = False) -> Future[Scored[Origin]]:
        return self._pools[long].submit(score_groups, self._scorer, groups)

    def _complete(self, outcome: Scored[Origin], refused: list[Refusal]) -> None:
        began = time.monotonic()
        answers, refusals = self._sort_out(outcome)
        refusals = [*refused, *refusals]
        entries: list[Entry] = []
        retracted: list[RetractedKey] = []
        for join in itertools.count():
            owned = [one for one in answers.values() if any(self._owns(origin) for origin in one[0].tokens)]
            entries = _with_contributions(owned)
            refusals = [refusal for refusal in refusals if self._owns(refusal.origin)]
            # An item that is the store's own is never written without a look whether there is a later version by now.
            chase = join < MAX_JOINS - 1 or any(group.borrowed for group, _, _ in entries)
            merged, changed, retracted = self._write(entries, refusals, chase=chase)
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
        self._told |= {item.id: told_of(found) for _, item, found in entries}
        for _, item, _ in entries:
            metrics.SCORED.labels(item.modality.value).inc()
        for refusal in refusals:
            metrics.DEAD_LETTERS.labels(refusal.rejected.code).inc()
            log.warning("dead letter", id=str(_letter(refusal).id), reason=refusal.rejected.reason)

    def correct(self) -> None:
        """Where another worker has stored an item anew before this one's word of it was sent, tell what the store has:
        the other's word may have come first, and would not count.

        This is of all that was sent since the last call, which may be committed only when it has returned. To be called
        on the thread of `finish`. Raises `StorageError` or `BrokerError` after a long outage.
        """
        told = self._told
        for _ in range(MAX_JOINS if told else 0):
            found = self._patiently(reading, partial(find_overtaken, told=told))
            if not found.told:
                break
            taken_back = [retraction(one.key, one.item_id, one.published_at) for one in found.retracted]
            self._send(
                [scored_record(item) for item in found.items], taken_back + contributions_of(found.items, texts=False)
            )
            told |= found.told
        self._told = {}

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


def _ids(groups: Sequence[Group[Origin]]) -> frozenset[str]:
    """Items and charts that a batch is about: what it stores of them must not be undone by an earlier batch."""
    found = {chart_id for group in groups for chart_id in group.charts}
    found |= {chart.item_id for group in groups for chart in group.charts.values() if chart.item_id}
    for group in groups:
        if group.item is not None:
            found.add(group.item.id)
            found.update(group.item.chart_ids)
    return frozenset(found)


def _with_contributions(scored: Sequence[tuple[Group[Origin], ScoredItem]]) -> list[Entry]:
    """What each item adds to its window keys; the stories of all are signed at once."""
    found: dict[str, list[Contribution]] = {item.id: [] for _, item in scored}
    for one in contributions_of([item for _, item in scored], texts=False):
        found[one.item_id].append(one)
    return [(group, item, found[item.id]) for group, item in scored]


def _letter(refusal: Refusal) -> DeadLetter:
    record = refusal.origin.record
    return DeadLetter(
        id=LetterId(record.topic, record.partition, record.offset),
        code=refusal.rejected.code,
        reason=refusal.rejected.reason,
        failed_at=datetime.now(UTC),
    )
