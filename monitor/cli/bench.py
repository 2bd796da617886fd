"""`bench`: runs the benchmarks of a source checkout, and writes what they found into docs/benchmarks.md."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from monitor.cli.context import err
from monitor.cli.machine import described, load_average, versions
from monitor.errors import ConfigurationError

CHECKOUT: Final = Path(__file__).resolve().parent.parent.parent
FOLDER: Final = CHECKOUT / "benchmarks"
PAGE: Final = CHECKOUT / "docs" / "benchmarks.md"


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Which benchmarks; none: list them.")] = None,
    arguments: Annotated[str, typer.Option("--args", help="Handed to each benchmark, quoted as in a shell.")] = "",
    write: Annotated[
        bool, typer.Option("--write", help="Put figures, machine and versions into docs/benchmarks.md.")
    ] = False,
    page: Annotated[Path, typer.Option("--page", help="Another page to write to.")] = PAGE,
) -> None:
    """Measure speed beside the peers, in one run; see docs/benchmarks.md for figures."""
    known = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    if not known:
        raise ConfigurationError(
            "The benchmarks are not part of the installed package.",
            "Run this in a checkout installed with `pip install -e`.",
        )
    if not names:
        typer.echo("\n".join(known))
        return
    for name in names:
        if name not in known:
            raise ConfigurationError(f"There is no benchmark {name}.", f"There are: {', '.join(known)}.")
    try:
        handed = shlex.split(arguments)
    except ValueError as error:
        raise ConfigurationError(f"The arguments cannot be read: {error}.", "Close what is quoted.") from error
    if write:
        for name in names:
            # Before hours of measuring, not after.
            _within(_read(page), name, page)
    for name in names:
        err.print(f"== {name}")
        script = FOLDER / f"{name}.py"
        mine = handed
        if write and '"--json"' in script.read_text(encoding="utf-8") and "--json" not in handed:
            mine = [*handed, "--json"]
        command = [sys.executable, str(script), *mine]
        before = load_average()
        # The benchmark's own progress goes to standard error.
        done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if write else None)
        if done.returncode:
            raise typer.Exit(done.returncode)
        if write:
            typer.echo(done.stdout, nl=False)
            told = section(name, mine, done.stdout, before, load_average())
            start, end = _within(text := _read(page), name, page)
            page.write_text(f"{text[:start]}\n\n{told}\n{text[end:]}", encoding="utf-8")
            err.print(f"Written to {page}.")


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{page} cannot be read.", "Name a page with --page.") from error


def _within(text: str, name: str, page: Path) -> tuple[int, int]:
    """Where the section of a benchmark begins and ends. Raises `ConfigurationError` where it has none."""
    first, last = f"<!-- bench {name} -->", f"<!-- bench {name}: end -->"
    start = text.find(first)
    end = text.find(last, start)
    if start < 0 or end < 0:
        raise ConfigurationError(
            f"{page.name} has no section for {name}.", f"Put the lines `{first}` and `{last}` where it belongs."
        )
    return start + len(first), end


def section(name: str, arguments: list[str], output: str, before: str, after: str) -> str:
    """What a run printed, as Markdown, with what it was run on."""
    now = datetime.now(UTC).date().isoformat()
    lines = [
        f"`python benchmarks/{shlex.join([f'{name}.py', *arguments])}`, {now}",
        "",
        f"Machine: {described()}. Load average before and after: {before}; {after}.",
        "",
        f"Versions: {versions()}.",
        "",
    ]
    return "\n".join(lines + _tables(output))


def _tables(output: str) -> list[str]:
    """A benchmark's JSON as tables; what is no JSON as it is."""
    try:
        found = json.loads(output.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        found = None
    if isinstance(found, list):
        found = {"": found}
    if not isinstance(found, dict):
        return ["```text", output.strip(), "```", ""]
    alone: dict[str, Any] = {}
    lines: list[str] = []
    for key, value in found.items():
        if isinstance(value, dict):
            alone |= {f"{key}, {inner}": one for inner, one in value.items()}
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            columns = list(dict.fromkeys(column for one in value for column in one))
            lines += [f"{_words(key)}:", ""] if key else []
            lines += [*_table(columns, [[one.get(column) for column in columns] for one in value]), ""]
        else:
            alone[key] = value
    if alone:
        lines = [*_table(["what", "figure"], [[_words(key), value] for key, value in alone.items()]), "", *lines]
    return lines


def _table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    head = ["| " + " | ".join(map(_words, columns)) + " |", "|" + " --- |" * len(columns)]
    return head + ["| " + " | ".join(map(_shown, row)) + " |" for row in rows]


def _words(name: str) -> str:
    return name.replace("_", " ").replace(" per s", "/s")


def _shown(value: Any) -> str:
    """A figure as it is read: four digits of a fraction, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{_words(str(key))} {_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
