"""Retraining with a small model: what analysts teach is learned, what would spoil the model is refused."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from sqlalchemy import Engine

from models import explain, registry
from models.bundle import load_model
from models.tokens import Row
from models.training import frozen
from models.training import retrain as job
from models.training.datasets import LabelledText, Part
from models.training.train import fine_tune
from monitor.records import Sentiment
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.labels import Label, TrainingRow, add_labels
from monitor.storage.migrate import upgrade
from monitor.storage.models import active_model, add_model, get_model, list_models

WORDS = {
    "negative": ("plunges", "collapses", "loses"),
    "neutral": ("reports", "schedules", "publishes"),
    "positive": ("soars", "surges", "wins"),
}
FLIPPED = {"negative": "positive", "positive": "negative", "neutral": "negative"}


NAMES = (
    "amber basin cedar delta ember frost grove heron ivory jewel knoll lemon maple north ocean pearl quartz river "
    "stone tower union valley walnut yellow zebra bridge canyon dragon eagle forest garden harbor island jungle "
    "kernel lantern meadow nickel orange planet rocket silver temple violet winter"
)


def sentences(n: int, seed: int, *, part: Part = "train") -> list[LabelledText]:
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        label = rng.choice(list(WORDS))
        text = f"{' '.join(rng.sample(NAMES.split(), 3))} {rng.choice(WORDS[label])}"
        rows.append(LabelledText(text=text, sentiment=label, part=part, origin="made"))
    return rows


def base() -> dict[str, list[LabelledText]]:
    return {
        "train": sentences(1200, 1),
        "validation": sentences(60, 2, part="validation"),
        "test": sentences(200, 3, part="test"),
    }


@pytest.fixture(scope="module")
def taught(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, taught what the base data says."""
    out = tmp_path_factory.mktemp("taught") / "model"
    torch.manual_seed(0)
    data = base()
    fine_tune(
        small_model, [*data["train"], *data["validation"]], out, epochs=10, learning_rate=1e-2, folder=small_model
    )
    job._clear_run(out)
    model = load_model(out, device="cpu")
    right = [
        model.predict([Row(row.text)]).sentiment[0].argmax() == list(WORDS).index(row.sentiment or "")
        for row in data["test"][:60]
    ]
    assert sum(right) > 54
    return out


@pytest.fixture
def settings(tmp_path: Path, taught: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(job, "base_rows", lambda taxonomy: base())
    # The fusion of the small model knows nothing that could be kept: too few pictures for a judgement of it.
    monkeypatch.setattr(frozen, "PICTURES", 24)
    monkeypatch.setattr(explain, "_examples", lambda: base()["train"][:5])
    settings = Settings(
        data_dir=tmp_path, device="cpu", retrain_base_rows=1000, retrain_epochs=3, retrain_learning_rate=3e-3
    )
    engine = open_engine(settings.database)
    upgrade(engine)
    registry.promote(settings, engine, str(taught), actor="test", reason="start")
    return settings


def correct(engine: Engine, rows: list[LabelledText], *, prefix: str = "l", day: int = 1) -> None:
    with writing(engine) as connection:
        add_labels(
            connection,
            [
                Label(
                    id=f"{prefix}{i}",
                    text=row.text,
                    created_at=datetime(2024, 1, day, tzinfo=UTC),
                    author="ann",
                    sentiment=Sentiment(row.sentiment or ""),
                )
                for i, row in enumerate(rows)
            ],
        )


def quiet(done: int, total: int, message: str = "") -> None:
    assert done <= total or total == 0


def test_what_is_right_is_promoted(settings: Settings) -> None:
    engine = open_engine(settings.database)
    correct(engine, sentences(60, 9))
    with reading(engine) as connection:
        before = active_model(connection)
    result = job.run(settings, quiet, lambda: False)
    assert result["promoted"], result["reason"]
    with reading(engine) as connection:
        after = active_model(connection)
    assert before is not None
    assert after is not None
    assert after.version == result["version"] != before.version
    assert after.parent == before.version
    assert after.metrics["heads"]["sentiment"]["n"] == 200
    assert registry.check_folder(registry.resolve(settings, engine).path).version == after.version
    # Who asks why finds the examples ready.
    assert len(list(explain.index_folder(settings).glob("neighbours-*.safetensors"))) == 1
    # Nothing new since: the next run has nothing to do.
    assert "0 new corrections" in job.run(settings, quiet, lambda: False)["reason"]


def test_what_somebody_decides_meanwhile_stands_and_late_corrections_count_next_time(settings: Settings) -> None:
    engine = open_engine(settings.database)
    correct(engine, sentences(60, 9))
    late = LabelledText(text="made while the model was trained", sentiment="negative", origin="made")

    def told(done: int, total: int, message: str = "") -> None:
        if message == "preparing explanations":
            registry.rollback(settings, engine, actor="operator")
            correct(engine, [late], prefix="late", day=2)

    result = job.run(settings, told, lambda: False)
    assert not result["promoted"]
    assert "It stays a candidate: default was put in force meanwhile." in result["reason"]
    with reading(engine) as connection:
        assert active_model(connection) is None
        candidate = get_model(connection, result["version"])
    assert candidate is not None
    assert (candidate.state, candidate.reason) == ("candidate", result["reason"])
    assert "1 new corrections" in job.run(settings, quiet, lambda: False)["reason"]


def test_flipped_labels_are_refused_and_the_old_model_stays(settings: Settings) -> None:
    engine = open_engine(settings.database)
    spoilt = [
        LabelledText(text=row.text, sentiment=FLIPPED[row.sentiment or ""], origin="spoilt")
        for row in sentences(250, 9)
    ]
    correct(engine, spoilt)
    settings = settings.model_copy(update={"retrain_base_rows": 100, "retrain_learning_rate": 1e-2})
    with reading(engine) as connection:
        before = active_model(connection)
    result = job.run(settings, quiet, lambda: False)
    assert not result["promoted"]
    assert "Worse on sentiment" in result["reason"]
    with reading(engine) as connection:
        assert active_model(connection) == before
        states = {model.version: model.state for model in list_models(connection)}
    assert states[result["version"]] == "rejected"


def test_too_few_corrections_and_a_cancelled_run_change_nothing(settings: Settings) -> None:
    engine = open_engine(settings.database)
    correct(engine, sentences(5, 9))
    assert "5 new corrections" in job.run(settings, quiet, lambda: False)["reason"]
    correct(engine, sentences(60, 10))
    assert job.run(settings, quiet, lambda: True)["reason"] == "cancelled"
    with reading(engine) as connection:
        assert len(list_models(connection)) == 1
    assert not list((settings.data_dir / "models").glob(".training-*"))


def test_the_best_of_the_line_of_models_is_what_counts(store: Engine) -> None:
    def head(n: int, before: float, after: float) -> dict[str, object]:
        return {"heads": {"topic": {"n": n, "before": before, "after": after}}}

    with writing(store) as connection:
        add_model(connection, "v1", "v1", parent="shipped", metrics=head(600, 0.95, 0.94))
        add_model(connection, "v2", "v2", parent="v1", metrics=head(500, 0.93, 0.92))
        add_model(connection, "v3", "v3", parent="v2", metrics=head(600, 0.92, 0.91) | {"job": "retraining"})
        add_model(connection, "other", "other", parent="v1", metrics=head(600, 0.99, 0.99))
    with reading(store) as connection:
        assert job._best_so_far(connection, "v3") == {"topic": (600, 0.95)}
        assert job._best_so_far(connection, "v2") == {"topic": (500, 0.93)}
        assert job._best_so_far(connection, "") == {}
    with writing(store) as connection:
        forced = head(600, 0.95, 0.85) | {"gate": "rejected"}
        add_model(connection, "v4", "v4", parent="v3", metrics=forced)
    with reading(store) as connection:
        assert job._best_so_far(connection, "v4") == {"topic": (600, 0.85)}


def test_corrections_like_the_test_part_are_left_out() -> None:
    test = sentences(30, 3, part="test")
    rows = [TrainingRow(text=row.text.upper(), sentiment=Sentiment.POSITIVE) for row in test]
    rows += [TrainingRow(text=row.text, sentiment=Sentiment.NEUTRAL) for row in sentences(40, 11)]
    found = job.split_corrections(rows, test)
    assert len(found.learned) + len(found.held_out) == 40
    assert 3 <= len(found.held_out) <= 20
    assert not {row.text for row in found.learned} & {row.text for row in found.held_out}


def test_few_corrections_are_repeated_but_never_drown_the_base() -> None:
    data = base()
    few, many = sentences(4, 12), sentences(300, 13)
    assert sum(row in few for row in job.mixture(few, data, 200, 0)) == 4 * 8
    assert sum(row in many for row in job.mixture(many, data, 200, 0)) == 300
    assert not any(row.part == "test" for row in job.mixture(few, data, 200, 0))
