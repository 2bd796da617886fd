"""What a figure was measured on: processor, memory and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

__all__ = ["described", "load_average", "versions"]

# What decides how fast a product of matrices is; the names of Linux, x86 and ARM.
_FEATURES: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
_PACKAGES: Final = (
    "torch",
    "transformers",
    "sentence-transformers",
    "onnxruntime",
    "openvino",
    "faust-streaming",
    "kafka-python",
    "sqlalchemy",
)


def described(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Processor and its features, cores that this process may use, memory."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    known = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = known.get("model name") or platform.processor() or platform.machine()
    flags = set((known.get("flags") or known.get("features") or "").split())
    features = ", ".join(one for one in _FEATURES if one in flags) or "features unknown"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name} ({features}), {cores} cores, {_memory()}, {platform.system()}"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):
        return "memory unknown"


def load_average() -> str:
    """Of the last minute, five and fifteen."""
    try:
        return " ".join(f"{one:.2f}" for one in os.getloadavg())
    except (AttributeError, OSError):
        return "unknown"


def versions() -> str:
    """Of Python and of what the figures depend on, as far as it is installed."""
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
