"""What the Kafka clients need to read and write records: a client without its codec ends at the first batch."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import aiokafka.codec
import kafka.codec

__all__ = ["Codec", "codecs"]


class Codec(NamedTuple):
    """One codec of one client: whether it is there, the package that brings it, whether nothing runs without it."""

    name: str
    there: bool
    package: str
    needed: bool
    why: str


def codecs() -> list[Codec]:
    """The codecs of all clients."""
    own, others = (
        "Records are sent in lz4.",
        "Others may write in it, and a worker ends at what it cannot read.",
    )
    return [
        Codec("lz4 (worker, notifier)", kafka.codec.has_lz4(), "lz4", True, own),
        Codec("lz4 (aggregator)", aiokafka.codec.has_lz4(), "cramjam", True, own),
        Codec("crc32c", _importable("crc32c"), "crc32c", True, "Kafka is 3 times faster with it."),
        Codec("zstd (worker)", kafka.codec.has_zstd(), "zstandard", True, others),
        Codec("snappy (worker)", kafka.codec.has_snappy(), "python-snappy", True, others),
    ]


def _importable(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True
