"""`alerts why`: why did this key alert, or not, at that time?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.cli.context import current_settings, err, open_store, out
from monitor.cli.tables import moment, parse_moment, plain_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from monitor.surges.config import JudgeConfig
    from monitor.surges.decisions import MinuteCounts
    from monitor.surges.why import Account

__all__ = ["why"]


def why(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A window key: ticker:AAPL, topic:earnings, market.")],
    at: Annotated[
        str, typer.Option("--at", help="A time (UTC unless it says otherwise) or a length before now; default: now.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say why a key did or did not alert at a time: what was counted, what was expected, how far from the bar."""
    import msgspec

    from monitor.alerts.rules import load_rules

    settings = current_settings()
    now = datetime.now(UTC)
    asked = parse_moment(at, now, "--at")
    found = _account(open_store(settings), load_rules(settings).judge, key, asked)
    if json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    _print(found)


def _account(engine: Engine, judging: JudgeConfig, key: str, at: datetime | None) -> Account:
    from rich.progress import Progress

    from monitor.errors import InputError
    from monitor.storage.engine import reading
    from monitor.storage.judging import first_minute, minute_counts, stored_judge
    from monitor.surges.judge import Judge
    from monitor.surges.why import LOOK_BACK_MINUTES, account

    with reading(engine) as connection:
        begin, row = first_minute(connection), stored_judge(connection)
    if begin is None or row is None or row.judged_to < begin:
        raise InputError("Nothing has been judged yet.", "`sentiment-monitor status` shows how far counting has come.")
    # The last whole minute before that time; what is judged later says nothing about it.
    minute = row.judged_to if at is None else int(at.timestamp()) // 60 - 1
    if not begin <= minute <= row.judged_to:
        first, last = (datetime.fromtimestamp((m + 1) * 60, UTC) for m in (begin, row.judged_to))
        raise InputError(
            f"That time has not been judged: {at:%Y-%m-%d %H:%M} UTC.",
            f"Ask for {first:%F %H:%M} to {last:%F %H:%M} UTC.",
        )
    judge, start = Judge(judging), begin
    early = row.snapshot_minute is not None and begin <= row.snapshot_minute <= minute - LOOK_BACK_MINUTES
    if early and row.snapshot is not None and row.snapshot_minute is not None:
        try:
            judge, start = Judge.restore(judging, row.snapshot), row.snapshot_minute + 1
        except ValueError:
            err.print("The settings of the judge have changed since: this is what it says by the new ones.")

    def counts(first: int, last: int) -> Mapping[int, MinuteCounts]:
        # A transaction a day: what reads for long keeps the store's log from being cleared.
        with reading(engine) as connection:
            return minute_counts(connection, first, last)

    with Progress(console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("judging again", total=1.0)
        return account(judge, key, start, minute, counts, lambda share: bar.update(task, completed=share))


def _print(found: Account) -> None:
    standing = found.standing
    out.print(
        f"{standing.key} at {moment(found.at)} UTC: {standing.verdict.replace('_', ' ')}", style="bold", markup=False
    )
    out.print(standing.reason, markup=False)
    if standing.windows:
        out.print(
            f"Highest score in the hour before: {found.highest:.2f} at {moment(found.highest_at)}; "
            f"an alert needs {standing.bar:.2f}.",
            markup=False,
        )
        table = plain_table(
            "window", "negative", "expected", "of stories", "share", "usual share", "others", "burst", "p"
        )
        for window in standing.windows:
            table.add_row(
                f"{window.minutes} min",
                str(window.negatives),
                f"{window.expected:.2f}",
                str(window.stories),
                f"{window.negatives / window.stories:.2f}" if window.stories else "",
                f"{window.expected_share:.2f}",
                f"x{window.common:.1f}",
                f"{window.burst:.2f}",
                f"{window.p_value:.2g}",
            )
        out.print(table)
    for decision in found.decisions:
        out.print(
            f"{moment(decision.at)}  {decision.action}: {decision.observed} negative where {decision.expected:.1f} "
            f"were expected, score {decision.score:.2f}",
            markup=False,
        )
    if standing.verdict == "firing":
        out.print(
            "It fires. If nothing was announced, `sentiment-monitor rules test` says which rule objected and why."
        )
