#!/usr/bin/env python3
"""Trains a model that learns from four others: python scripts/train_distilled.py OUT

One: the recipe `default`. Two: `longer` from there. Three: another seed, after masked-language adaptation. Four: one
pass from the mean of one and two, which also learns from what both say. Together they are the teacher, four times as
big as the model. The next run goes on from the mean of one, two and four, learns from the answers of all
(`models/training/distillation.py`) and from made-up sentences. Two parts of its weights and three of the mean of one
and two make the model, which then gets its fusion. About three hours on one core. Interrupted, it goes on where it
stopped when it is started again. What it gave: docs/decisions/text-model.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from models.model_file import read_model_file
from models.training.config import Adaptation, FusionStage, TrainingConfig, load_config
from models.training.train import train

_NO_FUSION = FusionStage(epochs=0)
# A run without a base needs some fusion.
_LEAST_FUSION = FusionStage(pictures=60, epochs=1)


def stages(out: Path) -> list[tuple[Path, TrainingConfig]]:
    """The runs with their folders, in order."""
    one, two, three, four = out / "one", out / "two", out / "three", out / "four"
    fresh = msgspec.structs.replace(load_config("default"), fusion_stage=_LEAST_FUSION)
    further = msgspec.structs.replace(load_config("longer"), base=str(one))
    adapted = msgspec.structs.replace(
        fresh, seed=3, report_sentences=5000, token_dropout=0.1, patience=99, adaptation=Adaptation(epochs=1)
    )
    both = _mean(one, two)
    pupil = TrainingConfig(
        name="default",
        base=str(out / "mean"),
        teachers=(str(one), str(two)),
        distillation=0.5,
        seed=4,
        epochs=1,
        learning_rate=6e-4,
        token_dropout=0.08,
        report_sentences=7000,
        keep="last",
        patience=99,
        fusion_stage=_NO_FUSION,
    )
    last = msgspec.structs.replace(
        pupil,
        base=str(out / "mean-of-three"),
        teachers=(str(one), str(two), str(three), str(four)),
        distillation=0.6,
        seed=5,
        set_share=0.2,
        learning_rate=5e-4,
        report_sentences=6000,
    )
    distilled, mean = str(out / "distilled"), str(out / "mean")
    mixed = TrainingConfig(
        name="default",
        base=distilled,
        average_with=(distilled, mean, mean, mean),
        seed=5,
        epochs=0,
        report_sentences=6000,
    )
    return [
        (one, fresh),
        (two, further),
        (three, adapted),
        (out / "mean", both),
        (four, pupil),
        (out / "mean-of-three", _mean(one, two, four)),
        (out / "distilled", last),
        (out / "mixed", mixed),
    ]


def _mean(first: Path, *others: Path) -> TrainingConfig:
    """No training: the mean of the text parts."""
    return TrainingConfig(
        name="default",
        base=str(first),
        average_with=tuple(str(other) for other in others),
        epochs=0,
        fusion_stage=_LEAST_FUSION,
    )


def main() -> None:
    """Run what has not been run yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder; the model ends up in its `mixed`")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice")
    given = parser.parse_args()
    for folder, config in stages(given.out):
        card = folder / "README.md"
        # A run writes its model before it is measured, and the card after.
        if not (card.is_file() and card.stat().st_size):
            print(f"{folder} ...", flush=True)
            chosen = msgspec.structs.replace(config, threads=given.threads)
            train(chosen, folder, resume=(folder / "checkpoint.pt").is_file(), recipe="scripts/train_distilled.py")
        file = read_model_file(folder)
        print(file.version, {name: value for name, value in file.metrics.items() if name.endswith(".accuracy")})


if __name__ == "__main__":
    main()
