"""`evaluate`: a model measured on a labelled file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.cli.context import current_settings, err, out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["evaluate"]


def evaluate(
    file: Annotated[Path, typer.Argument(help="Labelled JSONL file.", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="Name, version or path of a model; default: the promoted one.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also measure how answers change under typos, capitals and the like.")
    ] = False,
) -> None:
    """Measure a model on JSONL with `text` and any of `sentiment`, `topic`, `entities` (name to sentiment), `score`.

    A line may name an image file in `chart` (relative to FILE): with `trend` the reading of the chart is measured,
    with a text the two are scored together.
    """
    from models.bundle import load_model
    from models.engine.precision import prepare_cpu
    from models.registry import existing_store, resolve
    from models.training.evaluate import evaluate_file
    from models.training.robustness import robustness_of_file

    settings = current_settings("evaluate")
    if settings.log_level != "debug":
        logging.getLogger("models").setLevel(logging.WARNING)
    found = resolve(settings, None if model else existing_store(settings), model)
    loaded = load_model(found.path, device=settings.device or None)
    prepare_cpu(loaded, settings)
    with err.status("reading") as status:
        figures = evaluate_file(loaded, file, lambda done: status.update(f"{done} lines"))
        if robustness:
            status.update("robustness")
            figures["robustness"] = robustness_of_file(loaded, file)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    out.print(f"Model {loaded.version}")
    for part, values in figures.items():
        out.print()
        _print_part(part, values)


def _print_part(part: str, values: dict[str, Any]) -> None:
    if part == "score":
        out.print(f"score: n {values['n']}, MSE {values['mse']:.4f}, R2 {values['r2']:.4f}")
        return
    if part == "robustness":
        table = _table("robustness", "perturbation", "same label", "accuracy")
        for name, one in values.items():
            table.add_row(name, f"{one['same']:.3f}", f"{one['accuracy']:.3f}")
        out.print(table)
        return
    out.print(
        f"{part}: n {values['n']}, accuracy {values['accuracy']:.4f}, macro-F1 {values['macro_f1']:.4f}, "
        f"calibration error {values['ece']:.4f}"
    )
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
