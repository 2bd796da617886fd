#!/usr/bin/env python3
"""Writes the JSON Schemas of the public records into docs/schemas/; `--check` fails when they are out of date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from monitor.alerts.records import Alert
from monitor.records import ContributionBatch, NewsItem, ScoredItem

OUT = Path(__file__).resolve().parent.parent / "docs" / "schemas"
RECORDS: dict[str, type] = {
    "news-item": NewsItem,
    "scored-item": ScoredItem,
    "contribution-batch": ContributionBatch,
    "alert": Alert,
}


def rendered(kind: type) -> str:
    """The schema of one record as it is written to disk."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | msgspec.json.schema(kind)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the files, or with --check compare them; 1 when a file is out of date."""
    stale = []
    for name, kind in RECORDS.items():
        path, text = OUT / f"{name}.schema.json", rendered(kind)
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        print(f"Out of date: {', '.join(stale)}. Run `python scripts/check.py --fix`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
