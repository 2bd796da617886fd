"""Deliveries: one row per episode, event and receiver, whose id is the webhook-id of every attempt.

States: `held` (a silence, a mute time or a wider alert holds it back), `pending`, `delivered`, `failed` (given up;
`monitor.storage.undelivered` replays it), `dropped` (the episode ended while it was held). A row that went into a
digest stays `pending` with `digest_id` until the digest is delivered. A pending row is attempted by whoever holds its
lease.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, and_, case, or_, select, update

from monitor.storage.tables import deliveries, receivers
from monitor.storage.upsert import insert_missing

__all__ = [
    "COLUMNS",
    "DELIVERED",
    "DIGEST",
    "DROPPED",
    "FAILED",
    "HELD",
    "PENDING",
    "TEST",
    "Delivery",
    "add",
    "any_due",
    "any_held",
    "bundle",
    "delivery_id",
    "drop",
    "due",
    "finish",
    "give_up",
    "give_up_all",
    "give_up_unknown",
    "group_due",
    "hurry",
    "lease",
    "members",
    "of_episode",
    "postpone",
    "read",
    "release",
    "renew",
    "retry",
    "set_free",
    "tests_of_receivers",
    "told_of",
]

HELD: Final = "held"
PENDING: Final = "pending"
DELIVERED: Final = "delivered"
FAILED: Final = "failed"
DROPPED: Final = "dropped"
DIGEST: Final = "digest"
# The event of a test notice that somebody asked for: sent once, in no list of what has not arrived.
TEST: Final = "test"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One notification for one receiver. `payload` is the exact body of every attempt; `released_at` is when a notice
    that was held back was let go."""

    id: str
    episode_id: str
    event: str
    receiver: str
    position: int
    payload: str
    created_at: datetime
    state: str = PENDING
    attempts: int = 0
    next_attempt_at: datetime | None = None
    group_key: str = ""
    digest_id: str | None = None
    last_status: int | None = None
    last_error: str | None = None
    delivered_at: datetime | None = None
    released_at: datetime | None = None

    @property
    def since(self) -> datetime:
        """Since when its receiver is being told: what was held back told nobody until it was let go."""
        return self.released_at or self.created_at


# Which of the notices of one test says most about it.
_TROUBLE: Final = {DELIVERED: 0, PENDING: 1, FAILED: 2}
COLUMNS: Final = tuple(deliveries.c[name] for name in Delivery.__struct_fields__)


def delivery_id(*parts: str) -> str:
    """The webhook-id of a notification: a function of episode, event and receiver, the same wherever it is made."""
    return f"msg_{hashlib.sha256(chr(31).join(parts).encode()).hexdigest()[:40]}"


def read(conn: Connection, query: Any) -> list[Delivery]:
    """The rows of a query for `COLUMNS`."""
    return [Delivery(**row) for row in conn.execute(query).mappings()]


def add(conn: Connection, rows: Iterable[Delivery]) -> set[str]:
    """Insert those that are not there yet; returns the ids of the new ones."""
    plain = [
        {name: getattr(row, name) for name in Delivery.__struct_fields__} | {"lease_holder": None, "lease_until": None}
        for row in rows
    ]
    return {row[0] for row in insert_missing(conn, deliveries, plain)} if plain else set()


def _free(now: datetime) -> Any:
    return or_(deliveries.c.lease_until.is_(None), deliveries.c.lease_until <= now)


def any_held(conn: Connection) -> bool:
    """True when a notice is held back."""
    return conn.scalar(select(deliveries.c.id).where(deliveries.c.state == HELD).limit(1)) is not None


def any_due(conn: Connection, now: datetime) -> bool:
    """True when a notice for anybody may be attempted now, or waits for an earlier one only. Who is switched off gets
    tests alone, who asked to be left alone nothing."""
    off = deliveries.c.receiver.in_(select(receivers.c.name).where(~receivers.c.enabled))
    quiet = deliveries.c.receiver.in_(select(receivers.c.name).where(receivers.c.quiet_until > now))
    waiting = and_(
        deliveries.c.state == PENDING,
        deliveries.c.next_attempt_at <= now,
        deliveries.c.digest_id.is_(None),
        or_(deliveries.c.event == TEST, ~off),
        ~quiet,
    )
    return conn.scalar(select(deliveries.c.id).where(waiting, _free(now)).limit(1)) is not None


def due(conn: Connection, receiver: str, now: datetime, limit: int) -> list[Delivery]:
    """What may be attempted for a receiver now, in order: an episode's later event waits for its earlier one."""
    earlier = deliveries.alias("earlier")
    waits = (
        select(earlier.c.id)
        .where(
            earlier.c.receiver == deliveries.c.receiver,
            earlier.c.episode_id == deliveries.c.episode_id,
            earlier.c.state == PENDING,
            earlier.c.position < deliveries.c.position,
        )
        .exists()
    )
    query = (
        select(*COLUMNS)
        .where(
            deliveries.c.receiver == receiver,
            deliveries.c.state == PENDING,
            deliveries.c.digest_id.is_(None),
            deliveries.c.next_attempt_at <= now,
            _free(now),
            ~waits,
        )
        .order_by(deliveries.c.position, deliveries.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=deliveries)
    )
    return read(conn, query)


def lease(conn: Connection, ids: Sequence[str], holder: str, until: datetime) -> None:
    """Take the lease of rows that `due` has just returned in the same transaction."""
    conn.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(lease_holder=holder, lease_until=until))


def renew(conn: Connection, ids: Sequence[str], holder: str, until: datetime) -> None:
    """Keep leases while attempts are under way."""
    conn.execute(
        update(deliveries)
        .where(deliveries.c.id.in_(ids), deliveries.c.lease_holder == holder)
        .values(lease_until=until)
    )


def release(conn: Connection, holder: str) -> None:
    """Give back all leases of a notifier that stops."""
    conn.execute(
        update(deliveries)
        .where(deliveries.c.lease_holder == holder, deliveries.c.state == PENDING)
        .values(lease_holder=None, lease_until=None)
    )


def _settle(conn: Connection, row: str, values: dict[str, Any]) -> bool:
    """Change a row that is still pending, and with it what went into it if it is a digest."""
    mine = and_(deliveries.c.id == row, deliveries.c.state == PENDING)
    changed = conn.execute(
        update(deliveries).where(mine).values(**values, lease_holder=None, lease_until=None)
    ).rowcount
    return bool(changed)


def finish(conn: Connection, row: str, status: int | None, at: datetime) -> bool:
    """It has arrived. False when that was known already."""
    values = {
        "state": DELIVERED,
        "delivered_at": at,
        "last_status": status,
        "last_error": None,
        "next_attempt_at": None,
    }
    if not _settle(conn, row, values | {"attempts": deliveries.c.attempts + 1}):
        return False
    conn.execute(
        update(deliveries).where(deliveries.c.digest_id == row, deliveries.c.state == PENDING).values(**values)
    )
    return True


def retry(conn: Connection, row: str, status: int | None, error: str, at: datetime) -> None:
    """The attempt failed; the next one is at `at`."""
    values = {"last_status": status, "last_error": error, "next_attempt_at": at}
    _settle(conn, row, values | {"attempts": deliveries.c.attempts + 1})


def give_up(conn: Connection, row: str, status: int | None, error: str) -> bool:
    """The last attempt failed: it stays listed until somebody replays it."""
    values = {"state": FAILED, "last_status": status, "last_error": error, "next_attempt_at": None}
    if not _settle(conn, row, values | {"attempts": deliveries.c.attempts + 1}):
        return False
    conn.execute(
        update(deliveries).where(deliveries.c.digest_id == row, deliveries.c.state == PENDING).values(**values)
    )
    return True


def give_up_all(conn: Connection, receiver: str, error: str) -> int:
    """The receiver wants nothing more: all that waits for it is given up and stays listed. Returns how many."""
    return _give_up_waiting(conn, deliveries.c.receiver == receiver, error)


def give_up_unknown(conn: Connection, known: Collection[str], error: str) -> int:
    """Give up what waits for receivers that are none of the `known`: nobody would ever send it, and it stays listed.
    Returns how many."""
    return _give_up_waiting(conn, deliveries.c.receiver.not_in(known), error)


def _give_up_waiting(conn: Connection, whose: Any, error: str) -> int:
    waiting = and_(whose, deliveries.c.state == PENDING)
    values = {"state": FAILED, "last_error": error, "next_attempt_at": None, "lease_holder": None, "lease_until": None}
    return conn.execute(update(deliveries).where(waiting).values(**values)).rowcount


def postpone(conn: Connection, receiver: str, until: datetime) -> None:
    """A receiver asked to be left alone until then."""
    conn.execute(
        update(deliveries)
        .where(deliveries.c.receiver == receiver, deliveries.c.state == PENDING, deliveries.c.next_attempt_at < until)
        .values(next_attempt_at=until)
    )


def hurry(conn: Connection, receiver: str, now: datetime) -> None:
    """A receiver can be reached again: what has got no answer before is due at once.

    The attempt that failed does not count: an outage, or a connection that comes and goes, must not use up the
    schedule. One attempt stays noted, by which it is known that the notice may not go into a digest any more.
    """
    conn.execute(
        update(deliveries)
        .where(
            deliveries.c.receiver == receiver,
            deliveries.c.state == PENDING,
            deliveries.c.attempts > 0,
            deliveries.c.next_attempt_at > now,
            deliveries.c.last_status.is_(None),
        )
        .values(next_attempt_at=now, attempts=case((deliveries.c.attempts > 1, deliveries.c.attempts - 1), else_=1))
    )


def bundle(conn: Connection, members: Sequence[Delivery], payload: str, now: datetime) -> Delivery:
    """One digest in place of several notifications for one receiver."""
    digest = Delivery(
        id=delivery_id(DIGEST, *sorted(member.id for member in members)),
        episode_id=f"{DIGEST}:{members[0].id}",
        event=DIGEST,
        receiver=members[0].receiver,
        position=members[0].position,
        payload=payload,
        created_at=now,
        next_attempt_at=now,
    )
    add(conn, [digest])
    ids = [member.id for member in members]
    conn.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(digest_id=digest.id))
    return digest


def group_due(conn: Connection, receiver: str, group_key: str) -> datetime | None:
    """When the group that is being collected for a receiver goes out; None when none is."""
    collecting = select(deliveries.c.next_attempt_at).where(
        deliveries.c.receiver == receiver,
        deliveries.c.group_key == group_key,
        deliveries.c.state == PENDING,
        deliveries.c.attempts == 0,
        deliveries.c.digest_id.is_(None),
    )
    return conn.scalar(collecting.order_by(deliveries.c.next_attempt_at).limit(1))


def set_free(conn: Connection, row: str, payload: str, now: datetime) -> None:
    """Nothing holds it back any more: it goes out with the alert as it stands now."""
    conn.execute(
        update(deliveries)
        .where(deliveries.c.id == row, deliveries.c.state == HELD)
        .values(state=PENDING, payload=payload, next_attempt_at=now, last_error=None, released_at=now)
    )


def drop(conn: Connection, row: str, reason: str) -> None:
    """The episode ended, or somebody took it on, while it was held back: nobody needs to hear of it any more."""
    conn.execute(
        update(deliveries)
        .where(deliveries.c.id == row, deliveries.c.state == HELD)
        .values(state=DROPPED, last_error=reason, next_attempt_at=None)
    )


def of_episode(conn: Connection, episode_id: str) -> list[Delivery]:
    """All notifications of an episode, in order."""
    query = select(*COLUMNS).where(deliveries.c.episode_id == episode_id)
    return read(conn, query.order_by(deliveries.c.position, deliveries.c.created_at, deliveries.c.id))


def told_of(conn: Connection, episode_ids: Collection[str]) -> dict[str, set[str]]:
    """Who was told of episodes or is about to be, of each that has any notice: what is held back, dropped or given up
    tells nobody."""
    found: dict[str, set[str]] = {}
    query = select(deliveries.c.episode_id, deliveries.c.receiver, deliveries.c.state)
    for episode_id, receiver, state in conn.execute(query.where(deliveries.c.episode_id.in_(episode_ids))):
        told = found.setdefault(episode_id, set())
        if state in (PENDING, DELIVERED):
            told.add(receiver)
    return found


def members(conn: Connection, digest_id: str) -> list[Delivery]:
    """The notices that went into a digest, in order."""
    query = select(*COLUMNS).where(deliveries.c.digest_id == digest_id)
    return read(conn, query.order_by(deliveries.c.position, deliveries.c.id))


def tests_of_receivers(conn: Connection) -> dict[str, Delivery]:
    """What tells how the newest test of each receiver that was ever tested went: of its notices the one that failed,
    else the one that has not arrived yet, else the last."""
    order = (deliveries.c.created_at, deliveries.c.position)
    told: dict[str, Delivery] = {}
    for row in read(conn, select(*COLUMNS).where(deliveries.c.event == TEST).order_by(*order)):
        known = told.get(row.receiver)
        same = known is not None and known.created_at == row.created_at
        if known is None or not same or _TROUBLE[row.state] >= _TROUBLE[known.state]:
            told[row.receiver] = row
    return told
