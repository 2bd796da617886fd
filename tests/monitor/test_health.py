"""The health endpoint over real HTTP."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import pytest

from monitor.errors import ConfigurationError
from monitor.health import Health


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ready_follows_the_signs_of_life() -> None:
    with Health(free_port(), stale_s=0.2, host="127.0.0.1") as health:
        url = f"http://127.0.0.1:{health.port}"
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/live").status_code == 200
        health.beat()
        assert httpx.get(f"{url}/ready").status_code == 200
        time.sleep(0.3)
        assert httpx.get(f"{url}/ready").status_code == 503
        health.beat()
        health.fail("the agent crashed")
        assert httpx.get(f"{url}/ready").text.strip() == "the agent crashed"
        assert "python_info" in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/nothing").status_code == 404


def test_a_port_in_use_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}"), Health(port, host="127.0.0.1"):
            pass


def test_without_a_port_nothing_listens() -> None:
    with Health(0) as health:
        assert health.port == 0
        assert health.problem == "starting"


def test_a_connection_that_says_nothing_holds_up_neither_probes_nor_the_end() -> None:
    with Health(free_port(), host="127.0.0.1") as health, socket.create_connection(("127.0.0.1", health.port)):
        assert httpx.get(f"http://127.0.0.1:{health.port}/live", timeout=5).status_code == 200
        ended = threading.Thread(target=health.__exit__, args=(None, None, None), daemon=True)
        ended.start()
        ended.join(5)
        assert not ended.is_alive()
