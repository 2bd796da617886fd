"""How the worker's threads share the interpreter: some compute, others wait for a client, a store or a broker."""

from __future__ import annotations

import gc
import os
from typing import Final

__all__ = ["share_the_interpreter"]

# New objects after which the collector of reference cycles looks for garbage; 700 is the default.
GC_THRESHOLD: Final = 50_000
FEW_CORES: Final = 4


def share_the_interpreter() -> None:
    """Set up this process, once all is loaded: what is there by now stays, and is not looked through for garbage."""
    if (os.cpu_count() or 1) <= FEW_CORES:
        # They are busy: the texts of a small batch are split into tokens sooner by the thread that asks than by several
        # that have to be woken.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
