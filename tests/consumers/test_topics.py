"""How topics are made."""

from __future__ import annotations

import pytest

from consumers.topics import DEAD_LETTERS, topic_specs
from monitor.settings import Settings

DAY_MS = 86_400_000


@pytest.mark.parametrize("days", [0.5, 90.0, 1e9])
def test_dead_letters_lie_on_the_topic_at_least_as_long_as_they_are_listed(days: float) -> None:
    specs = {spec.name: spec for spec in topic_specs(Settings(retention_items_days=days))}
    kept_ms = int(specs[DEAD_LETTERS].configs["retention.ms"])
    assert min(days, 100 * 365) * DAY_MS < kept_ms < 2**63
