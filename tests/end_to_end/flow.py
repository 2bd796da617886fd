"""News through a worker and an aggregator that a supervisor runs, and what must come of them whatever is done to the
broker meanwhile. The classifier is the tests' own, so that the outcome is known."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine

from consumers.topics import CHARTS, CONTRIBUTIONS, NEWS, ensure_topics
from models.engine import ScoringRequest
from monitor.cli.processes import process_specs
from monitor.records import ContributionBatch, NewsItem, ScoredItem, SourceWatermark
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.storage.status import store_status
from monitor.supervisor import ProcessSpec, Supervisor
from monitor.surges.keys import contributions, epoch_ms, partition_of
from tests.consumers.running import Sender, news, stored_keys
from tests.consumers.word_scorer import WordScorer
from tests.end_to_end import faults

ROOT = Path(__file__).parents[2]


def make_items(count: int) -> list[NewsItem]:
    """Items in order of time, one a second."""
    return [news(number) for number in range(count)]


class Flow:
    """The processes and their store. `items` are all that will be sent."""

    def __init__(self, settings: Settings, items: Sequence[NewsItem], seconds_an_item: float) -> None:
        self.settings = settings
        self.items = items
        self.store: Engine = open_engine(settings.database)
        upgrade(self.store)
        self.events: list[str] = []
        worker = ProcessSpec(
            "worker",
            (sys.executable, "-m", "tests.end_to_end.worker_process", str(seconds_an_item)),
            environment={"PYTHONPATH": str(ROOT)},
        )
        specs = [*process_specs(settings, ("aggregator",)), worker]
        self.supervisor = Supervisor(
            specs,
            settings.environment(),
            settings.data_dir / "logs",
            settings.shutdown_s,
            on_event=self.events.append,
        )

    @property
    def stored(self) -> int:
        """Items in the store."""
        return store_status(self.store).items

    @property
    def counting(self) -> bool:
        """The aggregator has taken something in."""
        return faults.counted_records(self.store) > 0

    def started_again(self, name: str) -> int:
        """How often the supervisor has started a process again."""
        return sum(event == f"{name} started again" for event in self.events)

    def send(self, sender: Sender, items: Sequence[NewsItem], pause_s: float = 0.0) -> None:
        """Send items in order, with a pause after every twenty."""
        for number, item in enumerate(items):
            sender.item(item)
            if pause_s and number % 20 == 19:
                time.sleep(pause_s)
        sender.flush()

    def end(self, sender: Sender, hours: float = 1.0) -> None:
        """Say on every partition that nothing came in the hours after the last item, so that their minutes close."""
        counts = ensure_topics(self.settings)
        for topic in (NEWS, CHARTS):
            for partition in range(counts[topic]):
                sender.mark(topic, partition, self.items[-1].published_at + timedelta(hours=hours))
        sender.flush()

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Supervise until it holds; fails with the processes' output when that takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.supervisor.check()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def settled(self) -> bool:
        """All is stored and counted."""
        found = store_status(self.store)
        return found.items == len(self.items) and found.counted == len(self._expected_keys())

    def check(self) -> None:
        """Every item is stored, under its keys, and counted once: ticks, pairs and stories as counted in memory."""
        assert stored_keys(self.store) == self._expected_keys()
        partitions = ensure_topics(self.settings)[CONTRIBUTIONS]
        all_of_it = [one for item in self._scored() for one in contributions(item)]
        ends = (SourceWatermark("end", epoch_ms(self.items[-1].published_at) + 3_600_000, True, True),)
        records = [
            faults.Record(
                number,
                ContributionBatch(
                    contributions=tuple(one for one in all_of_it if partition_of(one.key, partitions) == number),
                    sources=ends,
                    source_count=1,
                ),
            )
            for number in range(partitions)
        ]
        expected, found = faults.expected(self.settings, [records]), faults.stored(self.store)
        for part in ("ticks", "counted", "stories"):
            assert found[part] == expected[part], part

    def log(self) -> str:
        """The ends of what the processes have written, and what the supervisor has done."""
        logs = sorted(self.supervisor.log_dir.glob("*.log"))
        return "\n".join([*self.events, *(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs)])

    def _scored(self) -> list[ScoredItem]:
        answers = WordScorer().score([ScoringRequest(item=item, charts=()) for item in self.items])
        return [answer for answer in answers if isinstance(answer, ScoredItem)]

    def _expected_keys(self) -> set[tuple[str, str]]:
        return {(one.key, item.id) for item in self._scored() for one in contributions(item)}


@contextmanager
def flowing(settings: Settings, items: Sequence[NewsItem], seconds_an_item: float = 0.002) -> Iterator[Flow]:
    """Processes that are gone when the block ends."""
    flow = Flow(settings, items, seconds_an_item)
    try:
        flow.supervisor.start()
        yield flow
    finally:
        flow.supervisor.stop()
        flow.store.dispose()
