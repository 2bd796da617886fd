"""Rows for tests of the store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

AT = datetime(2026, 3, 2, 14, 0, tzinfo=UTC)


def tick_row(key: str, minute: int, **counts: Any) -> dict[str, Any]:
    """A row of `ticks`; what is not given is 0."""
    zero = {"stories": 0, "negative_stories": 0, "items": 0, "negative_items": 0, "score_sum": 0.0, "late": 0}
    return {"key": key, "minute": minute} | zero | counts
