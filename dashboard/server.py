"""The dashboard's process: Streamlit's server, set up to stay on this machine and to write nothing."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

from pydantic import SecretStr

from monitor.errors import ConfigurationError
from monitor.settings import ENV_PREFIX, Settings
from monitor.telemetry import get_logger

__all__ = ["environment", "free_port", "run_dashboard"]

log = get_logger(__name__)


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, which `load_settings` reads back. Secrets are left out: the dashboard
    needs none of them, but for the one that may stand in `database_url`."""
    return {f"{ENV_PREFIX}{name}".upper(): str(value) for name, value in settings if not isinstance(value, SecretStr)}


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Raises `ConfigurationError` when it cannot be listened on."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"The address {host} (dashboard_host) is not known.") from error
    family, kind, protocol, _, address = addresses[0]
    with closing(socket.socket(family, kind, protocol)) as probe:
        # As the server does: a port that is only waiting out its last connections may be taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigurationError(
                f"The dashboard cannot listen on {host}:{port}: {error.strerror}.",
                "Choose another one with SENTIMENT_MONITOR_DASHBOARD_PORT, or stop what listens there.",
            ) from error
        taken: int = probe.getsockname()[1]
        return taken


def _options(host: str, port: int) -> dict[str, object]:
    return {
        "server_address": host,
        "server_port": port,
        "server_headless": True,
        "server_fileWatcherType": "none",
        "server_runOnSave": False,
        "server_showEmailPrompt": False,
        "browser_gatherUsageStats": False,
        "client_showErrorDetails": "none",
        "client_toolbarMode": "minimal",
        "client_showSidebarNavigation": True,
        "runner_magicEnabled": False,
        "global_developmentMode": False,
        "logger_level": "warning",
        "logger_hideWelcomeMessage": True,
        "theme_light_primaryColor": "#1f77c9",
        "theme_dark_primaryColor": "#4f9fe6",
    }


def run_dashboard(settings: Settings) -> None:
    """Serve the dashboard until SIGTERM or SIGINT. Must be called from the main thread.

    Raises `ConfigurationError` when the address cannot be listened on.
    """
    port = free_port(settings.dashboard_host, settings.dashboard_port)
    os.environ.update(environment(settings))
    # Streamlit looks for its settings in the home folder and in the working folder: only those given here count.
    from streamlit.web import bootstrap

    options = _options(settings.dashboard_host, port)
    bootstrap.load_config_options(options)
    shown = f"[{settings.dashboard_host}]" if ":" in settings.dashboard_host else settings.dashboard_host
    log.info("dashboard is listening", address=f"http://{shown}:{port}")
    bootstrap.run(str(Path(__file__).with_name("app.py")), is_hello=False, args=[], flag_options=options)
