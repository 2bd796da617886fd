"""What one pass of the text encoder costs on one core: small passes, and full ones; prints one JSON list.

    python benchmarks/passes.py [--precision int8 fp32] [--rounds 20] [--model FOLDER]

Milliseconds of this process's CPU time (the least of all rounds) for a pass of 8 rows of 4 to 11, of 25 to 33 and of 12
to 47 tokens, and tokens per second of passes of 2,048 tokens with rows of 25 to 40. From the first two follows what a
pass costs whatever is in it (`fixed_ms`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import load_model
from models.engine.precision import _encoder
from models.tokens import TokenizedRow

SMALL = {
    "4 to 11": (4, 5, 6, 7, 8, 9, 10, 11),
    "25 to 33": (25, 26, 27, 28, 30, 31, 32, 33),
    "12 to 47": range(12, 48, 5),
}
FULL = tuple(25 + n % 16 for n in range(63))


def rows_of(lengths: Any) -> list[TokenizedRow]:
    """Rows of these lengths, of any words."""
    rng = np.random.default_rng(0)
    return [TokenizedRow(rng.integers(1000, 20_000, length).tolist()) for length in lengths]


def least_ms(work: Callable[[], object], rounds: int) -> float:
    """CPU time, after a first time that is not counted."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return 1000 * min(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["int8", "fp32"], choices=("int8", "bf16", "fp32"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", type=Path, help="a model's folder; default: the shipped one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model or "default", device="cpu")
    found = []
    for precision in given.precision:
        model.encoder = _encoder(model, precision)
        ms = {
            name: least_ms(lambda rows=rows_of(lengths): model.encode_text(rows), given.rounds)  # type: ignore[misc]
            for name, lengths in SMALL.items()
        }
        full = rows_of(FULL)
        full_ms = least_ms(lambda rows=full: model.encode_text(rows), max(2, given.rounds // 4))  # type: ignore[misc]
        (few, least), (many, most) = ((sum(SMALL[name]), ms[name]) for name in ("4 to 11", "25 to 33"))
        found.append(
            {
                "precision": precision,
                **{f"ms_of_8_rows_of_{name.replace(' ', '_')}": round(value, 2) for name, value in ms.items()},
                "fixed_ms": round(least - few * (most - least) / (many - few), 2),
                "tokens_per_s": round(1000 * sum(FULL) / full_ms),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
