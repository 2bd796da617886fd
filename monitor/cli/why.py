"""`alerts why`: why did this key alert, or not, at that time?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.cli.alert_tables import print_trail
from monitor.cli.context import current_settings, err, open_store, out
from monitor.cli.tables import chosen_surges, moment, parse_moment, plain_table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from monitor.alerts.why import Answer
    from monitor.surges.config import JudgeConfig
    from monitor.surges.why import Account

__all__ = ["why"]


def why(
    given: Annotated[
        str,
        typer.Argument(
            metavar="KEY|ID",
            help="A window key (ticker:AAPL, topic:earnings, market), or an alert's id or its beginning.",
        ),
    ],
    at: Annotated[
        str,
        typer.Option(
            "--at",
            help="A time (UTC unless it says otherwise) or a length before now; default: now, or when the alert fired.",
        ),
    ] = "",
    surge: Annotated[
        str, typer.Option(metavar="SORT", help="What surges: negative (the default), positive or volume.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say why a key did or did not alert at a time: what was counted, what was expected, how far from the bar."""
    import msgspec

    from monitor.alerts.rules import load_rules

    settings = current_settings()
    now = datetime.now(UTC)
    asked = parse_moment(at, now, "--at")
    engine = open_store(settings)
    key, fired, sort = _meant(engine, given)
    (sort,) = chosen_surges([surge or sort])
    answer = _answer(engine, load_rules(settings).judge.watching(sort), key, asked or fired)
    if json:
        typer.echo(msgspec.json.encode(answer.account).decode())
        return
    _print(answer.account)
    for alert, trail in answer.alerts:
        out.print(
            f"Alert {alert.id}, {alert.state}, fired {moment(alert.fired_at)}, event time. What became of it (UTC):",
            markup=False,
        )
        print_trail(trail)


def _meant(engine: Engine, given: str) -> tuple[str, datetime | None, str]:
    """The window key, and for an alert when it fired and what surged."""
    from monitor.storage.alerts import get_alert
    from monitor.storage.engine import reading
    from monitor.storage.prefixes import alert_id
    from monitor.surges.keys import MARKET
    from monitor.surges.sorts import NEGATIVE

    if given == MARKET or ":" in given:
        return given, None, NEGATIVE
    with reading(engine) as connection:
        alert = get_alert(connection, alert_id(connection, given))
    assert alert is not None
    return alert.key, alert.fired_at, alert.surge


def _answer(engine: Engine, judging: JudgeConfig, key: str, at: datetime | None) -> Answer:
    from rich.progress import Progress

    from monitor.alerts.why import ask

    with Progress(console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("judging again", total=1.0)
        found = ask(engine, judging, key, at, lambda share: bar.update(task, completed=share))
    if found.changed:
        err.print("The settings of the judge have changed since: this is what it says by the new ones.")
    return found


def _print(found: Account) -> None:
    from monitor.alerts.records import expectation
    from monitor.surges.sorts import VOLUME, counted

    standing = found.standing
    out.print(
        f"{standing.key} at {moment(found.at)} UTC, event time: {standing.verdict.replace('_', ' ')}",
        style="bold",
        markup=False,
    )
    out.print(standing.reason, markup=False)
    if standing.windows:
        out.print(
            f"Highest score in the hour before: {found.highest:.2f} at {moment(found.highest_at)} UTC; "
            f"an alert needs {standing.bar:.2f}.",
            markup=False,
        )
        table = plain_table(
            "window",
            "stories" if standing.surge == VOLUME else standing.surge,
            "expected",
            "of stories",
            "share",
            "usual share",
            "others",
            "burst",
            "p",
        )
        for window in standing.windows:
            table.add_row(
                f"{window.minutes} min",
                str(window.observed),
                f"{window.expected:.2f}",
                str(window.stories),
                f"{window.observed / window.stories:.2f}" if window.stories else "",
                f"{window.expected_share:.2f}",
                f"x{window.common:.1f}",
                f"{window.burst:.2f}",
                f"{window.p_value:.2g}",
            )
        out.print(table)
        out.print("p is each window's own; the score is -log10 of that of all windows together.", markup=False)
    if found.decisions:
        out.print("What the judge decided in that hour, event time (UTC):", markup=False)
    for decision in found.decisions:
        out.print(
            f"  {moment(decision.at)}  {decision.action}: {counted(decision.surge, decision.observed)}, "
            f"{expectation(decision.expected)} expected, score {decision.score:.2f} "
            f"(p = {decision.p_value:.1e} over all windows)",
            markup=False,
        )
