"""Ways to run the embedded broker: as a process of its own, or in a thread beside its clients."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consumers.broker.server import EmbeddedBroker
from monitor.datadir import announce
from monitor.settings import Settings
from monitor.telemetry import get_logger

__all__ = ["BrokerThread", "run_broker", "running_broker"]

log = get_logger(__name__)


def _broker(settings: Settings) -> EmbeddedBroker:
    return EmbeddedBroker(
        settings.broker_address_file.parent,
        port=settings.broker_port or _former_port(settings.broker_address_file),
        retention_bytes=settings.broker_retention_bytes,
        retention_hours=settings.broker_retention_hours,
        default_partitions=settings.kafka_partitions,
    )


def _former_port(address_file: Path) -> int:
    """The port of a broker that was killed: its clients look for it there. 0 when there was none or it is taken."""
    try:
        host, _, port = address_file.read_text().rpartition(":")
        with socket.create_server((host, int(port))):
            return int(port)
    except (OSError, ValueError):
        return 0


def run_broker(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. While it listens, `settings.broker_address_file` announces its `host:port`.

    Raises `BrokerError` when the port or the folder cannot be used.
    """
    asyncio.run(_run(_broker(settings), settings.broker_address_file))


async def _run(broker: EmbeddedBroker, address_file: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await broker.start()
    try:
        with announce(address_file, broker.address):
            await stop.wait()
            address_file.unlink(missing_ok=True)
    finally:
        await broker.stop()
        log.info("embedded broker stopped")


class BrokerThread:
    """A broker on an event loop in a thread of its own; takes the arguments of `EmbeddedBroker`."""

    def __init__(self, data_dir: Path, **options: Any) -> None:
        self._broker = EmbeddedBroker(data_dir, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded-broker", daemon=True)

    def start(self) -> str:
        """Start; returns `host:port`. Raises `BrokerError`."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._broker.start(), self._loop).result()
        except BaseException:
            self._end()
            raise
        return self._broker.address

    def stop(self) -> None:
        """Stop the broker and its thread."""
        try:
            asyncio.run_coroutine_threadsafe(self._broker.stop(), self._loop).result()
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def running_broker(data_dir: Path, **options: Any) -> Iterator[str]:
    """A broker for the time of a block; gives its `host:port`. Raises `BrokerError`."""
    thread = BrokerThread(data_dir, **options)
    address = thread.start()
    try:
        yield address
    finally:
        thread.stop()
