"""What is pending: excursions under way whose score is above calm and has not reached the bar. Nobody is told of them.

They are read off the snapshot that the judge of a sort leaves (every `judge_snapshot_s`), in the transaction that
stores it. One that fires becomes an episode of the same id; one that ends otherwise is kept with its end, and both in
the audit trail of that id. What begins and ends between two snapshots is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, select, update

from monitor.alerts.records import AlertState
from monitor.storage.tables import alert_events, pending
from monitor.storage.upsert import upsert
from monitor.surges.decisions import episode_id
from monitor.surges.keys import TOPIC
from monitor.surges.sorts import NEGATIVE
from monitor.telemetry import get_logger

__all__ = ["ENDED", "Pending", "end_pending", "fired", "get_pending", "list_pending", "note_pending"]

log = get_logger(__name__)

# The event in the trail of what became no alert.
ENDED: Final = "ended"
_JUDGE: Final = "judge"


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """One excursion that has not fired. `score` is the highest so far, -log10 of a p-value, in the window of
    `window_minutes`; `bar` what it would have to reach. `seen_at` is when the key was last above calm; `ended_at` is
    set when it is over (event time)."""

    id: str
    rule: str
    surge: str = NEGATIVE
    key: str
    started_at: datetime
    seen_at: datetime
    score: float
    bar: float
    window_minutes: int
    ended_at: datetime | None = None
    state: str = AlertState.PENDING.value


_COLUMNS: Final = tuple(pending.c[name] for name in Pending.__struct_fields__ if name != "state")


class _Config(msgspec.Struct):
    rule: str
    surge: str
    windows: tuple[int, ...]


class _Excursion(msgspec.Struct):
    start: int
    peak: float
    last: int
    window: int
    fired: int


class _Excursions(msgspec.Struct):
    under_way: list[tuple[int, _Excursion]]


class _Snapshot(msgspec.Struct):
    """What is needed of a judge's snapshot; all else is passed over. `bars` are those of tickers and of topics."""

    config: _Config
    minute: int | None
    names: list[str]
    excursions: _Excursions
    bars: tuple[float, float]


_decoder: Final = msgspec.msgpack.Decoder(_Snapshot)


def _end_of(minute: int) -> datetime:
    return datetime.fromtimestamp((minute + 1) * 60, UTC)


def _of(state: _Snapshot) -> Iterable[tuple[Pending, bool]]:
    """All excursions under way, and whether they have fired."""
    config, tickers, topics = state.config, state.bars[0], max(state.bars)
    for index, one in state.excursions.under_way:
        key = state.names[index]
        found = Pending(
            id=episode_id(config.rule, key, one.start),
            rule=config.rule,
            surge=config.surge,
            key=key,
            started_at=_end_of(one.start - 1),
            seen_at=_end_of(one.last),
            score=one.peak,
            bar=topics if key.startswith(TOPIC) else tickers,
            window_minutes=config.windows[one.window],
        )
        yield found, one.fired >= 0


def note_pending(conn: Connection, snapshot: bytes) -> None:
    """Take up what is pending by a judge's snapshot; belongs into the transaction that stores it.

    A snapshot that is not understood is reported and changes nothing: judging does not hang on this list.
    """
    try:
        state = _decoder.decode(snapshot)
    except msgspec.MsgspecError as error:
        log.warning("what is pending cannot be read off the judge's snapshot", error=str(error))
        return
    if state.minute is None:
        return
    under_way = list(_of(state))
    # What fires in this very transaction is taken out by `fired`.
    known = {one.id for one, _ in under_way}
    _end(conn, [one for one in _open(conn, state.config.rule) if one.id not in known], _end_of(state.minute))
    waiting = [one for one, has_fired in under_way if not has_fired]
    upsert(conn, pending, [{c.name: getattr(one, c.name) for c in _COLUMNS} for one in waiting])


def end_pending(conn: Connection, rule: str, at: datetime) -> None:
    """Nobody judges this sort any more: nothing of it is pending."""
    _end(conn, _open(conn, rule), at)


def fired(conn: Connection, episode: str) -> None:
    """It has reached the bar: from now on it is an alert, whose trail begins anew."""
    if conn.execute(pending.delete().where(pending.c.id == episode)).rowcount:
        # It may have fired and ended since the last snapshot.
        conn.execute(alert_events.delete().where(alert_events.c.episode_id == episode))


def _open(conn: Connection, rule: str) -> list[Pending]:
    return _read(conn, select(*_COLUMNS).where(pending.c.rule == rule, pending.c.ended_at.is_(None)))


def _end(conn: Connection, over: list[Pending], at: datetime) -> None:
    for one in over:
        conn.execute(update(pending).where(pending.c.id == one.id).values(ended_at=at))
        detail = {"highest score": round(one.score, 2), "bar": round(one.bar, 2)}
        for when, event, told in ((one.started_at, one.state, {}), (at, ENDED, detail)):
            row = {"episode_id": one.id, "at": when, "event": event, "actor": _JUDGE, "detail": told}
            conn.execute(alert_events.insert().values(**row))


def _read(conn: Connection, query: Any) -> list[Pending]:
    return [Pending(**row) for row in conn.execute(query).mappings()]


def list_pending(conn: Connection, *, key: str = "", limit: int | None = None) -> list[Pending]:
    """What is pending now, the nearest to its bar first; only under `key` when it is given."""
    c = pending.c
    query = select(*_COLUMNS).where(c.ended_at.is_(None)).order_by((c.score / c.bar).desc(), c.id).limit(limit)
    return _read(conn, query.where(c.key == key) if key else query)


def get_pending(conn: Connection, episode: str) -> Pending | None:
    """What is or was pending under this id; None when it is unknown or has fired."""
    return next(iter(_read(conn, select(*_COLUMNS).where(pending.c.id == episode))), None)
