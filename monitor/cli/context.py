"""What every verb shares: the settings with the flags of the root command on top, the store, and the console."""

from __future__ import annotations

import json
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from monitor.datadir import DEMO_MARK
from monitor.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["current_settings", "err", "open_store", "out", "root_flags"]

# The next demo begins afresh; a backtest is about the file that it is given.
NOT_THE_DEMOS: Final = ("demo", "backtest")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

root_flags: ContextVar[dict[str, Any] | None] = ContextVar("root_flags", default=None)


def current_settings(role: str = "cli", **flags: Any) -> Settings:
    """Settings in force for this command: file, environment, root flags, then the verb's own `flags`.

    In a demo's folder what the demo has set for it holds below all of these, so that other commands that look at its
    store judge as it does; it holds neither on another store or broker nor in a replay of a file. Also sets up
    logging for `role`. Raises `ConfigurationError`.
    """
    from monitor.telemetry import configure_logging

    given = dict(root_flags.get() or {})
    config: Path | None = given.pop("config", None)
    given |= {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(config, **given)
    own = settings.embedded and not settings.database_url
    kept = _demo_settings(settings) if own and role not in NOT_THE_DEMOS else {}
    made = {name: value for name, value in kept.items() if name not in settings.model_fields_set}
    if made:
        settings = load_settings(config, **(made | given))
    configure_logging(settings, role)
    return settings


def _demo_settings(settings: Settings) -> dict[str, Any]:
    try:
        mark = json.loads((settings.data_dir / DEMO_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kept = mark.get("settings") if isinstance(mark, dict) else None
    return kept if isinstance(kept, dict) else {}


def open_store(settings: Settings) -> Engine:
    """The store, migrated. Raises `StorageError` or `ConfigurationError`."""
    from monitor.storage.engine import open_engine
    from monitor.storage.migrate import upgrade

    engine = open_engine(settings.database)
    upgrade(engine)
    return engine
