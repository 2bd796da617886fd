"""What waits for what on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.items import lock_pairing
from monitor.storage.jobs import running_run, start_run

pytestmark = pytest.mark.postgresql


def test_a_job_starts_while_a_worker_stores_a_batch(postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    with writing(engine) as worker:
        lock_pairing(worker, exclusive=True)
        with writing(engine) as scheduler:
            scheduler.exec_driver_sql("set local lock_timeout = '2s'")
            assert start_run(scheduler, "drift", "here:1", datetime.now(UTC)) is not None
    with reading(engine) as connection:
        assert running_run(connection, "drift") is not None
    engine.dispose()
