"""`score`: news items of a JSONL file in, scored items out."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import IO, Annotated

import typer

from monitor.cli.context import current_settings, err

__all__ = ["score"]

_FILE_CHUNK = 512


def score(
    file: Annotated[
        Path, typer.Argument(help="JSONL of news items; - reads standard input.", show_default=False)
    ] = Path("-"),
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write here instead of standard output.")] = None,
    model: Annotated[str, typer.Option(help="Name, version or path of a model; default: the promoted one.")] = "",
) -> None:
    """Score a JSONL file of news items offline; JSONL of scored items comes out, in the same order.

    A line needs a `title` or `body` (or `text`) or a `chart`: the name of an image file, relative to FILE's folder (for
    standard input: to the working folder). `id` is derived and `published_at` is the present time where they are
    missing. A line that is wrong gives one error on standard error and exit code 3 at the end; the others are scored,
    and so is the text of one whose chart cannot be read.
    """
    from datetime import UTC, datetime

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from models.engine import open_scorer
    from models.engine.offline import score_lines
    from models.registry import existing_store
    from monitor.errors import InputError
    from monitor.feeds.jsonl import read_jsonl
    from monitor.records import Rejected, encode

    settings = current_settings("score")
    if settings.log_level != "debug":
        logging.getLogger("models").setLevel(logging.WARNING)
    piped = str(file) == "-"
    wrong = scored = 0
    with ExitStack() as stack:
        source = sys.stdin.buffer if piped else _opened(stack, file)
        if out is not None and not piped and out.exists() and out.samefile(file):
            raise InputError("The output would overwrite the input.", "Give --out another name.")
        # The model first: a wrong --model must not leave an empty output behind.
        with err.status("loading the model") if err.is_terminal else nullcontext():
            scorer = open_scorer(settings, None if model else existing_store(settings), model)
        stack.callback(scorer.close)
        sink: IO[bytes] = stack.enter_context(out.open("wb")) if out is not None else sys.stdout.buffer
        progress = stack.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=err,
                # On a terminal the items tell by themselves how far it is, and a bar would stand among them.
                disable=not err.is_terminal or (out is None and sys.stdout.isatty()),
                transient=True,
            )
        )
        # A share is shown once there is one; of standard input nobody knows the length.
        task = progress.add_task("scoring", total=None)
        size = None if piped else file.stat().st_size
        now = datetime.now(UTC)
        folder = Path.cwd() if piped else file.parent
        lines = read_jsonl(source, now, folder=folder, max_chart_bytes=settings.max_chart_bytes, undated=now)
        chunk = settings.worker_batch_items if piped else _FILE_CHUNK
        for outcome in score_lines(lines, scorer, settings, chunk_lines=chunk):
            if isinstance(outcome.result, Rejected):
                problem = outcome.result.reason
            else:
                problem = outcome.problem
                scored += 1
                sink.write(encode(outcome.result) + b"\n")
            if problem:
                wrong += 1
                err.print(f"line {outcome.number}: {problem}", markup=False)
            done = f"{scored:,} item{'' if scored == 1 else 's'} scored"
            progress.update(task, description=done, completed=outcome.position, total=size)
            if piped:
                sink.flush()
        sink.flush()
    if wrong:
        raise typer.Exit(InputError.exit_code)


def _opened(stack: ExitStack, path: Path) -> IO[bytes]:
    from monitor.errors import InputError

    try:
        return stack.enter_context(path.open("rb"))
    except OSError as error:
        raise InputError(f"The file {path} cannot be read: {error.strerror}.") from error
