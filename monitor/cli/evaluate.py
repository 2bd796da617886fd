"""`evaluate`: a model measured on labelled files or packaged sets."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from monitor.cli.context import current_settings, err, out

if TYPE_CHECKING:
    from rich.table import Table

    from models.answers import LoadedModel
    from models.engine import Scorer
    from models.engine.precision import Precision as Arithmetic
    from models.training.lines import LabelledLine, Notice

    # The lines to measure a model on; the notice is told what a person should know about one.
    Source = Callable[[LoadedModel, Notice], Iterator[LabelledLine]]

__all__ = ["evaluate"]

_TITLES: Final = {
    "sentiment_all_agree": "sentiment where all annotators agree",
    "entities_opposite": "entities of texts that are good news for one and bad news for another",
}


class Precision(StrEnum):
    """Of the text encoder: `auto` is the one that is served here, by the setting cpu_precision."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    AUTO = "auto"


def evaluate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Labelled JSONL files, or packaged sets.")],
    model: Annotated[str, typer.Option(help="Name, version or path of a model; default: the promoted one.")] = "",
    held_out: Annotated[
        str,
        typer.Option(
            metavar="CONFIG",
            help="Only the rows that `train --config CONFIG` with these files as --data holds out as its test part.",
        ),
    ] = "",
    precision: Annotated[
        Precision,
        typer.Option(help="What the text encoder computes in; auto: as it is served on this machine."),
    ] = Precision.FP32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Also test what must not change an answer, and what must (slow)."),
    ] = False,
) -> None:
    """Measure a model on JSONL with `text` and any of `sentiment`, `topic`, `entities` (name to sentiment), `score`.

    A line may name an image file in `chart` (relative to FILE): with `trend` the reading of the chart is measured,
    with a text the two are scored together. Packaged sets, never trained on: sentfin, twitter_sentiment,
    twitter_topic, charts, pairs, pairs-text, pairs-chart.
    """
    from models.training.evaluate import evaluate_lines
    from models.training.robustness import robustness as behaviour

    source = _held_out(files, held_out) if held_out else _all_of(files)
    loaded, used, scorer = _open(model, precision, scoring=robustness)
    with err.status("reading") as status:
        lines = source(loaded, lambda told: err.print(told, markup=False))
        figures = evaluate_lines(loaded, lines, lambda done: status.update(f"{done} lines"))
        if scorer is not None:
            status.update("robustness")
            figures["robustness"] = behaviour(scorer, source(loaded, lambda _: None))
            scorer.close()
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False))
        return
    out.print(f"Model {loaded.version}, computed in {used}")
    for part, values in figures.items():
        out.print()
        _print_part(part, values)


def _open(name: str, precision: Precision, *, scoring: bool) -> tuple[LoadedModel, str, Scorer | None]:
    """The model, what it computes in, and where `scoring` is asked for the scorer that it belongs to."""
    from models.bundle import load_model
    from models.engine import open_scorer
    from models.engine.precision import prepare, use
    from models.registry import existing_store, resolve

    settings = current_settings("evaluate")
    if settings.log_level != "debug":
        logging.getLogger("models").setLevel(logging.WARNING)
    store = None if name else existing_store(settings)
    if precision is not Precision.AUTO:
        settings = settings.model_copy(update={"cpu_precision": precision.value})
    scorer = open_scorer(settings, store, name) if scoring else None
    if scorer is not None:
        loaded, used = scorer.model, scorer.precision
    else:
        loaded = load_model(resolve(settings, store, name).path, device=settings.device or None)
        used = prepare(loaded, settings)
    if precision not in (Precision.AUTO, used):
        # The setting is about CPUs: a card takes bf16 where nobody says otherwise.
        used = cast("Arithmetic", precision.value)
        use(loaded, used)
    return loaded, used, scorer


def _all_of(names: list[str]) -> Source:
    """The lines of all files and packaged sets, one after another. A file goes before a set of the same name."""
    sources = [_source(name) for name in names]
    return lambda model, notice: chain.from_iterable(source(model, notice) for source in sources)


def _source(name: str) -> Source:
    from models.training.lines import read_labelled_lines
    from models.training.packaged import PACKAGED, packaged_lines
    from monitor.errors import InputError

    path = Path(name)
    if path.is_file():
        return lambda model, notice: read_labelled_lines(path, model.taxonomy.labels, notice)
    if name not in PACKAGED:
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"The file {name} {problem}.", f"Packaged sets are {', '.join(PACKAGED)}.")
    return lambda _model, _notice: packaged_lines(name)


def _held_out(names: list[str], config: str) -> Source:
    """The lines that a run of `config` with these files would not be trained on."""
    from models.training.config import load_config
    from models.training.gathering import held_out
    from models.training.lines import line_of
    from monitor.errors import InputError

    chosen, paths = load_config(config), [Path(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"The file {path} does not exist.",
                "--held-out is about the files that a model was trained on; packaged sets are held out as they are.",
            )

    def lines(model: LoadedModel, _: Notice) -> Iterator[LabelledLine]:
        rows = held_out(chosen, paths, model.taxonomy)
        if not rows:
            raise InputError(f"The config {config} holds out no row of these files.", "Raise its `test_share`.")
        return (line_of(row, number) for number, row in enumerate(rows, 1))

    return lines


def _print_part(part: str, values: dict[str, Any]) -> None:
    if part == "score":
        out.print(f"score: n {values['n']}, MSE {values['mse']:.4f}, R2 {values['r2']:.4f}")
        return
    if part == "robustness":
        table = _table("robustness", "test", "kind", "n", "passed", "accuracy", "before the change")
        for name, one in values.items():
            accuracies = [f"{one[key]:.3f}" if key in one else "" for key in ("accuracy", "clean_accuracy")]
            passed = "" if one["passed"] is None else f"{one['passed']:.3f}"
            table.add_row(name, one["kind"], str(one["n"]), passed, *accuracies)
        out.print(table)
        return
    out.print(
        f"{_TITLES.get(part, part)}: n {values['n']}, accuracy {values['accuracy']:.4f}, "
        f"macro-F1 {values['macro_f1']:.4f}, calibration error {values['ece']:.4f} (right probabilities would show "
        f"{values['ece_by_chance']:.4f}, in 95 % of samples at most {values['ece_by_chance_95']:.4f})"
    )
    if "direction" in values:
        direction = values["direction"]
        out.print(f"falls against rises: n {direction['n']}, accuracy {direction['accuracy']:.4f}")
    table = _table("", "class", "n", "precision", "recall", "F1")
    for name, one in values["per_class"].items():
        table.add_row(name, str(one["n"]), f"{one['precision']:.3f}", f"{one['recall']:.3f}", f"{one['f1']:.3f}")
    out.print(table)
    answers = list(next(iter(values["confusion"].values()), {}))
    if len(answers) <= 6:
        confusion = _table("", "true \\ answer", *answers)
        for name, row in values["confusion"].items():
            confusion.add_row(name, *(str(row[answer]) for answer in answers))
        out.print(confusion)
    else:
        # Twenty columns fit no terminal: the most frequent mistakes say more.
        mistakes = sorted(
            (
                (n, true, answer)
                for true, row in values["confusion"].items()
                for answer, n in row.items()
                if true != answer
            ),
            reverse=True,
        )
        for n, true, answer in mistakes[:10]:
            if n:
                out.print(f"  {n} x {true} taken for {answer}")


def _table(title: str, first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
