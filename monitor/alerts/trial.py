"""Rules tried on history: the judges over the stored counts, as they run live, and what the rules say to what they
find. Judged are the sorts of surge that enabled ones among the rules watch.

Nothing is written. Silences, mutes of routes and inhibition are not part of it: it is the rules that are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import numpy as np
from sqlalchemy import Connection, Engine

from monitor.alerts.records import Alert, AlertState
from monitor.alerts.rules import Rules
from monitor.errors import InputError
from monitor.storage.alerts import alert_of, worsened
from monitor.storage.engine import reading
from monitor.storage.judging import first_minute, judged_to, minute_counts
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.judge import Judge

__all__ = ["Firing", "Trial", "try_rules"]

BATCH_MINUTES: Final = 24 * 60
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE: Final = timedelta(minutes=1)
_NOTHING: Final = MinuteCounts([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class Firing(msgspec.Struct, kw_only=True):
    """One episode with what the rules made of it. `taken` says when each rule took it, by name; when none did,
    `objection` says why, rule by rule, as the episode stood at its worst. The figures of `alert` are those of that."""

    alert: Alert
    taken: dict[str, datetime]
    objection: str = ""

    @property
    def announced_at(self) -> datetime | None:
        """When it would have been announced; None: never."""
        return min(self.taken.values(), default=None)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Episodes that fired in [since, until), in that order. The counts of `judged_from` to `judged_to` were judged:
    what lies before `since` teaches the judge what is usual."""

    since: datetime
    until: datetime
    judged_from: datetime
    judged_to: datetime
    firings: list[Firing]


class _Run:
    def __init__(self, rules: Rules, since: datetime) -> None:
        self.rules = rules
        self.since = since
        self.judges = [Judge(rules.judge.watching(surge)) for surge in rules.watched]
        self.open: dict[str, Firing] = {}
        self.firings: list[Firing] = []

    def step(self, conn: Connection, minute: int, counts: MinuteCounts) -> None:
        for judge in self.judges:
            for decision in judge.step(minute, counts):
                self._decided(conn, decision)
        at = _EPOCH + (minute + 1) * _MINUTE
        for firing in self.open.values():
            verdict = self.rules.verdict(firing.alert, at)
            for rule in verdict.taken_by:
                firing.taken.setdefault(rule.name, at)
            firing.objection = "" if firing.taken else verdict.objection

    def _decided(self, conn: Connection, decision: Decision) -> None:
        if decision.action == "fire":
            if decision.fired_at >= self.since:
                firing = Firing(alert=alert_of(conn, decision, ""), taken={})
                self.open[decision.episode_id] = firing
                self.firings.append(firing)
            return
        known = self.open.get(decision.episode_id)
        if known is None:
            return
        if decision.action == "update":
            known.alert = worsened(conn, known.alert, decision, "") or known.alert
            return
        known.alert = msgspec.structs.replace(known.alert, state=AlertState.RESOLVED, resolved_at=decision.at)
        del self.open[decision.episode_id]


def _batches(first: int, end: int) -> Iterator[tuple[int, int]]:
    for begin in range(first, end, BATCH_MINUTES):
        yield begin, min(begin + BATCH_MINUTES, end) - 1


def try_rules(
    engine: Engine,
    rules: Rules,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    progress: Callable[[float], object] = lambda _: None,
) -> Trial:
    """When these rules would have fired over the stored counts, between `since` and `until` (event time; None: from
    the beginning, to the last minute judged). `progress` is told the share that is done, in [0, 1].

    Raises `InputError` when there are no counts in that time.
    """
    with reading(engine) as conn:
        first, last = first_minute(conn), judged_to(conn)
    if first is None or last is None or last < first:
        raise InputError(
            "There is no history in the store yet.", "Rules are tried on what has been counted and judged."
        )
    begins, ends = _EPOCH + first * _MINUTE, _EPOCH + (last + 1) * _MINUTE
    since, until = max(since or begins, begins), min(until or ends, ends)
    if since >= until:
        raise InputError(
            "There is no history in that time.", f"There is from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC."
        )
    run, end = _Run(rules, since), (until - _EPOCH) // _MINUTE
    for begin, stop in _batches(first, end):
        # A transaction a day: what reads for long keeps the store's log from being cleared.
        with reading(engine) as conn:
            counts = minute_counts(conn, begin, stop)
            for minute in range(begin, stop + 1):
                run.step(conn, minute, counts.get(minute, _NOTHING))
        progress((stop + 1 - first) / (end - first))
    return Trial(since=since, until=until, judged_from=begins, judged_to=until, firings=run.firings)
