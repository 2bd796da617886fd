"""Text alone, chart alone and each way of fusing them on held-out pairs: `python benchmarks/fusion.py`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from models.training.ablation import ablate
from models.training.config import FusionStage, TrainingConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default", help="whose text part is used: a shipped model or a folder")
    parser.add_argument("--pictures", type=int, default=3000, help="charts to train on; twice as many texts")
    parser.add_argument("--test-pictures", type=int, default=600, help="charts held out; twice as many pairs")
    parser.add_argument("--tweets", type=Path, default=None, help="StockNet's archive of tweets, to measure on too")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stage = FusionStage(pictures=args.pictures, test_pictures=args.test_pictures)
    with Console(stderr=True).status("reading") as status:
        tables = ablate(
            args.model,
            TrainingConfig(fusion_stage=stage),
            tweets=args.tweets,
            progress=lambda name, done, total, note: status.update(f"{name} {done} of {total} {note}"),
        )
    if args.json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in tables.items()}))
        return
    for name, rows in tables.items():
        print(f"\n{name}: {rows[0].pairs} pairs\n")
        print(
            "| reads | accuracy (95 % interval) | macro-F1 | gain over the better single one | cross-attention's lead |"
        )
        print("|---|---|---|---|---|")
        for row in rows:
            print(f"| {row.name} | {row.accuracy} | {row.macro_f1} | {row.gain} | {row.behind} |")


if __name__ == "__main__":
    main()
