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


def mend_entities(row: LabelledText) -> LabelledText:
    """`row` with the names of its entities as they stand in its text; a name that stands nowhere is dropped."""
    found = ((find_entity(row.text, name), label) for name, label in row.entities.items())
    return msgspec.structs.replace(row, entities={row.text[slice(*span)]: label for span, label in found if span})


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
