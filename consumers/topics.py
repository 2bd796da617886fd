"""The topics: what they are called, how they are made, how many partitions they have."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from kafka import KafkaAdminClient
from kafka.errors import InvalidReplicationFactorError, TopicAlreadyExistsError

from consumers.clients import LARGEST_RECORD_BYTES, admin, broker_errors
from monitor.errors import BrokerError
from monitor.settings import Settings
from monitor.telemetry import get_logger

__all__ = [
    "ALERTS",
    "CHARTS",
    "CONTRIBUTIONS",
    "DEAD_LETTERS",
    "NEWS",
    "SCORED",
    "TopicSpec",
    "ensure_topics",
    "partition_counts",
    "topic_specs",
]

log = get_logger(__name__)

NEWS: Final = "news"
CHARTS: Final = "charts"
SCORED: Final = "scored"
CONTRIBUTIONS: Final = "contributions"
DEAD_LETTERS: Final = "dead-letters"
ALERTS: Final = "alerts"

READY_TIMEOUT_S: Final = 30.0
DAY_MS: Final = 86_400_000
# A thousand years.
LONGEST_RETENTION_MS: Final = 365_000 * DAY_MS


@dataclass(frozen=True)
class TopicSpec:
    """How a topic is created when it is missing. `name` is without prefix, `configs` are Kafka topic settings."""

    name: str
    partitions: int
    configs: Mapping[str, str] = field(default_factory=dict)


def topic_specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """All topics of the product.

    An image somewhat over the limit still fits into `charts`, so that it ends as a dead letter with a reason instead
    of an error at its sender. Alerts and dead letters are few, and one partition keeps them in order. Dead letters lie
    there as long as the store lists them, and a day more: its old rows go once a day.
    """
    count = settings.kafka_partitions
    image = {"max.message.bytes": str(2 * settings.max_chart_bytes + (1 << 20))}
    batch = {"max.message.bytes": str(LARGEST_RECORD_BYTES)}
    listed_ms = min((settings.retention_items_days + 1) * DAY_MS, float(LONGEST_RETENTION_MS))
    return (
        TopicSpec(NEWS, count, {"max.message.bytes": str(2 << 20)}),
        TopicSpec(CHARTS, count, image),
        TopicSpec(SCORED, count, {"max.message.bytes": str(2 << 20)}),
        TopicSpec(CONTRIBUTIONS, count, batch),
        TopicSpec(DEAD_LETTERS, 1, {**image, "retention.ms": str(int(listed_ms))}),
        TopicSpec(ALERTS, 1),
    )


def partition_counts(settings: Settings) -> dict[str, int]:
    """Partitions of the product's topics that exist on the cluster, by name without prefix. Raises `BrokerError`."""
    client = admin(settings)
    try:
        return _counts(settings, client)
    finally:
        client.close()


def _counts(settings: Settings, client: KafkaAdminClient) -> dict[str, int]:
    names = {settings.topic(spec.name): spec.name for spec in topic_specs(settings)}
    with broker_errors(settings):
        described = client.describe_topics(list(names))
    return {
        names[topic["name"]]: len(topic["partitions"])
        for topic in described
        if topic["error_code"] == 0 and topic["partitions"]
    }


def ensure_topics(settings: Settings) -> dict[str, int]:
    """Create the topics that are missing, wait until all can be used; returns their partition counts.

    Topics that exist are left as they are: their number of partitions is the cluster's, not the setting's. Processes
    that start together may all call it. Raises `BrokerError` when the cluster cannot be reached or refuses, and when
    `news` and `charts` differ in their number of partitions (an item and its chart could not meet then).
    """
    client = admin(settings)
    try:
        counts = _counts(settings, client)
        missing = [spec for spec in topic_specs(settings) if spec.name not in counts]
        for spec in missing:
            _create(settings, client, spec)
        if missing:
            counts = _wait(settings, client)
    finally:
        client.close()
    if counts[NEWS] != counts[CHARTS]:
        raise BrokerError(
            f"The topics {settings.topic(NEWS)} and {settings.topic(CHARTS)} have {counts[NEWS]} and "
            f"{counts[CHARTS]} partitions, but need the same number.",
            "Add partitions to the smaller one, or use another topic_prefix.",
        )
    return counts


def _create(settings: Settings, client: KafkaAdminClient, spec: TopicSpec) -> None:
    options = {
        "num_partitions": spec.partitions,
        "replication_factor": settings.kafka_replication_factor,
        "configs": dict(spec.configs),
    }
    with broker_errors(settings):
        try:
            client.create_topics({settings.topic(spec.name): options})
            log.info("topic created", topic=settings.topic(spec.name), partitions=spec.partitions)
        except TopicAlreadyExistsError:
            log.debug("another process was faster to create it", topic=settings.topic(spec.name))
        except InvalidReplicationFactorError as error:
            raise BrokerError(
                f"The Kafka cluster cannot keep {settings.kafka_replication_factor} copies of a topic.",
                "Lower kafka_replication_factor to its number of brokers.",
            ) from error


def _wait(settings: Settings, client: KafkaAdminClient) -> dict[str, int]:
    """Until every topic has a leader in each partition: a cluster makes topics known some time after it made them."""
    names = [settings.topic(spec.name) for spec in topic_specs(settings)]
    deadline = time.monotonic() + READY_TIMEOUT_S
    with broker_errors(settings):
        while True:
            # A node that has not heard of a topic yet says so: ask until all are there, by one and the same answer.
            counts = _counts(settings, client)
            if len(counts) == len(names):
                client.wait_for_topics(names, timeout_ms=READY_TIMEOUT_S * 1000)
                return counts
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"The topics did not become ready within {READY_TIMEOUT_S:g} s.",
                    "Look at the Kafka cluster's logs.",
                )
            time.sleep(0.1)
