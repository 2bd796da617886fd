"""How processes are started."""

from __future__ import annotations

import subprocess
from pathlib import Path

from monitor.program import PROGRAM


def test_a_module_of_the_same_name_in_the_current_folder_is_not_taken_for_the_product(tmp_path: Path) -> None:
    (tmp_path / "monitor.py").write_text("raise SystemExit('somebody else')", encoding="utf-8")
    done = subprocess.run([*PROGRAM, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
