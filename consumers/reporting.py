"""How far the worker's partitions are: seen by the thread that polls, told to the aggregators by the one that sends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from consumers import worker_metrics as metrics
from consumers.intake import Intake
from consumers.publisher import Outgoing, Publisher, contribution_records
from consumers.topics import CHARTS, CONTRIBUTIONS, NEWS
from monitor.records import Contribution, SourceWatermark

__all__ = ["Reporting"]

# What was seen to be read to its end counts as that for so long: the polling thread may be held up.
SIGHT_S: Final = 1.0


class Reporting:
    """Progress of the partitions in `intake`, sent by `publisher` along with what was scored, or by itself.

    `look`, `polled` and `forget` belong to the polling thread, `send` and `tell` to the storing one.
    """

    def __init__(self, intake: Intake, publisher: Publisher) -> None:
        self._intake = intake
        self._publisher = publisher
        # Partitions of each topic.
        self.counts: Mapping[str, int] = {}
        # Sources that are read to their end. Told by one thread, looked at by the other: exchanged as a whole; when it
        # was seen is noted last.
        self.at_end: frozenset[str] = frozenset()
        self._looked_at = 0.0
        self._due = False
        self._told: tuple[SourceWatermark, ...] = ()
        # Offset behind the last record that was polled.
        self._polled: dict[TopicPartition, int] = {}
        self._connections: Any = None

    def polled(self, partition: TopicPartition, behind: int) -> None:
        """Records up to the offset `behind` have come."""
        self._polled[partition] = behind

    def forget(self) -> None:
        """All partitions were taken away."""
        self.at_end = frozenset()
        self._polled.clear()
        self._told = ()

    def look(self, client: KafkaConsumer, now: float, *, fetching: bool) -> None:
        """See how far the partitions are, for the storing thread to tell the aggregators when that has changed."""
        at_end = set()
        # While no broker is connected nothing can be seen to come: quiet begins when one is there again.
        fetching = fetching and self._connected(client)
        paused = client.paused()
        for partition in client.assignment():
            name = self._intake.source(partition)
            progress = self._intake.sources.partitions.get(name)
            end = client.highwater(partition)
            if progress is None or end is None:
                continue
            if not fetching or partition in paused:
                self._intake.sources.active(name, now)
            elif progress.pending == 0:
                position = self._position(client, partition, end)
                if position is not None and position >= end:
                    progress.skip_to(position)
                    at_end.add(name)
            elif self._polled.get(partition, 0) >= end:
                at_end.add(name)
            metrics.LAG.labels(name).set(max(0, end - (progress.position if progress.position is not None else 0)))
        self.at_end = frozenset(at_end)
        self._looked_at = now
        self._due = True

    def tell(self) -> None:
        """Send how far the partitions are, if they were looked at and it has changed."""
        if not self._due:
            return
        self._due = False
        if not self._intake.disowned.is_set() and self._progress() != self._told:
            self.send([], [])

    def send(self, records: Iterable[Outgoing], contributions: Iterable[Contribution]) -> None:
        """Send what was scored and how far it brings the partitions; returns when the broker has it.

        Raises `BrokerError` after a long outage.
        """
        self._told = self._progress()
        count = self.counts[NEWS] + self.counts[CHARTS]
        self._publisher.send(
            [*records, *contribution_records(contributions, self._told, count, self.counts[CONTRIBUTIONS])]
        )

    def _progress(self) -> tuple[SourceWatermark, ...]:
        """How far the partitions are. Whether they are quiet is told of what was seen just now only, and nothing at all
        of partitions that are being taken away."""
        if self._intake.disowned.is_set():
            return ()
        now = time.monotonic()
        # Looked at in this order, as the polling thread writes them the other way round.
        fresh = now - self._looked_at < SIGHT_S
        return self._intake.sources.watermarks(self.at_end if fresh else frozenset(), now)

    def _position(self, client: KafkaConsumer, partition: TopicPartition, end: int) -> int | None:
        """Offset of what is read next: what was polled last tells it, unless nothing that can be read comes after."""
        polled = self._polled.get(partition)
        if polled is not None and polled >= end:
            return polled
        with suppress(KafkaError):
            position: int | None = client.position(partition, timeout_ms=100)
            return position
        return None

    def _connected(self, client: KafkaConsumer) -> bool:
        """Some broker is connected. All of the client's metrics take long to evaluate; one does not."""
        if self._connections is None:
            wanted = ("consumer-metrics", "connection-count")
            found = client.metrics(raw=True)
            self._connections = next(metric for name, metric in found.items() if (name.group, name.name) == wanted)
        return bool(self._connections.value() > 0)
