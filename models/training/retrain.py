"""The retraining job: analysts' corrections and a sample of base data in, a gated candidate in the registry out."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch

from models.answers import LoadedModel
from models.bundle import load_model
from models.explain import NeighbourIndex, index_folder
from models.registry import OvertakenError, models_folder, promote, register, resolve
from models.training.blend import blend, recalibrate
from models.training.datasets import (
    BUNDLED,
    LabelledText,
    assign_parts,
    bundled_path,
    examples_of,
    fitting,
    read_labelled,
    select,
)
from models.training.duplicates import near_duplicate_groups
from models.training.frozen import ask, frozen_pairs
from models.training.gate import Answers, Verdict, answers, judge
from models.training.train import Cancelled, fine_tune
from monitor.jobs.catalogue import Progress
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.labels import TrainingRow, count_labels, list_labels, training_rows
from monitor.storage.models import get_model, list_models, set_state
from monitor.taxonomy import Taxonomy
from monitor.telemetry import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from monitor.settings import Settings

__all__ = ["Corrections", "base_rows", "mixture", "retrain", "run", "split_corrections"]

log = get_logger(__name__)

REASON: Final = "retraining"
_HELD_OUT: Final = 0.25
_VALIDATION_ROWS: Final = 400
# Corrections are few: they are repeated up to this often, or until they make up a quarter of what is learned from.
_MOST_COPIES: Final = 8
_SHARE: Final = 0.25
# How far the candidate goes from the model in force towards what was fine-tuned (`models.training.blend`).
_BLEND: Final = 0.5
_SEED: Final = 0


class Corrections(msgspec.Struct, frozen=True):
    """Analysts' corrections: to learn from, and held out for the gate."""

    learned: tuple[LabelledText, ...]
    held_out: tuple[LabelledText, ...]


def split_corrections(rows: Sequence[TrainingRow], test: Sequence[LabelledText]) -> Corrections:
    """A quarter of the corrections held out, near-duplicates together.

    Those that say nearly what a row of the frozen test part says are neither learned nor held out: the test part
    stays unseen.
    """
    texts = [row.text for row in rows]
    groups = near_duplicate_groups([row.text for row in test] + texts)
    seen = set(groups[: len(test)])
    parts = assign_parts(texts, seed=_SEED, test_share=_HELD_OUT, validation_share=0.0)
    kept: dict[str, list[LabelledText]] = {"train": [], "test": []}
    for row, group, part in zip(rows, groups[len(test) :], parts, strict=True):
        if group in seen:
            continue
        kept[part].append(
            LabelledText(
                text=row.text,
                sentiment=str(row.sentiment) if row.sentiment else None,
                topic=row.topic,
                entities={name: str(value) for name, value in row.entities.items()},
                part="train",
                origin="corrections",
            )
        )
    return Corrections(tuple(kept["train"]), tuple(kept["test"]))


def base_rows(taxonomy: Taxonomy) -> dict[str, list[LabelledText]]:
    """The bundled sets by part: `train`, `validation` and the frozen `test`, each a mixed order that never changes."""
    parts: dict[str, list[LabelledText]] = {"train": [], "validation": [], "test": []}
    for name in BUNDLED:
        rows = read_labelled(bundled_path(name))
        for part, kept in parts.items():
            kept += fitting(select(rows, part), taxonomy)  # type: ignore[arg-type]
    for kept in parts.values():
        random.Random(_SEED).shuffle(kept)  # noqa: S311 - no secret
    return parts


def mixture(
    corrections: Sequence[LabelledText], base: dict[str, list[LabelledText]], base_count: int, seed: int
) -> list[LabelledText]:
    """What is learned from: corrections (repeated), a sample of the base training part, and validation rows."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    sample = rng.sample(base["train"], min(base_count, len(base["train"])))
    wanted = _SHARE / (1 - _SHARE) * len(sample)
    copies = max(1, min(_MOST_COPIES, round(wanted / max(1, len(corrections)))))
    validation = base["validation"][:_VALIDATION_ROWS]
    return [
        *(row for row in corrections for _ in range(copies)),
        *(msgspec.structs.replace(row, part="train") for row in sample),
        *(msgspec.structs.replace(row, part="validation") for row in validation),
    ]


def retrain(
    settings: Settings,
    active: Path,
    corrections: Corrections,
    base: dict[str, list[LabelledText]],
    out: Path,
    progress: Progress,
    cancelled: Callable[[], bool],
    *,
    seed: int = 0,
    best: Mapping[str, tuple[int, float]] | None = None,
) -> tuple[Verdict, LoadedModel]:
    """Fine-tune the model in the folder `active`, write the candidate to `out`, and `judge` the two.

    `settings` bound the work: `retrain_base_rows` and `retrain_epochs`. Raises `Cancelled`, `ModelError`, `InputError`.
    """

    def told(stage: str, done: int, total: int, note: str) -> None:
        progress(done, total, f"{stage} {note}".strip())

    rows = mixture(corrections.learned, base, settings.retrain_base_rows, seed)
    device = settings.device or None
    fine_tune(
        active,
        rows,
        out,
        epochs=settings.retrain_epochs,
        learning_rate=settings.retrain_learning_rate,
        seed=seed,
        folder=active,
        progress=told,
        cancelled=cancelled,
    )
    progress(0, 0, "blending with the model in force")
    blend(active, out, _BLEND)
    old = load_model(active, device=device)
    recalibrate(out, examples_of(base["validation"], old.taxonomy), cancelled, device=device)
    new = load_model(out, device=device)
    test = examples_of(base["test"], old.taxonomy)
    held = examples_of(corrections.held_out, old.taxonomy)
    pairs = frozen_pairs(test)
    measured: list[tuple[dict[str, Answers], dict[str, Answers]]] = []
    for number, model in enumerate((old, new)):
        progress(number, 2, f"measuring the {'candidate' if number else 'model in force'}")
        said = answers(ask(model, test, cancelled), test) | pairs.ask(model, cancelled)
        measured.append((said, answers(ask(model, held, cancelled), held)))
    (before, held_before), (after, held_after) = measured
    return judge(before, after, held_before, held_after, best), new


def _best_so_far(connection: Connection, version: str) -> dict[str, tuple[int, float]]:
    """By head, the questions of the newest gate in the line that leads to `version`, and the best accuracy on them.

    The line begins with a model that the gate rejected and somebody has put in force all the same.
    """
    found: dict[str, tuple[int, float]] = {}
    seen = set()
    while version not in seen and (model := get_model(connection, version)) is not None:
        seen.add(version)
        forced = model.metrics.get("gate") == "rejected"
        for head, one in model.metrics.get("heads", {}).items():
            n, accuracy = int(one["n"]), one["after"] if forced else max(one["before"], one["after"])
            known = found.get(head, (n, 0.0))
            if known[0] == n:
                found[head] = (n, max(known[1], accuracy))
        version = "" if forced else model.parent
    return found


def _learned_until(connection: Connection) -> datetime | None:
    """When the newest correction was made that an earlier run has read; those made while it trained are newer."""
    found = [model.metrics.get("corrections_until") for model in list_models(connection)]
    return max((datetime.fromisoformat(at) for at in found if at), default=None)


def run(settings: Settings, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
    """The job: train on the corrections, gate, register; promote what passes. Workers take it up by themselves.

    Nothing happens while there are fewer than `retrain_min_labels` corrections newer than those that the last candidate
    was made from. A model that is pinned by the setting `model` is not replaced, and neither is one that somebody has
    put in force while this one was trained. Returns what was done, for the job's history.
    """
    engine = open_engine(settings.database)
    with reading(engine) as connection:
        new = count_labels(connection, since=_learned_until(connection))
        rows = list(training_rows(connection))
        newest = list_labels(connection, limit=1)
    if new < settings.retrain_min_labels:
        return {"promoted": False, "reason": f"{new} new corrections; {settings.retrain_min_labels} are needed."}
    active = resolve(settings.model_copy(update={"model": ""}), engine)
    torch.manual_seed(_SEED)
    try:
        progress(0, 0, "reading the base data")
        parent = load_model(active.path, device="cpu")
        base = base_rows(parent.taxonomy)
        found = split_corrections(rows, base["test"])
        # Corrections that speak of another taxonomy's topics were made under another model.
        learned, held_out = (tuple(fitting(part, parent.taxonomy)) for part in (found.learned, found.held_out))
        corrections = Corrections(learned, held_out)
        if not corrections.learned or not corrections.held_out:
            return {"promoted": False, "reason": "Too few corrections are left besides those like the test rows."}
        models_folder(settings).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".training-", dir=models_folder(settings)) as work:
            out = Path(work) / "candidate"
            with reading(engine) as connection:
                best = _best_so_far(connection, active.version)
            verdict, candidate = retrain(
                settings, active.path, corrections, base, out, progress, cancelled, seed=new, best=best
            )
            if cancelled():
                return {"promoted": False, "reason": "cancelled"}
            _clear_run(out)
            metrics = verdict.metrics() | {
                "job": REASON,
                "corrections_learned": len(corrections.learned),
                "corrections_until": newest[0].created_at.isoformat(),
                "base_rows": settings.retrain_base_rows,
            }
            version = register(
                settings,
                engine,
                out,
                parent=parent.version,
                metrics=metrics,
                reason=verdict.reason,
                state="candidate" if verdict.passed else "rejected",
            )
    except Cancelled:
        return {"promoted": False, "reason": "cancelled"}
    promoted, reason = verdict.passed, verdict.reason
    if verdict.passed:
        progress(0, 0, "preparing explanations")
        NeighbourIndex.of(candidate, index_folder(settings))
        try:
            if cancelled():
                raise Cancelled
            promote(settings, engine, version, actor=REASON, reason=verdict.reason, instead_of=active.version)
        except Cancelled:
            promoted, reason = False, f"{verdict.reason} Cancelled before it was promoted: it stays a candidate."
        except OvertakenError as error:
            promoted, reason = False, f"{verdict.reason} It stays a candidate: {error}"
        if not promoted:
            with writing(engine) as connection:
                known = get_model(connection, version)
                # Unless somebody has promoted this very one.
                if known is not None and known.state == "candidate":
                    set_state(connection, version, "candidate", reason)
    log.info("retraining judged", version=candidate.version, promoted=promoted, reason=reason)
    return {
        "version": version,
        "parent": parent.version,
        "promoted": promoted,
        "reason": reason,
    } | metrics


def _clear_run(folder: Path) -> None:
    """Leave only the model: checkpoints and event files of the run are pickles and logs."""
    from models.model_file import read_model_file

    kept = {*read_model_file(folder).files, "model.json", "README.md", "adapter_config.json"}
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in kept and path.suffix != ".json":
            path.unlink()
