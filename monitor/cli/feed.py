"""`feed`: produce news to Kafka from files, RSS and Atom feeds, or HTTP."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from monitor.cli.context import current_settings, err

if TYPE_CHECKING:
    from socket import socket
    from threading import Event

    from _typeshed import WriteableBuffer

    from monitor.feeds.jsonl import BadLine, Line

app = typer.Typer(no_args_is_help=True, add_completion=False)

MAX_REPORTED = 100
LOOK_EVERY_S = 0.2


@app.callback()
def root() -> None:
    """Produce news to Kafka."""


def _stop_event() -> Event:
    """Set by SIGTERM and SIGINT, so that what was taken is still sent."""
    import signal
    from threading import Event

    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


class _Waiting(io.RawIOBase):
    """A pipe or terminal that has come to its end when `stop` is set: reading itself waits without end for a sender."""

    def __init__(self, stream: IO[bytes], stop: Event) -> None:
        self._stream = stream
        self._stop = stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        import os
        from select import select

        descriptor = self._stream.fileno()
        while not self._stop.is_set():
            if select([descriptor], [], [], LOOK_EVERY_S)[0]:
                found = os.read(descriptor, len(memoryview(buffer)))
                memoryview(buffer)[: len(found)] = found
                return len(found)
        return 0


@app.command()
def jsonl(
    file: Annotated[str, typer.Argument(help="JSON Lines of news items; - reads standard input.")],
    speed: Annotated[
        float, typer.Option(min=0.0, help="Seconds of event time in a second; 0: as fast as it goes.")
    ] = 0.0,
) -> None:
    """Replay a file with its own event times. `chart` in a line may name an image file beside the JSONL."""
    import sys
    from contextlib import closing
    from datetime import UTC, datetime

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from consumers.ingest import Ingest, replay
    from monitor.errors import InputError
    from monitor.feeds.jsonl import BadLine, read_jsonl

    settings = current_settings()
    path = None if file == "-" else Path(file)
    try:
        stream = sys.stdin.buffer if path is None else path.open("rb")
    except OSError as error:
        raise InputError(f"The file {path} cannot be read: {error.strerror}.") from error
    stop = _stop_event()
    total = _lines(path) if path is not None and path.is_file() else None
    reported = 0

    def report(line: Line | BadLine) -> None:
        nonlocal reported
        problem = line.rejected.reason if isinstance(line, BadLine) else line.problem
        if problem:
            reported += 1
            if reported <= MAX_REPORTED:
                err.print(f"line {line.number}: {problem}", markup=False)
            elif reported == MAX_REPORTED + 1:
                err.print("... (more lines are not shown)")
        bar.advance(task)

    columns = (SpinnerColumn(), TextColumn("sent"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        stream,
        closing(Ingest(settings)) as ingest,
        Progress(*columns, console=err, disable=not err.is_terminal) as bar,
    ):
        task = bar.add_task("sent", total=total)
        lines = read_jsonl(
            stream if total is not None else io.BufferedReader(_Waiting(stream, stop)),
            datetime.now(UTC),
            folder=path.parent if path is not None else Path(),
            max_chart_bytes=settings.max_chart_bytes,
        )
        done = replay(lines, ingest, speed=speed, lateness_s=settings.lateness_s, on_line=report, stop=stop)
    err.print(f"Sent {done.items} items and {done.charts} charts.")
    if done.disordered:
        err.print(
            f"{done.disordered} items lie over {settings.lateness_s:g} s before one that came first: they are late."
        )
    if reported:
        raise InputError(f"{reported} lines of {file} could not be used as they are.")


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


@app.command()
def rss(
    urls: Annotated[list[str], typer.Argument(help="Addresses of RSS or Atom feeds.")],
    once: Annotated[bool, typer.Option("--once", help="Look once and leave.")] = False,
    interval: Annotated[float | None, typer.Option(min=1.0, help="Seconds between two looks.")] = None,
) -> None:
    """Poll RSS and Atom feeds."""
    from contextlib import closing

    from consumers.ingest import Ingest, poll_feeds
    from monitor.errors import InputError
    from monitor.feeds.rss import check_url

    settings = current_settings(rss_interval_s=interval)
    for url in urls:
        check_url(url)

    def report(url: str, items: int, skipped: list[str], problem: str) -> None:
        if problem:
            err.print(f"{url}: {problem}", markup=False)
        elif items or skipped:
            err.print(f"{url}: {items} new, {len(skipped)} skipped", markup=False)
        for reason in skipped[:10]:
            err.print(f"  skipped {reason}", markup=False)

    with closing(Ingest(settings)) as ingest:
        failed = poll_feeds(
            urls,
            ingest,
            interval_s=settings.rss_interval_s,
            egress_allow=settings.egress_allow,
            once=once,
            stop=_stop_event(),
            on_poll=report,
        )
    if once and failed:
        raise InputError(f"{failed} of {len(urls)} feeds could not be read.")


def _listening(host: str, port: int) -> socket:
    """A listening socket. Raises `ConfigurationError` when the address cannot be had."""
    from socket import AI_PASSIVE, SOCK_STREAM, create_server, getaddrinfo

    from monitor.errors import ConfigurationError

    try:
        family, _, _, _, address = getaddrinfo(host, port, type=SOCK_STREAM, flags=AI_PASSIVE)[0]
        return create_server((address[0], port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"`feed http` cannot listen on {host}:{port}: {error.strerror}.",
            "Choose another one with --host and --port.",
        ) from error


@app.command()
def http(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free.")] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Let every program of this machine send.")] = False,
) -> None:
    """Take news items (POST /items) and chart images (POST /charts) over HTTP, protected by a bearer token."""
    from contextlib import closing

    import uvicorn

    from consumers.ingest import Ingest
    from monitor.feeds.http import Limits, check_exposure, create_app, server_config

    settings = current_settings(http_feed_host=host, http_feed_port=port)
    token = settings.http_feed_token.get_secret_value()
    check_exposure(settings.http_feed_host, token, allow_open=no_token)
    with _listening(settings.http_feed_host, settings.http_feed_port) as listener, closing(Ingest(settings)) as ingest:
        application = create_app(ingest.send_all, token=token, limits=Limits(max_chart_bytes=settings.max_chart_bytes))
        address, taken = listener.getsockname()[:2]
        err.print(f"Listening on http://{f'[{address}]' if ':' in address else address}:{taken}", markup=False)
        uvicorn.Server(server_config(application, grace_s=settings.shutdown_s)).run(sockets=[listener])
