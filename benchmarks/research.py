"""The model `research` on what it was not trained on of Financial PhraseBank and FiQA, which the user brings.

`python benchmarks/research.py phrasebank.jsonl fiqa.jsonl`: the files in the order in which they were given to `train`,
so that the held-out part is the same one.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch

from models.bundle import load_model
from models.registry import shipped
from models.training.config import load_config
from models.training.datasets import examples_of, read_labelled, select
from models.training.evaluate import score_figures
from models.training.measure import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="research", help="a shipped model or a model's folder")
    parser.add_argument("--all-rows", action="store_true", help="all rows: for a model that was not trained on them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = load_config("research")
    agreement: dict[str, str] = {}
    for path in args.files:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            agreement[row["text"]] = str(row.get("agreement", ""))
    rows = [row for path in args.files for row in read_labelled(path)]
    if not args.all_rows:
        rows = select(rows, "test", test_share=config.test_share, validation_share=config.validation_share)
    examples = examples_of(rows)
    model = load_model(shipped().get(args.model, Path(args.model)), device="cpu")
    said = model.predict([example.row for example in examples]).sentiment
    print(f"{model.version}, {'all' if args.all_rows else 'held-out'} rows")
    labels = np.array([example.sentiment for example in examples])
    agreed = np.array([agreement[example.text] == "All" for example in examples])
    for name, mask in (("sentiment, all agreements", labels >= 0), ("sentiment, all annotators agree", agreed)):
        mask = mask & (labels >= 0)
        if mask.any():
            found = figures(said[mask], labels[mask])
            print(
                f"{name}: {mask.sum()} rows, accuracy {found['accuracy']:.3f}, macro-F1 {found['macro_f1']:.3f}, "
                f"calibration error {found['ece']:.3f}"
            )
    scores = np.array([np.nan if example.score is None else example.score for example in examples])
    graded = ~np.isnan(scores)
    if graded.any():
        found = score_figures((said[:, 2] - said[:, 0])[graded], scores[graded])
        print(f"score: {found['n']} rows, MSE {found['mse']:.3f}, R2 {found['r2']:.3f}")


if __name__ == "__main__":
    main()
