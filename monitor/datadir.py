"""Who is at work in a data folder: locks, which the system takes back however their holder ends."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from monitor.errors import ConfigurationError, StorageError

__all__ = ["DEMO_MARK", "LEAST_FREE_BYTES", "LOCK_FILE", "announce", "announced", "check_space", "owned", "supervised"]

LOCK_FILE: Final = "supervisor.lock"
# Says that a folder is a demo's own, and which settings the demo has made for it.
DEMO_MARK: Final = "demo.json"
# Below this the processes only retry what cannot be written.
LEAST_FREE_BYTES: Final = 256 << 10
# Whoever asks whether a supervisor runs (`supervised`) holds the lock for a moment.
LOCK_TRIES: Final = 10
LOCK_PAUSE_S: Final = 0.1


def check_space(folder: Path) -> None:
    """Raises `StorageError` when the disk that holds `folder` is full."""
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        raise StorageError(f"The disk that holds {folder} is full.", "Free some space and start again.")


def announce(file: Path, address: str) -> IO[str]:
    """Write to `file` where this process can be reached. It counts until what is returned is closed, or the process
    is gone."""
    draft = file.with_suffix(".new")
    held = draft.open("w")
    held.write(address)
    held.flush()
    fcntl.flock(held, fcntl.LOCK_EX)
    # A reader sees the whole address, with its lock, or none.
    draft.replace(file)
    return held


def announced(file: Path) -> str | None:
    """The address that a running process has announced in `file`; None when there is none, or its process is gone."""
    try:
        with file.open() as found:
            try:
                fcntl.flock(found, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return found.read()
    except OSError:
        return None
    return None


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep every other supervisor out of `folder` while the block lasts; the folder is made if it is not there.

    Raises `ConfigurationError` when another one runs in it, or when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise ConfigurationError(f"The folder {folder} cannot be written: {error.strerror}.") from error
    with lock:
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not tries_left:
                    raise ConfigurationError(
                        f"Another `demo` or `up` runs in {folder}.",
                        "Stop it first, or give this one a folder of its own (--data-dir) and another port for its "
                        "dashboard (SENTIMENT_MONITOR_DASHBOARD_PORT).",
                    ) from error
                time.sleep(LOCK_PAUSE_S)
        yield


def supervised(folder: Path) -> bool:
    """True while a supervisor runs in `folder` (`owned`)."""
    try:
        with (folder / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
