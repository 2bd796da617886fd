"""The engine alone against the Hugging Face pipeline, on the same texts in the same run; prints one JSON object.

    python benchmarks/engine.py [--items 256] [--data FILE.jsonl] [--precision auto]

The texts are the titles (`title` or `text`) of a JSONL file, else bundled headlines. Both sides use the same text
backbone and the same number of threads. The pipeline only extracts features (no heads, no entities); the engine links
companies, scores the item and each entity, and applies its rules. Its cache is off.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from models.backbones import _location
from models.engine import ScoringRequest, open_scorer
from models.training.datasets import bundled_path, read_labelled
from monitor.records import NewsItem
from monitor.settings import Settings


def texts_of(path: Path | None, count: int) -> list[str]:
    """The first `count` titles of a file, else every n-th bundled headline."""
    if path is None:
        rows = [row.text for name in ("sentfin", "twitter_sentiment") for row in read_labelled(bundled_path(name))]
        return rows[:: max(1, len(rows) // count)][:count]
    with path.open(encoding="utf-8") as file:
        rows = [fields.get("title") or fields.get("text") or "" for fields in map(json.loads, file)]
    return [text for text in rows if text][:count]


def best_of(passes: int, run: Callable[[], object]) -> float:
    """Shortest time of `passes` runs in seconds, after one run to warm up."""
    run()
    times = []
    for _ in range(passes):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "int8"))
    parser.add_argument("--passes", type=int, default=2)
    args = parser.parse_args()
    texts = texts_of(args.data, args.items)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), score_cache_rows=0, cpu_precision=args.precision, log_level="error")
        scorer = open_scorer(settings)
        now = datetime.now(UTC)
        requests = [ScoringRequest(NewsItem(id=str(i), published_at=now, title=text)) for i, text in enumerate(texts)]
        engine_s = best_of(args.passes, lambda: scorer.score(requests))
        model = scorer.model
        location = _location(model.file.text_backbone)
        device = model.device
        extract: Any = pipeline(
            "feature-extraction",
            model=AutoModel.from_pretrained(location),
            tokenizer=AutoTokenizer.from_pretrained(location),
            device=device,
        )
        found: dict[str, Any] = {
            "items": len(texts),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "precision": type(model.network.text).__name__,
            "engine_items_per_s": round(len(texts) / engine_s, 1),
        }
        few = texts[: max(8, len(texts) // 4)]
        for batch, sample in ((1, few), (32, texts)):
            seconds = best_of(1, lambda sample=sample, batch=batch: extract(sample, batch_size=batch, truncation=True))  # type: ignore[misc]
            found[f"pipeline_batch_{batch}_items_per_s"] = round(len(sample) / seconds, 1)
            found[f"ratio_to_pipeline_batch_{batch}"] = round(len(texts) / engine_s / (len(sample) / seconds), 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
