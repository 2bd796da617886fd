"""The thread that stores and sends, beside the one that polls: neither waits for the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Storing"]

# Woken when there is something to do; it looks by itself in case that was missed.
LOOK_EVERY_S: Final = 1.0


class Storing:
    """Calls `work(False)` whenever it is woken, and `work(True)` once at the end: then nothing may be left.

    What `work` raises ends the thread and is raised by `check`.
    """

    def __init__(self, work: Callable[[bool], None]) -> None:
        self._work = work
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._to_the_end = False
        self._turn = threading.Lock()
        self._since: float | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="storing")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._woken.set()

    def check(self) -> None:
        """Raises what ended the thread, if anything has."""
        if self._error is not None:
            raise self._error

    def busy_for(self, now: float) -> float:
        """How long it has been at what it is doing, seconds; `now` on the monotonic clock."""
        since = self._since
        return 0.0 if since is None else now - since

    def settle(self, seconds: float) -> bool:
        """Wait until what is being done is done; False when that takes longer."""
        settled = self._turn.acquire(timeout=seconds)
        if settled:
            self._turn.release()
        return settled

    def end(self, *, finish: bool) -> None:
        """End the thread after what it is doing; `finish`: and after the last of the work. Once is enough."""
        if self._ending.is_set() or self._thread.ident is None:
            return
        self._to_the_end = finish
        self._ending.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._woken.wait(LOOK_EVERY_S)
                self._woken.clear()
                if not self._ending.is_set():
                    self._do(False)
            if self._to_the_end:
                self._do(True)
        except Exception as error:  # noqa: BLE001 - raised where it is asked for
            self._error = error

    def _do(self, last: bool) -> None:
        with self._turn:
            self._since = time.monotonic()
            try:
                self._work(last)
            finally:
                self._since = None
