"""What a plain installation, without extras, has to bring."""

from __future__ import annotations

import tomllib
from pathlib import Path

from aiokafka.codec import has_lz4

from consumers.codecs import codecs


def test_the_codec_that_producers_use_can_be_read_by_the_aggregator() -> None:
    # kafka-python writes lz4 with one library, Faust's client reads it with another.
    assert has_lz4()
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        required = tomllib.load(file)["project"]["dependencies"]
    assert {"lz4", "cramjam"} <= {line.split(">")[0].split("<")[0].split("=")[0] for line in required}


def test_a_plain_installation_reads_every_codec_that_a_producer_may_choose() -> None:
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        required = tomllib.load(file)["project"]["dependencies"]
    names = {line.split(">")[0].split("<")[0].split("=")[0] for line in required}
    assert [codec.name for codec in codecs() if not codec.there or codec.package not in names] == []
    assert {"zstandard", "python-snappy", "lz4"} <= {codec.package for codec in codecs() if codec.needed}
