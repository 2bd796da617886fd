"""Decisions, stories and stores that the tests of alerts are made of."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, Engine

from monitor.alerts.records import Alert, AlertState, AlertWindow
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.storage.tables import items, stories, ticks
from monitor.storage.upsert import upsert
from monitor.surges.decisions import Decision

AT = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
DASHBOARD = "http://127.0.0.1:8501"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@cache
def _migrated() -> bytes:
    """A migrated SQLite file: migrating takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "monitor.db"
        engine = open_engine(f"sqlite:///{file}")
        upgrade(engine)
        # The last connection to close writes the log back into the file.
        engine.dispose()
        return file.read_bytes()


def new_store(folder: Path) -> Engine:
    """A migrated, empty SQLite store in a folder."""
    file = folder / "monitor.db"
    file.write_bytes(_migrated())
    return open_engine(f"sqlite:///{file}")


def an_alert() -> Alert:
    return Alert(
        id="a-1",
        state=AlertState.FIRING,
        rule="negative-surge",
        key="ticker:AAPL",
        title="AAPL",
        severity="warning",
        window=AlertWindow(minutes=15, start=AT - timedelta(minutes=15), end=AT),
        observed=12,
        expected=1.5,
        total=20,
        share=0.6,
        expected_share=0.2,
        p_value=1e-6,
        sources=7,
        stories=(),
        model_version="v1",
        started_at=AT - timedelta(minutes=5),
        fired_at=AT,
        link="http://127.0.0.1:8501/?alert=a-1",
    )


def decision(action: str = "fire", key: str = "ticker:AAPL", **changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "action": action,
        "episode_id": f"negative-surge-{key}-1",
        "rule": "negative-surge",
        "key": key,
        "at": AT,
        "started_at": AT - timedelta(minutes=5),
        "fired_at": AT,
        "window_minutes": 15,
        "observed": 12,
        "expected": 1.5,
        "stories": 20,
        "share": 0.6,
        "expected_share": 0.2,
        "p_value": 1e-6,
        "score": 6.0,
        "severity": "warning",
    }
    return Decision(**(fields | changes))


def put_story(
    conn: Connection,
    key: str,
    number: int,
    *,
    at: datetime = AT - timedelta(minutes=3),
    sources: Sequence[str] = (),
    title: str = "",
    url: str = "",
    model_version: str = "v1",
    **changes: Any,
) -> None:
    """A story under a key, and its first item."""
    ms = (at - _EPOCH) // timedelta(milliseconds=1)
    row: dict[str, Any] = {
        "minute": ms // 60_000,
        "key": key,
        "id": f"{key}-{number}",
        "first_at": ms,
        "last_at": ms,
        "items": 1,
        "sign": -1,
        "p_negative": 0.9,
        "score": -0.85,
        "item_id": f"item-{number}",
        "source": f"source-{number}",
        "copies": {"sources": list(sources), "item_ids": []} if sources else JSON.NULL,
    } | changes
    conn.execute(stories.insert().values(**row))
    counts = dict.fromkeys(("stories", "negative_stories", "items", "negative_items", "score_sum", "late"), 1)
    upsert(conn, ticks, [{"key": key, "minute": ms // 60_000, **counts}], add=list(counts))
    item = {
        "id": row["item_id"],
        "published_at": AT,
        "source": row["source"],
        "url": url or f"https://news.example/{number}",
        "title": title or f"Headline {number}",
        "body": "",
        "lang": "en",
        "kind": "news",
        "tickers": [],
        "chart_ids": [],
        "sentiment": "negative",
        "p_negative": 0.9,
        "p_neutral": 0.05,
        "p_positive": 0.05,
        "topic": "earnings",
        "topic_probabilities": {},
        "entities": [],
        "chart": None,
        "modality": "text",
        "flags": [],
        "rules": [],
        "model_version": model_version,
        "scored_at": AT,
    }
    upsert(conn, items, [item])
