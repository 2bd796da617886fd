"""Every benchmark still runs: the smallest sizes, to the end."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.conftest import small_backbone, small_model

__all__ = ["small_backbone", "small_model"]

FOLDER = Path(__file__).parents[1] / "benchmarks"


def run(name: str, *arguments: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_engine_beside_its_peers(small_model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    arguments = ("--items", "24", "--rounds", "1", "--checked", "8", "--batch", "16", "--threads", "1", "--json")
    found = json.loads(run("engine", *arguments, "--model", str(small_model)))
    ways = {one["way"]: one for one in found["ways"]}
    assert {"pipeline 1", "pipeline 32", "onnxruntime int8, dynamic", "onnxruntime int8, static"} <= set(ways)
    assert all(one["texts_per_s"] > 0 for one in ways.values())
    # The peers take the engine's place in the engine: their answers count as its own do.
    assert ways["onnxruntime int8, static"]["accuracy"] is not None
    assert found["longest_text"] >= found["tokens_a_text"] > 2
    # Neither package has reported anything: each would leave an id.
    assert not (home / "intel").exists()
    assert not (home / ".cache" / "Microsoft").exists()
    assert found["cuda"].startswith("none present") or "matrix_tflops" in found


@pytest.mark.parametrize("before", [None, "1"])
def test_what_silences_openvino_ends_with_its_import(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("_peers")
    seen: list[str | None] = []

    class Finder:
        """Has no such package, but looks at what one would see that is being imported."""

        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "openvino":
                seen.append(os.environ.get("CI"))
                raise ModuleNotFoundError(name)

    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.setattr(module, "_exported", lambda *_: {"dynamic": Path(), "static": Path()})
    monkeypatch.setattr(module, "_onnxruntime", lambda _: None)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("CI", "")
    if before is None:
        monkeypatch.delenv("CI")
    else:
        monkeypatch.setenv("CI", before)
    assert set(module.peers(None, Path())) == {"onnxruntime int8, dynamic", "onnxruntime int8, static"}
    assert seen == ["true"]
    assert os.environ.get("CI") == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_passes(small_model: Path) -> None:
    (found,) = json.loads(run("passes", "--precision", "fp32", "--rounds", "2", "--model", str(small_model)))
    assert found["tokens_per_s"] > 0


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_aggregator_and_its_process() -> None:
    found = json.loads(run("aggregator", "--items", "3000", "--batch", "16", "--keys", "1", "20", "--process"))
    assert [one["keys"] for one in found] == [2, 40]
    for one in found:
        assert one["contributions"] == 6000
        assert one["contributions_per_s"] > 0
        assert one["bytes_per_key"] > 0
        # From the first commit on: with so few, that may be all.
        assert 0 <= one["process_contributions"] <= 6000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_store_and_growth() -> None:
    found = json.loads(run("store", "--items", "2000", "--days", "2", "--tickers", "20", "--json"))
    assert found["rows"]["items"] >= 2000
    assert all(one["median_ms"] >= 0 for one in found["queries"])
    sizes = json.loads(run("growth", "--sizes", "100", "300", "--written", "64", "--tickers", "20"))
    assert [one["items"] for one in sizes] == [100, 300]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_guards() -> None:
    found = json.loads(run("guards", "--json"))
    assert {one["set"]: one["share"] < 0.01 for one in found["guard"]} == dict.fromkeys(
        ("sentfin", "twitter_sentiment", "twitter_topic"), True
    )
    assert found["linker"]["recall_of_known"] > 0.95


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["articles", "charts", "fusion", "mixture", "series", "sorts", "surges", "worker"])
def test_the_others_start(name: str) -> None:
    assert "usage" in run(name, "--help")
