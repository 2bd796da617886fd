"""`evaluate`: a model measured on a labelled file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.cli.context import current_settings, err, out

if TYPE_CHECKING:
    from rich.table import Table

    from models.bundle import LoadedModel
    from models.training.evaluate import LabelledLine

__all__ = ["evaluate"]


def evaluate(
    file: Annotated[str, typer.Argument(help="Labelled JSONL file, or the name of a packaged set.")],
    model: Annotated[str, typer.Option(help="Name, version or path of a model; default: the promoted one.")] = "",
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
    from models.bundle import load_model
    from models.engine import open_scorer
    from models.engine.precision import prepare
    from models.registry import existing_store, resolve
    from models.training.evaluate import evaluate_lines
    from models.training.robustness import robustness as behaviour

    settings = current_settings("evaluate")
    if settings.log_level != "debug":
        logging.getLogger("models").setLevel(logging.WARNING)
    lines = _source(file)
    store = None if model else existing_store(settings)
    scorer = open_scorer(settings, store, model) if robustness else None
    if scorer is not None:
        loaded = scorer.model
    else:
        loaded = load_model(resolve(settings, store, model).path, device=settings.device or None)
        prepare(loaded, settings)
    with err.status("reading") as status:
        figures = evaluate_lines(loaded, lines(loaded), lambda done: status.update(f"{done} lines"))
        if scorer is not None:
            status.update("robustness")
            figures["robustness"] = behaviour(scorer, lines(loaded))
            scorer.close()
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False))
        return
    out.print(f"Model {loaded.version}")
    for part, values in figures.items():
        out.print()
        _print_part(part, values)


def _source(name: str) -> Callable[[LoadedModel], Iterator[LabelledLine]]:
    """What gives the lines of a file or a packaged set. A file goes before a set of the same name."""
    from models.training.evaluate import read_labelled_lines
    from models.training.packaged import PACKAGED, packaged_lines
    from monitor.errors import InputError

    path = Path(name)
    if path.is_file():
        return lambda model: read_labelled_lines(path, model.taxonomy.labels)
    if name not in PACKAGED:
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"The file {name} {problem}.", f"Packaged sets are {', '.join(PACKAGED)}.")
    return lambda _: packaged_lines(name)


def _print_part(part: str, values: dict[str, Any]) -> None:
    if part == "score":
        out.print(f"score: n {values['n']}, MSE {values['mse']:.4f}, R2 {values['r2']:.4f}")
        return
    if part == "robustness":
        table = _table("robustness", "test", "kind", "n", "passed", "accuracy", "before the change")
        for name, one in values.items():
            accuracies = [f"{one[key]:.3f}" if key in one else "" for key in ("accuracy", "clean_accuracy")]
            table.add_row(name, one["kind"], str(one["n"]), f"{one['passed']:.3f}", *accuracies)
        out.print(table)
        return
    out.print(
        f"{part}: n {values['n']}, accuracy {values['accuracy']:.4f}, macro-F1 {values['macro_f1']:.4f}, "
        f"calibration error {values['ece']:.4f} (right probabilities would show {values['ece_by_chance']:.4f}, "
        f"in 95 % of samples at most {values['ece_by_chance_95']:.4f})"
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
