"""The other sorts of surge, judged live: behind the judge of negative stories, over the same minutes, under its lease.

A sort is judged only while an enabled rule watches it. A watcher that is new learns from all stored counts first: of
what it finds there only the episodes that still go on are recorded, the rest is history. Where it goes on, and what it
records from then on, is what it would be had it been there from the first minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import numpy as np
from sqlalchemy import Connection, Engine

from monitor.alerts.rules import Rules
from monitor.storage.alerts import record_decisions, resolve_forgotten
from monitor.storage.engine import reading, writing
from monitor.storage.judging import (
    begin_watching,
    end_watching,
    minute_counts,
    save_watched,
    stored_watcher,
    watched,
)
from monitor.storage.rules import watched_by_rules
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.sorts import NEGATIVE, SURGES, detector
from monitor.taxonomy import Taxonomy
from monitor.telemetry import get_logger

__all__ = ["Watchers"]

log = get_logger(__name__)

BATCH_MINUTES: Final = 24 * 60
_NOTHING: Final = MinuteCounts([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

# Renews the lease in a transaction; raises `LostLeaseError` when another process has it.
Hold = Callable[[Connection], None]


class Watchers:
    """All sorts that rules watch besides negative stories. For one thread."""

    def __init__(self, engine: Engine, rules: Rules, dashboard_url: str, snapshot_s: float, taxonomy: Taxonomy) -> None:
        self._engine = engine
        self._rules = rules
        self._dashboard_url = dashboard_url
        self._taxonomy = taxonomy
        self._snapshot_s = snapshot_s
        self._running: dict[str, _Watcher] = {}

    def prepare(self, hold: Hold, begin: int, judged_to: int) -> None:
        """Begin with the sorts that rules watch now, and end those that none does any more. `begin` is the first
        minute to judge; what has been judged up to `judged_to` is history to a sort that is new."""
        with reading(self._engine) as connection:
            known, wanted = watched(connection), self._wanted(connection)
        for surge in sorted(known - wanted):
            with writing(self._engine) as connection:
                hold(connection)
                end_watching(connection, surge)
                at = datetime.fromtimestamp((judged_to + 1) * 60, UTC)
                resolve_forgotten(connection, detector(surge), (), at)
            log.info("no rule watches this any more", surge=surge)
        for surge in wanted - known:
            with writing(self._engine) as connection:
                hold(connection)
                begin_watching(connection, surge, judged_to)
            log.info("a rule watches this now", surge=surge)
        self._running = {surge: watcher for surge, watcher in self._running.items() if surge in wanted}
        for surge in (surge for surge in SURGES if surge in wanted and surge not in self._running):
            config = self._rules.judge.watching(surge)
            self._running[surge] = _Watcher(self._engine, config, begin, self._dashboard_url, self._taxonomy)

    def _wanted(self, connection: Connection) -> frozenset[str]:
        return frozenset((*self._rules.watched, *watched_by_rules(connection))) & frozenset(SURGES) - {NEGATIVE}

    def advance(self, hold: Hold, judged_to: int, seconds: float) -> int:
        """Judge on, up to `judged_to` at most, each sort for `seconds` or a day of event time; returns the minutes."""
        done = 0
        for watcher in self._running.values():
            done += watcher.advance(hold, judged_to, seconds, self._snapshot_s)
        return done

    def save(self, connection: Connection) -> None:
        """Store a snapshot of each, so that another process goes on at once."""
        for watcher in self._running.values():
            watcher.save(connection)

    def forget(self) -> None:
        """Another process may have gone on meanwhile: begin with what is stored."""
        self._running = {}


class _Watcher:
    """One sort, at the end of minute `_minute` - 1; `_stored_to` is how far the store says that it is judged."""

    def __init__(self, engine: Engine, config: JudgeConfig, begin: int, dashboard_url: str, taxonomy: Taxonomy) -> None:
        self._engine = engine
        self._config = config
        self._dashboard_url = dashboard_url
        self._taxonomy = taxonomy
        self._judge, self._minute = Judge(config), begin
        with reading(engine) as connection:
            stored = stored_watcher(connection, config.surge)
        self._stored_to = stored.judged_to if stored is not None else begin - 1
        self._history_to = max(self._stored_to, begin - 1)
        if stored is not None and stored.snapshot is not None and stored.snapshot_minute is not None:
            try:
                restored = Judge.restore(config, stored.snapshot)
            except ValueError as error:
                log.warning("judging again from the stored counts", surge=config.surge, reason=str(error))
            else:
                if stored.snapshot_minute >= begin - 1:
                    self._judge, self._minute = restored, stored.snapshot_minute + 1
        self._past: list[Decision] | None = []
        self._snapshot_at = 0.0

    def advance(self, hold: Hold, judged_to: int, seconds: float, snapshot_s: float) -> int:
        first = self._minute
        if self._past is not None and first > self._history_to:
            self._settle(hold)
        if first > judged_to:
            return 0
        last = min(judged_to, first + BATCH_MINUTES - 1)
        if self._past is not None:
            last = min(last, self._history_to)
        decisions = self._step(first, last, seconds)
        if self._past is not None:
            self._past += decisions
            with writing(self._engine) as connection:
                hold(connection)
            return self._minute - first
        due = time.monotonic() - self._snapshot_at >= snapshot_s
        with writing(self._engine) as connection:
            hold(connection)
            self._store(connection, decisions, snapshot=due)
        for decision in decisions:
            log.info(
                "surge", surge=decision.surge, action=decision.action, key=decision.key, at=decision.at.isoformat()
            )
        return self._minute - first

    def _step(self, first: int, last: int, seconds: float) -> list[Decision]:
        deadline = time.monotonic() + seconds
        with reading(self._engine) as connection:
            counts = minute_counts(connection, first, last)
        decisions: list[Decision] = []
        for minute in range(first, last + 1):
            decisions += self._judge.step(minute, counts.get(minute, _NOTHING))
            self._minute = minute + 1
            if time.monotonic() > deadline:
                break
        return decisions

    def _settle(self, hold: Hold) -> None:
        """History is over: what goes on of it is recorded (again, which changes nothing), all else is dropped."""
        firing = self._judge.firing()
        going_on = [d for d in self._past or () if d.episode_id in firing and d.action != "resolve"]
        at = datetime.fromtimestamp(self._minute * 60, UTC)
        with writing(self._engine) as connection:
            hold(connection)
            resolve_forgotten(connection, self._config.rule, firing, at)
            self._store(connection, going_on, snapshot=True)
        self._past = None

    def _store(self, connection: Connection, decisions: list[Decision], *, snapshot: bool) -> None:
        state = self._judge.snapshot() if snapshot else None
        judged_to = self._minute - 1
        save_watched(connection, self._config.surge, self._stored_to, judged_to, state)
        record_decisions(connection, decisions, dashboard_url=self._dashboard_url, taxonomy=self._taxonomy)
        self._stored_to = judged_to
        if snapshot:
            self._snapshot_at = time.monotonic()

    def save(self, connection: Connection) -> None:
        """A snapshot; not in the middle of history, which is gone through again then."""
        if self._past is None:
            self._store(connection, [], snapshot=True)
