"""A real dashboard process for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

RUN = """
from dashboard.server import run_dashboard
from monitor.settings import load_settings

run_dashboard(load_settings())
"""


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(folder: Path, port: int, database_url: str) -> subprocess.Popen[bytes]:
    """A dashboard with `folder` as its home and working folder; its output goes to `folder/dashboard.txt`."""
    own = {
        "HOME": str(folder),
        "SENTIMENT_MONITOR_DATABASE_URL": database_url,
        "SENTIMENT_MONITOR_DATA_DIR": str(folder / "data"),
        "SENTIMENT_MONITOR_DASHBOARD_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_MONITOR_")}
    with (folder / "dashboard.txt").open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, env=kept | own, stdout=out, stderr=out)


def wait_until_healthy(process: subprocess.Popen[bytes], address: str, folder: Path) -> None:
    """Return once it answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{address}/_stcore/health", timeout=2).text == "ok":
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, (folder / "dashboard.txt").read_text()
        assert time.monotonic() < deadline, "the dashboard does not answer"
        time.sleep(0.2)


@contextmanager
def running_dashboard(folder: Path, database_url: str) -> Iterator[str]:
    """Address of a dashboard that runs until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    process = start(folder, port, database_url)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(process, address, folder)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
