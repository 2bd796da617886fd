"""What `alerts` prints of an alert's trail, of notices, and of what is pending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import typer
from rich.text import Text

from monitor.cli.context import out
from monitor.cli.tables import list_table, minute, moment, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from monitor.alerts.records import Alert
    from monitor.storage.deliveries import Delivery
    from monitor.storage.pending import Pending

__all__ = [
    "SHOWN_ID",
    "alerts_table",
    "deliveries_table",
    "pending_table",
    "print_trail",
    "show_pending",
]

# Letters of an id that a list shows: all commands take its beginning, and a whole one fills half a line.
SHOWN_ID: Final = 8
SHOWN_NOTICE_ID: Final = len("msg_") + SHOWN_ID


def alerts_table(alerts: Sequence[Alert]) -> Table:
    """Alerts, a line each. On a narrow terminal that an alert is over is still said by its state."""
    from monitor.alerts.records import expectation

    return list_table(
        out,
        ("id", "state", "severity", "key", "surge", "stories", "expected", "fired (UTC)", "resolved (UTC)"),
        [
            (
                one.id[:SHOWN_ID],
                one.state.value,
                one.severity,
                one.key,
                one.surge,
                str(one.observed),
                expectation(one.expected),
                minute(one.fired_at),
                minute(one.resolved_at),
            )
            for one in alerts
        ],
        spare=("resolved (UTC)", "surge", "expected", "severity"),
        cut="key",
    )


def print_trail(trail: Sequence[dict[str, Any]]) -> None:
    """What happened to an alert, a line each, with the clock that it is dated by: the judge decides in event time, in
    which news of the past may be replayed; everybody else acts when they do."""
    from monitor.storage.alerts import JUDGE

    for entry in trail:
        actor = entry["actor"]
        clock = "event time" if actor == JUDGE else "wall clock"
        detail = ", ".join(f"{name}: {value}" for name, value in entry["detail"].items())
        line = f"  {clock}  {moment(entry['at'])}  {entry['event']} by {actor}  {detail}"
        out.print(line.rstrip(), markup=False)


def pending_table(rows: Sequence[Pending]) -> Table:
    """What has not reached the bar, a line each."""
    return list_table(
        out,
        ("id", "state", "key", "surge", "score / bar", "window", "since (UTC)", "last (UTC)"),
        [
            (
                row.id[:SHOWN_ID],
                row.state if row.ended_at is None else "ended",
                row.key,
                row.surge,
                f"{row.score:.2f} / {row.bar:.2f}",
                f"{row.window_minutes} min",
                minute(row.started_at),
                minute(row.seen_at),
            )
            for row in rows
        ],
        spare=("last (UTC)", "window", "surge"),
        cut="key",
    )


def show_pending(one: Pending, trail: Sequence[dict[str, Any]], *, json: bool) -> None:
    """What has not reached the bar: where it stands, and how it ended."""
    if json:
        typer.echo(msgspec.json.encode({"pending": one, "events": trail}).decode())
        return
    ended = f"; over since {moment(one.ended_at)} UTC" if one.ended_at else ""
    out.print(f"{one.key} has not reached the bar: nobody was told of it{ended}.", style="bold", markup=False)
    out.print(pending_table([one]))
    out.print(f"`sentiment-monitor alerts why {one.key} --surge {one.surge}` says what was counted.", markup=False)
    if trail:
        out.print("What became of it (UTC):")
        print_trail(trail)


def deliveries_table(rows: Sequence[Delivery], *, with_alert: bool = True) -> Table:
    """Notices and what became of them; `with_alert` says also of which alert each is."""
    table = plain_table(
        *(
            "id",
            "receiver",
            *(["alert"] if with_alert else []),
            "event",
            "state",
            "attempts",
            "next (UTC)",
            "last error",
        )
    )
    for row in rows:
        table.add_row(
            row.id[:SHOWN_NOTICE_ID],
            Text(row.receiver),
            *([Text(row.episode_id[:SHOWN_ID])] if with_alert else []),
            row.event,
            row.state,
            str(row.attempts),
            moment(row.next_attempt_at),
            Text(row.last_error or ""),
        )
    return table
