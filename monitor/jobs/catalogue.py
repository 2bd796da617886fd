"""The jobs there are. A job is named "module:function", so that this room imports nothing above it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from monitor.errors import ConfigurationError
from monitor.settings import Settings

__all__ = ["JOBS", "Cancelled", "Job", "JobFunction", "Progress", "find_job", "load_function"]

Cancelled = Callable[[], bool]


class Progress(Protocol):
    """Told how far a job is: `done` of `total` steps (total 0: unknown), and what it is doing."""

    def __call__(self, done: int, total: int, message: str = "") -> None: ...


JobFunction = Callable[[Settings, Progress, Cancelled], dict[str, Any]]


class Job(NamedTuple):
    """`target` is "module:function"; `cron_setting` names the setting that holds its crontab."""

    name: str
    target: str
    cron_setting: str
    help: str

    def cron(self, settings: Settings) -> str:
        """The crontab in force; empty: never."""
        return str(getattr(settings, self.cron_setting)).strip()


JOBS: Final[dict[str, Job]] = {
    job.name: job
    for job in (
        Job("retrain", "models.training.retrain:run", "retrain_cron", "Train on analysts' corrections, gate, promote."),
        Job("drift", "monitor.jobs.drift:run", "drift_cron", "Compare the last day's scores with the week before."),
        Job("retention", "monitor.jobs.retention:run", "retention_cron", "Drop what is older than the settings keep."),
    )
}


def find_job(name: str) -> Job:
    """A job by name. Raises `ConfigurationError` naming those there are."""
    job = JOBS.get(name)
    if job is None:
        raise ConfigurationError(f"There is no job {name!r}.", f"The jobs are {', '.join(JOBS)}.")
    return job


def load_function(job: Job) -> JobFunction:
    """Import a job's function. Raises `ConfigurationError` when the installation lacks it."""
    module, _, attribute = job.target.partition(":")
    try:
        function: JobFunction = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"The job {job.name} cannot be loaded: {error}.") from error
    return function
