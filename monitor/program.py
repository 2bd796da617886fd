"""How a process of the product starts another one."""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["PROGRAM"]

# Without -P Python looks for modules in the current folder first: it may hold a `monitor.py` of somebody else's, or a
# clone of another version than the one that is installed.
PROGRAM: Final = (sys.executable, "-P", "-m", "monitor.cli.app")
