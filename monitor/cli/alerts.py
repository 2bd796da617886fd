"""`alerts`: look at alerts, take them on, silence them, test receivers, send again what did not arrive."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.cli.alert_tables import alerts_table, deliveries_table, pending_table, print_trail, show_pending
from monitor.cli.context import current_settings, err, open_store, out
from monitor.cli.tables import moment, parse_length, plain_table, user_name
from monitor.cli.why import why
from monitor.surges.sorts import POSITIVE, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.alerts.config import NotificationConfig
    from monitor.alerts.senders import Outcome

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.command("why")(why)


class State(StrEnum):
    """States that `list` can be asked for."""

    PENDING = "pending"
    FIRING = "firing"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


@app.callback()
def root() -> None:
    """Alerts and the notices that went out about them."""


@app.command("list")
def list_command(
    state: Annotated[list[State] | None, typer.Option(help="Only these; may be given several times.")] = None,
    key: Annotated[str, typer.Option(help="Only this window key, such as ticker:AAPL.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the youngest.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
) -> None:
    """Show alerts, the youngest first. What is pending, above calm and below the bar, is shown when it is asked for,
    the nearest to the bar first: nobody is told of it."""
    from monitor.records import encode
    from monitor.storage.alerts import list_alerts
    from monitor.storage.engine import reading
    from monitor.storage.pending import list_pending

    states = [s.value for s in state or () if s is not State.PENDING]
    wanted = bool(states) or not state
    with reading(open_store(current_settings())) as connection:
        waiting = list_pending(connection, key=key, limit=limit) if State.PENDING in (state or ()) else []
        found = list_alerts(connection, states=states, key=key, limit=limit) if wanted else []
    if json:
        for one in (*waiting, *found):
            typer.echo(encode(one).decode())
        return
    if not found and not waiting:
        err.print("No alerts." if wanted else "Nothing is pending.")
        return
    if waiting:
        out.print(pending_table(waiting))
    if found:
        out.print(alerts_table(found))


@app.command()
def show(
    given: Annotated[str, typer.Argument(metavar="ID", help="The alert's id, or its beginning.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show one alert with its stories, its notices and everything that happened to it."""
    import msgspec
    from rich.text import Text

    from monitor.alerts.records import expectation
    from monitor.storage.alerts import audit_trail, get_alert
    from monitor.storage.deliveries import of_episode
    from monitor.storage.engine import reading
    from monitor.storage.pending import get_pending
    from monitor.storage.prefixes import alert_id as whole
    from monitor.storage.prefixes import pending_id

    with reading(open_store(current_settings())) as connection:
        not_fired = pending_id(connection, given)
        waiting = get_pending(connection, not_fired) if not_fired else None
        if waiting is not None:
            show_pending(waiting, audit_trail(connection, waiting.id), json=json)
            return
        alert_id = whole(connection, given)
        alert = get_alert(connection, alert_id)
        assert alert is not None
        trail = audit_trail(connection, alert_id)
        sent = of_episode(connection, alert_id)
    if json:
        everything = {"alert": alert, "events": trail, "deliveries": sent}
        typer.echo(msgspec.json.encode(everything).decode())
        return
    window = alert.window
    out.print(f"{alert.title} ({alert.key}): {alert.state.value}, {alert.severity}", style="bold", markup=False)
    out.print(
        f"{counted(alert.surge, alert.observed)} of {alert.total} stories in the {window.minutes} minutes to "
        f"{moment(window.end)} UTC; {expectation(alert.expected)} expected, "
        f"share {alert.share:.0%} against {alert.expected_share:.0%}, p = {alert.p_value:.1e} over all windows, "
        f"{alert.sources} sources",
        markup=False,
    )
    out.print(alert.link, markup=False)
    positive = alert.surge == POSITIVE
    stories = plain_table("p(positive)" if positive else "p(negative)", "copies", "source", "title", "address")
    for story in alert.stories:
        row = (Text(story.source), Text(story.title), Text(story.url))
        stories.add_row(f"{story.p_positive if positive else story.p_negative:.2f}", str(story.copies), *row)
    out.print(stories)
    out.print("What became of it (UTC):")
    print_trail(trail)
    if sent:
        out.print(deliveries_table(sent, with_alert=False))


@app.command()
def ack(
    given: Annotated[str, typer.Argument(metavar="ID", help="The alert's id, or its beginning.")],
    by: Annotated[str, typer.Option(help="Who takes it on; else your user name.")] = "",
) -> None:
    """Take an alert on: it is not repeated or escalated any more."""
    from monitor.storage.alerts import acknowledge
    from monitor.storage.engine import writing
    from monitor.storage.prefixes import alert_id as whole

    with writing(open_store(current_settings())) as connection:
        alert = acknowledge(connection, whole(connection, given), by=user_name(by), at=datetime.now(UTC))
    out.print(f"{alert.key} is acknowledged by {alert.acknowledged_by}.", markup=False)


@app.command()
def silence(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Window key or pattern: ticker:AAPL, 'topic:*', '*'.")],
    length: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 1d.")],
    comment: Annotated[str, typer.Option(help="Why.")],
    rule: Annotated[str, typer.Option(help="Only alerts of this rule (or pattern).")] = "*",
    by: Annotated[str, typer.Option(help="Who silences; else your user name.")] = "",
) -> None:
    """Hold back notices about a key. What still fires when the silence ends is announced then."""
    from monitor.storage.engine import writing
    from monitor.storage.silences import add_silence

    now = datetime.now(UTC)
    ends_at = now + parse_length(length)
    with writing(open_store(current_settings())) as connection:
        made = add_silence(
            connection, key=key, rule=rule, starts_at=now, ends_at=ends_at, comment=comment, author=user_name(by)
        )
    out.print(f"Silence {made.id} on {key} until {moment(ends_at)} UTC.", markup=False)


@app.command()
def silences(json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False) -> None:
    """Show the silences that hold."""
    from rich.text import Text

    from monitor.records import encode
    from monitor.storage.engine import reading
    from monitor.storage.silences import list_silences

    with reading(open_store(current_settings())) as connection:
        found = list_silences(connection, datetime.now(UTC))
    if json:
        for one in found:
            typer.echo(encode(one).decode())
        return
    if not found:
        err.print("No silences.")
        return
    table = plain_table("id", "key", "rule", "until (UTC)", "by", "why")
    for one in found:
        table.add_row(one.id, Text(one.key), Text(one.rule), moment(one.ends_at), Text(one.author), Text(one.comment))
    out.print(table)


@app.command()
def unsilence(
    given: Annotated[str, typer.Argument(metavar="ID", help="The silence's id, or its beginning.")],
    by: Annotated[str, typer.Option(help="Who ends it; else your user name.")] = "",
) -> None:
    """End a silence early."""
    from monitor.storage.engine import writing
    from monitor.storage.prefixes import silence_id as whole
    from monitor.storage.silences import end_silence

    with writing(open_store(current_settings())) as connection:
        silence_id = whole(connection, given)
        end_silence(connection, silence_id, datetime.now(UTC), by=user_name(by))
    out.print(f"Silence {silence_id} has ended.", markup=False)


@app.command()
def receivers(json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False) -> None:
    """Show the receivers as the notifier knows them; addresses are shortened, they may hold tokens."""
    from rich.text import Text

    from monitor.records import encode
    from monitor.storage.engine import reading
    from monitor.storage.receivers import list_receivers

    with reading(open_store(current_settings())) as connection:
        found = list_receivers(connection)
    if json:
        for one in found:
            typer.echo(encode(one).decode())
        return
    if not found:
        err.print("No receivers yet: set webhook_urls or receivers_file and start the notifier.")
        return
    table = plain_table("name", "kind", "address", "state")
    now = datetime.now(UTC)
    for one in found:
        state = "on" if one.enabled else f"off: {one.disabled_reason}"
        if one.enabled and one.quiet(now):
            state = f"on, wants nothing until {moment(one.quiet_until)} UTC"
        table.add_row(Text(one.name), one.definition["kind"], Text(one.definition["address"]), Text(state))
    out.print(table)


@app.command()
def enable(name: Annotated[str, typer.Argument(metavar="RECEIVER", help="The receiver's name.")]) -> None:
    """Switch a receiver on again that was switched off because it answered 410 (gone)."""
    from monitor.errors import ConfigurationError
    from monitor.storage.engine import writing
    from monitor.storage.receivers import enable as switch_on

    with writing(open_store(current_settings())) as connection:
        if not switch_on(connection, name, datetime.now(UTC), by=user_name("")):
            raise ConfigurationError(
                f"There is no receiver {name}.", "`sentiment-monitor alerts receivers` shows them."
            )
    out.print(f"{name} is on. `sentiment-monitor alerts replay --all` sends what it missed.", markup=False)


def _test(config: NotificationConfig, names: Sequence[str], dashboard_url: str) -> dict[str, Outcome]:
    import asyncio

    from monitor.alerts.lifecycle import trial_notices
    from monitor.alerts.senders import Sender, open_senders

    async def try_one(name: str, sender: Sender) -> Outcome:
        """The outcome of the first notice that did not arrive, else of the last. The end is sent also when the
        beginning got no answer: it may have arrived."""
        outcomes = [await sender.send(*one) for one in trial_notices(name, datetime.now(UTC), dashboard_url)]
        return next((outcome for outcome in outcomes if not outcome.delivered), outcomes[-1])

    async def send() -> dict[str, Outcome]:
        senders = open_senders(config)
        try:
            outcomes = await asyncio.gather(*(try_one(name, senders[name]) for name in names))
            return dict(zip(names, outcomes, strict=True))
        finally:
            for sender in senders.values():
                await sender.aclose()

    return asyncio.run(send())


@app.command("test")
def try_receivers(name: Annotated[str, typer.Argument(metavar="[RECEIVER]", help="Only this one.")] = "") -> None:
    """Send the receivers a signed test: a made-up alert and its end; say what they answered."""
    import asyncio

    from monitor.alerts.config import load_notifications
    from monitor.alerts.targets import check_names
    from monitor.errors import ConfigurationError, DeliveryError

    settings = current_settings()
    config = load_notifications(settings)
    wanted = {one: receiver for one, receiver in config.receivers.items() if name in ("", one)}
    for unknown in asyncio.run(check_names(wanted, config.policy)):
        err.print(f"{unknown}: no name server tells where it leads; that is checked again when something is sent.")
    names = [name] if name else list(config.receivers)
    if not names:
        raise ConfigurationError("There is no receiver to test.", "Set webhook_urls or receivers_file.")
    if name and name not in config.receivers:
        raise ConfigurationError(
            f"There is no receiver {name}.", f"There are: {', '.join(config.receivers) or 'none'}."
        )
    outcomes = _test(config, names, settings.dashboard_url)
    for receiver, outcome in outcomes.items():
        answer = f" ({outcome.status})" if outcome.status else ""
        out.print(f"{receiver}: {f'delivered{answer}' if outcome.delivered else outcome.error}", markup=False)
    failed = [receiver for receiver, outcome in outcomes.items() if not outcome.delivered]
    if failed:
        raise DeliveryError(f"The test notice did not reach {', '.join(failed)}.")


@app.command()
def undelivered(json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False) -> None:
    """Show the notices that were tried and have not arrived."""
    from monitor.records import encode
    from monitor.storage.engine import reading
    from monitor.storage.undelivered import undelivered as waiting

    with reading(open_store(current_settings())) as connection:
        rows = waiting(connection)
    if json:
        for row in rows:
            typer.echo(encode(row).decode())
        return
    if not rows:
        err.print("Everything that was tried has arrived.")
        return
    out.print(deliveries_table(rows))


@app.command()
def replay(
    given: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids that `undelivered` shows, or their beginnings.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Everything that `undelivered` shows.")] = False,
) -> None:
    """Send undelivered notices again at once, under the same ids; the notifier does it."""
    from monitor.errors import ConfigurationError
    from monitor.storage.engine import writing
    from monitor.storage.prefixes import delivery_ids
    from monitor.storage.undelivered import replay as send_again
    from monitor.storage.undelivered import stranded

    if bool(given) == all:
        raise ConfigurationError("Name the ids to replay, or say --all.", "`sentiment-monitor alerts undelivered`")
    with writing(open_store(current_settings())) as connection:
        ids = delivery_ids(connection, given) if given else None
        left = stranded(connection, ids)
        number = send_again(connection, datetime.now(UTC), ids, by=user_name(""))
    for receiver, count in left.items():
        err.print(
            f"{count} for {receiver} left alone: it is switched off (`alerts enable`) or not configured.", markup=False
        )
    if ids and not number and not left:
        raise ConfigurationError("None of these is undelivered.", "`sentiment-monitor alerts undelivered` shows them.")
    out.print(f"{number} to be sent again." if number else "Nothing to send again.")
