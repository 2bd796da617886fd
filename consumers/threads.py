"""How the worker's threads share the interpreter: some compute, others wait for a client, a store or a broker."""

from __future__ import annotations

import gc
import sys
from typing import Final

__all__ = ["share_the_interpreter"]

# A thread that computes in Python lets go after this time, where others want to go on; 5 ms is the default. What
# the model computes comes back to Python now and then (each operation does where they are not compiled) and may have to
# wait that long.
SWITCH_INTERVAL_S: Final = 0.0005
# New objects after which the collector of reference cycles looks for garbage; 700 is the default.
GC_THRESHOLD: Final = 50_000


def share_the_interpreter() -> None:
    """Set up this process, once all is loaded: what is there by now stays, and is not looked through for garbage."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
