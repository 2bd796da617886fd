"""How the text encoder is computed: without padding where its architecture allows, and in which arithmetic.

On a CPU there are fp32, bf16 and int8 (`models.engine.int8`). Reduced precision is several times faster where the
processor has the instructions for it (VNNI, AMX, bf16), a little or not at all elsewhere: `auto` measures, once per
machine and model, and keeps the answer in the data folder. On a CUDA card bf16 without padding is taken. Nothing is
taken whose answers on held-out texts, about items, entities and topics each, are not those of fp32.
"""

from __future__ import annotations

import copy
import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
import numpy as np
import torch

from models.answers import LoadedModel, collate
from models.engine.batching import plan
from models.engine.int8 import recipes
from models.engine.kernels import int8_layers, library
from models.engine.lanes import Lanes, lanes, turn
from models.engine.packed import PackedEncoder, arrange, packable
from models.fusion import TextFeatures
from models.tokens import Row, TokenizedRow
from models.training.datasets import BUNDLED, bundled_path, examples_of, read_labelled, select
from monitor.errors import ConfigurationError
from monitor.telemetry import get_logger

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["Compared", "Measured", "Precision", "measure", "prepare", "use"]

log = get_logger(__name__)

# Against fp32, over held-out questions of each kind: mean difference of a probability, and share of the same labels.
MAX_DIFFERENCE: Final = 0.01
MIN_AGREEMENT: Final = 0.97
# Held-out texts that are asked about as a whole (sentiment and topic), and entities in such texts.
_WHOLE: Final = 150
_ENTITIES: Final = 100
# Another check makes another choice: what an earlier version has kept is measured again.
_CHECK: Final = "items, entities, topics"
# Texts that are timed, one of them as long as an article, and how often.
_TIMED: Final = 16
_ROUNDS: Final = 2
# A gain below this is not worth another arithmetic.
_WORTH: Final = 1.15
_TOKENS_TOGETHER: Final = 2048

Precision = Literal["fp32", "bf16", "int8"]
Encoder = Callable[[Sequence[TokenizedRow]], TextFeatures]
_UNAVAILABLE = (RuntimeError, AttributeError, NotImplementedError, ImportError)


class Compared(NamedTuple):
    """Answers of one kind beside those of fp32: mean difference of a probability, share of the same labels."""

    difference: float
    agreement: float


class Measured(msgspec.Struct, frozen=True):
    """One precision: seconds for the timed texts, and how its `items`, `entities` and `topics` differ from fp32."""

    precision: Precision
    seconds: float
    compared: dict[str, Compared] = {}

    @property
    def accurate(self) -> bool:
        """Whether the accuracy check lets it pass, which it has to on every kind of answer."""
        return all(
            one.difference <= MAX_DIFFERENCE and one.agreement >= MIN_AGREEMENT for one in self.compared.values()
        )


class _Kept(msgspec.Struct, frozen=True):
    precision: Precision


def _sample_rows() -> list[Row]:
    """Headlines to find ranges with, every second one with an entity marked in it."""
    text = (resources.files("models") / "data" / "precision_sample.txt").read_text(encoding="utf-8")
    return [Row(line, (0, len(line.split()[0])) if n % 2 else None) for n, line in enumerate(text.splitlines())]


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    return list(rows[:: max(1, len(rows) // count)][:count])


@cache
def _held_out() -> list[Row]:
    """Questions that no shipped model was trained on: about texts of all three sets, then about entities."""
    examples = [
        example for name in BUNDLED for example in examples_of(select(read_labelled(bundled_path(name)), "test"))
    ]
    whole = [example.row for example in examples if example.entity is None]
    asked = [example.row for example in examples if example.entity is not None]
    return _evenly(whole, _WHOLE) + _evenly(asked, _ENTITIES)


def _mixed() -> list[Row]:
    """Texts of lengths as they come, which decide how much of the time goes into attention."""
    texts = [row.text for row in _held_out()[:_TIMED]]
    return [Row("\n".join(texts)), *map(Row, texts[1:])]


def _half(model: LoadedModel) -> Encoder:
    """bf16 with padding, for architectures that cannot be packed."""
    network = copy.copy(model.network)
    network._modules = dict(model.network._modules)
    network.text = copy.deepcopy(model.network.text).to(torch.bfloat16)

    def encode(rows: Sequence[TokenizedRow]) -> TextFeatures:
        with torch.inference_mode():
            found = network.encode_text(collate(rows, model.backbone.pad_id, model.device))
        return TextFeatures(found.tokens.float(), found.mask, found.span)

    return encode


def _encoder(model: LoadedModel, precision: Precision) -> Encoder | None:
    """The text encoder in a precision; None for the network's own. Raises one of `_UNAVAILABLE` where there is none."""
    text = model.network.text
    if not packable(text):
        if precision == "int8":
            raise NotImplementedError("int8 is made for encoders of the BERT architecture only")
        return _half(model) if precision == "bf16" else None
    if precision == "bf16":
        return PackedEncoder(copy.deepcopy(text).to(torch.bfloat16))
    if precision == "fp32":
        return PackedEncoder(text)
    # In double precision the ranges come out the same on every machine and with any number of threads.
    exact = PackedEncoder(copy.deepcopy(text).double())
    sample = arrange([row.ids for row in model.tokenize(_sample_rows())])
    return PackedEncoder(text, layers=int8_layers(recipes(exact, sample)))


class _Answers(NamedTuple):
    """Probabilities of sentiment (N, 3) and topic (N, T)."""

    sentiment: np.ndarray
    topic: np.ndarray


def _batches(rows: Sequence[TokenizedRow]) -> list[list[int]]:
    return plan([len(row) for row in rows], [False] * len(rows), token_budget=_TOKENS_TOGETHER, image_budget=1)


def _answers(model: LoadedModel, rows: Sequence[TokenizedRow]) -> _Answers:
    """Answers to rows without pictures."""
    found = _Answers(*(np.empty((len(rows), size), np.float32) for size in (3, len(model.taxonomy.topics))))
    for batch in _batches(rows):
        said = model.forward([rows[i] for i in batch])
        found.sentiment[batch], found.topic[batch] = said.sentiment, said.topic
    return found


def _seconds(model: LoadedModel, rows: Sequence[TokenizedRow], lane: Lanes) -> float:
    """Seconds of the passes over rows, without their wait for a lane.

    Each pass has a turn: a model may be in force already, and what it scores does not wait for all of them.
    """

    def timed(chosen: Sequence[TokenizedRow]) -> float:
        began = time.perf_counter()
        model.forward(chosen)
        return time.perf_counter() - began

    taken = 0.0
    for batch in _batches(rows):
        chosen = [rows[i] for i in batch]
        taken += lane.submit_at(turn(sum(map(len, chosen))), partial(timed, chosen)).result()
    return taken


def _compare(rows: Sequence[TokenizedRow], said: _Answers, exact: _Answers) -> dict[str, Compared]:
    """Each kind of answer apart: a loss on one does not vanish among the others."""
    asked = np.array([row.span is not None for row in rows])
    found = {}
    for kind, of, one, other in (
        ("items", ~asked, said.sentiment, exact.sentiment),
        ("entities", asked, said.sentiment, exact.sentiment),
        ("topics", ~asked, said.topic, exact.topic),
    ):
        same = one[of].argmax(axis=1) == other[of].argmax(axis=1)
        found[kind] = Compared(float(np.abs(one[of] - other[of]).mean()), float(same.mean()))
    return found


def measure(model: LoadedModel, precisions: tuple[Precision, ...] = ("int8", "bf16")) -> list[Measured]:
    """fp32 and each of `precisions`: first timed on some texts, then compared with fp32 over more of them.

    The comparison is made only of those that are faster. The model is left as it was.
    """
    rows = model.tokenize(_held_out())
    few = model.tokenize(_mixed())
    # Where a batch is computed when it serves: threads that share a product would time another thing.
    lane = lanes(torch.get_num_threads())
    before = model.encoder
    encoders: dict[Precision, Encoder | None] = {}
    seconds: dict[Precision, float] = {}
    try:
        for precision in ("fp32", *precisions):
            try:
                encoders[precision] = model.encoder = _encoder(model, precision)
                _answers(model, few)
            except _UNAVAILABLE as error:
                log.info("precision not available", precision=precision, error=str(error).splitlines()[0][:120])
                encoders.pop(precision, None)
                continue
            seconds[precision] = float("inf")
        # In turns, so that a busy moment of the machine does not decide.
        for _ in range(_ROUNDS):
            for precision in seconds:
                model.encoder = encoders[precision]
                seconds[precision] = min(seconds[precision], _seconds(model, few, lane))
        found = [Measured("fp32", seconds["fp32"])]
        faster = [name for name in seconds if name != "fp32" and seconds[name] * _WORTH <= seconds["fp32"]]
        if faster:
            model.encoder = encoders["fp32"]
            exact = _answers(model, rows)
        for precision in faster:
            model.encoder = encoders[precision]
            found.append(Measured(precision, seconds[precision], _compare(rows, _answers(model, rows), exact)))
    finally:
        model.encoder = before
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return " ".join(named) or platform.processor() or platform.machine()


def _library() -> str:
    """What computes int8 here, if anything does: another one is another arithmetic, to be checked by itself."""
    try:
        return library()
    except _UNAVAILABLE:
        return "none"


def _choice(model: LoadedModel, settings: Settings) -> Precision:
    parts = (_CHECK, _library(), model.version, torch.__version__, _processor(), str(torch.get_num_threads()))
    key = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
    kept = settings.data_dir / "cache" / f"precision-{key}.json"
    if known := _kept(kept):
        return known
    found = measure(model)
    best = min((one for one in found if one.accurate), key=lambda one: one.seconds)
    log.info("precision chosen", precision=best.precision, measured=[msgspec.to_builtins(one) for one in found])
    return _keep(kept, best.precision)


def _keep(place: Path, precision: Precision) -> Precision:
    """Write the choice down, unless another process was first: then its choice, so that both score alike."""
    mine = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        mine.write_bytes(msgspec.json.encode(_Kept(precision)))
        try:
            place.hardlink_to(mine)
        except FileExistsError:
            return _kept(place) or precision
        finally:
            mine.unlink()
    except OSError as error:
        # A folder that cannot be written only means that the next start measures again.
        log.info("precision not kept", error=str(error))
    return precision


def _kept(place: Path) -> Precision | None:
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Kept).precision
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def _prepare_cuda(model: LoadedModel) -> Precision:
    """bf16 without padding, if this card can do it and agrees with fp32; else fp32 with padding."""
    rows = model.tokenize(_held_out())
    exact = _answers(model, rows)
    try:
        model.encoder = _encoder(model, "bf16")
        checked = Measured("bf16", 0.0, _compare(rows, _answers(model, rows), exact))
        if checked.accurate:
            return "bf16"
        log.warning("bf16 is too far from fp32", **msgspec.to_builtins(checked.compared))
    except _UNAVAILABLE as error:
        log.warning("bf16 without padding is not available", error=str(error).splitlines()[0][:120])
    model.encoder = None
    return "fp32"


def prepare(model: LoadedModel, settings: Settings) -> Precision:
    """Set the encoder of a model that serves: on a CPU by `settings.cpu_precision`. Returns its precision.

    Raises `ConfigurationError` when a precision was asked for that this processor's torch cannot do.
    """
    if model.device.type == "cuda":
        return _prepare_cuda(model)
    wanted = settings.cpu_precision
    precision: Precision = _choice(model, settings) if wanted == "auto" else msgspec.convert(wanted, Precision)
    use(model, precision)
    return precision


def use(model: LoadedModel, precision: Precision) -> None:
    """Have `model` compute its text encoder in `precision`, on a CPU or a card.

    Raises `ConfigurationError` when it cannot be done here.
    """
    try:
        if model.device.type == "cuda" and precision == "int8":
            raise NotImplementedError("int8 is made for CPUs only")
        model.encoder = _encoder(model, precision)
        model.forward(model.tokenize([Row("Shares rise.")]))
    except _UNAVAILABLE as error:
        raise ConfigurationError(
            f"The precision {precision} does not work here: {str(error).splitlines()[0][:120]}.",
            "Take fp32, or auto in the setting cpu_precision.",
        ) from error
