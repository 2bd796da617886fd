"""`rules`: which surges are announced, tried on history, muted, looked back on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from monitor.cli.context import current_settings, err, open_store, out
from monitor.cli.tables import list_table, minute, moment, parse_length, parse_moment, plain_table, user_name
from monitor.surges.sorts import NEGATIVE, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.alerts.records import Alert
    from monitor.alerts.trial import Firing, Trial

# Columns that a table gives up others for: an objection can be far longer than a line, and begins with the rule's name.
RULES_WIDTH: Final = 20

app = typer.Typer(no_args_is_help=True, add_completion=False)

RuleFile = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="TOML file of rules.")]
Name = Annotated[str, typer.Argument(metavar="RULE", help="The rule's name.")]
By = Annotated[str, typer.Option(help="Who does it; else your user name.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")]


@app.callback()
def root() -> None:
    """Rules say which surges are announced, when and to whom."""


@app.command("list")
def list_command(json: AsJson = False) -> None:
    """Show the rules in force: those of the configuration and those kept in the store."""
    from rich.text import Text

    from monitor.alerts.config import load_notifications
    from monitor.alerts.rulebook import take_up
    from monitor.records import encode
    from monitor.storage.engine import writing
    from monitor.storage.rules import list_rules, taken_counts

    settings = current_settings()
    now = datetime.now(UTC)
    configured = load_notifications(settings).rules
    with writing(open_store(settings)) as connection:
        take_up(connection, configured, now)
        found = list_rules(connection)
        taken = taken_counts(connection, now, 30)
    if json:
        for one in found:
            typer.echo(encode(one).decode())
        return
    table = plain_table("name", "from", "watches", "keys", "severities", "state", "alerts in 30 days")
    for one in found:
        state = f"muted until {moment(one.muted_until)} UTC" if one.muted(now) else "on" if one.enabled else "off"
        keys = Text(", ".join(one.definition.get("keys", ("*",))))
        severities = Text(", ".join(one.definition.get("severities", ("all",))))
        watches = one.definition.get("surge", NEGATIVE)
        table.add_row(Text(one.name), one.origin, watches, keys, severities, state, str(taken.get(one.name, 0)))
    out.print(table)


@app.command()
def check(file: RuleFile) -> None:
    """Check a file of rules; a mistake is named with its line."""
    from monitor.alerts.config import check_receivers, load_notifications
    from monitor.alerts.rules import read_rules
    from monitor.surges.judge import JudgeConfig

    settings = current_settings()
    found = read_rules(file, JudgeConfig.of(settings))
    check_receivers(found, load_notifications(settings).receivers)
    out.print(f"{file} is right: {', '.join(rule.name for rule in found.rules)}.", markup=False)


@app.command("test")
def try_file(
    file: RuleFile,
    since: Annotated[str, typer.Option(help="From when: 2026-03-01, 2026-03-01T08:00, or 7d (ago).")] = "",
    until: Annotated[str, typer.Option(help="Up to when, written the same way.")] = "",
    json: AsJson = False,
) -> None:
    """Say when the rules of a file would have fired over the stored counts, with the judge that runs live.

    Times are event time; a length is taken back from the newest minute judged. What lies before --since teaches the
    judge what is usual. Nothing is written or sent.
    """
    from rich.progress import Progress

    from monitor.alerts.rules import read_rules
    from monitor.alerts.trial import try_rules
    from monitor.records import encode
    from monitor.storage.engine import reading
    from monitor.storage.judging import judged_to
    from monitor.surges.judge import JudgeConfig

    settings = current_settings()
    rules = read_rules(file, JudgeConfig.of(settings))
    engine = open_store(settings)
    with reading(engine) as connection:
        last = judged_to(connection)
    now = datetime.fromtimestamp(60 * (last + 1), UTC) if last is not None else datetime.now(UTC)
    begin, end = (parse_moment(text, now, name) for text, name in ((since, "--since"), (until, "--until")))
    with Progress(console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("judging", total=1.0)
        trial = try_rules(
            engine, rules, since=begin, until=end, progress=lambda share: bar.update(task, completed=share)
        )
    if json:
        for firing in trial.firings:
            typer.echo(encode(firing).decode())
    elif trial.firings:
        _firings(trial.firings)
    _summary(trial)


def _firings(firings: Sequence[Firing]) -> None:
    """What would have fired, a line each. On a narrow terminal an objection loses its end."""
    rows = []
    for firing in firings:
        alert = firing.alert
        taken = ", ".join(
            name if at == alert.fired_at else f"{name} from {minute(at)}" for name, at in firing.taken.items()
        )
        rows.append(
            (
                alert.key,
                alert.severity,
                minute(alert.fired_at),
                minute(alert.resolved_at),
                _figures(alert),
                taken or f"none: {firing.objection}",
            )
        )
    out.print(
        list_table(
            out,
            ("key", "severity", "fired (UTC)", "resolved (UTC)", "stories / expected", "rules"),
            rows,
            spare=("resolved (UTC)", "severity", "stories / expected"),
            cut="rules",
            enough=RULES_WIDTH,
        )
    )


def _figures(alert: Alert) -> str:
    from monitor.alerts.records import expectation

    return f"{counted(alert.surge, alert.observed)} / {expectation(alert.expected)}"


def _summary(trial: Trial) -> None:
    announced = sum(firing.announced_at is not None for firing in trial.firings)
    err.print(
        f"{len(trial.firings)} surges from {moment(trial.since)} to {moment(trial.until)} UTC, {announced} of them "
        f"announced; judged from {moment(trial.judged_from)} on.",
        markup=False,
    )


@app.command()
def add(file: RuleFile, by: By = "") -> None:
    """Keep the rules of a file in the store: the notifier goes by them at once. Its [judge] part is not taken."""
    from monitor.alerts.config import check_receivers, load_notifications
    from monitor.alerts.rules import BUILT_IN, read_rules
    from monitor.errors import ConfigurationError
    from monitor.storage.engine import writing
    from monitor.storage.rules import save_rule

    settings = current_settings()
    config = load_notifications(settings)
    found = read_rules(file, config.rules.judge)
    check_receivers(found, config.receivers)
    if found.rules == (BUILT_IN,):
        raise ConfigurationError(f"The file {file} holds no rules.", "A rule begins with [[rules]] and a name.")
    with writing(open_store(settings)) as connection:
        for rule in found.rules:
            save_rule(connection, rule.definition, author=user_name(by), now=datetime.now(UTC))
    out.print(f"In force now: {', '.join(rule.name for rule in found.rules)}.", markup=False)
    if found.judge != config.rules.judge:
        err.print("Its [judge] part holds in rules_file alone and was left out.")


@app.command()
def remove(rule: Name, by: By = "") -> None:
    """Remove a rule that is kept in the store."""
    from monitor.storage.engine import writing
    from monitor.storage.rules import delete_rule

    with writing(open_store(current_settings())) as connection:
        delete_rule(connection, rule, by=user_name(by), now=datetime.now(UTC))
    out.print(f"The rule {rule} is removed.", markup=False)


def _switch(rule: str, by: str, *, on: bool) -> None:
    from monitor.storage.engine import writing
    from monitor.storage.rules import switch_rule

    with writing(open_store(current_settings())) as connection:
        switch_rule(connection, rule, on=on, by=user_name(by), now=datetime.now(UTC))
    out.print(f"The rule {rule} is {'on' if on else 'off'}.", markup=False)


@app.command()
def enable(rule: Name, by: By = "") -> None:
    """Switch a rule of the store, or the built-in one, on."""
    _switch(rule, by, on=True)


@app.command()
def disable(rule: Name, by: By = "") -> None:
    """Switch a rule of the store, or the built-in one, off."""
    _switch(rule, by, on=False)


@app.command()
def mute(rule: Name, length: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 1d.")], by: By = "") -> None:
    """Mute a rule for a while. What it would have announced and still fires then is announced then."""
    from monitor.storage.engine import writing
    from monitor.storage.rules import mute_rule

    now = datetime.now(UTC)
    until = now + parse_length(length)
    with writing(open_store(current_settings())) as connection:
        mute_rule(connection, rule, until, now, by=user_name(by))
    out.print(f"The rule {rule} is muted until {moment(until)} UTC.", markup=False)


@app.command()
def unmute(rule: Name, by: By = "") -> None:
    """End the muting of a rule."""
    from monitor.storage.engine import writing
    from monitor.storage.rules import mute_rule

    now = datetime.now(UTC)
    with writing(open_store(current_settings())) as connection:
        mute_rule(connection, rule, now, now, by=user_name(by))
    out.print(f"The rule {rule} is not muted.", markup=False)


@app.command()
def history(
    rule: Name,
    days: Annotated[float, typer.Option(min=0.01, max=3660, help="How far to look back.")] = 30.0,
    json: AsJson = False,
) -> None:
    """Look back on a rule: the alerts that it took, and who changed it when."""
    from monitor.cli.alert_tables import SHOWN_ID
    from monitor.records import encode
    from monitor.storage.audit import changes
    from monitor.storage.engine import reading
    from monitor.storage.rules import alerts_taken, rule_actor

    with reading(open_store(current_settings())) as connection:
        taken = alerts_taken(connection, rule, since=datetime.now(UTC) - timedelta(days=days))
        changed = changes(connection, subject=rule_actor(rule))
    if json:
        for alert in taken:
            typer.echo(encode(alert).decode())
        return
    table = list_table(
        out,
        ("alert", "key", "severity", "state", "fired (UTC)", "stories / expected"),
        [
            (one.id[:SHOWN_ID], one.key, one.severity, one.state.value, minute(one.fired_at), _figures(one))
            for one in taken
        ],
        spare=("severity", "stories / expected"),
        cut="key",
    )
    out.print(table if taken else f"It took no alert in the last {days:g} days.")
    if changed:
        log = [(moment(change.at), change.event, change.actor) for change in changed]
        out.print(list_table(out, ("at (UTC)", "what", "by"), log, spare=(), cut="by"))
