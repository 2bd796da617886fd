"""The model card (README.md) of a model folder, written from the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from models.model_file import ModelFile

if TYPE_CHECKING:
    from models.training.config import TrainingConfig

__all__ = ["write_card"]


class _Source(NamedTuple):
    """A set that is known: what it is, and whether a commercial user may have what was trained on it."""

    told: str
    commercial: bool = True


_SOURCES = {
    "sentfin": _Source("SEntFiN 1.0 (Sinha et al. 2022), MIT"),
    "twitter_sentiment": _Source(
        "Twitter Financial News Sentiment (zeroshot), MIT on its card; the tweets are their authors'"
    ),
    "twitter_topic": _Source("Twitter Financial News Topic (zeroshot), MIT on its card; the tweets are their authors'"),
    "phrasebank": _Source("Financial PhraseBank 1.0 (Malo et al. 2014), CC BY-NC-SA 3.0: **non-commercial**", False),
    "fiqa": _Source("FiQA 2018 task 1 (Maia et al. 2018); no licence for the data is stated", False),
}
# What is told of every class.
_PER_CLASS = ("precision", "recall", "f1")
_BUNDLED = ("sentfin", "twitter_sentiment", "twitter_topic")
_UNKNOWN = _Source("a set of the user; its licence is the one that came with it", False)

_BUNDLED_APART = "Near-duplicates (texts that differ in figures, case or a few words) never lie on both sides."
_OWN_APART = """Near-duplicates (texts that differ in figures, case or a few words) within the bundled sets never lie on
both sides, and no row of the user's that this run was trained on nearly repeats one that they hold out. Of the user's
own rows those without a `part` were split with their near-duplicates together; the others lie where the user put
them."""

_COMMERCIAL_USE = "Its makers' licences allow commercial use; no text under a non-commercial licence was trained on."
_RESEARCH_USE = """**For research only.** Financial PhraseBank is licensed for non-commercial use, and what is made from
it is to be shared alike (CC BY-NC-SA 3.0); this model was trained on it, so its weights are to be under that licence.
The model `default` was not."""
_NO_LICENCE = """FiQA comes without any licence: nobody has said what may be done with what was learned from it. This
model learned from its labels and holds none of its texts; who needs that settled takes `default`, which has not seen
them. A row `fiqa.score` compares p(positive) - p(negative) with the score from -1 to 1 that a person gave to a text."""
_OWN_USE = "What the user's own sets allow decides what this model may be used for."
_BUNDLED_LIMITS = """Labels come from English headlines and tweets of 2015 to 2022, many about Indian and American
companies: other markets, languages and kinds of text are read less well."""


def _groups(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Figures by the held-out part that they are of."""
    groups: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        for inner in (*(f".{figure}." for figure in _PER_CLASS), ".mistaken."):
            if inner in key:
                group, _, figure = key.partition(inner)
                groups.setdefault(group, {})[f"{inner[1:]}{figure}"] = value
                break
        else:
            group, _, figure = key.rpartition(".")
            groups.setdefault(group, {})[figure] = value
    return dict(sorted(groups.items()))


def _figures(groups: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = ["| held-out part | rows | accuracy | macro-F1 | calibration error |", "|---|---|---|---|---|"]
    for group, found in groups.items():
        if {"accuracy", "macro_f1", "ece"} <= found.keys():
            shown = " | ".join(f"{found[name]:.3f}" for name in ("accuracy", "macro_f1", "ece"))
            lines.append(f"| {group} | {found.get('n', 0):.0f} | {shown} |")
    for group, found in groups.items():
        if "mse" in found:
            lines += ["", f"{group}, {found['n']:.0f} rows: MSE {found['mse']:.3f}, R2 {found['r2']:.3f}."]
    return lines


def _classes(groups: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A row for each class; a figure that an older run has not written down is left empty."""
    lines = ["| held-out part | class | precision | recall | F1 |", "|---|---|---|---|---|"]
    for group, found in groups.items():
        names = dict.fromkeys(key.partition(".")[2] for key in found if key.partition(".")[0] in _PER_CLASS)
        for name in names:
            known = (found.get(f"{figure}.{name}") for figure in _PER_CLASS)
            lines.append(f"| {group} | {name} | {' | '.join('' if one is None else f'{one:.3f}' for one in known)} |")
    return lines


def _failures(groups: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = []
    for group, found in groups.items():
        told = [
            f"{value:.0%} of {name.removeprefix('mistaken.').replace(' for ', ' taken for ')}"
            for name, value in found.items()
            if name.startswith("mistaken.")
        ]
        if told:
            lines.append(f"- {group}: {'; '.join(told)}.")
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

{train} questions to train on, {validation} to choose weights and temperatures, {test} held out. {apart}
Charts are drawn from real prices (StockNet, MIT), their label describes the picture.

{use}

## Figures

{figures}

`{command}` trains the model again and prints them.{lineage}

Rows called `pairs` are held-out pairs of a text and a drawn chart, with the sentiment that follows from both: a text
that states a direction outweighs the chart, otherwise the chart decides.

## Known failures

The commonest mistakes on the held-out parts, as shares of the true class:

{failures}

A text in another language than English is marked, not read. Sarcasm, and sentences whose direction hangs on knowledge
from outside the text, are guessed at.

## Each class

{classes}

## Not for

Predicting prices: a sentiment says what a text says, and a chart label describes the picture, never the future.
Deciding about people or trades without a person.

## Run

| setting | value |
|---|---|
{run}
"""


def _licence(sources: list[_Source], names: tuple[str, ...]) -> str:
    if all(source.commercial for source in sources):
        return "apache-2.0"
    return "cc-by-nc-sa-3.0" if "phrasebank" in names else "other"


def _use(sources: list[_Source], names: tuple[str, ...]) -> str:
    told = [_BUNDLED_LIMITS] if any(name in _SOURCES for name in names) else []
    if all(source.commercial for source in sources):
        told.append(_COMMERCIAL_USE)
    if "phrasebank" in names:
        told.append(_RESEARCH_USE)
    if "fiqa" in names:
        told.append(_NO_LICENCE)
    if any(name not in _SOURCES for name in names):
        told.append(_OWN_USE)
    return "\n\n".join(told)


def write_card(
    file: ModelFile, config: TrainingConfig, rows: Mapping[str, int], *, recipe: str = "", base: str = ""
) -> str:
    """Markdown with the front matter that the hub reads: what the model is, was trained on, scores, and is not for.

    `rows` counts the questions of the parts `train`, `validation` and `test`; `recipe` names the training config;
    `base` is the version that the run went on from.
    """
    sources = [_SOURCES.get(name, _UNKNOWN) for name in file.data]
    data = [f"- {name}: {source.told}" for name, source in zip(file.data, sources, strict=True)]
    if config.report_sentences:
        data.append(f"- {config.report_sentences} made-up sentences about company results, written by a grammar")
    own = " --data FILES" if any(name not in config.sets for name in file.data) else ""
    groups = _groups(file.metrics)
    settings = msgspec.to_builtins(config)
    # By what they are called: where they lay on the machine that trained is nobody's business.
    settings["base"] = Path(config.base).name
    for field in ("average_with", "teachers"):
        settings[field] = [Path(name).name for name in getattr(config, field)]
    command = f"sentiment-monitor train --config {recipe or 'FILE'}{own} --out DIR"
    return _BODY.format(
        base=file.text_backbone.removeprefix("package:"),
        licence=_licence(sources, file.data),
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
        apart=_BUNDLED_APART if all(name in _BUNDLED for name in file.data) else _OWN_APART,
        use=_use(sources, file.data),
        command=f"python {recipe} DIR" if recipe.endswith(".py") else command,
        lineage=f"\nThe run went on from the model {base}." if base else "",
        figures="\n".join(_figures(groups)) if file.metrics else "Not measured: the run held nothing out.",
        failures="\n".join(_failures(groups)) or "Not measured.",
        classes="\n".join(_classes(groups)),
        run="\n".join(f"| {name} | {value} |" for name, value in settings.items() if not isinstance(value, dict)),
    )
