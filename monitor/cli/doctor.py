"""`doctor`: what is missing and how to mend it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import typer

from monitor.cli.context import current_settings, out
from monitor.datadir import announced
from monitor.errors import MonitorError

if TYPE_CHECKING:
    from monitor.settings import Settings
    from monitor.taxonomy import Taxonomy

FREE_BYTES = 1 << 30
# Of what is printed: the longest mark and the longest name of a check, and where a line begins that has no room beside.
MARK_WIDTH: Final = len("BROKEN")
NAME_WIDTH: Final = len("lz4 (worker, notifier)")
INDENT: Final = 4
# Stands for a blank at which no line may end.
HELD: Final = "\0"


class Finding(NamedTuple):
    """One thing looked at: `ok` is None for something optional that is not there."""

    what: str
    ok: bool | None
    seen: str
    mend: str = ""


def _python(_settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), version, "Use Python 3.11 or newer.")


def _disk(settings: Settings) -> Iterator[Finding]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    probe = settings.data_dir / ".write-test"
    probe.write_bytes(b"x")
    probe.unlink()
    yield Finding("data folder", True, str(settings.data_dir))
    free = shutil.disk_usage(settings.data_dir).free
    yield Finding("free space", free > FREE_BYTES, f"{free / (1 << 30):.1f} GiB", "Free at least 1 GiB.")


def _store(settings: Settings) -> Iterator[Finding]:
    from monitor.storage.engine import open_engine
    from monitor.storage.migrate import current_revision, head_revision

    engine = open_engine(settings.database)
    # As it was given, to be found again: rendered, a path has some of its characters replaced.
    shown = engine.url.render_as_string(hide_password=True) if engine.url.password else settings.database
    revision, head = current_revision(engine), head_revision()
    yield Finding("database", True, shown)
    yield Finding(
        "schema", revision == head, f"{revision or 'none'} (newest {head})", "Run `sentiment-monitor db upgrade`."
    )


def _kafka(settings: Settings) -> Iterator[Finding]:
    from consumers.topics import partition_counts

    kind = "embedded broker" if settings.embedded else "Kafka cluster"
    if settings.embedded and announced(settings.broker_address_file) is None:
        yield Finding(kind, None, "not running", "`sentiment-monitor demo` or `up` starts it.")
        return
    counts = partition_counts(settings)
    yield Finding(kind, True, settings.bootstrap_servers)
    yield Finding(
        "topics of records",
        True if counts else None,
        ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none yet",
        "The processes create them when they start.",
    )


def _codecs(_settings: Settings) -> Iterator[Finding]:
    from consumers.codecs import codecs

    for codec in codecs():
        ok = True if codec.there else False if codec.needed else None
        seen = "installed" if codec.there else "missing" if codec.needed else "not installed"
        yield Finding(codec.name, ok, seen, f"Install {codec.package}. {codec.why}")


def _processes(settings: Settings) -> Iterator[Finding]:
    from monitor.cli.processes import supervised_processes

    now = datetime.now(UTC)
    well = []
    for process in supervised_processes(settings):
        trouble = process.trouble(now)
        if trouble:
            yield Finding(process.name, False, trouble, f"Look at {process.log}.")
        elif process.state == "running":
            restarts = f" ({process.restarts} restarts)" if process.restarts else ""
            well.append(f"{process.name}{restarts}")
    if well:
        yield Finding("processes", True, f"{', '.join(well)} running")


def _model(settings: Settings) -> Iterator[Finding]:
    from models.bundle import load_model
    from models.registry import existing_store, resolve
    from monitor.taxonomy import taxonomy_of

    # The one that workers take: named in the settings, else promoted, else the shipped one.
    found = resolve(settings, existing_store(settings))
    model = load_model(found.path, device=settings.device or None)
    origin = "named by the setting model" if settings.model else "promoted" if found.version else "shipped"
    yield Finding("model", True, f"{model.version} ({origin}), weights verified")
    yield _topics(model.taxonomy, taxonomy_of(settings))


def _topics(model: Taxonomy, configured: Taxonomy) -> Finding:
    """Alerts and the dashboard name topics as `taxonomy_file` does; what the model says must be among them."""
    same = set(model.labels) == set(configured.labels)
    other = sorted(set(model.labels) ^ set(configured.labels))
    seen = (
        f"{len(model.topics)}, as the model knows them" if same else f"the model knows others: {', '.join(other[:5])}"
    )
    return Finding("topics of news", same, seen, "Set taxonomy_file to the file that the model was trained with.")


def _optional(_settings: Settings) -> Iterator[Finding]:
    for package, extra, why in (
        ("psycopg", "postgresql", "PostgreSQL"),
        ("tensorboard", "training", "TensorBoard logs"),
    ):
        there = importlib.util.find_spec(package) is not None
        yield Finding(
            why,
            True if there else None,
            "installed" if there else "not installed",
            f"Install `sentiment-monitor[{extra}]`.",
        )


CHECKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
    ("Python", _python),
    ("data folder", _disk),
    ("database", _store),
    ("Kafka", _kafka),
    ("codecs", _codecs),
    ("processes", _processes),
    ("model", _model),
    ("extras", _optional),
)


def _places(settings: Settings) -> list[str]:
    """Paths and addresses of the settings that have a blank in them, the longest first: one may lie in another. What
    findings name of a path beyond these, such as the name of a log, has none."""
    named = {str(value) for _, value in settings if isinstance(value, (str, Path))}
    return sorted((place for place in named | {str(settings.data_dir.absolute())} if " " in place), key=len)[::-1]


def lines_of(finding: Finding, room: int, places: Sequence[str]) -> list[str]:
    """What was found in at most `room` columns, broken between words only and never within one of the `places`:
    addresses and paths are copied.

    One that is longer than what is left beside the name begins a line of its own; all of that line may not do.
    """
    mark = {True: "ok", False: "BROKEN", None: "-"}[finding.ok]
    head = f"{mark:<{MARK_WIDTH}}  {finding.what:<{NAME_WIDTH}}  "
    seen = finding.seen
    if not finding.ok:
        seen = f"{seen.rstrip('.')}. {finding.mend}".strip() if seen else finding.mend
    for place in places:
        seen = seen.replace(place, place.replace(" ", HELD))
    longest = max(map(len, seen.split()), default=0)
    beside = len(head) + longest <= room
    indent = " " * (len(head) if beside else INDENT)
    wrapped = textwrap.wrap(
        seen,
        room,
        initial_indent=head if beside else indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = wrapped if beside and wrapped else [head.rstrip(), *wrapped]
    return [line.replace(HELD, " ") for line in lines]


def doctor() -> None:
    """Look at everything the product needs; exit code 1 when something needed is missing."""
    settings = current_settings()
    # Whoever reads a file or a pipe looks for whole lines.
    room = out.width if out.is_terminal else sys.maxsize
    places = _places(settings)
    broken = 0
    for name, check in CHECKS:
        try:
            findings = list(check(settings))
        except MonitorError as error:
            findings = [Finding(name, False, error.message, error.hint)]
        except OSError as error:
            findings = [Finding(name, False, f"{error.strerror} ({error.filename})", "Check the folder's rights.")]
        for finding in findings:
            broken += finding.ok is False
            for line in lines_of(finding, room, places):
                out.print(line, markup=False)
    if broken:
        raise typer.Exit(1)
