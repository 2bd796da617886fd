"""What a plain installation, without extras, has to bring."""

from __future__ import annotations

import tomllib
from pathlib import Path

from aiokafka.codec import has_lz4


def test_the_codec_that_producers_use_can_be_read_by_the_aggregator() -> None:
    # kafka-python writes lz4 with one library, Faust's client reads it with another.
    assert has_lz4()
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        required = tomllib.load(file)["project"]["dependencies"]
    assert {"lz4", "cramjam"} <= {line.split(">")[0].split("<")[0].split("=")[0] for line in required}
