"""The command `sentiment-monitor`: a table of verbs, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
import typer.core
import typer.main

from monitor.cli.context import err, root_flags
from monitor.errors import MonitorError

__all__ = ["VERBS", "main", "root"]


class Verb(NamedTuple):
    """Where a verb lives: a Typer app or a plain function in `monitor.cli`, and its line in the help."""

    target: str
    help: str


VERBS: dict[str, Verb] = {
    "demo": Verb("demo:demo", "Everything on this machine, with a bundled stream and a surge in it."),
    "up": Verb("processes:up", "All processes against the configured broker and database, supervised."),
    "worker": Verb("processes:worker", "Score news and charts from Kafka."),
    "aggregator": Verb("processes:aggregator", "Count contributions in event time and judge surges."),
    "notifier": Verb("processes:notifier", "Deliver alerts from the outbox."),
    "scheduler": Verb("processes:scheduler", "Run jobs on schedule: retraining, drift, retention."),
    "dashboard": Verb("processes:dashboard", "Serve the analysts' dashboard."),
    "broker": Verb("processes:broker", "Run the embedded development broker by itself."),
    "feed": Verb("feed:app", "Produce news to Kafka: from files, RSS or HTTP."),
    "score": Verb("score:score", "Score a JSONL file of news items offline."),
    "evaluate": Verb("evaluate:evaluate", "Measure a model on a labelled JSONL file."),
    "train": Verb("train:train", "Train an adapter from a config."),
    "models": Verb("models:app", "The model registry: list, show, promote, rollback."),
    "backtest": Verb("backtest:backtest", "Run surge detection over history."),
    "alerts": Verb("alerts:app", "Work with alerts and undelivered notifications."),
    "rules": Verb("rules:app", "Which surges are announced: list, check, test on history, mute, look back."),
    "labels": Verb("labels:app", "Analysts' corrections: list, import, export."),
    "jobs": Verb("jobs:app", "The scheduler's jobs: list, run, cancel, history."),
    "dead-letters": Verb("dead_letters:app", "Records that could not be processed: list, show, replay."),
    "status": Verb("status:status", "What an operator asks first."),
    "db": Verb("db:app", "Database migrations."),
    "config": Verb("config:app", "Effective settings, secrets masked."),
    "doctor": Verb("doctor:doctor", "What is missing and how to mend it."),
    "bench": Verb("bench:bench", "The benchmarks."),
}


class VerbGroup(typer.core.TyperGroup):
    """A group that imports a verb's module when the verb is used, so that `--help` and `status` start fast."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """All verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb's command, imported now; None for an unknown one. For the root's help, a light stand-in."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        if ctx.resilient_parsing or not (set(sys.argv[1:]) & set(VERBS)):
            return typer.core.TyperCommand(cmd_name, help=verb.help)
        module, _, attribute = verb.target.partition(":")
        target: Any = getattr(importlib.import_module(f"monitor.cli.{module}"), attribute)
        if not isinstance(target, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(cmd_name, help=verb.help)(target)
            target = single
        # Plain help, the same for every verb.
        target.rich_markup_mode = None
        command = typer.main.get_command(target)
        command.name = cmd_name
        command.help = command.help or verb.help
        return command


root = typer.Typer(
    cls=VerbGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sentiment-monitor {version('sentiment-monitor')}")
        raise typer.Exit


@root.callback()
def cli(
    config: Annotated[Path | None, typer.Option(dir_okay=False, help="Settings file (TOML).")] = None,
    data_dir: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for local data.")] = None,
    database_url: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the store.")] = None,
    kafka_bootstrap_servers: Annotated[str | None, typer.Option(help="host:port,... of a Kafka cluster.")] = None,
    topic_prefix: Annotated[str | None, typer.Option(help="Put before every topic's name.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Streaming financial sentiment monitor."""
    flags = {
        "config": config,
        "data_dir": data_dir,
        "database_url": database_url,
        "kafka_bootstrap_servers": kafka_bootstrap_servers,
        "topic_prefix": topic_prefix,
        "log_level": log_level,
    }
    root_flags.set({name: value for name, value in flags.items() if value is not None})


def _fail(message: str, hint: str, code: int) -> NoReturn:
    err.print(f"error: {message}", style="bold red", markup=False)
    if hint:
        err.print(hint, markup=False)
    raise SystemExit(code)


def main() -> None:
    """Entry point: every expected error is one sentence and a hint on standard error and an exit code above 0."""
    try:
        code = typer.main.get_command(root).main(prog_name="sentiment-monitor", standalone_mode=False)
    except MonitorError as error:
        _fail(error.message, error.hint, error.exit_code)
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        err.print("stopped")
        raise SystemExit(130) from None
    except typer.TyperException as error:
        message = error.format_message()
        context = getattr(error, "ctx", None)
        if context is not None and message == context.get_help():
            # No arguments at all.
            err.print(message, markup=False)
            raise SystemExit(2) from None
        _fail(message, "Add --help to see what it takes.", 2)
    except BrokenPipeError:
        # The reader of our output (`| head`) has left: not our error. Standard output is closed at exit otherwise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if error.errno == 28:
            _fail("The disk is full.", f"Free some space and start again ({error.filename or 'no file named'}).", 1)
        _fail(f"{error.strerror or error} ({error.filename}).", "", 1) if error.filename else _reraise(error)
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets one sentence, not a traceback
        _reraise(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _reraise(error: BaseException) -> NoReturn:
    flags = root_flags.get() or {}
    level = str(flags.get("log_level") or os.environ.get("SENTIMENT_MONITOR_LOG_LEVEL", ""))
    if level.lower() == "debug":
        raise error
    _fail(
        f"Unexpected {type(error).__name__}: {error}",
        "Run it again with --log-level debug to see where it happened.",
        70,
    )


if __name__ == "__main__":
    main()
