"""Errors that a user may see.

MonitorError
├── ConfigurationError      a setting or an input option is wrong
│   └── RuleError           a file of rules, receivers or routes is wrong (names the line)
├── InputError              a line of a user's file is wrong (names the line)
├── StorageError            the database cannot be reached or is not migrated
├── BrokerError             the Kafka cluster cannot be reached or lacks a topic
│   └── RecordTooLargeError a record is larger than the cluster takes: sending it again does not help
├── ModelError              weights are missing, damaged or of the wrong shape
└── DeliveryError           a notification could not be handed over

Every one carries one clear sentence and, where there is one, what to do next. The command line prints
both, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations

__all__ = [
    "BrokerError",
    "ConfigurationError",
    "DeliveryError",
    "InputError",
    "ModelError",
    "MonitorError",
    "RecordTooLargeError",
    "RuleError",
    "StorageError",
]


class MonitorError(Exception):
    """Base of all errors that are shown to a user.

    Parameters
    ----------
    message : one sentence that says what is wrong.
    hint : what to do next; empty when nothing can be advised.
    """

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigurationError(MonitorError):
    """A setting, a rules file or a command's option is wrong."""

    exit_code = 2


class RuleError(ConfigurationError):
    """Rules, receivers or routes are wrong as they are written; `line`, counted from 1, is where."""

    def __init__(self, message: str, hint: str = "", *, line: int = 1) -> None:
        super().__init__(message, hint)
        self.line = line


class InputError(MonitorError):
    """A user's input file holds something that cannot be used."""

    exit_code = 3


class StorageError(MonitorError):
    """The database cannot be reached, is locked for too long, is full or is not migrated."""

    exit_code = 4


class BrokerError(MonitorError):
    """The Kafka cluster cannot be reached or refuses what was asked."""

    exit_code = 5


class RecordTooLargeError(BrokerError):
    """A record is larger than the Kafka cluster takes. To send it again does not help."""


class ModelError(MonitorError):
    """Model weights are missing, damaged, of another shape or of an unexpected origin."""

    exit_code = 6


class DeliveryError(MonitorError):
    """A notification could not be delivered."""

    exit_code = 7
