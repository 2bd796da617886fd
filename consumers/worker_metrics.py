"""Prometheus metrics of the scoring worker."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["DEAD_LETTERS", "HELD", "LAG", "POLLED", "RETRIES", "SCORED", "SCORING_SECONDS", "STORING_SECONDS"]

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

POLLED: Final = Counter("sentiment_worker_polled_records_total", "Records read, by topic.", ["topic"])
SCORED: Final = Counter("sentiment_worker_scored_items_total", "Items scored and stored, by modality.", ["modality"])
DEAD_LETTERS: Final = Counter("sentiment_worker_dead_letters_total", "Records refused, by code.", ["code"])
RETRIES: Final = Counter("sentiment_worker_retries_total", "Attempts that an outage made fail.", ["target"])
SCORING_SECONDS: Final = Histogram(
    "sentiment_worker_scoring_seconds", "From handing over a batch to its scores, seconds.", buckets=_SECONDS
)
STORING_SECONDS: Final = Histogram(
    "sentiment_worker_storing_seconds", "Storing and sending a batch, seconds.", buckets=_SECONDS
)
HELD: Final = Gauge("sentiment_worker_held_records", "Items and charts that wait for each other.")
LAG: Final = Gauge("sentiment_worker_lag_records", "Records that are not done yet, by input partition.", ["source"])
