"""Logging for every process: one line an event on standard error, text for people or JSON for collectors."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["configure_logging", "get_logger"]


SELDOM_S: Final = 30.0


class _Seldom(logging.Filter):
    """Lets each message of the Kafka clients through once in a while: without a broker they say the same many times a
    second, for as long as it is away."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False for what was said from the same line of code a moment ago."""
        if record.name.partition(".")[0] not in ("kafka", "aiokafka"):
            return True
        place, now = (record.pathname, record.lineno), time.monotonic()
        since, left_out = self._said.get(place, (-SELDOM_S, 0))
        if now - since < SELDOM_S:
            self._said[place] = since, left_out + 1
            return False
        self._said[place] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more of this kind)", ()
        return True


def configure_logging(settings: Settings, role: str) -> None:
    """Send this process's log lines, those of libraries included, to standard error. `role` stands in every line."""
    level = getattr(logging, settings.log_level.upper())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    if level > logging.DEBUG:
        handler.addFilter(_Seldom())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("kafka", "aiokafka", "faust", "mode", "httpx", "httpcore", "apscheduler", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
    if role == "cli" and level > logging.DEBUG:
        # A person at a terminal gets one sentence (`BrokerError`), not what led to it.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(role=role)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A structured logger: `log.info("scored", items=128, ms=41)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
