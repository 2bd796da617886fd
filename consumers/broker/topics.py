"""The broker's topics: making, deleting, growing and configuring them; their partitions' logs; retention."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumers.broker.log import SEGMENT_BYTES, PartitionLog
from consumers.broker.store import MetadataStore, StoredTopic, TopicPartition
from consumers.broker.wire import ErrorCode
from monitor.telemetry import get_logger

__all__ = ["RefusedError", "Retention", "Topic", "Topics"]

log = get_logger(__name__)

MAX_NAME: Final = 249
MAX_PARTITIONS: Final = 1000
_NAME: Final = re.compile(r"[a-zA-Z0-9._-]+")
_DELETED: Final = ".deleted"
_SMALLEST_SEGMENT: Final = 64 << 10
# Settings that have an effect. All others of Apache Kafka are accepted and shown, so that programs written for a
# cluster work, but change nothing here.
_NUMBERS: Final = {"max.message.bytes": 0, "retention.bytes": -1, "retention.ms": -1, "segment.bytes": 14}


class RefusedError(Exception):
    """A request about topics that cannot be granted; the code and sentence go to the client."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Retention:
    """How much of a partition is kept where its topic does not say otherwise."""

    max_bytes: int
    max_age_s: float


@dataclass
class Topic:
    """A topic with the logs of its partitions."""

    stored: StoredTopic
    logs: list[PartitionLog]
    defaults: Mapping[str, str]

    @property
    def configs(self) -> dict[str, str]:
        """Settings in force."""
        return {**self.defaults, **self.stored.configs}

    def number(self, name: str) -> int:
        """A numeric setting in force."""
        return int(self.configs[name])


class Topics:
    """All topics below `folder`. Raises `RefusedError` for what a client may not do, `OSError` for the disk."""

    def __init__(self, folder: Path, store: MetadataStore, retention: Retention, default_partitions: int) -> None:
        self._folder = folder
        self._store = store
        self._default_partitions = default_partitions
        self._topics: dict[str, Topic] = {}
        self.defaults: Mapping[str, str] = {
            "cleanup.policy": "delete",
            "max.message.bytes": str((1 << 20) + 12),
            "message.timestamp.type": "CreateTime",
            "min.insync.replicas": "1",
            "retention.bytes": str(retention.max_bytes),
            "retention.ms": str(int(retention.max_age_s * 1000)),
            # Retention drops whole segments, so they have to be small against what is kept.
            "segment.bytes": str(min(SEGMENT_BYTES, max(_SMALLEST_SEGMENT, retention.max_bytes // 8))),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob(f"*{_DELETED}"):
            shutil.rmtree(rest, ignore_errors=True)
        starts = store.log_starts()
        for stored in store.topics():
            self._open(stored, starts)

    def _open(self, stored: StoredTopic, starts: Mapping[TopicPartition, int]) -> Topic:
        topic = Topic(stored, [], self.defaults)
        for partition in range(stored.partitions):
            self._open_log(topic, partition, starts.get(TopicPartition(stored.name, partition), 0))
        self._topics[stored.name] = topic
        return topic

    def _open_log(self, topic: Topic, partition: int, start: int = 0) -> None:
        folder = self._folder / f"{topic.stored.name}-{partition}"
        topic.logs.append(PartitionLog(folder, start_offset=start, segment_bytes=topic.number("segment.bytes")))

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._topics.values())

    def get(self, name: str) -> Topic | None:
        """A topic by name."""
        return self._topics.get(name)

    def log(self, name: str, partition: int) -> PartitionLog | None:
        """A partition's log."""
        topic = self._topics.get(name)
        return topic.logs[partition] if topic and 0 <= partition < len(topic.logs) else None

    def check_new(self, name: str, partitions: int, replication: int, configs: Mapping[str, str]) -> int:
        """Whether a topic could be made; returns its number of partitions (-1 stands for the broker's default)."""
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME or name in (".", ".."):
            raise RefusedError(ErrorCode.INVALID_TOPIC, "A name has 1 to 249 letters, digits, '.', '_' or '-'.")
        if name in self._topics:
            raise RefusedError(ErrorCode.TOPIC_ALREADY_EXISTS, f"The topic {name} exists already.")
        count = self._default_partitions if partitions == -1 else partitions
        if not 1 <= count <= MAX_PARTITIONS:
            raise RefusedError(ErrorCode.INVALID_PARTITIONS, f"A topic has 1 to {MAX_PARTITIONS} partitions.")
        if replication not in (-1, 1):
            raise RefusedError(ErrorCode.INVALID_REPLICATION_FACTOR, "The embedded broker is a single node: 1 copy.")
        self._check_configs(configs)
        return count

    @staticmethod
    def _check_configs(configs: Mapping[str, str]) -> None:
        for name, least in _NUMBERS.items():
            value = configs.get(name)
            if value is not None and not (re.fullmatch(r"-?\d{1,18}", value) and int(value) >= least):
                raise RefusedError(ErrorCode.INVALID_CONFIG, f"{name} must be a whole number of {least} or more.")

    def create(self, name: str, partitions: int = -1, replication: int = -1, configs: Mapping[str, str] = {}) -> Topic:
        """Make a topic."""
        count = self.check_new(name, partitions, replication, configs)
        stored = StoredTopic(name, count, dict(configs))
        topic = self._open(stored, {})
        self._store.save_topic(stored)
        return topic

    def delete(self, name: str) -> None:
        """Delete a topic with its records."""
        topic = self._topics.pop(name, None)
        if topic is None:
            raise RefusedError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"There is no topic {name}.")
        for partition in topic.logs:
            partition.close()
            grave = partition.folder.with_name(f"{uuid.uuid4().hex}{_DELETED}")
            partition.folder.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
        self._store.delete_topic(name)

    def grow(self, name: str, partitions: int, *, validate_only: bool) -> None:
        """Give a topic more partitions."""
        topic = self._topics.get(name)
        if topic is None:
            raise RefusedError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"There is no topic {name}.")
        if not len(topic.logs) < partitions <= MAX_PARTITIONS:
            raise RefusedError(ErrorCode.INVALID_PARTITIONS, f"The topic has {len(topic.logs)} partitions already.")
        if validate_only:
            return
        for partition in range(len(topic.logs), partitions):
            self._open_log(topic, partition)
        topic.stored.partitions = partitions
        self._store.save_topic(topic.stored)

    def configure(self, name: str, changes: Mapping[str, str | None], *, validate_only: bool) -> None:
        """Change settings of a topic; None puts one back to the broker's."""
        topic = self._topics.get(name)
        if topic is None:
            raise RefusedError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"There is no topic {name}.")
        configs = {key: value for key, value in {**topic.stored.configs, **changes}.items() if value is not None}
        self._check_configs(configs)
        if not validate_only:
            topic.stored.configs = configs
            self._store.save_topic(topic.stored)

    def delete_records(self, name: str, partition: int, before: int) -> int:
        """Forget records below an offset; returns the partition's new start. Raises `OffsetOutOfRangeError` too."""
        found = self.log(name, partition)
        if found is None:
            raise RefusedError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"There is no partition {name}-{partition}.")
        start = found.delete_before(before)
        self._store.save_log_start(TopicPartition(name, partition), start)
        return start

    def retain(self) -> None:
        """Drop what retention does not keep."""
        for topic in self:
            for partition, found in enumerate(topic.logs):
                size, age_ms = topic.number("retention.bytes"), topic.number("retention.ms")
                freed = found.retain(size if size >= 0 else 1 << 62, age_ms / 1000 if age_ms >= 0 else float("inf"))
                if freed:
                    self._store.save_log_start(TopicPartition(topic.stored.name, partition), found.start_offset)
                    log.info("retention", topic=topic.stored.name, partition=partition, freed_bytes=freed)

    def take_unsynced(self) -> list[int]:
        """File descriptors to fsync and close."""
        return [fd for topic in self for found in topic.logs if (fd := found.take_unsynced()) is not None]

    def close(self) -> None:
        """Close all logs."""
        for topic in self:
            for found in topic.logs:
                found.close()
