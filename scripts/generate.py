#!/usr/bin/env python3
"""Writes what is generated from the code: docs/schemas/ and docs/configuration.md; `--check` fails when out of date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
from pydantic import SecretStr

from monitor.alerts.records import Alert
from monitor.records import ContributionBatch, NewsItem, ScoredItem
from monitor.settings import ENV_PREFIX, Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORDS: dict[str, type] = {
    "news-item": NewsItem,
    "scored-item": ScoredItem,
    "contribution-batch": ContributionBatch,
    "alert": Alert,
}


def schema(kind: type) -> str:
    """The JSON Schema of one record as it is written to disk."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | msgspec.json.schema(kind)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def configuration() -> str:
    """The page of all settings."""
    lines = [
        "# Settings",
        "",
        "Made from `monitor/settings.py` by `python scripts/generate.py`; do not edit.",
        "",
        "They come from a TOML file (`--config`, else `$SENTIMENT_MONITOR_CONFIG`, else `sentiment-monitor.toml` in",
        "the working folder), environment variables and flags, in that order of rising strength. In the file a table",
        "is a prefix: `[worker]` with `batch_items = 256` sets `worker_batch_items`. `sentiment-monitor config show`",
        "prints what is in force, secrets masked; a name that is no setting is refused, wherever it stands.",
        "",
        "| setting | environment | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = "" if isinstance(default, SecretStr) or default in ("", None) else f"`{default}`"
        if name == "data_dir":
            shown = "the user's data folder"
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | `{ENV_PREFIX}{name.upper()}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the files, or with --check compare them; 1 when a file is out of date."""
    wanted = {DOCS / "schemas" / f"{name}.schema.json": schema(kind) for name, kind in RECORDS.items()}
    wanted[DOCS / "configuration.md"] = configuration()
    stale = []
    for path, text in wanted.items():
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
