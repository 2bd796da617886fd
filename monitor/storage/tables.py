"""The tables. Times are UTC and stored as epoch milliseconds; `minute` columns are whole epoch minutes (event time).

Who writes what: the scoring worker `items`, `item_keys`, `retracted_keys`, `charts`, `awaited_charts` (charts that a
stored item names and that have not come), `dead_letters`; the aggregator `partitions`, `ticks`, `rollups`, `ledger`,
`waiting`, `stories`, `open_stories`; the judge `judge`, `watchers`, `pending` (above calm and below the bar),
`episodes`, `outbox`; the notifier `deliveries`, `alert_events`; the dashboard and the command line `labels`,
`silences`, `rules`, `receivers`, `audit_log` (who changed what of these); the jobs `models`, `model_promotions`,
`job_runs`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = JSON().with_variant(JSONB(), "postgresql")
# SQLite numbers rows by itself only in an INTEGER primary key.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime in Python, whole epoch milliseconds in the database: sorts and compares alike everywhere."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """To epoch milliseconds; a datetime without zone is refused."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored time needs a zone")
        return (value - _EPOCH) // _MS

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """From epoch milliseconds to an aware UTC datetime."""
        return None if value is None else _EPOCH + int(value) * _MS


items = Table(
    "items",
    metadata,
    Column("id", String(256), primary_key=True),
    Column("published_at", UtcTime, nullable=False, index=True),
    Column("source", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("lang", String(35), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("tickers", Json, nullable=False),
    Column("chart_ids", Json, nullable=False),
    Column("sentiment", String(16), nullable=False),
    Column("p_negative", Float, nullable=False),
    Column("p_neutral", Float, nullable=False),
    Column("p_positive", Float, nullable=False),
    Column("topic", String(128), nullable=False),
    Column("topic_probabilities", Json, nullable=False),
    Column("entities", Json, nullable=False),
    Column("chart", Json, nullable=True),
    Column("modality", String(8), nullable=False),
    Column("flags", Json, nullable=False),
    Column("rules", Json, nullable=False),
    Column("model_version", String(128), nullable=False),
    Column("scored_at", UtcTime, nullable=False),
)

item_keys = Table(
    "item_keys",
    metadata,
    Column("key", String(160), primary_key=True),
    Column("item_id", String(256), primary_key=True),
    Column("published_at", UtcTime, nullable=False),
    Column("p_negative", Float, nullable=False),
    Column("score", Float, nullable=False),
    Index(None, "key", "published_at"),
    Index(None, "item_id"),
    sqlite_with_rowid=False,
)

# Keys that an item was once counted under and is no longer: scored again, it has another topic or other tickers.
retracted_keys = Table(
    "retracted_keys",
    metadata,
    Column("item_id", String(256), primary_key=True),
    Column("key", String(160), primary_key=True),
    Column("published_at", UtcTime, primary_key=True, index=True),
    sqlite_with_rowid=False,
)

charts = Table(
    "charts",
    metadata,
    Column("chart_id", String(256), primary_key=True),
    Column("item_id", String(256), nullable=False, index=True),
    Column("published_at", UtcTime, nullable=False, index=True),
    Column("tickers", Json, nullable=False),
    Column("media_type", String(32), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("image", LargeBinary, nullable=False),
)

awaited_charts = Table(
    "awaited_charts",
    metadata,
    Column("chart_id", String(256), primary_key=True),
    Column("item_id", String(256), primary_key=True),
    Column("published_at", UtcTime, nullable=False, index=True),
    sqlite_with_rowid=False,
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("code", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("failed_at", UtcTime, nullable=False, index=True),
    Column("replayed_at", UtcTime, nullable=True),
)

partitions = Table(
    "partitions",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    # Which log the offset belongs to: cluster and topic.
    Column("log", String(300), nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("watermark", BigInteger, nullable=False),
    Column("sources", Json, nullable=False),
    Column("source_count", Integer, nullable=False),
    Column("counted", BigInteger, nullable=False),
    Column("late", BigInteger, nullable=False),
    Column("stale", BigInteger, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

ticks = Table(
    "ticks",
    metadata,
    # By time: new ones come at the end, the judge reads minutes, and a key is sought minute by minute.
    Column("minute", Integer, primary_key=True, autoincrement=False),
    Column("key", String(160), primary_key=True),
    Column("stories", Integer, nullable=False),
    Column("negative_stories", Integer, nullable=False),
    Column("items", Integer, nullable=False),
    Column("negative_items", Integer, nullable=False),
    Column("score_sum", Float, nullable=False),
    Column("late", Integer, nullable=False),
    Column("positive_stories", Integer, nullable=False, default=0),
    sqlite_with_rowid=False,
)

rollups = Table(
    "rollups",
    metadata,
    # Sums of the ticks over `width` minutes (an hour, a day; under topics a quarter, too): `minute` is the first of
    # them. By time, as the ticks.
    Column("width", Integer, primary_key=True, autoincrement=False),
    Column("minute", Integer, primary_key=True, autoincrement=False),
    Column("key", String(160), primary_key=True),
    Column("stories", Integer, nullable=False),
    Column("negative_stories", Integer, nullable=False),
    Column("items", Integer, nullable=False),
    Column("negative_items", Integer, nullable=False),
    Column("score_sum", Float, nullable=False),
    Column("late", Integer, nullable=False),
    Column("positive_stories", Integer, nullable=False, default=0),
    sqlite_with_rowid=False,
)
# Which keys there are.
_days = rollups.c.width == literal_column("1440")
Index("ix_rollups_days", rollups.c.width, rollups.c.key, sqlite_where=_days, postgresql_where=_days)

ledger = Table(
    "ledger",
    metadata,
    # The pairs of key and item whose own minute is `minute` and that were counted in the minute `counted_in`.
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("minute", Integer, primary_key=True, autoincrement=False),
    Column("counted_in", Integer, primary_key=True, autoincrement=False),
    Column("pairs", LargeBinary, nullable=False),
    Index(None, "minute"),
)

waiting = Table(
    "waiting",
    metadata,
    # Contributions of the open minute `minute` that came with the records from `offset` on, in their order.
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("minute", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("contributions", LargeBinary, nullable=False),
)

stories = Table(
    "stories",
    metadata,
    # By time: new ones come at the end, and pages ask for some hours of a key. A story's title and address are those
    # of its first item; `sign` is -1 of a negative one, 1 of a positive, else 0; `copies` are the sources and ids of
    # its items, JSON's null while the first is alone.
    Column("minute", Integer, primary_key=True, autoincrement=False),
    Column("key", String(160), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("items", Integer, nullable=False),
    Column("sign", Integer, nullable=False),
    Column("p_negative", Float, nullable=False),
    Column("score", Float, nullable=False),
    Column("item_id", String(256), nullable=False),
    Column("source", Text, nullable=False),
    Column("copies", Json, nullable=False),
    sqlite_with_rowid=False,
)

open_stories = Table(
    "open_stories",
    metadata,
    # What one transaction of a partition opened or kept open (`monitor.open_stories.OpenRows`), the newest event time
    # among them, and the order in which to read them.
    Column("id", RowNumber, primary_key=True),
    Column("partition", Integer, nullable=False),
    Column("newest", BigInteger, nullable=False),
    Column("stories", LargeBinary, nullable=False),
    Index(None, "partition", "newest"),
)

judge = Table(
    "judge",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("judged_to", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("lease_holder", String(128), nullable=False),
    Column("lease_until", UtcTime, nullable=False),
    Column("snapshot", LargeBinary, nullable=True),
    Column("snapshot_minute", Integer, nullable=True),
)

# The judges of the other sorts of surge that rules watch: how far each has judged. None of a sort: nobody watches it.
watchers = Table(
    "watchers",
    metadata,
    Column("surge", String(16), primary_key=True),
    Column("judged_to", Integer, nullable=False),
    Column("snapshot", LargeBinary, nullable=True),
    Column("snapshot_minute", Integer, nullable=True),
)

episodes = Table(
    "episodes",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("rule", String(128), nullable=False),
    Column("key", String(160), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("severity", String(16), nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("fired_at", UtcTime, nullable=False, index=True),
    Column("resolved_at", UtcTime, nullable=True),
    Column("acknowledged_at", UtcTime, nullable=True),
    Column("acknowledged_by", String(128), nullable=True),
    Column("evidence", Json, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Index(None, "key", "started_at"),
)

pending = Table(
    "pending",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("rule", String(128), nullable=False),
    Column("surge", String(16), nullable=False),
    Column("key", String(160), nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("score", Float, nullable=False),
    Column("bar", Float, nullable=False),
    Column("window_minutes", Integer, nullable=False),
    Column("ended_at", UtcTime, nullable=True),
    Index(None, "rule", "ended_at"),
)

alert_events = Table(
    "alert_events",
    metadata,
    Column("id", RowNumber, primary_key=True),
    Column("episode_id", String(128), nullable=False, index=True),
    Column("at", UtcTime, nullable=False),
    Column("event", String(32), nullable=False),
    Column("actor", String(160), nullable=False),
    Column("detail", Json, nullable=False),
    Index(None, "actor", "at"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", RowNumber, primary_key=True),
    Column("episode_id", String(128), nullable=False),
    Column("event", String(32), nullable=False),
    Column("payload", Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("published_at", UtcTime, nullable=True),
    Column("routed_at", UtcTime, nullable=True),
    Column("publisher", String(128), nullable=True),
    Column("publisher_until", UtcTime, nullable=True),
    UniqueConstraint("episode_id", "event"),
)
# Asked every second whether anything waits: that must not read all that was ever announced.
for _column in (outbox.c.published_at, outbox.c.routed_at):
    _waits = _column.is_(None)
    Index(f"ix_outbox_waits_{_column.name}", outbox.c.id, sqlite_where=_waits, postgresql_where=_waits)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("episode_id", String(128), nullable=False, index=True),
    Column("event", String(32), nullable=False),
    Column("receiver", String(128), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", UtcTime, nullable=True),
    Column("lease_holder", String(128), nullable=True),
    Column("lease_until", UtcTime, nullable=True),
    Column("digest_id", String(64), nullable=True, index=True),
    Column("group_key", String(256), nullable=False),
    Column("last_status", Integer, nullable=True),
    Column("last_error", Text, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Column("delivered_at", UtcTime, nullable=True),
    Column("released_at", UtcTime, nullable=True),
    Index(None, "state", "next_attempt_at"),
    Index(None, "receiver", "position"),
)

receivers = Table(
    "receivers",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("definition", Json, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", Text, nullable=True),
    Column("updated_at", UtcTime, nullable=False),
    Column("quiet_until", UtcTime, nullable=True),
)

rules = Table(
    "rules",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("origin", String(16), nullable=False),
    Column("definition", Json, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("muted_until", UtcTime, nullable=True),
    Column("author", String(128), nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

silences = Table(
    "silences",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("matcher", Json, nullable=False),
    Column("starts_at", UtcTime, nullable=False),
    Column("ends_at", UtcTime, nullable=False),
    Column("comment", Text, nullable=False),
    Column("author", String(128), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", RowNumber, primary_key=True),
    Column("at", UtcTime, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("subject", String(160), nullable=False, index=True),
    Column("event", String(32), nullable=False),
    Column("detail", Json, nullable=False),
)

labels = Table(
    "labels",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("item_id", String(256), nullable=True, index=True),
    Column("text", Text, nullable=False),
    Column("sentiment", String(16), nullable=True),
    Column("topic", String(128), nullable=True),
    Column("entities", Json, nullable=False),
    Column("author", String(128), nullable=False),
    Column("comment", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False, index=True),
)

models = Table(
    "models",
    metadata,
    Column("version", String(128), primary_key=True),
    Column("path", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("parent", String(128), nullable=True),
    Column("metrics", Json, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

model_promotions = Table(
    "model_promotions",
    metadata,
    Column("id", RowNumber, primary_key=True),
    Column("version", String(128), nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("reason", Text, nullable=False),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("id", RowNumber, primary_key=True),
    Column("job", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime, nullable=True),
    Column("process", String(128), nullable=False),
    Column("heartbeat_at", UtcTime, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("result", Json, nullable=True),
    Column("error", Text, nullable=True),
)
