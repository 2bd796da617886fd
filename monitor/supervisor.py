"""Runs the product's processes side by side on one machine: starts, restarts, watches and stops them together.

Nothing here knows what the processes do. Children live in sessions of their own, so that a Ctrl-C on the terminal
reaches the supervisor alone, which then stops them in order; on Linux they are also told when it dies.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from monitor.errors import MonitorError

__all__ = ["ProcessSpec", "Supervisor", "die_with"]

RESTART_FIRST_S = 1.0
RESTART_MAX_S = 30.0
QUICK_EXIT_S = 20.0
QUICK_EXITS = 3
LOG_BYTES = 16 << 20
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ProcessSpec:
    """One process: its command line, and `ready`, which is asked until it says True before the next one starts.

    `serves` says that the others need it to stop well: it stops after them. `environment` is set for this process
    alone, on top of the supervisor's.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool] = lambda: True
    ready_s: float = 60.0
    restart: bool = True
    serves: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Child:
    spec: ProcessSpec
    process: subprocess.Popen[bytes]
    started: float
    # It has stayed up once: whatever ends it later may pass, so that it is tried again and again.
    proven: bool = False
    quick_exits: int = 0
    restart_at: float | None = None
    finished: bool = False


@dataclass
class Supervisor:
    """Starts `specs` in order and keeps them running.

    Parameters
    ----------
    specs : the processes, in the order in which they start; they stop side by side, those that serve others last.
    environment : variables set for the children on top of this process's own.
    log_dir : each child's output goes to `<log_dir>/<name>.log`, which becomes `<name>.log.1` when it is `LOG_BYTES`
        long.
    shutdown_s : seconds a child may take to stop before it is killed.
    """

    specs: Sequence[ProcessSpec]
    environment: Mapping[str, str]
    log_dir: Path
    shutdown_s: float = 20.0
    on_event: Callable[[str], None] = lambda _: None
    _children: dict[str, _Child] = field(default_factory=dict)

    def start(self) -> None:
        """Start every process and wait until each is ready. Raises `MonitorError` when one will not come up."""
        for spec in self.specs:
            self.add(spec)

    def add(self, spec: ProcessSpec) -> None:
        """Start one more process and wait until it is ready. Raises `MonitorError` when it will not come up."""
        child = self._launch(spec)
        self._children[spec.name] = child
        deadline = time.monotonic() + spec.ready_s
        while not spec.ready():
            if child.process.poll() is not None:
                raise self._gave_up(child)
            if time.monotonic() > deadline:
                raise MonitorError(
                    f"The {spec.name} was not ready after {spec.ready_s:.0f} s.", f"Look at {self._log(spec)}."
                )
            time.sleep(0.1)
        self.on_event(f"{spec.name} started")

    def check(self) -> None:
        """Call often: restarts what has died, with growing pauses. Raises `MonitorError` when one never stays up."""
        now = time.monotonic()
        for child in self._children.values():
            self._shorten(self._log(child.spec))
            code = child.process.poll()
            if code is None or child.finished:
                continue
            if not child.spec.restart:
                child.finished = True
                if code != 0:
                    raise self._gave_up(child)
                continue
            if child.restart_at is None:
                long = now - child.started >= QUICK_EXIT_S
                child.proven = child.proven or long
                child.quick_exits = 1 if long else child.quick_exits + 1
                if child.quick_exits >= QUICK_EXITS and not child.proven:
                    raise self._gave_up(child)
                pause = min(RESTART_MAX_S, RESTART_FIRST_S * 2 ** (child.quick_exits - 1))
                child.restart_at = now + pause
                why = f" ({self._last_words(child)})" if code > 0 else ""
                self.on_event(f"{child.spec.name} ended with code {code}{why}; it starts again in {pause:.0f} s")
            elif now >= child.restart_at:
                fresh = self._launch(child.spec)
                fresh.quick_exits, fresh.proven = child.quick_exits, child.proven
                self._children[child.spec.name] = fresh
                self.on_event(f"{child.spec.name} started again")

    def finished(self, name: str) -> bool:
        """True when a process that is not restarted has ended well."""
        child = self._children.get(name)
        return child is not None and child.process.poll() == 0

    def pid(self, name: str) -> int:
        """Process id of a running child."""
        return self._children[name].process.pid

    def stop(self) -> list[str]:
        """Stop all; returns the names of those that had to be killed. Takes `shutdown_s` at the most, twice that when
        a process that serves others is among them."""
        children = list(self._children.values())
        killed = []
        try:
            for serving in (False, True):
                # The broker stays up until its clients have flushed and left.
                killed += self._stop([child for child in children if child.spec.serves is serving])
        except BaseException:
            # A second Ctrl-C: whoever is in such a hurry gets it, and leaves nothing behind.
            for child in children:
                child.process.kill()
            raise
        finally:
            self._children.clear()
        return killed

    def _stop(self, children: Sequence[_Child]) -> list[str]:
        killed = []
        for child in children:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + self.shutdown_s
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
                killed.append(child.spec.name)
        return killed

    def _log(self, spec: ProcessSpec) -> Path:
        return self.log_dir / f"{spec.name}.log"

    @staticmethod
    def _shorten(log: Path) -> None:
        if not log.exists() or log.stat().st_size < LOG_BYTES:
            return
        # The child goes on writing at the end of the same file, so that it is emptied and not renamed. What it writes
        # between the two is lost: a line or two.
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)

    def _launch(self, spec: ProcessSpec) -> _Child:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with self._log(spec).open("ab") as log:
            process = subprocess.Popen(
                list(spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, **spec.environment},
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
            )
        return _Child(spec, process, time.monotonic())

    def _last_words(self, child: _Child) -> str:
        log = self._log(child.spec)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].removeprefix("error: ")

    def _gave_up(self, child: _Child) -> MonitorError:
        return MonitorError(
            f"The {child.spec.name} does not stay up: {self._last_words(child)}",
            f"Its whole output is in {self._log(child.spec)}.",
        )


# Looked up here: between fork and exec nothing may be loaded.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int) -> None:
    """For `preexec_fn`: on Linux a child gets SIGTERM when the thread of `parent` that has started it is gone."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            # It died before it could be told of.
            os._exit(1)
