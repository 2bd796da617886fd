"""Where a run's figures are plotted: TensorBoard, MLflow, Weights & Biases, each an optional package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from monitor.errors import ConfigurationError

__all__ = ["Tracker", "Trackers", "check_trackers"]

Tracker = Literal["tensorboard", "mlflow", "wandb"]
_EXTRAS: dict[str, str] = {"tensorboard": "training", "mlflow": "mlflow", "wandb": "wandb"}

_Report = Callable[[str, float, int], None]


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raises `ConfigurationError` when a tracker that was asked for is not installed.

    TensorBoard is asked for by default, so it may be missing: then nothing is plotted.
    """
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                f"The tracker {name} is not installed.",
                f"Install it with pip install 'sentiment-monitor[{_EXTRAS[name]}]', or leave it out of `trackers`.",
            )


class Trackers:
    """All trackers of a run, to be used in a `with` block; called with tag, value and step."""

    def __init__(self, names: Sequence[Tracker], folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        self._names = names
        self._folder = folder
        self._run = run
        self._settings = settings
        self._reports: list[_Report] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        openers = {"tensorboard": self._tensorboard, "mlflow": self._mlflow, "wandb": self._wandb}
        for name in self._names:
            openers[name]()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With the error, so that a run that breaks off is not told as one that has ended well.
        self._stack.__exit__(kind, error, trace)

    def __call__(self, tag: str, value: float, step: int) -> None:
        """Plot `value` of `tag` at `step` everywhere."""
        for report in self._reports:
            report(tag, value, step)

    def _tensorboard(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter(str(self._folder / "tensorboard"))
        self._stack.callback(writer.close)
        self._reports.append(writer.add_scalar)

    def _mlflow(self) -> None:
        """Where to is MLflow's own business: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""
        import mlflow

        self._stack.enter_context(mlflow.start_run(run_name=self._run))
        mlflow.log_params(dict(self._settings))
        self._reports.append(lambda tag, value, step: mlflow.log_metric(tag, value, step=step))

    def _wandb(self) -> None:
        """Where to is W&B's own business: WANDB_PROJECT, WANDB_MODE and WANDB_API_KEY."""
        import wandb

        run = wandb.init(name=self._run, dir=str(self._folder), config=dict(self._settings))
        self._stack.push(lambda kind, error, trace: run.finish(exit_code=int(kind is not None)))  # noqa: ARG005
        self._reports.append(lambda tag, value, step: run.log({tag: value}, step=step))
