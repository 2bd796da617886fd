"""Runs the product's processes side by side on one machine: starts, restarts, watches and stops them together.

Nothing here knows what the processes do. Children live in sessions of their own, so that a Ctrl-C on the terminal
reaches the supervisor alone, which then stops them in order; on Linux they are also told when it dies.

How they are doing stands in a file beside their logs (`process_reports`), so that one which ends again and again is
seen from other terminals too.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from monitor.errors import MonitorError

__all__ = ["ProcessReport", "ProcessSpec", "Supervisor", "die_with", "process_reports"]

RESTART_FIRST_S = 1.0
RESTART_MAX_S = 30.0
QUICK_EXIT_S = 20.0
QUICK_EXITS = 3
LOG_BYTES = 16 << 20
# As many ends as this within so long are no accident.
OFTEN: Final = 3
RECENTLY: Final = timedelta(minutes=10)
REPORT_FILE: Final = "processes.json"
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


class ProcessReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one process is doing. `state`: running, waiting (it ended and starts again soon), finished (it was to run
    once) or gave_up (it never stayed up). `restarts` counts since its supervisor began; `ends` are the last few times
    that it ended without being told to, with the exit code and the last sentence of the newest one."""

    name: str
    state: str
    log: str
    restarts: int = 0
    ends: tuple[datetime, ...] = ()
    last_code: int | None = None
    last_words: str = ""

    def trouble(self, now: datetime) -> str:
        """What an operator has to know, in one sentence; empty while it stays up."""
        recent = sum(now - at <= RECENTLY for at in self.ends)
        if self.state == "running" and recent < OFTEN:
            return ""
        if self.state == "finished" and not self.last_code:
            return ""
        doing = {
            "running": f"has ended {recent} times in {RECENTLY.seconds // 60} minutes and runs again",
            "waiting": f"is down and starts again soon; restarts so far: {self.restarts}",
            "gave_up": f"does not stay up; restarts: {self.restarts}",
            "finished": "has failed",
        }[self.state]
        return f"The {self.name} {doing}; it ended with code {self.last_code}: {self.last_words}"


def process_reports(log_dir: Path) -> list[ProcessReport]:
    """How the processes that log to `log_dir` are doing, or were when their supervisor ended; empty when it has
    stopped them well, or there never was one."""
    try:
        return msgspec.json.decode((log_dir / REPORT_FILE).read_bytes(), type=list[ProcessReport])
    except (OSError, msgspec.MsgspecError):
        return []


@dataclass
class _History:
    """What is remembered of a process from one start to the next."""

    # It has stayed up once: whatever ends it later may pass, so that it is tried again and again.
    proven: bool = False
    quick_exits: int = 0
    restarts: int = 0
    ends: deque[datetime] = field(default_factory=lambda: deque(maxlen=20))
    last_code: int | None = None
    last_words: str = ""


@dataclass
class _Child:
    spec: ProcessSpec
    process: subprocess.Popen[bytes]
    started: float
    history: _History
    # Where in its log the output of this start begins.
    log_start: int
    restart_at: float | None = None
    finished: bool = False
    gave_up: bool = False

    @property
    def state(self) -> str:
        if self.gave_up:
            return "gave_up"
        return "finished" if self.finished else "running" if self.restart_at is None else "waiting"


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
        self._report()
        self.on_event(f"{spec.name} started")

    def check(self) -> None:
        """Call often: restarts what has died, with growing pauses. Raises `MonitorError` when one never stays up."""
        now = time.monotonic()
        for child in self._children.values():
            self._shorten(child)
            code = child.process.poll()
            if code is None or child.finished:
                continue
            if not child.spec.restart:
                child.finished = True
                if code != 0:
                    raise self._gave_up(child)
                self._report()
                continue
            past = child.history
            if child.restart_at is None:
                long = now - child.started >= QUICK_EXIT_S
                past.proven = past.proven or long
                past.quick_exits = 1 if long else past.quick_exits + 1
                if past.quick_exits >= QUICK_EXITS and not past.proven:
                    raise self._gave_up(child)
                pause = min(RESTART_MAX_S, RESTART_FIRST_S * 2 ** (past.quick_exits - 1))
                child.restart_at = now + pause
                self._note_end(child)
                self._report()
                why = f" ({past.last_words})" if code > 0 else ""
                self.on_event(f"{child.spec.name} ended with code {code}{why}; it starts again in {pause:.0f} s")
            elif now >= child.restart_at:
                past.restarts += 1
                self._children[child.spec.name] = self._launch(child.spec, past)
                self._report()
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
        if not any(child.gave_up for child in children):
            # Whatever the disk says, the processes have to be stopped.
            with suppress(OSError):
                (self.log_dir / REPORT_FILE).unlink(missing_ok=True)
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

    def _shorten(self, child: _Child) -> None:
        log = self._log(child.spec)
        if not log.exists() or log.stat().st_size < LOG_BYTES:
            return
        # The child goes on writing at the end of the same file, so that it is emptied and not renamed. What it writes
        # between the two is lost: a line or two.
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
        child.log_start = 0

    def _launch(self, spec: ProcessSpec, past: _History | None = None) -> _Child:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with self._log(spec).open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                list(spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, **spec.environment},
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
            )
        return _Child(spec, process, time.monotonic(), past or _History(), log_start)

    def _note_end(self, child: _Child) -> None:
        past, code = child.history, child.process.poll()
        past.ends.append(datetime.now(UTC))
        past.last_code = code
        killed = code is not None and code < 0
        past.last_words = f"killed by signal {-code}." if killed and code else self._last_words(child)

    def _report(self) -> None:
        """Write how all are doing, for `process_reports`."""
        reports = [
            ProcessReport(
                name=name,
                state=child.state,
                log=str(self._log(child.spec)),
                restarts=child.history.restarts,
                ends=tuple(child.history.ends),
                last_code=child.history.last_code,
                last_words=child.history.last_words,
            )
            for name, child in self._children.items()
        ]
        # A full disk ends the whole run in good order elsewhere.
        with suppress(OSError):
            draft = self.log_dir / f"{REPORT_FILE}.new"
            draft.write_bytes(msgspec.json.encode(reports))
            draft.replace(self.log_dir / REPORT_FILE)

    def _last_words(self, child: _Child) -> str:
        """The last error that this start of the process has told, else its last line."""
        try:
            with self._log(child.spec).open("rb") as log:
                log.seek(child.log_start)
                told = log.read().decode("utf-8", "replace")
        except OSError:
            told = ""
        lines = [line for line in told.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].removeprefix("error: ")

    def _gave_up(self, child: _Child) -> MonitorError:
        child.gave_up = True
        self._note_end(child)
        self._report()
        return MonitorError(
            f"The {child.spec.name} does not stay up: {child.history.last_words}",
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
