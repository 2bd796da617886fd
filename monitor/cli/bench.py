"""`bench`: runs the benchmarks of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.context import err
from monitor.errors import ConfigurationError

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Which benchmarks; none: list them.")] = None,
    arguments: Annotated[str, typer.Option("--args", help="Handed to each benchmark as it is.")] = "",
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
    for name in names:
        err.print(f"== {name}")
        done = subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *arguments.split()], check=False)
        if done.returncode:
            raise typer.Exit(done.returncode)
