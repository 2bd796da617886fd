"""`config show`: the settings in force."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import SecretStr

from monitor.cli.context import current_settings, out
from monitor.datadir import announced
from monitor.settings import ENV_PREFIX, Settings

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _shown(value: object) -> object:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    return value if isinstance(value, (int, float, str, bool)) else str(value)


def _without_password(url: str) -> str:
    from sqlalchemy import make_url

    return make_url(url).render_as_string(hide_password=True) if url else ""


@app.callback()
def root() -> None:
    """Effective settings, secrets masked."""


@app.command()
def show(json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Print every setting in force, with its meaning; secrets are masked."""
    from monitor.alerts.receivers import redacted

    settings = current_settings()
    values = {name: _shown(getattr(settings, name)) for name in Settings.model_fields}
    values["database_url"] = _without_password(settings.database)
    # Paths of webhooks hold tokens.
    values["webhook_urls"] = ", ".join(redacted(url.strip()) for url in settings.webhook_urls.split(",") if url.strip())
    if settings.embedded:
        values["kafka_bootstrap_servers"] = announced(settings.broker_address_file) or ""
    if json:
        out.print_json(data=values)
        return
    for name, field in Settings.model_fields.items():
        out.print(f"# {field.description} [{ENV_PREFIX}{name.upper()}]", style="dim", markup=False)
        out.print(f"{name} = {values[name]!r}", markup=False)
