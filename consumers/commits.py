"""Committing what is stored and sent, with the event time that it reached, without waiting for the broker."""

from __future__ import annotations

from typing import Final

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition

from consumers.intake import Intake
from consumers.progress import Mark
from monitor.telemetry import get_logger

__all__ = ["Commits", "time_in"]

log = get_logger(__name__)

TIMEOUT_S: Final = 5.0
AT: Final = "at="

Offsets = dict[TopicPartition, OffsetAndMetadata]


class Commits:
    """What of the partitions of one worker is committed.

    `marks` say what may be: set as a whole, on any thread, once all that is done is sent.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.marks: dict[str, Mark] = {}
        self._committed: dict[TopicPartition, tuple[int, int]] = {}
        self._sent_at: float | None = None

    def assigned(self, partition: TopicPartition, position: int, at: int) -> None:
        """This much is committed already."""
        self._committed[partition] = (position, at)

    def forget(self) -> None:
        """The partitions are being handed out anew."""
        self._committed.clear()

    def send(self, client: KafkaConsumer, now: float) -> None:
        """Commit what is new, unless an earlier commit is still on its way. `now` on the monotonic clock.

        After a rebalance it is read again instead, after an outage tried again.
        """
        if self._sent_at is not None and now - self._sent_at < TIMEOUT_S:
            return
        offsets = self._new(client)
        if not offsets:
            return
        self._sent_at = now
        try:
            client.commit_async(offsets, self._answered)
        except KafkaError as error:
            self._answered(offsets, error)

    def finish(self, client: KafkaConsumer) -> None:
        """Commit what is new and wait for it."""
        offsets = self._new(client)
        if offsets:
            try:
                client.commit(offsets, round(TIMEOUT_S * 1000))
            except KafkaError as error:
                _failed(error)

    def _new(self, client: KafkaConsumer) -> Offsets:
        offsets = {}
        marks, partitions = self.marks, self._intake.sources.partitions
        for partition in client.assignment():
            name = self._intake.source(partition)
            mark = marks.get(name)
            # Of a partition that was assigned anew the mark says nothing.
            if mark is None or mark.of is not partitions.get(name):
                continue
            if self._committed.get(partition) != (mark.position, mark.at):
                offsets[partition] = OffsetAndMetadata(mark.position, f"{AT}{mark.at}", -1)
        return offsets

    def _answered(self, offsets: Offsets, answer: object) -> None:
        self._sent_at = None
        if isinstance(answer, Exception):
            _failed(answer)
        else:
            self._committed |= {tp: (given.offset, time_in(given.metadata)) for tp, given in offsets.items()}


def time_in(metadata: str) -> int:
    """Event time that a former owner of the partition reached: it travels with the committed offset."""
    text = metadata.removeprefix(AT)
    return int(text) if metadata.startswith(AT) and text.isdecimal() else 0


def _failed(error: Exception) -> None:
    log.warning("offsets not committed, the records may be read again", error=str(error))
