"""Why a key alerted, or not, at a time: the judge asked again over the stored counts, and what became of its surges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Engine

from monitor.alerts.records import Alert
from monitor.errors import InputError
from monitor.storage.alerts import alerts_around, audit_trail
from monitor.storage.engine import reading
from monitor.storage.judging import first_minute, minute_counts, stored_judge, stored_watcher
from monitor.surges.decisions import MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.sorts import NEGATIVE
from monitor.surges.why import LOOK_BACK_MINUTES, Account, account

__all__ = ["Answer", "ask"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How the key stood (`account`), and the alerts about it that were open in the hour up to then, each with its
    trail: what took it, held it back and whom it reached. `changed` says that the judge's settings have changed since
    it judged that time: the account is by the new ones."""

    account: Account
    alerts: list[tuple[Alert, list[dict[str, Any]]]]
    changed: bool


def ask(
    engine: Engine,
    judging: JudgeConfig,
    key: str,
    at: datetime | None,
    progress: Callable[[float], object] = lambda _: None,
) -> Answer:
    """Why `key` alerted or not by the time `at`; None: by the last minute judged. `judging` says what sort of surge.

    Raises `InputError` when nothing, or not that time, has been judged.
    """
    with reading(engine) as connection:
        begin, row = first_minute(connection), stored_judge(connection)
        other = stored_watcher(connection, judging.surge)
    if begin is None or row is None or row.judged_to < begin:
        raise InputError("Nothing has been judged yet.", "`sentiment-monitor status` shows how far counting has come.")
    # The last whole minute before that time; what is judged later says nothing about it.
    minute = row.judged_to if at is None else int(at.timestamp()) // 60 - 1
    if not begin <= minute <= row.judged_to:
        first, last = (datetime.fromtimestamp((m + 1) * 60, UTC) for m in (begin, row.judged_to))
        raise InputError(
            f"That time has not been judged: {at:%Y-%m-%d %H:%M} UTC.",
            f"Ask for {first:%F %H:%M} to {last:%F %H:%M} UTC.",
        )
    judge, start, changed = Judge(judging), begin, False
    # A sort that no rule watches has none: it is judged from the beginning.
    known = row if judging.surge == NEGATIVE else other
    if known is not None and known.snapshot is not None and known.snapshot_minute is not None:
        try:
            restored = Judge.restore(judging, known.snapshot)
        except ValueError:
            changed = True
        else:
            if begin <= known.snapshot_minute <= minute - LOOK_BACK_MINUTES:
                judge, start = restored, known.snapshot_minute + 1

    def counts(first: int, last: int) -> Mapping[int, MinuteCounts]:
        # A transaction a day: what reads for long keeps the store's log from being cleared.
        with reading(engine) as connection:
            return minute_counts(connection, first, last)

    found = account(judge, key, start, minute, counts, progress)
    with reading(engine) as connection:
        since = found.at - timedelta(minutes=LOOK_BACK_MINUTES)
        around = alerts_around(connection, key, since, found.at)
        alerts = [(one, audit_trail(connection, one.id)) for one in around if one.surge == judging.surge]
    return Answer(account=found, alerts=alerts, changed=changed)
