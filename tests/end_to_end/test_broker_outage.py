"""The broker dies under processes that are in the middle of work."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitor.datadir import announced
from monitor.settings import Settings
from tests.conftest import BOOTSTRAP_SERVERS
from tests.consumers.running import sending, stored_keys
from tests.end_to_end import faults
from tests.end_to_end.flow import flowing, make_items

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.skipif(bool(os.environ.get(BOOTSTRAP_SERVERS)), reason="the broker that is killed is the embedded one"),
]

ITEMS = 1200


def two_free_ports() -> int:
    """The first of two free ports in a row."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
                return port


def scraped(port: int) -> dict[str, float]:
    """What a running process tells of itself, summed over labels; it says that it is ready, too."""
    assert httpx.get(f"http://127.0.0.1:{port}/ready").text == "ok\n"
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_work_goes_on_when_a_killed_broker_is_back_and_ends_in_time_when_it_is_not(
    make_settings: Callable[..., Settings],
) -> None:
    # A feed that waits for the broker is not at its end: markers say when it is, not a quiet of seconds.
    settings = make_settings(
        broker_port=0,
        kafka_session_timeout_s=2.0,
        worker_batch_items=32,
        worker_idle_after_s=60.0,
        metrics_port=two_free_ports(),
    )
    items = make_items(ITEMS)
    counted = items[:-200]
    with flowing(settings, counted, 0.004) as flow, sending(settings) as sender, ThreadPoolExecutor(1) as pool:
        flow.send(sender, counted[:400])
        rest = pool.submit(flow.send, sender, counted[400:], 0.3)
        for kills, share in enumerate((0.1, 0.5), 1):
            flow.until(lambda share=share: flow.stored >= share * len(counted) and flow.counting)  # type: ignore[misc]
            os.kill(flow.supervisor.pid("broker"), signal.SIGKILL)
            # Long enough to be in the way of sends, fetches and commits; then the supervisor starts it again.
            time.sleep(1.0)
            flow.until(lambda kills=kills: flow.started_again("broker") == kills)  # type: ignore[misc]
            flow.until(lambda: announced(settings.broker_address_file) is not None)
        flow.until(rest.done)
        rest.result()
        flow.end(sender)
        flow.until(flow.settled)
        flow.check()
        measured = scraped(settings.metrics_port)
        assert measured["sentiment_worker_scored_items_total"] >= len(counted)
        assert measured["sentiment_worker_polled_records_total"] >= len(counted)
        assert measured["sentiment_worker_lag_records"] == 0
        assert scraped(settings.metrics_port + 1)["sentiment_aggregator_contributions_total"] >= len(counted)
        assert not any(event.startswith(("worker ended", "aggregator ended")) for event in flow.events), flow.log()

        # Scored again with another ticker: what it had added to the old ones is taken back.
        flow.send(sender, [msgspec.structs.replace(items[3], tickers=("NVDA",))])
        flow.until(lambda: ("ticker:NVDA", items[3].id) in stored_keys(flow.store))
        flow.end(sender, hours=2)
        flow.until(lambda: set(faults.stored(flow.store)["counted"]) == stored_keys(flow.store))

        # Gone for good: whoever is told to stop while it waits for it does so in its time.
        flow.send(sender, items[-200:])
        flow.until(lambda: flow.stored > len(counted))
        os.kill(flow.supervisor.pid("broker"), signal.SIGKILL)
        time.sleep(1.0)
        assert flow.supervisor.stop() == [], flow.log()
