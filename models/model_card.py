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
    for group, found in sorted(groups.items()):
        if {"accuracy", "macro_f1", "ece"} <= found.keys():
            shown = " | ".join(f"{found[name]:.3f}" for name in ("accuracy", "macro_f1", "ece"))
            lines.append(f"| {group} | {found.get('n', 0):.0f} | {shown} |")
    return lines


_BODY = """---
library_name: peft
base_model: {base}
language: en
pipeline_tag: text-classification
license: {licence}
---

# {name}

Sentiment (negative, neutral, positive) of financial news and of each entity in it, topic ({topics}), and the sentiment
of a text together with a chart image.

Text backbone {text}, adapter {kind} (rank {rank}, alpha {alpha}) on all linear layers; vision backbone {vision};
fusion {fusion}. Probabilities are calibrated with one temperature a head.

## Trained on

{data}

{train} questions to train on, {validation} to choose weights and temperatures, {test} held out. Near-duplicates never
lie on both sides. Charts are drawn from real prices (StockNet, MIT), their label describes the picture.

{use}

## Figures

{figures}

`sentiment-monitor train --config {name} --out DIR` trains the model again and prints them.

Rows called `pairs` are held-out pairs of a text and a drawn chart, with the sentiment that follows from both: a text
that states a direction outweighs the chart, otherwise the chart decides.

## Not for

Predicting prices: a sentiment says what a text says, and a chart label describes the picture, never the future.
Deciding about people or trades without a person.

## Run

| setting | value |
|---|---|
{run}
"""

_BUNDLED_USE = """Labels come from English headlines and tweets of 2015 to 2022, many about Indian and American
companies: other markets, languages and kinds of text are read less well. Its
makers' licences allow commercial use; no text under a non-commercial licence was trained on."""
_OWN_USE = "What the user's own sets allow decides what this model may be used for."


def write_card(file: ModelFile, config: TrainingConfig, rows: Mapping[str, int]) -> str:
    """Markdown with the front matter that the hub reads: what the model is, was trained on, scores, and is not for.

    `rows` counts the questions of the parts `train`, `validation` and `test`.
    """
    unknown = "a set of the user; its licence is the one that came with it"
    data = [f"- {name}: {_LICENCES.get(name, unknown)}" for name in file.data]
    if config.report_sentences:
        data.append(f"- {config.report_sentences} made-up sentences about company results, written by a grammar")
    known = all(name in _LICENCES for name in file.data)
    settings = msgspec.to_builtins(config)
    return _BODY.format(
        base=file.text_backbone.removeprefix("package:"),
        licence="apache-2.0" if known else "other",
        name=file.name,
        topics=len(file.taxonomy.topics),
        text=file.text_backbone,
        kind=file.adapter.kind,
        rank=file.adapter.rank,
        alpha=file.adapter.alpha,
        vision=file.vision_backbone or "none",
        fusion=file.fusion,
        data="\n".join(data),
        train=rows.get("train", 0),
        validation=rows.get("validation", 0),
        test=rows.get("test", 0),
        use=_BUNDLED_USE if known else _OWN_USE,
        figures="\n".join(_figures(file.metrics)) if file.metrics else "Not measured: the run held nothing out.",
        run="\n".join(f"| {name} | {value} |" for name, value in settings.items() if not isinstance(value, dict)),
    )
