#!/usr/bin/env python3
"""The one command: format, lint, types, import contracts, generated files, tests.

    python scripts/check.py            check everything
    python scripts/check.py --fix      format and repair what can be repaired, then check
    python scripts/check.py --fast     all but the tests

Further arguments go to pytest: `python scripts/check.py -k surges`. Tests run side by side, a file at a time in each of
up to four processes; `-n 0` runs them one after another.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(title: str, *command: str) -> bool:
    """Run one check from the repository root; True when it passed."""
    began = time.monotonic()
    print(f"== {title}", flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(
        f"== {title}: {'passed' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - began:.0f} s", flush=True
    )
    return code == 0


def main() -> int:
    """Run the checks in order; the exit code is 0 only when all of them passed."""
    arguments = sys.argv[1:]
    fix, fast = "--fix" in arguments, "--fast" in arguments
    rest = [a for a in arguments if a not in ("--fix", "--fast")]
    python, ruff = sys.executable, str(BIN / "ruff")
    if fix:
        run("format", ruff, "format", ".")
        run("repair", ruff, "check", "--fix", ".")
        run("generated files", python, "scripts/generate.py")
    results = [
        run("format", ruff, "format", "--check", "."),
        run("lint", ruff, "check", "."),
        run("types", str(BIN / "mypy")),
        run("import contracts", str(BIN / "lint-imports")),
        run("generated files", python, "scripts/generate.py", "--check"),
        run("deployment files", str(BIN / "yamllint"), "--strict", "docker-compose.yml"),
    ]
    if not fast:
        # One thread for each process: two that share the cores would wait for each other's threads.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        processes = str(min(os.cpu_count() or 1, 4))
        results.append(
            run("tests", python, "-m", "pytest", "-n", processes, "--dist", "loadfile", "--no-loadscope-reorder", *rest)
        )
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
