"""The dispatcher: takes events from the outbox, makes notices of them and attempts these until they have arrived.

Each step is one transaction, and a notice is attempted only by the holder of its lease, so a dispatcher may be killed
anywhere: another takes over when the lease runs out and sends the same id again. Receivers do not wait for one another:
attempts run side by side, a bounded number per receiver.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

import msgspec
from sqlalchemy import Connection, Engine

from monitor.alerts.config import NotificationConfig
from monitor.alerts.lifecycle import NOT_CONFIGURED, NOTIFIER, announce_again, release_held, route_outbox
from monitor.alerts.receivers import ReceiverKind
from monitor.alerts.records import MAX_PAYLOAD_BYTES, Digest, DigestContent, DigestEntry, Notice
from monitor.alerts.rulebook import take_up
from monitor.alerts.schedule import ATTEMPTS, TokenBucket, next_attempt
from monitor.alerts.senders import Outcome, Sender
from monitor.errors import StorageError
from monitor.storage import deliveries
from monitor.storage.alerts import add_event, any_firing, firing_ids
from monitor.storage.audit import note_change
from monitor.storage.deliveries import DIGEST, TEST, Delivery
from monitor.storage.engine import reading, writing
from monitor.storage.outbox import waits_for_routing
from monitor.storage.receivers import disable, leave_alone, list_receivers, sync
from monitor.telemetry import get_logger

__all__ = ["Dispatcher", "holder_name"]

log = get_logger(__name__)
T = TypeVar("T")

IN_FLIGHT_PER_RECEIVER: Final = 4
LOOK_AHEAD: Final = 200
# Silences and mute times end on a scale of minutes.
REVIEW_S: Final = 2.0
# A rule that names receivers of its own may take an alert long after it fired, with nothing held back until then;
# repeats and escalations fall due on the same scale.
RECONSIDER_S: Final = 15.0
STORE_PAUSE_S: Final = 1.0
# Alerts that are looked at again in one transaction.
REVIEWED_TOGETHER: Final = 200


def holder_name() -> str:
    """A name for this process in leases; no two processes have the same."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Dispatcher:
    """Delivers what is in the outbox of one store.

    Parameters
    ----------
    senders : one per receiver of `config`, by name.
    clock : the time by which schedules, leases and silences run.
    lease_s : seconds after which another dispatcher takes over a notice that this one was sending.
    interval_s : seconds between two looks at the store.
    """

    def __init__(
        self,
        engine: Engine,
        config: NotificationConfig,
        senders: Mapping[str, Sender],
        *,
        clock: Callable[[], datetime] = _utc_now,
        lease_s: float = 15.0,
        interval_s: float = 0.5,
    ) -> None:
        self._engine = engine
        self._config = config
        self._senders = senders
        self._clock = clock
        self._lease = timedelta(seconds=lease_s)
        self._interval_s = interval_s
        self._holder = holder_name()
        self._buckets = {name: TokenBucket(r.rate_per_minute, clock()) for name, r in config.receivers.items()}
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._in_flight: Counter[str] = Counter()
        # Receivers to which no connection came about since a notice last arrived. Before a first notice has arrived
        # that may be true of any: the process that ran before may have seen it.
        self._cut_off = set(config.receivers)
        self._renewed = self._reviewed = self._reconsidered = datetime.min.replace(tzinfo=UTC)
        self._wake = asyncio.Event()
        # One thread: the store's transactions come one after the other, and never on the event loop.
        self._store = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def _transaction(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            with writing(self._engine) as conn:
                return work(conn)

        return await asyncio.get_running_loop().run_in_executor(self._store, run)

    async def _look(self, now: datetime) -> tuple[bool, bool, bool, bool]:
        """Whether there is an event to route, an alert that fires, a notice held back, a notice due."""

        def run() -> tuple[bool, bool, bool, bool]:
            with reading(self._engine) as conn:
                held, due = deliveries.any_held(conn), deliveries.any_due(conn, now)
                return waits_for_routing(conn), any_firing(conn), held, due

        return await asyncio.get_running_loop().run_in_executor(self._store, run)

    async def start(self) -> None:
        """Tell the store which receivers and rules there are. Raises `StorageError`."""
        receivers = {name: receiver.definition for name, receiver in self._config.receivers.items()}

        def tell(conn: Connection) -> None:
            sync(conn, receivers, self._clock())
            # At every start, not only when one vanishes: another notifier that still knew it may have added some since.
            deliveries.give_up_unknown(conn, receivers, NOT_CONFIGURED)
            take_up(conn, self._config.rules, self._clock())

        await self._transaction(tell)

    async def run(
        self, stop: asyncio.Event, *, grace_s: float = 20.0, on_turn: Callable[[], None] = lambda: None
    ) -> None:
        """Deliver until `stop` is set; attempts under way then have `grace_s` seconds to end.

        A store that is locked or away is waited for. `on_turn` is called with every turn of the loop.
        """
        started = False
        while not stop.is_set():
            on_turn()
            pause = self._interval_s
            try:
                if not started:
                    await self.start()
                    started = True
                await self.step()
            except StorageError as error:
                log.error("the store cannot be used, trying again", error=str(error))
                pause = STORE_PAUSE_S
            await self._pause(stop, pause)
        await self.close(grace_s)

    async def _pause(self, stop: asyncio.Event, seconds: float) -> None:
        self._wake.clear()
        waits = [asyncio.create_task(event.wait()) for event in (stop, self._wake)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def step(self) -> int:
        """One look at the store: route what is new, start what is due; returns how many attempts were started.

        Raises `StorageError` when the store cannot be used; nothing is lost then.
        """
        now = self._clock()
        # Most looks find nothing: reading first leaves the store's write lock to those who have something to write.
        unrouted, firing, held, due = await self._look(now)
        if unrouted:
            await self._transaction(lambda conn: route_outbox(conn, self._config, now))
        if now - self._reviewed >= timedelta(seconds=REVIEW_S):
            if firing:
                await self._review(now, held=held)
            due = True
            self._reviewed = now
        await self._keep_leases()
        if not unrouted and not due:
            return 0
        claimed = await self._transaction(lambda conn: self._claim(conn, now))
        for delivery in claimed:
            self._in_flight[delivery.receiver] += 1
            self._attempts[delivery.id] = asyncio.create_task(self._attempt(delivery))
        return len(claimed)

    async def _review(self, now: datetime, *, held: bool) -> None:
        """Look again at what fires, however many that are, a part in each transaction: others have to write as well."""
        everything = now - self._reconsidered >= timedelta(seconds=RECONSIDER_S)
        insistent = any(route.repeat or route.escalate_after for route in self._config.routes)
        if held or everything:
            for ids in await self._firing(held=not everything):
                release = partial(release_held, config=self._config, now=now, ids=ids, recount=everything)
                await self._transaction(release)
                await self._keep_leases()
        if insistent and everything:
            for ids in await self._firing(held=False):
                await self._transaction(partial(announce_again, config=self._config, now=now, ids=ids))
                await self._keep_leases()
        if everything:
            self._reconsidered = now

    async def _keep_leases(self) -> None:
        """Attempts under way stay this dispatcher's, however long they and other work take."""
        now = self._clock()
        if self._attempts and now - self._renewed >= self._lease / 3:
            ids = list(self._attempts)
            await self._transaction(lambda conn: deliveries.renew(conn, ids, self._holder, now + self._lease))
            self._renewed = now

    async def _firing(self, *, held: bool) -> list[list[str]]:
        def run() -> list[str]:
            with reading(self._engine) as conn:
                return firing_ids(conn, held=held)

        found = await asyncio.get_running_loop().run_in_executor(self._store, run)
        return [found[first : first + REVIEWED_TOGETHER] for first in range(0, len(found), REVIEWED_TOGETHER)]

    def _claim(self, conn: Connection, now: datetime) -> list[Delivery]:
        known = list_receivers(conn)
        off = {status.name for status in known if not status.enabled}
        quiet = {status.name for status in known if status.quiet(now)}
        claimed: list[Delivery] = []
        for name, receiver in self._config.receivers.items():
            room = IN_FLIGHT_PER_RECEIVER - self._in_flight[name]
            allowed = self._buckets[name].available(now)
            if room <= 0 or allowed <= 0 or name in quiet:
                continue
            rows = [row for row in deliveries.due(conn, name, now, LOOK_AHEAD) if row.id not in self._attempts]
            if name in off:
                # A test may show that it is worth switching on again.
                rows = [row for row in rows if row.event == TEST]
            # A pager opens and closes one incident per alert: there what exceeds the rate waits.
            if receiver.kind is not ReceiverKind.PAGERDUTY:
                rows = _fewer(conn, rows, allowed, now)
            rows = rows[: min(room, allowed)]
            if rows:
                deliveries.lease(conn, [row.id for row in rows], self._holder, now + self._lease)
                self._buckets[name].take(len(rows))
                claimed += rows
        return claimed

    async def _attempt(self, delivery: Delivery) -> None:
        try:
            try:
                outcome = await self._senders[delivery.receiver].send(delivery.id, delivery.payload)
            except Exception as error:  # noqa: BLE001 - one receiver's trouble must not become a retry without pause
                # The kind alone: the words of an unexpected error may quote an address.
                outcome = Outcome(delivered=False, error=f"Unexpected {type(error).__name__} while sending.")
            await self._record(delivery, outcome)
        finally:
            del self._attempts[delivery.id]
            self._in_flight[delivery.receiver] -= 1
            self._wake.set()

    async def _record(self, delivery: Delivery, outcome: Outcome) -> None:
        """Write down what came of it, however long the store takes: the receiver has it, the store must know."""
        back = outcome.delivered and delivery.receiver in self._cut_off
        if outcome.delivered:
            self._cut_off.discard(delivery.receiver)
        elif outcome.unreached:
            self._cut_off.add(delivery.receiver)
        while True:
            try:
                await self._transaction(lambda conn: self._write(conn, delivery, outcome, back=back))
            except StorageError as error:
                log.error("the outcome cannot be stored yet", webhook_id=delivery.id, error=str(error))
                await asyncio.sleep(STORE_PAUSE_S)
            else:
                return

    def _write(self, conn: Connection, delivery: Delivery, outcome: Outcome, *, back: bool) -> None:
        now = self._clock()
        line = log.bind(webhook_id=delivery.id, receiver=delivery.receiver, event=delivery.event)
        if outcome.delivered:
            if deliveries.finish(conn, delivery.id, outcome.status, now):
                self._audit(conn, delivery, now, "delivered", status=outcome.status, attempts=delivery.attempts + 1)
            if back:
                deliveries.hurry(conn, delivery.receiver, now)
            line.info("delivered", status=outcome.status, attempts=delivery.attempts + 1)
            return
        again = next_attempt(delivery.attempts + 1, now, retry_after_s=outcome.retry_after_s)
        if again is None or outcome.gone or delivery.event == TEST:
            if deliveries.give_up(conn, delivery.id, outcome.status, outcome.error):
                self._audit(conn, delivery, now, "undelivered", error=outcome.error, attempts=delivery.attempts + 1)
            line.error("given up", error=outcome.error, attempts=delivery.attempts + 1)
        else:
            deliveries.retry(conn, delivery.id, outcome.status, outcome.error, again)
            line.warning("not delivered", error=outcome.error, again_at=again.isoformat(), of=ATTEMPTS)
        if outcome.gone:
            disable(conn, delivery.receiver, "It answered 410 (gone).", now)
            lost = deliveries.give_up_all(
                conn, delivery.receiver, "The receiver is switched off: it answered 410 (gone)."
            )
            line.error("receiver switched off", undelivered=lost + 1)
        elif outcome.retry_after_s:
            until = now + timedelta(seconds=outcome.retry_after_s)
            deliveries.postpone(conn, delivery.receiver, until)
            leave_alone(conn, delivery.receiver, until)

    def _audit(self, conn: Connection, delivery: Delivery, at: datetime, event: str, **detail: object) -> None:
        if delivery.event == TEST:
            note_change(conn, at, NOTIFIER, f"receiver:{delivery.receiver}", f"test {event}", dict(detail))
            return
        rows = deliveries.members(conn, delivery.id) if delivery.event == DIGEST else [delivery]
        for row in rows:
            told = {"receiver": row.receiver, "event": row.event, "webhook_id": delivery.id} | detail
            add_event(conn, row.episode_id, at, event, NOTIFIER, told)

    async def drain(self) -> None:
        """Wait until no attempt is under way."""
        while self._attempts:
            await asyncio.wait(list(self._attempts.values()))

    async def close(self, grace_s: float = 20.0) -> None:
        """Let attempts under way end for `grace_s` seconds, give leases back, close all connections."""
        if self._attempts:
            await asyncio.wait(list(self._attempts.values()), timeout=grace_s)
        for task in list(self._attempts.values()):
            task.cancel()
        await asyncio.gather(*self._attempts.values(), return_exceptions=True)
        try:
            await self._transaction(lambda conn: deliveries.release(conn, self._holder))
        except StorageError as error:
            log.warning("leases are left to run out", error=str(error))
        for sender in self._senders.values():
            await sender.aclose()
        self._store.shutdown()


def _fewer(conn: Connection, rows: Sequence[Delivery], allowed: int, now: datetime) -> list[Delivery]:
    """The rows with digests in place of groups, and of what exceeds the receiver's rate.

    What has been attempted by itself stays by itself: its id must not change any more.
    """
    groups: dict[str, list[Delivery]] = {}
    single: list[Delivery] = []
    for row in rows:
        if row.group_key and not row.attempts and row.event not in (DIGEST, TEST):
            groups.setdefault(row.group_key, []).append(row)
        else:
            single.append(row)
    for group in groups.values():
        single += _digests(conn, group, now) if len(group) > 1 else group
    single.sort(key=lambda row: (row.position, row.id))
    if len(single) <= allowed:
        return single
    fresh = [row for row in single[allowed - 1 :] if not row.attempts and row.event not in (DIGEST, TEST)]
    if len(fresh) < 2:
        return single
    kept = [row for row in single if row not in fresh]
    return sorted(kept + _digests(conn, fresh, now), key=lambda row: (row.position, row.id))


def _digests(conn: Connection, rows: Sequence[Delivery], now: datetime) -> list[Delivery]:
    """As few digests as the bound on payloads allows."""
    made: list[Delivery] = []
    taken: list[Delivery] = []
    entries: list[DigestEntry] = []
    body = ""
    for row in rows:
        entry = DigestEntry.of(row.id, msgspec.json.decode(row.payload, type=Notice))
        longer = _digest_body([*entries, entry], now)
        if entries and len(longer.encode()) > MAX_PAYLOAD_BYTES:
            made.append(deliveries.bundle(conn, taken, body, now))
            taken, entries = [], []
            longer = _digest_body([entry], now)
        taken.append(row)
        entries.append(entry)
        body = longer
    made.append(deliveries.bundle(conn, taken, body, now))
    return made


def _digest_body(entries: Sequence[DigestEntry], now: datetime) -> str:
    return msgspec.json.encode(Digest(timestamp=now, data=DigestContent(notices=tuple(entries)))).decode()
