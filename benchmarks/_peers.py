"""The text encoder in ONNX Runtime and OpenVINO, as the engine calls it: from several threads, each with one core."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.answers import LoadedModel, collate
from models.engine.precision import Encoder, _sample_rows
from models.fusion import TextFeatures
from models.tokens import TokenizedRow

__all__ = ["peers"]

# Token ids and mask, both (N, L), to token vectors (N, L, H).
Run = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


class _Tokens(torch.nn.Module):
    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.text = model.network.text

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.text(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]


def _inputs(model: LoadedModel, rows: Sequence[TokenizedRow]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    batch = collate(rows, model.backbone.pad_id, torch.device("cpu"))
    return batch.ids.numpy(), batch.mask.long().numpy()


def _exported(model: LoadedModel, folder: Path) -> dict[str, Path]:
    """ONNX files: fp32, int8 with ranges from each batch, int8 with ranges found on the engine's sample."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "dynamic", "static")}
    example = torch.ones(2, 16, dtype=torch.long)
    axes = {name: {0: "rows", 1: "tokens"} for name in ("ids", "mask", "out")}
    torch.onnx.export(
        _Tokens(model),
        (example, example),
        str(paths["fp32"]),
        input_names=["ids", "mask"],
        output_names=["out"],
        dynamic_axes=axes,
        dynamo=False,
    )
    quantize_dynamic(paths["fp32"], paths["dynamic"], weight_type=QuantType.QInt8, per_channel=True)

    class Sample(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rows = model.tokenize(_sample_rows())
            self._each: Iterator[dict[str, Any]] = (
                dict(zip(("ids", "mask"), _inputs(model, [row]), strict=True)) for row in rows
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._each, None)

    quantize_static(
        paths["fp32"],
        paths["static"],
        Sample(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        extra_options={"MatMulConstBOnly": True},
    )
    return paths


def _onnxruntime(path: Path) -> Run:
    """One session that computes in the thread which calls it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        return session.run(["out"], {"ids": ids, "mask": mask})[0]  # type: ignore[no-any-return]

    return run


def _openvino(core: Any, path: Path, precision: str) -> Run:
    """A request a thread, on as many streams of one thread as the engine has lanes."""
    lanes = torch.get_num_threads()
    options = {"INFERENCE_NUM_THREADS": lanes, "NUM_STREAMS": lanes, "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(str(path), "CPU", options)
    mine = threading.local()

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        return np.array(mine.request.infer({"ids": ids, "mask": mask})[0])

    return run


def _encoder_of(model: LoadedModel, run: Run) -> Encoder:
    def encode(rows: Sequence[TokenizedRow]) -> TextFeatures:
        batch = collate(rows, model.backbone.pad_id, torch.device("cpu"))
        tokens = torch.from_numpy(run(batch.ids.numpy(), batch.mask.long().numpy()))
        return TextFeatures(tokens, batch.mask, batch.span)

    return encode


@contextmanager
def _as_in_ci() -> Iterator[None]:
    """OpenVINO reports nothing from jobs of CI alone, and settles that when it is imported. Nobody else is to believe
    that this is one, such as a process that is started later."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def peers(model: LoadedModel, folder: Path) -> dict[str, Encoder]:
    """Encoders by name, as far as their packages are installed and can do it."""
    # Both packages tell their makers that they are used and leave an id in the home folder.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    found: dict[str, Run] = {}
    try:
        paths = _exported(model, folder)
        found["onnxruntime int8, dynamic"] = _onnxruntime(paths["dynamic"])
        found["onnxruntime int8, static"] = _onnxruntime(paths["static"])
    except (ImportError, RuntimeError) as error:
        print(f"ONNX Runtime is left out: {error}", file=sys.stderr)
        return {}
    try:
        with _as_in_ci():
            import openvino

        core = openvino.Core()
        found["openvino int8, static"] = _openvino(core, paths["static"], "f32")
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            found["openvino bf16"] = _openvino(core, paths["fp32"], "bf16")
    except (ImportError, RuntimeError) as error:
        print(f"OpenVINO is left out: {error}", file=sys.stderr)
    return {name: _encoder_of(model, run) for name, run in found.items()}
