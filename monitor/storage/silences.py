"""Silences: who wants to hear nothing of which keys and rules, until when and why."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from fnmatch import fnmatchcase

import msgspec
from sqlalchemy import Connection, select, update

from monitor.errors import ConfigurationError
from monitor.storage.audit import note_change
from monitor.storage.tables import silences

__all__ = ["Silence", "add_silence", "end_silence", "list_silences"]


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts whose key and rule match the patterns (`*`, `?`) are not announced between `starts_at` and `ends_at`."""

    id: str
    key: str
    rule: str
    starts_at: datetime
    ends_at: datetime
    comment: str
    author: str

    def covers(self, *, key: str, rules: Collection[str], at: datetime) -> bool:
        """True when this silence holds back an alert that these rules take on `key` at the time `at`."""
        return (
            self.starts_at <= at < self.ends_at
            and fnmatchcase(key, self.key)
            and any(fnmatchcase(rule, self.rule) for rule in rules)
        )


def add_silence(
    conn: Connection,
    *,
    key: str,
    starts_at: datetime,
    ends_at: datetime,
    comment: str,
    author: str,
    rule: str = "*",
) -> Silence:
    """A new silence. Raises `ConfigurationError` when it would end before it starts, matches nothing, or does not say
    why: whoever wonders later about an alert that nobody heard of has to find it there."""
    comment = comment.strip()
    if ends_at <= starts_at:
        raise ConfigurationError("A silence must end after it starts.")
    if not 0 < len(key) <= 160 or not 0 < len(rule) <= 160:
        raise ConfigurationError("A silence needs a key or a pattern, such as ticker:AAPL or topic:*.")
    if not comment:
        raise ConfigurationError("A silence needs a comment that says why.", "Such as: known, the earnings call.")
    silence = Silence(
        id=uuid.uuid4().hex[:12],
        key=key,
        rule=rule,
        starts_at=starts_at,
        ends_at=ends_at,
        comment=comment,
        author=author,
    )
    conn.execute(
        silences.insert().values(
            id=silence.id,
            matcher={"key": key, "rule": rule},
            starts_at=starts_at,
            ends_at=ends_at,
            comment=comment,
            author=author,
            created_at=starts_at,
        )
    )
    detail = {"key": key, "rule": rule, "until": ends_at.isoformat(), "comment": comment}
    note_change(conn, starts_at, author, f"silence:{silence.id}", "added", detail)
    return silence


def list_silences(conn: Connection, now: datetime | None = None) -> list[Silence]:
    """All silences, the one that ends first in front; only those not over at `now` when it is given."""
    query = select(silences).order_by(silences.c.ends_at, silences.c.id)
    if now is not None:
        query = query.where(silences.c.ends_at > now)
    return [
        Silence(
            id=row.id,
            key=row.matcher["key"],
            rule=row.matcher.get("rule", "*"),
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            comment=row.comment,
            author=row.author,
        )
        for row in conn.execute(query)
    ]


def end_silence(conn: Connection, silence_id: str, now: datetime, *, by: str) -> None:
    """End a silence early. Raises `ConfigurationError` when there is none of this id that still holds."""
    running = (silences.c.id == silence_id) & (silences.c.ends_at > now)
    if not conn.execute(update(silences).where(running).values(ends_at=now)).rowcount:
        raise ConfigurationError(f"There is no silence {silence_id} that still holds.")
    note_change(conn, now, by, f"silence:{silence_id}", "ended")
