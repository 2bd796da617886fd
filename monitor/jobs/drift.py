"""Has what the model says changed? Population stability index of the last day against the week before it.

PSI = sum over bins of (p - q) ln(p / q), the symmetrised Kullback-Leibler divergence (Siddiqi 2006); below .1 is
taken for stable, above .25 for a shift. Watched are the probability of negative sentiment, the confidence (largest
probability) and the mix of topics. "Now" is the newest item's event time, so that a replay is judged like a live feed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from monitor.jobs.catalogue import Cancelled, Progress
from monitor.jobs.retention import newest_event
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading
from monitor.storage.tables import items

__all__ = ["MIN_RECENT", "MIN_REFERENCE", "measure_drift", "population_stability_index", "run"]

RECENT: Final = timedelta(days=1)
REFERENCE: Final = timedelta(days=7)
MIN_RECENT: Final = 100
MIN_REFERENCE: Final = 300
BINS: Final = 10
STABLE_BELOW: Final = 0.1
SHIFTED_FROM: Final = 0.25
_CHUNK: Final = 5_000

Counts = NDArray[np.float64]


def population_stability_index(recent: Counts, reference: Counts) -> float:
    """PSI of two histograms over the same bins; half a count is added to every bin, so that an empty one is no
    infinity."""
    p, q = np.asarray(recent, dtype=np.float64) + 0.5, np.asarray(reference, dtype=np.float64) + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


class _Sample:
    """Histograms of the items of one span of time."""

    def __init__(self) -> None:
        self.items = 0
        self.p_negative = np.zeros(BINS)
        self.confidence = np.zeros(BINS)
        self.topics: dict[str, int] = {}
        self.versions: dict[str, int] = {}

    def add(self, negative: Counts, confidence: Counts, topics: list[str], versions: list[str]) -> None:
        """Count some items."""
        self.items += len(topics)
        self.p_negative += np.histogram(negative, BINS, (0.0, 1.0))[0]
        # Of three classes the largest probability is never below a third.
        self.confidence += np.histogram(confidence, BINS, (1 / 3, 1.0))[0]
        for counts, names in ((self.topics, topics), (self.versions, versions)):
            for name in names:
                counts[name] = counts.get(name, 0) + 1


def _sample(connection: Connection, start: datetime, stop: datetime, cancelled: Cancelled) -> _Sample:
    sample = _Sample()
    query = select(
        items.c.p_negative, items.c.p_neutral, items.c.p_positive, items.c.topic, items.c.model_version
    ).where(items.c.published_at >= start, items.c.published_at < stop)
    for chunk in connection.execution_options(yield_per=_CHUNK).execute(query).partitions(_CHUNK):
        if cancelled():
            break
        p = np.array([row[:3] for row in chunk], dtype=np.float64)
        sample.add(p[:, 0], p.max(axis=1), [row[3] for row in chunk], [row[4] for row in chunk])
    return sample


def _verdict(worst: float) -> str:
    return "stable" if worst < STABLE_BELOW else "moderate" if worst < SHIFTED_FROM else "shifted"


def measure_drift(connection: Connection, clock: datetime, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    """PSI of `p_negative`, `confidence` and `topic`, the verdict, and the topics whose share changed the most.

    The verdict is `too_few_items` when either span holds too few to tell.
    """
    now = newest_event(connection, clock)
    edge = now - RECENT
    progress(0, 2, "the last day")
    # The newest item itself belongs to the last day.
    recent = _sample(connection, edge, now + timedelta(milliseconds=1), cancelled)
    progress(1, 2, "the week before")
    reference = _sample(connection, edge - REFERENCE, edge, cancelled)
    progress(2, 2, "done")
    result: dict[str, Any] = {
        "now": now.isoformat(),
        "recent_items": recent.items,
        "reference_items": reference.items,
        "model_versions": sorted(set(recent.versions) | set(reference.versions)),
    }
    if recent.items < MIN_RECENT or reference.items < MIN_REFERENCE:
        return result | {"verdict": "too_few_items", "needed": {"recent": MIN_RECENT, "reference": MIN_REFERENCE}}
    topics = sorted(set(recent.topics) | set(reference.topics))
    mix = [
        np.array([counts.get(t, 0) for t in topics], dtype=np.float64) for counts in (recent.topics, reference.topics)
    ]
    psi = {
        "p_negative": population_stability_index(recent.p_negative, reference.p_negative),
        "confidence": population_stability_index(recent.confidence, reference.confidence),
        "topic": population_stability_index(*mix),
    }
    change = mix[0] / mix[0].sum() - mix[1] / mix[1].sum()
    order = np.argsort(-np.abs(change))[:5]
    return result | {
        "psi": psi,
        "verdict": _verdict(max(psi.values())),
        "topic_changes": {topics[i]: float(change[i]) for i in order},
    }


def run(settings: Settings, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    """The job: returns what `measure_drift` found."""
    engine = open_engine(settings.database)
    try:
        with reading(engine) as connection:
            return measure_drift(connection, datetime.now(UTC), progress, cancelled)
    finally:
        engine.dispose()
