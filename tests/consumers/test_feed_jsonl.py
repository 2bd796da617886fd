"""`feed jsonl` as a process: it ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from consumers.topics import ensure_topics
from monitor.records import encode
from monitor.settings import Settings
from tests.consumers.running import news, records, until

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_it_waits_for_a_line(kafka_settings: Settings, number: signal.Signals) -> None:
    ensure_topics(kafka_settings)
    command = [sys.executable, "-m", "monitor.cli.app", "feed", "jsonl", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ | kafka_settings.environment()
    ) as feed:
        assert feed.stdin is not None
        try:
            for count in range(2):
                feed.stdin.write(encode(news(count)) + b"\n")
            feed.stdin.write(b'{"id": "half a li')
            feed.stdin.flush()
            until(lambda: {r.key for r in records(kafka_settings, "news") if r.value} == {b"i0", b"i1"}, 90)
            feed.send_signal(number)
            began = time.monotonic()
            while feed.poll() is None and time.monotonic() < began + 30:
                time.sleep(0.05)
            assert feed.returncode == 0
            said = feed.stderr.read().decode() if feed.stderr is not None else ""
        finally:
            feed.kill()
    assert "Sent 2 items and 0 charts." in said
    assert "line 3" not in said
    assert "Traceback" not in said
