#!/usr/bin/env python3
"""Trains a model that learns from two others: python scripts/train_distilled.py OUT

Three runs: the recipe `default`; `longer` from there; and one pass from the mean of both, which also learns from what
both say (`models/training/distillation.py`), with the fusion. About two hours on one core. Interrupted, it goes on
where it stopped when it is started again. What it gave: docs/decisions/text-model.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from models.bundle import read_model_file
from models.training.config import FusionStage, TrainingConfig, load_config
from models.training.train import train


def stages(out: Path) -> list[tuple[Path, TrainingConfig]]:
    """The runs with their folders, in order."""
    one, two = out / "one", out / "two"
    fresh = msgspec.structs.replace(load_config("default"), fusion_stage=FusionStage(pictures=60, epochs=1))
    further = msgspec.structs.replace(load_config("longer"), base=str(one))
    mean = TrainingConfig(
        name="default",
        base=str(two),
        average_with=(str(one),),
        seed=4,
        epochs=0,
        fusion_stage=FusionStage(pictures=60, epochs=1),
    )
    last = TrainingConfig(
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
    )
    return [(one, fresh), (two, further), (out / "mean", mean), (out / "distilled", last)]


def main() -> None:
    """Run what has not been run yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder; the model ends up in its `distilled`")
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
