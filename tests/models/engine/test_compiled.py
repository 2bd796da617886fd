"""Passes that are compiled: the same bits, several at a time, what an error says, and what happens without."""

from __future__ import annotations

import copy
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.answers import LoadedModel
from models.bundle import load_model
from models.engine import fbgemm, kernels, precision
from models.engine.forward import Forward, RowFailure, out_of_memory
from models.engine.int8 import Product, Range
from models.engine.lanes import NICENESS, Lanes
from models.engine.packed import PackedEncoder, scripted
from models.engine.precision import Precision, use
from monitor.settings import Settings
from tests.models.engine.rows import rows_of

needs_fbgemm = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no FBGEMM here")
WAYS = [
    pytest.param("fp32", "onednn", id="fp32"),
    pytest.param("bf16", "onednn", id="bf16"),
    pytest.param("int8", "onednn", id="int8 by oneDNN"),
    pytest.param("int8", "fbgemm", id="int8 by FBGEMM", marks=needs_fbgemm),
]


def encoder_of(model: LoadedModel) -> PackedEncoder:
    encoder = model.encoder
    assert isinstance(encoder, PackedEncoder)
    return encoder


@pytest.mark.parametrize(("kind", "library"), WAYS)
def test_compiled_layers_give_the_same_bits(
    kind: Precision, library: kernels.Library, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "library", lambda: library)
    model = load_model(model_dir, device="cpu")
    use(model, kind)
    rows = rows_of(model)
    encoder = encoder_of(model)
    assert isinstance(encoder._compiled, torch.jit.ScriptModule)
    compiled = model.forward(rows)
    plain = copy.copy(encoder)
    del plain.__dict__["_compiled"]
    monkeypatch.delattr(torch.jit, "script")
    model.encoder = plain
    found = model.forward(rows)
    assert not isinstance(plain._compiled, torch.jit.ScriptModule)
    assert np.array_equal(found.sentiment, compiled.sentiment)
    assert np.array_equal(found.topic, compiled.topic)
    # The heads, too, are compiled where a model serves.
    monkeypatch.undo()
    reader = scripted(model.reader)
    assert isinstance(reader, torch.jit.ScriptModule)
    model.reader = reader
    found = model.forward(rows)
    assert np.array_equal(found.sentiment, compiled.sentiment)
    assert np.array_equal(found.topic, compiled.topic)


@pytest.mark.parametrize("error", [RuntimeError(""), OSError("no source"), TypeError("unsupported")])
def test_without_the_compiler_it_goes_on(error: Exception, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_module: object) -> None:
        raise error

    model = load_model(model_dir, device="cpu")
    wanted = model.forward(rows_of(model)).sentiment
    monkeypatch.setattr(torch.jit, "script", fails)
    use(model, "fp32")
    assert np.allclose(model.forward(rows_of(model)).sentiment, wanted, atol=1e-5)


@needs_fbgemm
def test_by_fbgemm_a_row_has_the_same_bits_beside_any_number_of_tokens(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "library", lambda: "fbgemm")
    model = load_model(model_dir, device="cpu")
    use(model, "int8")
    row, *others = rows_of(model)
    alone = model.forward([row]).sentiment
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for count in range(1, len(others)):
                assert np.array_equal(model.forward([row, *others[:count]]).sentiment[:1], alone)
    finally:
        torch.set_num_threads(before)


def test_several_threads_compute_at_a_time(model_dir: Path) -> None:
    model = load_model(model_dir, device="cpu")
    use(model, "int8")
    rows = rows_of(model)
    wanted = model.forward(rows).sentiment
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.forward(rows).sentiment, range(24)):
            assert np.array_equal(found, wanted)


class Failing(torch.nn.Module):
    """A stack that fails inside TorchScript."""

    def forward(
        self, ids: Tensor, positions: Tensor, groups: list[tuple[int, int, int]], tokens: int, means: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        x = ids.view(tokens + 1, 3)
        return x, x


def test_what_fails_inside_is_told_in_a_line(model_dir: Path) -> None:
    model = load_model(model_dir, device="cpu")
    use(model, "fp32")
    encoder_of(model).__dict__["_compiled"] = torch.jit.script(Failing())
    (row, *_) = rows_of(model)
    (failure,) = Forward(model, token_budget=100, image_budget=1).run([row])
    assert isinstance(failure, RowFailure)
    assert "shape" in str(failure)
    assert "TorchScript" not in str(failure)
    assert "RuntimeError" not in str(failure)


def test_want_of_memory_is_known_by_what_torchscript_says() -> None:
    told = "The following operation failed in the TorchScript interpreter.\nRuntimeError: std::bad_alloc"
    assert out_of_memory(RuntimeError(told))
    assert not out_of_memory(RuntimeError("shape '[4, 3]' is invalid"))


@pytest.mark.parametrize(
    ("exact", "engines", "wanted"),
    [(True, ["fbgemm"], "onednn"), (False, ["fbgemm", "onednn"], "fbgemm"), (False, ["onednn"], "onednn")],
)
def test_the_library_is_chosen_by_what_the_processor_does(
    exact: bool, engines: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quantised:
        supported_engines = engines

    monkeypatch.setattr(kernels, "adds_exactly", lambda: exact)
    monkeypatch.setattr(torch.backends, "quantized", Quantised)
    assert kernels.library() == wanted


def test_another_library_is_checked_anew(model_dir: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(
        precision, "measure", lambda _model: measured.append(1) or [precision.Measured("fp32", seconds=1.0)]
    )
    model = load_model(model_dir, device="cpu")
    auto = settings.model_copy(update={"cpu_precision": "auto"})
    for name in ("onednn", "onednn", "fbgemm"):
        monkeypatch.setattr(precision, "library", lambda name=name: name)
        precision.prepare(model, auto)
    assert len(measured) == 2


@needs_fbgemm
def test_packing_leaves_the_processs_engine_as_it_was() -> None:
    before = torch.backends.quantized.engine
    fbgemm._Product(Product(torch.randn(16, 16), torch.zeros(16), Range(0.1, 128)))
    assert torch.backends.quantized.engine == before
    with pytest.raises((RuntimeError, TypeError)):
        fbgemm._Product(Product(torch.randn(16, 16), torch.zeros(3, 3), Range(0.1, 128)))
    assert torch.backends.quantized.engine == before


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread has a niceness of its own")
def test_lanes_give_way_and_nobody_else_does() -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert Lanes(1).submit_at(0.0, niceness).result(timeout=20) == min(19, mine + NICENESS)
    assert niceness() == mine
