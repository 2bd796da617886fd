"""The judge over the live ticks: under a lease, minute by minute, decisions and "judged up to" in one transaction.

A minute is judged when the watermarks of all contributions partitions have passed it; a partition that nothing was
counted in yet holds judging up, since what it will count may belong to any minute. After a crash the judge's state is
the last snapshot, stepped again over the stored ticks. Its decisions are in the store already, unless the settings have
changed: so those whose episode goes on are recorded again, and the rest is history.

This is the judge of negative stories. Other sorts of surge that rules watch go on behind it: `monitor.surges.watchers`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
from sqlalchemy import Connection, Engine

from monitor.alerts.rules import load_rules
from monitor.errors import StorageError
from monitor.storage.alerts import record_decisions, resolve_forgotten
from monitor.storage.checkpoint import partition_watermarks
from monitor.storage.engine import reading, writing
from monitor.storage.judging import (
    JudgeRow,
    LostLeaseError,
    first_minute,
    minute_counts,
    release_lease,
    save_judged,
    take_lease,
)
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.judge import Judge
from monitor.surges.sorts import NEGATIVE
from monitor.surges.ticks import MINUTE_MS
from monitor.surges.watchers import Watchers
from monitor.taxonomy import taxonomy_of
from monitor.telemetry import get_logger

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["LiveJudge"]

log = get_logger(__name__)

# Minutes whose ticks are loaded together, and judged in one transaction when there is much to catch up with.
BATCH_MINUTES: Final = 24 * 60
_NOTHING: Final = MinuteCounts([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class LiveJudge:
    """Judges what all `partitions` contributions partitions have closed. For one thread."""

    def __init__(self, engine: Engine, settings: Settings, partitions: int) -> None:
        self._engine = engine
        rules = load_rules(settings)
        self._config = rules.judge.watching(NEGATIVE)
        self._taxonomy = taxonomy_of(settings)
        self._watchers = Watchers(engine, rules, settings.dashboard_url, settings.judge_snapshot_s, self._taxonomy)
        self._partitions = partitions
        self._lease = timedelta(seconds=settings.judge_lease_s)
        self._interval_s = settings.judge_interval_s
        self._snapshot_s = settings.judge_snapshot_s
        self._patience_s = settings.worker_outage_s
        self._dashboard_url = settings.dashboard_url
        self._holder = f"{socket.gethostname()[:64]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._judge: Judge | None = None
        self._row: JudgeRow | None = None
        self._snapshot_at = 0.0

    @property
    def judged_to(self) -> int | None:
        """The last epoch minute this process has judged; None while another one holds the lease."""
        return self._row.judged_to if self._row else None

    def run(self, stopping: threading.Event) -> None:
        """Judge until told to stop, then give the lease back. An outage of the store is waited out for a while.

        Raises `StorageError` when it lasts longer than `worker_outage_s`.
        """
        failing_since: float | None = None
        while not stopping.is_set():
            try:
                busy = self.advance() > 0
                failing_since = None
            except StorageError as error:
                self._forget()
                now = time.monotonic()
                failing_since = failing_since or now
                if now - failing_since > self._patience_s:
                    raise
                log.warning("judging failed, trying again", error=error.message)
                busy = False
            if not busy:
                stopping.wait(self._interval_s)
        self.release()

    def advance(self) -> int:
        """Judge what can be judged now, a day at the most; returns the number of minutes. Raises `StorageError`."""
        with reading(self._engine) as connection:
            closed_to = self._closed_to(list(partition_watermarks(connection).values()))
            begin = first_minute(connection)
        if closed_to is None or begin is None or begin > closed_to:
            return 0
        try:
            row = self._hold(begin)
            if row is None:
                return 0
            if row.judged_to < begin - 1:
                row = self._begin_again(row, begin)
            self._watchers.prepare(self._renew, begin, row.judged_to)
            done = 0
            if row.judged_to < closed_to:
                judge = self._judge = self._judge or self._recover(row, begin)
                done = self._judge_on(judge, row, closed_to)
            return done + self._watchers.advance(self._renew, row.judged_to + done, self._lease.total_seconds() / 4)
        except LostLeaseError:
            log.warning("another process has taken the judging over")
            self._forget()
            return 0
        except BaseException:
            # The judge in memory may have run ahead of what is stored.
            self._forget()
            raise

    def _closed_to(self, watermarks: Sequence[int]) -> int | None:
        """Last minute that every partition has closed; None while one has not been heard of."""
        if len(watermarks) < self._partitions or min(watermarks) <= 0:
            return None
        return min(watermarks) // MINUTE_MS - 1

    def _hold(self, begin: int) -> JudgeRow | None:
        with writing(self._engine) as connection:
            row = take_lease(connection, self._holder, datetime.now(UTC), self._lease, begin)
        if row is None or (self._row is not None and row.version != self._row.version):
            self._judge = None
            self._watchers.forget()
        if row is not None and self._row is None:
            log.info("judging", judged_to=_iso(row.judged_to))
        self._row = row
        return row

    def _renew(self, connection: Connection) -> None:
        """Renew the lease in a transaction of the watchers. Raises `LostLeaseError` when another process has it."""
        if take_lease(connection, self._holder, datetime.now(UTC), self._lease, 0) is None:
            raise LostLeaseError

    def _begin_again(self, row: JudgeRow, begin: int) -> JudgeRow:
        """After a long stretch without anything: a judge that knows nothing yet goes on at minute `begin`."""
        judge = self._judge = Judge(self._config)
        with writing(self._engine) as connection:
            until = datetime.now(UTC) + self._lease
            save_judged(connection, self._holder, row.version, begin - 1, until, judge.snapshot())
            resolve_forgotten(connection, self._config.rule, judge.firing(), datetime.fromtimestamp(begin * 60, UTC))
        self._watchers.forget()
        log.warning("nothing was counted for months: judging anew", since=_iso(row.judged_to), begin=_iso(begin))
        self._row = JudgeRow(begin - 1, row.version + 1, None, None)
        return self._row

    def _recover(self, row: JudgeRow, begin: int) -> Judge:
        """The judge as it was at the end of `row.judged_to`."""
        judge, minute = Judge(self._config), begin
        if row.snapshot is not None and row.snapshot_minute is not None:
            try:
                judge, minute = Judge.restore(self._config, row.snapshot), row.snapshot_minute + 1
            except ValueError as error:
                log.warning("judging again from the stored counts", reason=str(error))
        decisions: list[Decision] = []
        while minute <= row.judged_to:
            last = min(minute + BATCH_MINUTES - 1, row.judged_to)
            decisions += self._step(judge, minute, last)[1]
            minute = last + 1
            with writing(self._engine) as connection:
                if take_lease(connection, self._holder, datetime.now(UTC), self._lease, begin) is None:
                    raise LostLeaseError
        with writing(self._engine) as connection:
            if take_lease(connection, self._holder, datetime.now(UTC), self._lease, begin) is None:
                raise LostLeaseError
            # Those of a judge with other settings: nobody else would end them.
            at, firing = datetime.fromtimestamp((row.judged_to + 1) * 60, UTC), judge.firing()
            resolved = resolve_forgotten(connection, self._config.rule, firing, at)
            # And what this one finds to go on, the other may not have found: to record it again changes nothing.
            going_on = [d for d in decisions if d.episode_id in firing and d.action != "resolve"]
            record_decisions(connection, going_on, dashboard_url=self._dashboard_url, taxonomy=self._taxonomy)
        if resolved:
            log.info("resolved episodes that the judge does not know of", episodes=resolved)
        self._snapshot_at = time.monotonic()
        return judge

    def _step(self, judge: Judge, first: int, last: int, seconds: float = float("inf")) -> tuple[int, list[Decision]]:
        """Step from minute `first` to `last`, or until `seconds` are over; the minute reached and the decisions."""
        deadline = time.monotonic() + seconds
        with reading(self._engine) as connection:
            counts = minute_counts(connection, first, last)
        decisions: list[Decision] = []
        for minute in range(first, last + 1):
            decisions += judge.step(minute, counts.get(minute, _NOTHING))
            if time.monotonic() > deadline:
                return minute, decisions
        return last, decisions

    def _judge_on(self, judge: Judge, row: JudgeRow, closed_to: int) -> int:
        first = row.judged_to + 1
        last = min(closed_to, row.judged_to + BATCH_MINUTES)
        # The lease is renewed with every transaction: none may take too much of it.
        last, decisions = self._step(judge, first, last, self._lease.total_seconds() / 4)
        due = time.monotonic() - self._snapshot_at >= self._snapshot_s
        snapshot = judge.snapshot() if due else None
        with writing(self._engine) as connection:
            until = datetime.now(UTC) + self._lease
            save_judged(connection, self._holder, row.version, last, until, snapshot)
            record_decisions(connection, decisions, dashboard_url=self._dashboard_url, taxonomy=self._taxonomy)
        if due:
            self._snapshot_at = time.monotonic()
        self._row = JudgeRow(last, row.version + 1, None, None)
        for decision in decisions:
            log.info("surge", action=decision.action, key=decision.key, at=decision.at.isoformat())
        return last - first + 1

    def release(self) -> None:
        """Give the lease back, if held, with a snapshot: another process goes on at once. Raises `StorageError`."""
        judge, row = self._judge, self._row
        if row is None:
            return
        now = datetime.now(UTC)
        try:
            with writing(self._engine) as connection:
                if judge is not None:
                    save_judged(connection, self._holder, row.version, row.judged_to, now, judge.snapshot())
                    self._watchers.save(connection)
                release_lease(connection, self._holder, now)
        except LostLeaseError:
            log.info("another process judges already")
        finally:
            self._forget()

    def _forget(self) -> None:
        self._judge = self._row = None
        self._watchers.forget()


def _iso(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).isoformat()
