"""The supervisor with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from monitor import supervisor as supervisor_module
from monitor.errors import MonitorError
from monitor.supervisor import ProcessReport, ProcessSpec, Supervisor, process_reports

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def until(condition: object, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_logs_do_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "LOG_BYTES", 4096)
    code = "import time\nfor n in range(10**9): print(f'line {n:06d}', flush=True); time.sleep(0.001)"
    supervisor = Supervisor([ProcessSpec("talker", (sys.executable, "-c", code))], {}, tmp_path, 5)
    supervisor.start()
    log, old = tmp_path / "talker.log", tmp_path / "talker.log.1"

    def turned_over() -> bool:
        supervisor.check()
        # The second time round, what was kept the first time goes.
        return old.exists() and "line 000000" not in old.read_text() and log.stat().st_size > 0

    try:
        assert until(turned_over, 30)
    finally:
        supervisor.stop()
    assert b"\0" not in log.read_bytes()
    assert log.read_text().startswith("line ")


def test_a_dead_process_starts_again_and_all_stop_together(tmp_path: Path) -> None:
    events: list[str] = []
    supervisor = Supervisor([ProcessSpec("a", SLEEP), ProcessSpec("b", SLEEP)], {}, tmp_path, 5, events.append)
    supervisor.start()
    first = supervisor.pid("a")
    os.kill(first, signal.SIGKILL)

    def again() -> bool:
        supervisor.check()
        return supervisor.pid("a") != first

    assert until(again)
    pids = [supervisor.pid("a"), supervisor.pid("b")]
    assert supervisor.stop() == []
    assert not any(alive(pid) for pid in pids)
    assert any("starts again" in event for event in events)


def test_one_that_keeps_dying_stops_the_show_with_its_own_words(tmp_path: Path) -> None:
    bad = (sys.executable, "-c", "import sys; print('error: The port 1 is in use.'); sys.exit(3)")
    supervisor = Supervisor([ProcessSpec("bad", bad)], {}, tmp_path, 1)
    supervisor.start()

    def forever() -> bool:
        supervisor.check()
        return False

    with pytest.raises(MonitorError, match=r"The bad does not stay up: The port 1 is in use\."):
        until(forever, 30)
    supervisor.stop()
    # Whoever looks afterwards reads it too.
    (report,) = process_reports(tmp_path)
    assert (report.name, report.state, report.restarts, report.last_code) == ("bad", "gave_up", 2, 3)
    assert report.trouble(datetime.now(UTC)) == (
        "The bad does not stay up; restarts: 2; it ended with code 3: The port 1 is in use."
    )


def test_one_that_will_not_stop_is_killed_and_named(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [ProcessSpec("deaf", STUBBORN, ready=lambda: "up" in (tmp_path / "deaf.log").read_text())], {}, tmp_path, 0.3
    )
    supervisor.start()
    pid = supervisor.pid("deaf")
    assert supervisor.stop() == ["deaf"]
    assert not alive(pid)


def test_all_stop_side_by_side_and_those_that_serve_others_last(tmp_path: Path) -> None:
    def slow(name: str) -> ProcessSpec:
        """Takes a second to stop and notes when it was told to and when it had."""
        script = (
            "import signal, time, sys\n"
            "def stop(*_):\n"
            f"    begin = time.monotonic(); time.sleep(1); open({str(tmp_path / name)!r}, 'w').write("
            "f'{begin} {time.monotonic()}'); sys.exit()\n"
            "signal.signal(signal.SIGTERM, stop); print('up', flush=True); time.sleep(60)"
        )
        log = tmp_path / f"{name}.log"
        return ProcessSpec(
            name, (sys.executable, "-c", script), lambda: "up" in log.read_text(), serves=name == "broker"
        )

    supervisor = Supervisor([slow("broker"), slow("a"), slow("b")], {}, tmp_path, 5)
    supervisor.start()
    assert supervisor.stop() == []
    told = {name: [float(x) for x in (tmp_path / name).read_text().split()] for name in ("broker", "a", "b")}
    assert max(told["a"][0], told["b"][0]) < min(told["a"][1], told["b"][1])
    assert told["broker"][0] >= max(told["a"][1], told["b"][1])


def test_one_that_has_been_up_is_tried_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "QUICK_EXIT_S", 1.0)
    monkeypatch.setattr(supervisor_module, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(supervisor_module, "RESTART_MAX_S", 0.05)
    once = (
        "import pathlib, sys, time; mark = pathlib.Path(sys.argv[1])\n"
        "if not mark.exists(): mark.touch(); time.sleep(1.2)\n"
        "print('error: No broker answers.'); sys.exit(3)"
    )
    events: list[str] = []
    spec = ProcessSpec("a", (sys.executable, "-c", once, str(tmp_path / "mark")))
    supervisor = Supervisor([spec], {}, tmp_path, 5, events.append)
    supervisor.start()

    def often() -> bool:
        supervisor.check()
        return sum("started again" in event for event in events) > 2 * supervisor_module.QUICK_EXITS

    assert until(often)
    assert any("(No broker answers.)" in event for event in events)
    (report,) = process_reports(tmp_path)
    assert report.restarts > 2 * supervisor_module.QUICK_EXITS
    assert report.log == str(tmp_path / "a.log")
    assert "ended with code 3: No broker answers." in report.trouble(datetime.now(UTC))
    supervisor.stop()
    assert process_reports(tmp_path) == []


def test_what_an_earlier_start_has_told_is_not_named_as_the_cause(tmp_path: Path) -> None:
    (tmp_path / "bad.log").write_text("error: The port 1 is in use.\n")
    bad = (sys.executable, "-c", "import sys; sys.exit('No memory.')")
    supervisor = Supervisor([ProcessSpec("bad", bad, ready=lambda: False)], {}, tmp_path, 1)
    with pytest.raises(MonitorError, match=r"The bad does not stay up: No memory\."):
        supervisor.start()
    supervisor.stop()


def test_what_cannot_be_removed_keeps_nothing_running(tmp_path: Path) -> None:
    supervisor = Supervisor([ProcessSpec("a", SLEEP)], {}, tmp_path, 5)
    supervisor.start()
    pid = supervisor.pid("a")
    report = tmp_path / supervisor_module.REPORT_FILE
    report.unlink()
    # Not removed like a file: stands for one on a disk that has become read-only.
    report.mkdir()
    assert supervisor.stop() == []
    assert not alive(pid)


def test_only_what_ends_often_is_trouble() -> None:
    now = datetime(2026, 3, 6, 12, tzinfo=UTC)
    once = ProcessReport(
        name="worker",
        state="running",
        log="worker.log",
        restarts=1,
        ends=(now - timedelta(minutes=2),),
        last_code=-9,
        last_words="killed by signal 9.",
    )
    assert once.trouble(now) == ""
    often = msgspec.structs.replace(once, restarts=3, ends=(now - timedelta(minutes=2),) * 3)
    assert often.trouble(now) == (
        "The worker has ended 3 times in 10 minutes and runs again; it ended with code -9: killed by signal 9."
    )
    assert often.trouble(now + timedelta(minutes=9)) == ""
    down = msgspec.structs.replace(once, state="waiting")
    assert down.trouble(now).startswith("The worker is down and starts again soon; restarts so far: 1; ")


def test_a_finished_one_is_not_restarted(tmp_path: Path) -> None:
    once = ProcessSpec("once", (sys.executable, "-c", "print('done')"), restart=False)
    supervisor = Supervisor([once], {"WHO": "child"}, tmp_path)
    supervisor.start()

    def finished() -> bool:
        supervisor.check()
        return supervisor.finished("once")

    assert until(finished)
    supervisor.check()
    assert (tmp_path / "once.log").read_text() == "done\n"


@pytest.mark.skipif(sys.platform != "linux", reason="children learn of their parent's death on Linux only")
def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from monitor.supervisor import *\n"
        f"s = Supervisor([ProcessSpec('a', {SLEEP!r})], {{}}, Path({str(tmp_path)!r})); s.start()\n"
        "print(s.pid('a'), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert until(lambda: not alive(child))
