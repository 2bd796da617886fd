"""Explanations: do the highlighted words matter, and how long does a click take?

    python benchmarks/explanations.py [TEXTS]

The deletion test (`models.deletion`) on held-out headlines and tweets with a direction; then the time of one
explanation with its neighbours, of texts alone and of a text with a chart.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from models.answers import LoadedModel
from models.bundle import load_model
from models.deletion import delete
from models.explain import explain
from models.training.packaged import packaged_lines


def main(texts: int = 200) -> None:
    """Print both tables."""
    model = load_model("default", device="cpu")
    print(f"model {model.version}, {torch.get_num_threads()} threads")
    for name in ("sentfin", "twitter_sentiment"):
        lines = (line for line in packaged_lines(name) if line.sentiment in ("negative", "positive"))
        chosen = [line.text for line in islice(lines, texts)]
        found = [one for i, text in enumerate(chosen) if (one := delete(model, text, seed=i)) is not None]
        highlighted = np.array([one.highlighted for one in found])
        drawn = np.array([one.random for one in found])
        print(
            f"{name}: {len(found)} texts, a fifth of the words taken out: probability of the label falls by "
            f"{highlighted.mean():.3f} without the highlighted words, by {drawn.mean():.3f} without random ones; "
            f"more in {(highlighted > drawn).mean():.1%} of the texts; another label in "
            f"{np.mean([one.turned for one in found]):.1%}"
        )
    headlines = [line.text for line in islice(packaged_lines("sentfin"), 50)]
    pictures = [line.image for line in islice(packaged_lines("pairs"), 10)]
    explain(model, headlines[0])
    print(f"a headline with neighbours: {_told([_time(model, text, None) for text in headlines])}")
    print(f"with a chart: {_told([_time(model, headlines[i], picture) for i, picture in enumerate(pictures)])}")
    print(f"2,000 characters: {_told([_time(model, ' '.join(headlines)[:2000], None) for _ in range(5)])}")


def _time(model: LoadedModel, text: str, picture: bytes | None) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    explain(model, text, image=picture)
    return time.perf_counter() - wall, time.process_time() - cpu


def _told(times: Sequence[tuple[float, float]]) -> str:
    wall, cpu = (np.array(column) * 1e3 for column in zip(*times, strict=True))
    return f"median {np.median(wall):.0f} ms, 95 % within {np.quantile(wall, 0.95):.0f} ms; CPU {np.median(cpu):.0f} ms"


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
