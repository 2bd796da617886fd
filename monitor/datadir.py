"""One owner at a time of a data folder: a lock that the system takes back however its holder ends."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from monitor.errors import ConfigurationError, StorageError

__all__ = ["LEAST_FREE_BYTES", "LOCK_FILE", "check_space", "owned"]

LOCK_FILE: Final = "supervisor.lock"
# Below this the processes only retry what cannot be written.
LEAST_FREE_BYTES: Final = 256 << 10


def check_space(folder: Path) -> None:
    """Raises `StorageError` when the disk that holds `folder` is full."""
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        raise StorageError(f"The disk that holds {folder} is full.", "Free some space and start again.")


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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"Another `demo` or `up` runs in {folder}.", "Stop it first, or give this one a folder of its own."
            ) from error
        yield
