"""Prometheus metrics of the aggregator."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["CONTRIBUTIONS", "COUNTING_SECONDS", "JUDGED_TO", "RECORDS", "WATERMARK"]

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

RECORDS: Final = Counter(
    "sentiment_aggregator_records_total",
    "Records of contributions, by outcome: counted, skipped (counted before), refused.",
    ["outcome"],
)
CONTRIBUTIONS: Final = Counter(
    "sentiment_aggregator_contributions_total",
    "Contributions counted; of these late (in a later minute), stale (in none) and duplicate (counted before).",
    ["kind"],
)
COUNTING_SECONDS: Final = Histogram(
    "sentiment_aggregator_counting_seconds", "Counting and storing a batch of records, seconds.", buckets=_SECONDS
)
WATERMARK: Final = Gauge(
    "sentiment_aggregator_watermark_seconds", "Event time before which all is counted, by partition.", ["partition"]
)
JUDGED_TO: Final = Gauge("sentiment_aggregator_judged_to_seconds", "End of the last minute judged by this process.")
