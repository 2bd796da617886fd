"""`sentiment-monitor train`: from a config to a model folder."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli.context import current_settings, err, out

__all__ = ["train"]


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that the run stops between two steps with a checkpoint."""
    asked = threading.Event()

    def ask(_signal: int, _frame: Any) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    config: Annotated[str, typer.Option(help="A shipped training config by name, or a TOML file.")] = "default",
    out_dir: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the model.")] = Path("runs/model"),
    data: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=True, help="Further labelled JSONL files, or folders of them."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted run in --out stopped.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Train a model: LoRA on the text backbone, heads, fusion with charts, calibration, figures and card."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    current_settings("train")
    from models.model_file import read_model_file
    from models.training.config import load_config
    from models.training.train import Cancelled
    from models.training.train import train as run

    chosen = load_config(config)
    files = [file for path in data or [] for file in (sorted(path.glob("*.jsonl*")) if path.is_dir() else [path])]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
    )
    tasks: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total, note=note)
        bar.update(tasks[stage], completed=done, total=total, note=note)

    with _stop_request() as asked, bar:
        try:
            run(
                chosen,
                out_dir,
                data=files,
                resume=resume,
                recipe=Path(config).name,
                progress=progress,
                cancelled=asked.is_set,
            )
        except Cancelled:
            bar.stop()
            err.print(f"stopped; go on with: sentiment-monitor train --config {config} --out {out_dir} --resume")
            raise typer.Exit(130) from None
    file = read_model_file(out_dir)
    if json_output:
        typer.echo(json.dumps({"version": file.version, "path": str(out_dir), "metrics": file.metrics}))
        return
    out.print(f"{file.version} is in {out_dir}")
    for name, value in file.metrics.items():
        if name.endswith((".accuracy", ".macro_f1", ".ece", ".mse", ".r2")):
            out.print(f"  {name:<44} {value:.3f}")
