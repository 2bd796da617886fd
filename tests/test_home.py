"""The suite leaves the home folder of whoever runs it alone."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

from monitor.settings import load_settings


def test_what_the_suite_starts_has_another_home(home: Path) -> None:
    theirs = Path(pwd.getpwuid(os.getuid()).pw_dir)
    child = subprocess.run(
        [sys.executable, "-c", "import pathlib; print(pathlib.Path.home())"], capture_output=True, text=True, check=True
    )
    assert Path.home() == Path(child.stdout.strip()) == home != theirs
    assert load_settings().data_dir.is_relative_to(home)
