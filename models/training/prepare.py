"""Makes the bundled training data from the sets as published: `python -m models.training.prepare SOURCES OUT`.

Keeps the labelled fields, mends what the published SEntFiN file has wrong, and fixes the part of every row over all
sets together, so that a tweet of one set never sits in another set's test part.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import msgspec

from models.training.datasets import BUNDLED, LabelledText, assign_parts, find_entity, read_labelled

__all__ = ["mend_entities", "prepare"]

# In the published SEntFiN file a label clean-up has also gone through the names: "L&T Finance neutralings".
_SPOILT = {"neutral": ("Hold", "hold"), "negative": ("Sell", "sell"), "positive": ("Buy", "buy")}


def mend_entities(row: LabelledText) -> LabelledText:
    """`row` with the entity names that stand in its text; a name that cannot be mended is dropped."""
    mended: dict[str, str] = {}
    for name, label in row.entities.items():
        candidates = [name] + [name.replace(bad, good) for bad, goods in _SPOILT.items() for good in goods]
        span = next((span for candidate in candidates if (span := find_entity(row.text, candidate))), None)
        if span is not None:
            mended[row.text[slice(*span)]] = label
    return msgspec.structs.replace(row, entities=mended)


def prepare(sources: Path, out: Path) -> dict[str, int]:
    """Write the bundled sets; returns how many rows each has. The same sources give the same bytes."""
    sets = {name: [mend_entities(row) for row in read_labelled(sources / f"{name}.jsonl")] for name in BUNDLED}
    rows = [row for name in BUNDLED for row in sets[name]]
    parts = iter(assign_parts([row.text for row in rows]))
    out.mkdir(parents=True, exist_ok=True)
    for name in BUNDLED:
        lines = []
        for row in sets[name]:
            labels = {"sentiment": row.sentiment, "topic": row.topic, "entities": row.entities or None}
            kept = {"text": row.text} | {key: value for key, value in labels.items() if value is not None}
            lines.append(msgspec.json.encode(kept | {"part": next(parts)}))
        (out / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines) + b"\n", 9, mtime=0))
    return {name: len(held) for name, held in sets.items()}


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]), Path(sys.argv[2])))
