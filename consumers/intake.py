"""From polled records to groups that can be scored: decoded, checked, paired; what cannot be used is refused."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from kafka.structs import TopicPartition

from consumers.progress import PartitionProgress, Sources
from consumers.topics import CHARTS, NEWS
from consumers.unreadable import Unreadable
from models.charts.images import image_header
from monitor.pairing import Group, Pairing
from monitor.records import NewsItem, Rejected, check_time, decode_chart, decode_news
from monitor.settings import Settings
from monitor.storage.items import Picture
from monitor.surges.keys import epoch_ms

__all__ = ["WATERMARK_HEADER", "Intake", "Origin", "Refusal", "clip", "weight"]

WATERMARK_HEADER: Final = "watermark"
MAX_TITLE_CHARS: Final = 2_000
MAX_URL_CHARS: Final = 2_048
MAX_NAME_CHARS: Final = 256
MAX_LANG_CHARS: Final = 35
MAX_KIND_CHARS: Final = 64


@dataclass(slots=True, eq=False)
class Origin:
    """One polled record on its way. `chart_id` and `picture` are set for a chart that could be decoded."""

    record: Any
    progress: PartitionProgress
    chart_id: str = ""
    picture: Picture | None = None

    def done(self) -> None:
        """Everything that follows from this record is stored and sent."""
        self.progress.done(self.record.offset)


def weight(group: Group[Origin]) -> int:
    """Bytes that a group holds in memory: its images, its texts, and these once more as the records that they were.

    A record is kept until it is done: whatever is refused goes to the dead letters as it came.
    """
    texts = sum(len(origin.record.value or b"") for origin in group.tokens if not origin.chart_id)
    return 2 * texts + sum(len(chart.image) for chart in group.charts.values())


@dataclass(slots=True)
class Refusal:
    """A record that becomes a dead letter."""

    origin: Origin
    rejected: Rejected


def clip(item: NewsItem, max_chars: int) -> NewsItem:
    """The item with its fields cut to what is kept: title and body to `max_chars` together, names to a sane length."""
    title = item.title[: min(MAX_TITLE_CHARS, max_chars)]
    # What is cut off a title that holds a whole text is text all the same.
    rest = item.title[len(title) :]
    body = f"{rest}\n{item.body}" if rest else item.body
    body = body[: max(0, max_chars - len(title))]
    return msgspec.structs.replace(
        item,
        title=title,
        body=body,
        source=item.source[:MAX_NAME_CHARS],
        url=item.url if len(item.url) <= MAX_URL_CHARS else "",
        lang=item.lang[:MAX_LANG_CHARS],
        kind=item.kind[:MAX_KIND_CHARS],
    )


def _marker(headers: Iterable[tuple[str, bytes | None]], now: datetime) -> datetime | Rejected | None:
    """The event time of a feed's marker; None for a record that is no marker."""
    for name, value in headers:
        if name == WATERMARK_HEADER:
            return check_time((value or b"").decode("utf-8", "replace"), now)
    return None


class Intake:
    """Takes what was polled; gives groups to score, refused records, and knows how far each partition is.

    Parameters
    ----------
    settings : wait and limits.
    max_bytes : bytes of texts and images that may wait for each other.
    """

    def __init__(self, settings: Settings, max_bytes: int) -> None:
        self._settings = settings
        self._names = {settings.topic(NEWS): NEWS, settings.topic(CHARTS): CHARTS}
        self.pairing: Pairing[Origin] = Pairing(
            settings.worker_pairing_wait_s, settings.worker_held_items, max_bytes, weight
        )
        self.sources = Sources(settings.worker_idle_after_s, 60 + settings.lateness_s)
        self.refused: deque[Refusal] = deque()
        # Set while partitions are being taken away, by the client's own thread.
        self.disowned = threading.Event()

    def source(self, partition: TopicPartition) -> str:
        """Name of an input partition without prefix: `news:0`."""
        return f"{self._names[partition.topic]}:{partition.partition}"

    def reset(self) -> None:
        """Forget everything that is not done: the partitions are being handed out anew and will be read again."""
        self.pairing.clear()
        self.sources.clear()
        self.refused.clear()
        self.disowned.clear()

    def take_refused(self) -> list[Refusal]:
        """The records that were refused since the last call. May be called from another thread."""
        found: list[Refusal] = []
        with suppress(IndexError):
            while True:
                found.append(self.refused.popleft())
        return found

    def owns(self, origin: Origin) -> bool:
        """False for a record that was read before its partition was taken away. May be called from another thread."""
        if self.disowned.is_set():
            return False
        name = self.source(TopicPartition(origin.record.topic, origin.record.partition))
        return self.sources.partitions.get(name) is origin.progress

    def take(self, polled: dict[TopicPartition, list[Any]], reading_s: float, now_s: float) -> list[Group[Origin]]:
        """Take records; returns the groups that are complete with them, or that had to make room.

        `reading_s` is the clock that pairing goes by, `now_s` the monotonic clock.
        """
        now = datetime.now(UTC)
        ready: list[Group[Origin]] = []
        for partition, records in polled.items():
            name = self.source(partition)
            progress = self.sources.partitions[name]
            self.sources.active(name, now_s)
            for record in records:
                ready += self._take(record, progress, now, reading_s)
        return ready

    def expire(self, reading_s: float, at_end: Set[str]) -> list[Group[Origin]]:
        """Groups that have waited long enough for their other half. `at_end`: sources that are read to their end.

        While the partition that the other half comes on is still behind (after a restart, or with a backlog), the wait
        goes on: else it would depend on the speed of reading whether an item is scored with its chart.
        """
        return self.pairing.expire(reading_s, lambda group: self._may_come(group, at_end))

    def _may_come(self, group: Group[Origin], at_end: Set[str]) -> bool:
        if group.item is not None:
            # A chart that names its item lies on the partition of the same number; another one may be on any.
            at, others = group.item.published_at, CHARTS
            partitions = None
        else:
            chart = next(iter(group.charts.values()))
            at, others = chart.published_at, NEWS
            partitions = {group.tokens[0].record.partition} if chart.item_id else None
        reached = epoch_ms(at) + round(self._settings.lateness_s * 1000)
        for name, progress in self.sources.partitions.items():
            topic, _, number = name.partition(":")
            on_its_way = topic == others and (partitions is None or int(number) in partitions)
            if on_its_way and name not in at_end and progress.read_at <= reached:
                return True
        return False

    def _take(self, record: Any, progress: PartitionProgress, now: datetime, reading_s: float) -> list[Group[Origin]]:
        origin = Origin(record, progress)
        if isinstance(record.value, Unreadable):
            return self._refuse(origin, Rejected(code="unreadable", reason=record.value.reason))
        if record.value is None:
            marker = _marker(record.headers or (), now)
            if isinstance(marker, datetime):
                progress.read(record.offset, epoch_ms(min(marker, now)))
                origin.done()
                return []
            return self._refuse(origin, marker or Rejected(code="empty", reason="The record is empty."))
        if self._names[record.topic] == NEWS:
            item = decode_news(record.value, now)
            if isinstance(item, Rejected):
                return self._refuse(origin, item)
            # A time that is still to come says nothing about how complete the past is.
            progress.read(record.offset, epoch_ms(min(item.published_at, now)))
            return self.pairing.add_item(clip(item, self._settings.max_text_chars), origin, reading_s)
        return self._take_chart(origin, now, reading_s)

    def _take_chart(self, origin: Origin, now: datetime, reading_s: float) -> list[Group[Origin]]:
        record = origin.record
        chart = decode_chart(record.value, record.headers or (), now, self._settings.max_chart_bytes)
        if isinstance(chart, Rejected):
            return self._refuse(origin, chart)
        # Its pixels are decoded where it is scored, once; what is damaged there is refused there.
        header = image_header(chart.image, max_pixels=self._settings.max_chart_pixels)
        if isinstance(header, Rejected):
            freed = self.pairing.give_up(chart.chart_id, chart.item_id)
            return [*freed, *self._refuse(origin, header)]
        origin.chart_id, origin.picture = chart.chart_id, Picture(*header)
        origin.progress.read(record.offset, epoch_ms(min(chart.published_at, now)))
        return self.pairing.add_chart(chart, origin, reading_s)

    def _refuse(self, origin: Origin, rejected: Rejected) -> list[Group[Origin]]:
        origin.progress.read(origin.record.offset, 0)
        self.refused.append(Refusal(origin, rejected))
        return []
