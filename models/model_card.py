"""The model card (README.md) of a model folder, written from the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from models.bundle import ModelFile

if TYPE_CHECKING:
    from models.training.config import TrainingConfig

__all__ = ["write_card"]

_LICENCES = {
    "sentfin": "SEntFiN 1.0 (Sinha et al. 2022), MIT",
    "twitter_sentiment": "Twitter Financial News Sentiment (zeroshot), MIT on its card; the tweets are their authors'",
    "twitter_topic": "Twitter Financial News Topic (zeroshot), MIT on its card; the tweets are their authors'",
}


def _figures(metrics: Mapping[str, float]) -> list[str]:
    groups: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        group, _, figure = key.rpartition(".")
        groups.setdefault(group, {})[figure] = value
    lines = ["| held-out part | rows | accuracy | macro-F1 | calibration error |", "|---|---|---|---|---|"]
    lines += [
        f"| {group} | {values.get('n', 0):.0f} | {values['accuracy']:.3f} | {values['macro_f1']:.3f} | {values['ece']:.3f} |"
        for group, values in sorted(groups.items())
        if {"accuracy", "macro_f1", "ece"} <= values.keys()
    ]
    return lines


def write_card(file: ModelFile, config: TrainingConfig, rows: Mapping[str, int]) -> str:
    """Markdown with the front matter that the hub reads: what the model is, was trained on, scores, and is not for."""
    base = file.text_backbone.removeprefix("package:")
    data = [
        f"- {name}: {_LICENCES.get(name, 'a set of the user; its licence is the one that came with it')}"
        for name in file.data
    ]
    known = all(name in _LICENCES for name in file.data)
    settings = msgspec.to_builtins(config)
    table = [f"| {name} | {value} |" for name, value in settings.items() if not isinstance(value, dict)]
    adapter = file.adapter
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {base}",
        "language: en",
        "pipeline_tag: text-classification",
        f"license: {'mit' if known else 'other'}",
        "---",
        "",
        f"# {file.name}",
        "",
        "Sentiment (negative, neutral, positive) of financial news and of each entity in it, topic "
        f"({len(file.taxonomy.topics)}), and the sentiment of a text together with a chart image.",
        "",
        f"Text backbone {file.text_backbone}, adapter {adapter.kind} (rank {adapter.rank}, alpha {adapter.alpha}) on all "
        f"linear layers; vision backbone {file.vision_backbone or 'none'}; fusion {file.fusion}. Probabilities are "
        "calibrated with one temperature a head.",
        "",
        "## Trained on",
        "",
        *data,
        "",
        f"{rows.get('train', 0)} questions to train on, {rows.get('validation', 0)} to choose weights and temperatures, "
        f"{rows.get('test', 0)} held out. Near-duplicates never lie on both sides.",
        "",
        "Labels come from English headlines and tweets of 2015 to 2022, many of Indian and American companies: other "
        "markets, languages and kinds of text are read less well. Commercial use is allowed by the licences named above."
        if known
        else "What the user's own sets allow decides what this model may be used for.",
        "",
        "## Figures",
        "",
        *(_figures(file.metrics) if file.metrics else ["Not measured: the run held nothing out."]),
        "",
        f"Again: `sentiment-monitor train --config {config.name} --out DIR` prints them at its end.",
        "",
        "## Not for",
        "",
        "Predicting prices: a sentiment says what a text says, and a chart label describes the picture, never the future. "
        "Deciding about people or trades without a person.",
        "",
        "## Run",
        "",
        "| setting | value |",
        "|---|---|",
        *table,
        "",
    ]
    return "\n".join(lines)
