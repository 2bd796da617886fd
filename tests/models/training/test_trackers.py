"""What a run plots arrives where it is plotted; MLflow and W&B stand in as small modules."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from models.training.trackers import Trackers
from models.training.train import train
from tests.models.training.test_train import config_of, labelled

__all__ = ["labelled"]

TOLD = [("train/loss", 1.5, 20), ("validation/topic", 0.25, 20), ("train/loss", 0.5, 40)]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """A module of that name, as if it were installed."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for member, value in members.items():
        setattr(module, member, value)
    monkeypatch.setitem(sys.modules, name, module)


def told(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of TensorBoard's event files in a folder: tag to steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_writes_what_it_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Trackers(("tensorboard",), tmp_path, "mine", {"epochs": 3}) as report:
        for one in TOLD:
            report(*one)
    assert told(tmp_path / "tensorboard") == {"train/loss": [(20, 1.5), (40, 0.5)], "validation/topic": [(20, 0.25)]}


def test_a_run_is_plotted_by_all_its_trackers(
    tmp_path: Path, small_backbone: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    logged: list[tuple[str, float, int]] = []

    class Run:
        def log(self, values: dict[str, float], *, step: int) -> None:
            logged.extend((tag, value, step) for tag, value in values.items())

        def finish(self, exit_code: int = 0) -> None:
            assert exit_code == 0
            logged.append(("finished", 0.0, 0))

    stand_in(monkeypatch, "wandb", init=lambda **given: Run())
    config = config_of(small_backbone, epochs=4, validations_per_epoch=1, trackers=("tensorboard", "wandb"))
    out = train(config, tmp_path / "out", data=[labelled])
    found = told(out / "tensorboard")
    assert {"train/loss", "validation/entities", "validation/sentiment", "validation/topic"} == found.keys()
    assert len(found["validation/entities"]) == 4
    plotted = sorted((tag, step, value) for tag, held in found.items() for step, value in held)
    assert [(tag, step) for tag, step, _ in plotted] == sorted((tag, step) for tag, _, step in logged[:-1])
    assert logged[-1][0] == "finished"


@pytest.mark.parametrize("failing", [False, True])
def test_mlflow_gets_the_config_and_the_figures_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    calls: list[Any] = []

    @contextmanager
    def start_run(*, run_name: str) -> Any:
        calls.append(("start", run_name))
        try:
            yield
        except ZeroDivisionError:
            calls.append("failed")
            raise
        calls.append("end")

    stand_in(
        monkeypatch,
        "mlflow",
        start_run=start_run,
        log_params=lambda settings: calls.append(settings),
        log_metric=lambda tag, value, *, step: calls.append((tag, value, step)),
    )

    def run() -> None:
        with Trackers(("mlflow",), tmp_path, "mine", {"epochs": 3}) as report:
            for one in TOLD:
                report(*one)
            assert not failing or 1 / 0

    if failing:
        # A run that breaks off is marked as failed.
        with pytest.raises(ZeroDivisionError):
            run()
    else:
        run()
    assert calls == [("start", "mine"), {"epochs": 3}, *TOLD, "failed" if failing else "end"]


def test_wandb_gets_the_config_and_the_figures_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], *, step: int) -> None:
            calls.append((values, step))

        def finish(self, exit_code: int = 0) -> None:
            calls.append(("finish", exit_code))

    def init(**given: Any) -> Run:
        calls.append(given)
        return Run()

    stand_in(monkeypatch, "wandb", init=init)
    with Trackers(("wandb",), tmp_path, "mine", {"epochs": 3}) as report:
        for one in TOLD:
            report(*one)
    assert calls == [
        {"name": "mine", "dir": str(tmp_path), "config": {"epochs": 3}},
        *(({tag: value}, step) for tag, value, step in TOLD),
        ("finish", 0),
    ]
    calls.clear()
    with pytest.raises(ZeroDivisionError), Trackers(("wandb",), tmp_path, "mine", {}) as report:
        raise ZeroDivisionError
    assert calls[-1] == ("finish", 1)
