"""The engine against its peers: the same texts, in one run, in turns; prints tables or one JSON object.

    python benchmarks/engine.py [--items 512] [--rounds 5] [--threads N] [--clock cpu] [--data FILE.jsonl] [--json]

Every way gets the texts in the same order and gives a sentiment for each:

- `engine, rows`: the engine's tokenising, batching, encoder and heads, one row a text, in the precision that it
  chose, and in fp32;
- `engine, items`: all that a scored item holds: companies linked, one more row for each of them, rules; no cache;
- `pipeline 1`, `pipeline 32`: Hugging Face `text-classification` in fp32 over the same weights, batched as given;
- `pipeline 32, features`: its `feature-extraction`, which hands out every token's vector as Python numbers;
- `sentence-transformers`: its own `encode` (sorted by length, batches of 32) and a linear head;
- `onnxruntime int8`: the encoder exported to ONNX and quantised, with ranges from each batch (dynamic) and with fixed
  ones, found on the engine's own sample (static);
- `openvino int8`: the latter model in OpenVINO; `openvino bf16` where the processor has the instructions.

The last three take the engine's place in the engine itself: its sorted batches (padded to the longest of a batch), its
lanes, each with one thread, and its heads.

In each round every way is timed once; a ratio is taken within its round, and its median and range are told. Accuracy
is measured on held-out texts with labels, for each way that does not compute in fp32. On a machine with a CUDA card
the engine is compared with its own fp32 with padding, and with the rate of a large bf16 product; take more texts there
(`--items 65536 --batch 8192 --articles 0`: those of the data sets over and over).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _peers import peers
from rich.console import Console
from rich.table import Table

from models.answers import LoadedModel
from models.backbones import _location
from models.bundle import load_model
from models.engine import ScoringRequest, open_scorer
from models.engine.batching import token_budget
from models.engine.forward import Forward
from models.engine.packed import PackedEncoder
from models.engine.precision import Encoder, Precision, _encoder
from models.fusion import TextFeatures
from models.tokens import Row, TokenizedRow
from models.training.datasets import BUNDLED, bundled_path, read_labelled, select
from monitor.records import NewsItem
from monitor.settings import Settings
from monitor.telemetry import configure_logging

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Way = Callable[[Sequence[str]], np.ndarray]
SENTIMENTS = ("negative", "neutral", "positive")


def texts_of(path: Path | None, count: int, articles: int = 16) -> list[str]:
    """The first `count` titles of a file, else bundled headlines and posts, every `articles`-th with a body (0: none).

    A body is eight other posts.
    """
    if path is None:
        rows = [row.text for name in BUNDLED for row in read_labelled(bundled_path(name))]
        texts = (rows[:: max(1, len(rows) // count)] * -(-count // len(rows)))[:count]
        for place in range(0, count if articles else 0, articles or 1):
            texts[place] = "\n".join(texts[(place + 7 * n) % len(texts)] for n in range(9))
        return texts
    with path.open(encoding="utf-8") as file:
        titles = [fields.get("title") or fields.get("text") or "" for fields in map(json.loads, file)]
    return [text for text in titles if text][:count]


def held_out(count: int) -> tuple[list[str], np.ndarray]:
    """Held-out texts with a sentiment (its number)."""
    rows = [
        row
        for name in ("sentfin", "twitter_sentiment")
        for row in select(read_labelled(bundled_path(name)), "test")
        if row.sentiment is not None
    ][:count]
    return [row.text for row in rows], np.array([SENTIMENTS.index(str(row.sentiment)) for row in rows])


def rows_way(model: LoadedModel, settings: Settings) -> Way:
    """The engine's own path, one row a text."""
    budget = token_budget(settings, model.device)
    forward = Forward(model, token_budget=budget, image_budget=settings.worker_image_budget)

    def run(texts: Sequence[str]) -> np.ndarray:
        found = np.empty((len(texts), 3), dtype=np.float32)
        step = settings.worker_batch_items
        for start in range(0, len(texts), step):
            rows = forward.tokenize([Row(text) for text in texts[start : start + step]])
            found[start : start + step] = [score.sentiment for score in forward.run(rows)]  # type: ignore[union-attr,arg-type]
        return found

    return run


def items_way(settings: Settings) -> Way:
    """Whole scored items."""
    scorer = open_scorer(settings)
    now = datetime.now(UTC)

    def run(texts: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), settings.worker_batch_items):
            some = texts[start : start + settings.worker_batch_items]
            items = [NewsItem(id=str(i), published_at=now, title=text) for i, text in enumerate(some)]
            for scored in scorer.score([ScoringRequest(item) for item in items]):
                s = scored.sentiment  # type: ignore[union-attr]
                found.append((s.negative, s.neutral, s.positive))
        return np.array(found, dtype=np.float32)

    return run


class _Whole(torch.nn.Module):
    """Encoder, mean and heads behind the interface of a Hugging Face sequence classifier."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        from transformers.modeling_outputs import SequenceClassifierOutput

        self.network = model.network
        self.config = model.network.text.config
        self.device = model.device
        self.output = SequenceClassifierOutput

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        tokens = self.network.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.bool()
        return self.output(logits=self.network.sentiment_of_text(TextFeatures(tokens, mask, mask)))


def pipeline_way(model: LoadedModel, batch: int) -> Way:
    """Hugging Face's `text-classification` pipeline over the same network in fp32."""
    from transformers import AutoTokenizer, BertForSequenceClassification, TextClassificationPipeline

    location = _location(model.file.text_backbone)
    shell = BertForSequenceClassification(model.network.text.config)
    shell.config.id2label = dict(enumerate(SENTIMENTS))
    whole = _Whole(model)
    shell.forward = whole.forward  # type: ignore[method-assign]
    classify: Any = TextClassificationPipeline(
        model=shell.eval(), tokenizer=AutoTokenizer.from_pretrained(location), device=model.device, top_k=None
    )

    def run(texts: Sequence[str]) -> np.ndarray:
        found = classify(list(texts), batch_size=batch, truncation=True, max_length=256)
        return np.array([[{e["label"]: e["score"] for e in one}[name] for name in SENTIMENTS] for one in found])

    return run


def features_way(model: LoadedModel, batch: int) -> Way:
    """Hugging Face's `feature-extraction` pipeline: the mean of its vectors, then the sentiment head."""
    from transformers import AutoTokenizer, FeatureExtractionPipeline

    extract: Any = FeatureExtractionPipeline(
        model=model.network.text,
        tokenizer=AutoTokenizer.from_pretrained(_location(model.file.text_backbone)),
        device=model.device,
    )

    def run(texts: Sequence[str]) -> np.ndarray:
        found = extract(list(texts), batch_size=batch, truncation=True)
        means = torch.tensor(np.array([np.mean(one[0], axis=0) for one in found]), dtype=torch.float32)
        return _head(model, means)

    return run


def _head(model: LoadedModel, means: torch.Tensor) -> np.ndarray:
    """Sentiment (N, 3) of texts by their mean vectors."""
    with torch.inference_mode():
        none = torch.zeros(len(means), 0, dtype=torch.bool, device=model.device)
        empty = torch.zeros(len(means), 0, model.backbone.hidden_size, device=model.device)
        text = TextFeatures(empty, none, none, means.to(model.device).repeat(1, 2))
        return torch.softmax(model.network.sentiment_of_text(text), dim=-1).cpu().numpy()


def sentence_transformers_way(model: LoadedModel) -> Way:
    """Its own `encode` (mean pooling, no normalisation), then the sentiment head."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    location = _location(model.file.text_backbone)
    transformer = Transformer(location, max_seq_length=256)
    transformer.auto_model = model.network.text
    encoder = SentenceTransformer(
        modules=[transformer, Pooling(model.network.text.config.hidden_size)], device=str(model.device)
    )

    def run(texts: Sequence[str]) -> np.ndarray:
        means = encoder.encode(list(texts), batch_size=32, convert_to_tensor=True, show_progress_bar=False)
        return _head(model, means)

    return run


def with_encoder(settings: Settings, encoder: Encoder | Precision) -> LoadedModel:
    """The model with its text encoder in a precision, or with another one."""
    model = load_model(settings.model or "default", device=settings.device or None)
    model.encoder = _encoder(model, encoder) if isinstance(encoder, str) else encoder
    return model


def ways_of(settings: Settings, folder: Path) -> tuple[dict[str, Way], list[str]]:
    """All ways by name, and those whose accuracy is told; `engine, rows` is the first."""
    scorer = open_scorer(settings)
    precision = scorer.precision
    plain = load_model(settings.model or "default", device=settings.device or None)
    ways: dict[str, Way] = {f"engine, rows ({precision})": rows_way(scorer.model, settings)}
    if precision != "fp32":
        ways["engine, rows (fp32)"] = rows_way(with_encoder(settings, "fp32"), settings)
    ways |= {
        f"engine, items ({precision})": items_way(settings),
        "pipeline 1": pipeline_way(plain, 1),
        "pipeline 32": pipeline_way(plain, 32),
        "pipeline 32, features": features_way(plain, 32),
    }
    if plain.device.type == "cuda":
        ways["fp32, padded"] = rows_way(plain, settings)
        return ways, [next(iter(ways)), "fp32, padded"]
    try:
        ways["sentence-transformers"] = sentence_transformers_way(plain)
    except ImportError as error:
        print(f"sentence-transformers is left out: {error}", file=sys.stderr)
    for name, encoder in peers(plain, folder).items():
        ways[name] = rows_way(with_encoder(settings, encoder), settings)
    told = [name for name in ways if "rows" in name or "int8" in name or "bf16" in name]
    return ways, [*told, "pipeline 32"]


def timed(ways: dict[str, Way], texts: list[str], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds a text, for each way and round. The slow pipelines get a part of the texts, evenly chosen."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    samples = {name: texts[:: 8 if name == "pipeline 1" else 2 if name.startswith("pipeline") else 1] for name in ways}
    for name, way in ways.items():
        # Shapes that come for the first time are prepared: all of them, as a process does that has run for a while.
        way(samples[name] if "pipeline" not in name else samples[name][:64])
    for _ in range(rounds):
        for name, way in ways.items():
            began = clock()
            way(samples[name])
            seconds[name].append((clock() - began) / len(samples[name]))
    return seconds


def matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a large bf16 product on this card."""
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize(device)
    return 20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12


def share_of_matrix_rate(model: LoadedModel, rate: float) -> float:
    """What the encoder reaches of `rate` at texts of 256 tokens."""
    assert model.encoder is not None
    config: Any = model.network.text.config
    rows = [TokenizedRow([1000] * 256) for _ in range(512)]
    width, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    flop = 2 * 512 * 256 * layers * (4 * width * width + 2 * width * inner + 2 * 256 * width)
    for _ in range(3):
        model.encoder(rows)
    torch.cuda.synchronize(model.device)
    began = time.perf_counter()
    for _ in range(10):
        model.encoder(rows)
    torch.cuda.synchronize(model.device)
    return 10 * flop / (time.perf_counter() - began) / 1e12 / rate


def on_card(settings: Settings) -> dict[str, Any]:
    """The card, how it attends, and what the engine's encoder reaches of the rate of a large product."""
    device = torch.device(settings.device or "cuda")
    found: dict[str, Any] = {"cuda": torch.cuda.get_device_name(device)}
    rate = matrix_rate(device)
    found["matrix_tflops"] = round(rate, 1)
    model = with_encoder(settings, "bf16")
    if isinstance(model.encoder, PackedEncoder):
        found["attention"] = type(model.encoder.attention).__name__
        found["share_of_matrix_rate"] = round(share_of_matrix_rate(model, rate), 3)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checked", type=int, default=1324, help="held-out texts that accuracy is measured on")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu, with one thread: on a busy machine")
    parser.add_argument("--articles", type=int, default=16, help="one text in so many has a body; 0: none")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "int8"))
    parser.add_argument("--model", default="", help="a model's folder; default: the shipped one")
    parser.add_argument("--batch", type=int, default=128, help="texts handed to the engine at once")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    texts = texts_of(given.data, given.items, given.articles)
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(
            data_dir=Path(name),
            score_cache_rows=0,
            cpu_precision=given.precision,
            log_level="error",
            model=given.model,
            worker_batch_items=given.batch,
        )
        configure_logging(settings, "bench")
        ways, told = ways_of(settings, Path(name))
        seconds = timed(ways, texts, given.rounds, CLOCKS[given.clock])
        checked, labels = held_out(given.checked)
        accuracy = {name: float((ways[name](checked).argmax(1) == labels).mean()) for name in told}
    ours = next(iter(ways))
    rows = []
    for name, taken in seconds.items():
        ratios = [theirs / own for own, theirs in zip(seconds[ours], taken, strict=True)]
        rows.append(
            {
                "way": name,
                "texts_per_s": round(1 / statistics.median(taken), 1),
                "engine_is_faster": [round(f(ratios), 2) for f in (statistics.median, min, max)],
                "accuracy": round(accuracy[name], 4) if name in accuracy else None,
            }
        )
    lengths = [
        len(row) for row in load_model(settings.model or "default", device="cpu").tokenize(list(map(Row, texts)))
    ]
    about: dict[str, Any] = {
        "texts": len(texts),
        "tokens_a_text": round(statistics.mean(lengths), 1),
        "longest_text": max(lengths),
        "texts_together": given.batch,
        "articles": f"1 in {given.articles}" if given.articles else "none",
        "rounds": given.rounds,
        "accuracy_on": len(checked),
        "clock": given.clock,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": "none present: the comparison on a card was not run",
    }
    if torch.cuda.is_available():
        about |= on_card(settings)
    if given.json:
        print(json.dumps({**about, "ways": rows}))
        return
    shown = Table("way", "texts/s", "engine is faster: median (range)", "accuracy", title=json.dumps(about))
    for row in rows:
        middle, least, most = row["engine_is_faster"]
        accurate = "" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        shown.add_row(row["way"], str(row["texts_per_s"]), f"{middle} ({least} to {most})", accurate)
    Console().print(shown)


if __name__ == "__main__":
    main()
