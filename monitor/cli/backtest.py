"""`backtest`: the windows and the surge code over history."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from monitor.cli.context import current_settings, err
from monitor.cli.tables import chosen_surges

if TYPE_CHECKING:
    from monitor.settings import Settings
    from monitor.surges.backtest import BacktestAlert
    from monitor.surges.config import JudgeConfig
    from monitor.surges.counting import CountingConfig
    from monitor.surges.history import Measured

__all__ = ["backtest"]

_REPORT_LINES = 500
# Wrong lines that are shown one by one.
_SHOWN = 20
# Bytes of a history from which a second process is quicker, start and all.
_WORTH_A_PROCESS = 8 << 20


def backtest(
    file: Annotated[
        Path, typer.Argument(help="JSONL of scored items, or a CSV timestamp,value; - reads standard input.")
    ] = Path("-"),
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="False alarms allowed per key and day; default: surge_budget.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A replay without known surges, for the bar to begin with.")
    ] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write alerts here, not to standard output.")] = None,
    scores: Annotated[
        Path | None, typer.Option(dir_okay=False, help="For a CSV: write timestamp,value,anomaly_score here.")
    ] = None,
    surge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SORT",
            help="What to look for: negative, positive, volume; may be given again. Default: what the rules watch.",
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave wrong lines out instead of stopping.")] = False,
) -> None:
    """Run surge detection over history in event time, with the very code that runs live; alerts that the rules announce
    come out as JSONL.

    A line of scored items is what `score` prints, or has at least `id, published_at, source, title, tickers, topic,
    sentiment, p_negative`. The bar is set online from the input itself, never looking ahead, and begins with what
    --history shows. Every sort of surge has a bar of its own.
    A CSV is one key's series of counts, in order of time.
    """
    from monitor.errors import ConfigurationError, InputError
    from monitor.records import encode

    settings = current_settings("backtest", surge_budget=budget)
    for path in (out, scores):
        for given in (file, history):
            if path is not None and given is not None and path.exists() and given.exists() and path.samefile(given):
                raise InputError("The output would overwrite the input.", "Give another name.")
    skipped: list[str] | None = [] if skip_bad else None
    with ExitStack() as stack:
        head, lines = _opened(stack, file)
        series = _is_series(file, head)
        if scores is not None and not series:
            raise ConfigurationError(
                "--scores is for a CSV of one series; scored items have no single value to give a score to.",
                "The alerts carry the scores of their keys.",
            )
        sink = stack.enter_context(_written(out)) if out is not None else sys.stdout.buffer
        if series:
            alerts = _series(settings, file, lines, history, scores, skipped)
        else:
            alerts = _items(settings, file, lines, history, skipped, surge or [])
        for alert in alerts:
            sink.write(encode(alert) + b"\n")
        sink.flush()
    for message in (skipped or [])[:_SHOWN]:
        err.print(message, markup=False)
    if skipped:
        err.print(f"{len(skipped)} wrong lines were left out.")


def _items(
    settings: Settings,
    file: Path,
    lines: Iterable[bytes],
    history: Path | None,
    skipped: list[str] | None,
    surges: list[str],
) -> list[BacktestAlert]:
    from monitor.alerts.announced import announced
    from monitor.alerts.rules import load_rules
    from monitor.surges.backtest import Backtest
    from monitor.surges.counting import CountingConfig
    from monitor.surges.lines import read_scored
    from monitor.surges.sorts import SURGES

    counting, rules = CountingConfig.of(settings), load_rules(settings)
    judging = [rules.judge.watching(surge) for surge in chosen_surges(surges) or rules.watched or SURGES[:1]]
    absurd: list[str] = []
    with ExitStack() as stack:
        past = None
        if history is not None:
            past = _past(stack, history, counting, judging, skipped is not None)
        run = Backtest(counting, *judging, history_later=past is not None)
        with _progress(file, "backtest") as watch:
            for item in read_scored(watch(lines), _name(file), skipped, absurd):
                run.add(item)
        run.finish()
        heights: list[float] = []
        if past is not None:
            heights = _heights(past(), history, judging, skipped, absurd)
            run.decide(heights)
    told = []
    for watch_of in run.watches:
        sort = watch_of.config.surge
        number = sum(alert.surge == sort for alert in run.alerts)
        told.append(f"{number} {'' if len(judging) == 1 else f'{sort} '}alerts at a bar of {watch_of.bar:.2f}")
    for message in absurd[:_SHOWN]:
        err.print(message, markup=False)
    refused = f", {len(absurd)} refused for their date" if absurd else ""
    alone = f", {run.alone} dated far ahead of all others" if run.alone else ""
    counts = f"{run.items} items, {run.duplicates} duplicates, {run.late} late, {run.stale} stale{alone}{refused}"
    err.print(f"{counts}; {', '.join(told)}.")
    if past is not None:
        of_sorts = ", ".join(f"{one.surge} = {height!r}" for one, height in zip(judging, heights, strict=True))
        err.print("To go by the same history live, put this into the file that `rules_file` names:")
        err.print(f"[judge]\nheights = {{ {of_sorts} }}", markup=False, highlight=False, soft_wrap=True)
    told_of = [alert for alert in run.alerts if announced(rules, alert)]
    if len(told_of) < len(run.alerts):
        err.print(f"The rules announce {len(told_of)} of these alerts; the others are left out.")
    return told_of


def _past(
    stack: ExitStack, history: Path, counting: CountingConfig, judging: list[JudgeConfig], skip_bad: bool
) -> Callable[[], Measured]:
    """Begins with the history, in a process of its own where that is worth it; the function waits for what it tells."""
    import os

    from monitor.errors import InputError
    from monitor.surges.history import measure_file

    if str(history) == "-" or not history.is_file():
        # What comes through a pipe can be read once.
        _, lines = _opened(stack, history)
        measured = measure_file(history, counting, judging, skip_bad, lines)
        return lambda: measured
    _opened(stack, history)
    if history.stat().st_size < _WORTH_A_PROCESS or (os.cpu_count() or 1) < 2:
        return lambda: measure_file(history, counting, judging, skip_bad)
    # A fresh process: nothing of this one's is copied into it, threads least of all.
    pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
    stack.push(_abandon)
    future = pool.submit(measure_file, history, counting, judging, skip_bad)

    def result() -> Measured:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"The process that went through the history {history} was ended by another.",
                "Most often there was too little memory: take a shorter history.",
            ) from error

    return result


def _abandon(kind: type[BaseException] | None, *_: object) -> None:
    """When the run fails nobody waits for the history."""
    if kind is not None:
        for child in active_children():
            child.terminate()


def _heights(
    past: Measured,
    history: Path | None,
    judging: list[JudgeConfig],
    skipped: list[str] | None,
    absurd: list[str],
) -> list[float]:
    from monitor.errors import InputError

    absurd += past.absurd
    if skipped is not None:
        skipped += past.skipped
    try:
        return [history_of_sort.height for history_of_sort in past.histories]
    except ValueError as error:
        raise InputError(
            f"The history {history} is too short to set a bar.",
            f"It must cover more than {judging[0].min_age_minutes / 60:.0f} hours of a key.",
        ) from error


def _series(
    settings: Settings,
    file: Path,
    lines: Iterable[bytes],
    history: Path | None,
    scores: Path | None,
    skipped: list[str] | None,
) -> list[BacktestAlert]:
    from monitor.surges.budget import bar_from_history
    from monitor.surges.series import SeriesJudge, read_rows

    bar: float | None = None
    if history is not None:
        with ExitStack() as stack:
            _, past = _opened(stack, history)
            judge = SeriesJudge(settings.surge_budget)
            for row in read_rows(_text(past, _name(history)), str(history), skipped):
                judge.step(row)
            bar = bar_from_history(judge.peaks, max(judge.days, 1.0), settings.surge_budget)
    judge = SeriesJudge(settings.surge_budget, bar)
    unusable: list[str] = []
    with ExitStack() as stack, _progress(file, "backtest") as watch:
        rows = read_rows(_text(watch(lines), _name(file)), _name(file), skipped)
        table = None
        if scores is not None:
            sheet = TextIOWrapper(
                stack.enter_context(_written(scores)), encoding="utf-8", newline="", write_through=True
            )
            table = csv.writer(sheet, lineterminator="\n")
            table.writerow(["timestamp", "value", "anomaly_score"])
        for row in rows:
            scored = judge.step(row)
            if row.problem:
                unusable.append(f"{row.timestamp}: {row.problem}.")
            if table is not None:
                value = row.cell if row.problem else f"{row.value:.10g}"
                table.writerow([row.timestamp, value, f"{scored.anomaly_score:.6f}"])
        if table is not None:
            sheet.detach()
    for message in unusable[:_SHOWN]:
        err.print(message, markup=False)
    if unusable:
        err.print(f"{len(unusable)} rows could not be judged: they score 0, and nothing was learned from them.")
    return judge.alerts


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that is there under its name when all of it is written, and not before."""
    if path.exists() and not path.is_file():
        # A device or a pipe has no other name.
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _name(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)


def _opened(stack: ExitStack, file: Path) -> tuple[bytes, Iterable[bytes]]:
    """The first line that is not blank, and all lines."""
    from monitor.errors import InputError

    if str(file) == "-":
        source: IO[bytes] = sys.stdin.buffer
    else:
        try:
            source = stack.enter_context(file.open("rb"))
        except OSError as error:
            raise InputError(f"The file {file} cannot be read: {error.strerror}.") from error
    first: list[bytes] = []
    for line in source:
        first.append(line)
        if line.strip():
            break

    def lines() -> Iterator[bytes]:
        yield from first
        yield from source

    return (first[-1] if first else b""), lines()


def _is_series(file: Path, head: bytes) -> bool:
    return file.suffix.lower() == ".csv" or (b"timestamp" in head.lower() and not head.lstrip().startswith(b"{"))


def _text(lines: Iterable[bytes], name: str) -> Iterator[str]:
    from monitor.errors import InputError

    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"Line {number} of {name} is not UTF-8.") from error


@contextmanager
def _progress(file: Path, what: str) -> Iterator[Callable[[Iterable[bytes]], Iterator[bytes]]]:
    """A progress bar over the lines of a file, on a terminal only; yields a function that watches them go by."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    known = str(file) != "-" and file.is_file()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(
        *columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal, transient=True
    ) as progress:
        task = progress.add_task(what, total=file.stat().st_size if known else None)

        def watched(lines: Iterable[bytes]) -> Iterator[bytes]:
            read = 0
            for number, line in enumerate(lines, start=1):
                yield line
                read += len(line)
                if number % _REPORT_LINES == 0:
                    progress.update(task, completed=read)

        yield watched
