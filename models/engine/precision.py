"""Which arithmetic the text backbone uses on a CPU: fp32, bf16 or int8, chosen where it runs.

int8 here is weight and activation quantisation with one scale an output channel and one a token, so that a text's
score does not depend on what else is in its batch (as it does with one scale a tensor). It is several times faster
where the processor has integer matrix instructions (VNNI, AMX) and slower elsewhere, and the same holds for bf16:
`auto` measures, once per machine and model, and keeps the answer in the data folder. Nothing is taken whose answers
on a sample of headlines are not those of fp32.
"""

from __future__ import annotations

import copy
import hashlib
import platform
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from models.bundle import LoadedModel
from models.engine.batching import plan
from models.tokens import Row, TokenizedRow
from monitor.errors import ConfigurationError
from monitor.telemetry import get_logger

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["Int8Linear", "Measured", "measure", "prepare_cpu"]

log = get_logger(__name__)

# Against fp32, over the sample: mean difference of a probability, and share of headlines with the same label.
MAX_DIFFERENCE: Final = 0.01
MIN_AGREEMENT: Final = 0.98
# A gain below this is not worth another arithmetic.
_WORTH: Final = 1.15
# Headlines of the sample that are timed.
_TIMED: Final = 24


Precision = Literal["fp32", "bf16", "int8"]


class Measured(msgspec.Struct, frozen=True):
    """One precision: seconds for the sample, and how it differs from fp32."""

    precision: Precision
    seconds: float
    difference: float = 0.0
    agreement: float = 1.0

    @property
    def accurate(self) -> bool:
        """Whether the accuracy check lets it pass."""
        return self.difference <= MAX_DIFFERENCE and self.agreement >= MIN_AGREEMENT


class _Kept(msgspec.Struct, frozen=True):
    precision: Precision


class _Product(torch.autograd.Function):
    """(M, K) float times (K, N) int8, each row of the left side rounded to int8 by its own scale.

    Backwards, the rounding counts as the identity (straight-through, Bengio et al. 2013): explanations need gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """(M, N)."""
        ctx.save_for_backward(weight, scale)
        step = (x.abs().amax(dim=1, keepdim=True) / 127.0).clamp_(min=1e-12)
        product = torch._int_mm((x / step).round_().to(torch.int8), weight)
        return product.to(torch.float32).mul_(scale).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of x alone; the weights are fixed."""
        weight, scale = ctx.saved_tensors
        return (gradients[0] * scale) @ weight.to(torch.float32).t(), None, None


class Int8Linear(nn.Module):
    """A linear layer in int8: symmetric, one scale for each output channel and one for each token."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127.0).clamp(min=1e-12)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        flat = x.reshape(-1, x.shape[-1])
        y = cast(Tensor, _Product.apply(flat, self.weight, self.scale))  # type: ignore[no-untyped-call]
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)


class _Half(nn.Module):
    """An encoder in bf16 that gives its token vectors in fp32, as the heads want them."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.to(torch.bfloat16)

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, cast(Any, self.encoder).get_input_embeddings())

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> object:
        given = {
            name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in inputs.items()
        }
        output = self.encoder(attention_mask=attention_mask, **given)
        output.last_hidden_state = output.last_hidden_state.float()
        return output


def _int8(encoder: nn.Module) -> nn.Module:
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return encoder


_CONVERSIONS: Final[dict[Precision, Callable[[nn.Module], nn.Module]]] = {"int8": _int8, "bf16": _Half}


def _sample() -> list[str]:
    return (resources.files("models") / "data" / "precision_sample.txt").read_text(encoding="utf-8").splitlines()


def _sentiment(model: LoadedModel, rows: list[TokenizedRow]) -> np.ndarray:
    """Sentiment (N, 3) of rows without pictures."""
    batches = plan([len(row) for row in rows], [False] * len(rows), token_budget=1024, image_budget=1)
    found = np.empty((len(rows), 3), dtype=np.float32)
    for batch in batches:
        found[batch] = model.forward([rows[i] for i in batch]).sentiment
    return found


def measure(model: LoadedModel, precisions: tuple[Precision, ...] = ("int8", "bf16")) -> list[Measured]:
    """fp32 and each of `precisions`: first timed on a part of the sample, then compared with fp32 over all of it.

    The comparison is made only of those that are faster. The model is left as it was.
    """
    rows = model.tokenize([Row(text) for text in _sample()])
    few = rows[:_TIMED]
    original = model.network.text
    encoders: dict[Precision, nn.Module] = {"fp32": original}
    seconds: dict[Precision, float] = {"fp32": float("inf")}
    found: list[Measured] = []
    try:
        for precision in precisions:
            encoders[precision] = _CONVERSIONS[precision](copy.deepcopy(original))
            seconds[precision] = float("inf")
        # In turns, so that a busy moment of the machine does not decide.
        for _ in range(2):
            for precision, encoder in list(encoders.items()):
                model.network.text = encoder
                began = time.perf_counter()
                try:
                    _sentiment(model, few)
                except RuntimeError as error:
                    log.info("precision not available", precision=precision, error=str(error).splitlines()[0][:120])
                    del encoders[precision]
                    continue
                seconds[precision] = min(seconds[precision], time.perf_counter() - began)
        model.network.text = original
        found.append(Measured("fp32", seconds["fp32"]))
        faster = [p for p in encoders if seconds[p] * _WORTH <= seconds["fp32"]]
        exact = _sentiment(model, rows) if faster else np.empty((0, 3), dtype=np.float32)
        for precision in faster:
            model.network.text = encoders[precision]
            said = _sentiment(model, rows)
            agreement = float((said.argmax(1) == exact.argmax(1)).mean())
            found.append(Measured(precision, seconds[precision], float(np.abs(said - exact).mean()), agreement))
    finally:
        model.network.text = original
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return " ".join(named) or platform.processor() or platform.machine()


def _choice(model: LoadedModel, settings: Settings) -> Precision:
    key = hashlib.sha256(
        "\x1f".join((model.version, torch.__version__, _processor(), str(torch.get_num_threads()))).encode()
    ).hexdigest()[:16]
    kept = settings.data_dir / "cache" / f"precision-{key}.json"
    try:
        return msgspec.json.decode(kept.read_bytes(), type=_Kept).precision
    except (OSError, msgspec.MsgspecError, ValueError):
        pass
    found = measure(model)
    best = min((one for one in found if one.accurate), key=lambda one: one.seconds)
    log.info("precision chosen", precision=best.precision, measured=[msgspec.to_builtins(one) for one in found])
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(msgspec.json.encode(_Kept(best.precision)))
    except OSError as error:
        # A folder that cannot be written only means that the next start measures again.
        log.info("precision not kept", error=str(error))
    return best.precision


def prepare_cpu(model: LoadedModel, settings: Settings) -> str:
    """Give a model on the CPU its arithmetic, by `settings.cpu_precision`; returns it ("" on another device).

    Raises `ConfigurationError` when a precision was asked for that this processor's torch cannot do.
    """
    if model.device.type != "cpu":
        return ""
    wanted = settings.cpu_precision
    precision: Precision = _choice(model, settings) if wanted == "auto" else msgspec.convert(wanted, Precision)
    if precision != "fp32":
        try:
            model.network.text = _CONVERSIONS[precision](model.network.text)
            model.forward(model.tokenize([Row("Shares rise.")]))
        except RuntimeError as error:
            raise ConfigurationError(
                f"The setting cpu_precision = {precision} does not work here: {str(error).splitlines()[0][:120]}.",
                "Use auto or fp32.",
            ) from error
    return precision
