"""What `alerts` prints of an alert's trail, of notices, and of what is pending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import typer
from rich.text import Text

from monitor.cli.context import out
from monitor.cli.tables import moment, plain_table
from monitor.surges.sorts import stories_of

if TYPE_CHECKING:
    from rich.table import Table

    from monitor.storage.deliveries import Delivery
    from monitor.storage.pending import Pending

__all__ = ["deliveries_table", "events_table", "pending_table", "show_pending"]


def events_table(trail: Sequence[dict[str, Any]]) -> Table:
    """What happened to an alert."""
    events = plain_table("at (UTC)", "event", "by", "detail")
    for entry in trail:
        detail = ", ".join(f"{name}: {value}" for name, value in entry["detail"].items())
        events.add_row(moment(entry["at"]), entry["event"], Text(entry["actor"]), Text(detail))
    return events


def pending_table(rows: Sequence[Pending]) -> Table:
    """What has not reached the bar."""
    table = plain_table("id", "state", "key", "surge of", "highest score / bar", "window", "since (UTC)", "last (UTC)")
    for row in rows:
        table.add_row(
            row.id,
            row.state if row.ended_at is None else "ended",
            Text(row.key),
            stories_of(row.surge),
            f"{row.score:.2f} / {row.bar:.2f}",
            f"{row.window_minutes} min",
            moment(row.started_at),
            moment(row.seen_at),
        )
    return table


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
        out.print(events_table(trail))


def deliveries_table(rows: Sequence[Delivery]) -> Table:
    """Notices and what became of them."""
    table = plain_table("id", "receiver", "alert", "event", "state", "attempts", "next (UTC)", "last error")
    for row in rows:
        table.add_row(
            row.id,
            Text(row.receiver),
            Text(row.episode_id),
            row.event,
            row.state,
            str(row.attempts),
            moment(row.next_attempt_at),
            Text(row.last_error or ""),
        )
    return table
