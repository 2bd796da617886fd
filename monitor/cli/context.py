"""What every verb shares: the settings with the flags of the root command on top, the store, and the console."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from monitor.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["current_settings", "err", "open_store", "out", "root_flags"]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

root_flags: ContextVar[dict[str, Any] | None] = ContextVar("root_flags", default=None)


def current_settings(role: str = "cli", **flags: Any) -> Settings:
    """Settings in force for this command: file, environment, root flags, then the verb's own `flags`.

    Also sets up logging for `role`. Raises `ConfigurationError`.
    """
    from monitor.telemetry import configure_logging

    given = dict(root_flags.get() or {})
    config: Path | None = given.pop("config", None)
    settings = load_settings(config, **(given | {k: v for k, v in flags.items() if v is not None}))
    configure_logging(settings, role)
    return settings


def open_store(settings: Settings) -> Engine:
    """The store, migrated. Raises `StorageError` or `ConfigurationError`."""
    from monitor.storage.engine import open_engine
    from monitor.storage.migrate import upgrade

    engine = open_engine(settings.database)
    upgrade(engine)
    return engine
