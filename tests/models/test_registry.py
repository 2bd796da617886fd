"""The registry: names, safe folders, promotion and rollback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models import registry
from models.model_file import read_model_file
from monitor.errors import ModelError, StorageError
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.migrate import upgrade
from monitor.storage.models import active_model, get_model, list_models, list_promotions, promote_model, set_state
from tests.models.tiny import tiny_model


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def engine(settings: Settings) -> Engine:
    engine = open_engine(settings.database)
    upgrade(engine)
    return engine


@pytest.fixture
def other(tmp_path: Path, small_backbone: Path) -> Path:
    tiny_model(tmp_path / "other", small_backbone, name="other", seed=3)
    return tmp_path / "other"


def active(engine: Engine) -> str:
    with reading(engine) as connection:
        model = active_model(connection)
    return model.version if model else ""


def test_promote_and_roll_back_like_an_undo(settings: Settings, engine: Engine, small_model: Path, other: Path) -> None:
    first = registry.promote(settings, engine, str(small_model), actor="ann", reason="better")
    second = registry.promote(settings, engine, str(other), actor="ann", reason="rollback proof")
    assert active(engine) == second
    assert registry.resolve(settings, engine).path == settings.data_dir / "models" / second
    assert registry.rollback(settings, engine, actor="bob").version == first
    assert active(engine) == first
    assert registry.rollback(settings, engine, actor="bob").version == ""
    assert active(engine) == ""
    assert registry.resolve(settings, engine).path.name == "default"
    with pytest.raises(ModelError, match="no promotion to roll back"):
        registry.rollback(settings, engine, actor="bob")
    with reading(engine) as connection:
        assert {model.state for model in list_models(connection)} == {"retired"}
        log = list_promotions(connection)
    assert [entry.actor for entry in log] == ["bob", "bob", "ann", "ann"]
    assert log[1].reason == "rollback"


def test_one_model_is_active_at_the_most(settings: Settings, engine: Engine, small_model: Path, other: Path) -> None:
    for path in (small_model, other, small_model):
        registry.promote(settings, engine, str(path), actor="ann", reason="x")
    with reading(engine) as connection:
        states = sorted(model.state for model in list_models(connection))
    assert states == ["active", "retired"]


def test_a_version_is_found_by_name_with_and_without_a_store(
    settings: Settings, engine: Engine, small_model: Path
) -> None:
    version = registry.register(settings, engine, small_model, metrics={"f1": 0.5}, reason="trained")
    assert version == read_model_file(small_model).version
    for store in (engine, None):
        assert registry.resolve(settings, store, version) == (settings.data_dir / "models" / version, version)
    assert registry.resolve(settings, None, str(small_model)) == (small_model, "")
    assert registry.resolve(settings.model_copy(update={"model": version}), engine).version == version
    with reading(engine) as connection:
        model = get_model(connection, version)
    assert model is not None
    assert (model.state, model.metrics, model.path) == ("candidate", {"f1": 0.5}, version)
    assert registry.register(settings, engine, small_model) == version
    with pytest.raises(ModelError, match="no model nowhere"):
        registry.resolve(settings, engine, "nowhere")


def test_a_store_without_tables_means_the_default(settings: Settings) -> None:
    assert registry.existing_store(settings) is None
    assert registry.resolve(settings, open_engine(settings.database)).path.name == "default"


@pytest.mark.parametrize("name", ["weights.bin", "checkpoint.pt", "extra.pkl", "run.py"])
def test_pickles_and_code_are_refused(settings: Settings, engine: Engine, other: Path, name: str) -> None:
    (other / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        registry.register(settings, engine, other)
    with reading(engine) as connection:
        assert list_models(connection) == []


def test_exchanged_unnamed_and_linked_files_are_refused(tmp_path: Path, other: Path) -> None:
    heads = other / "heads.safetensors"
    shutil.copy(heads, other / "more.safetensors")
    with pytest.raises(ModelError, match="does not name"):
        registry.check_folder(other)
    (other / "more.safetensors").unlink()
    (other / "link.md").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="link"):
        registry.check_folder(other)
    (other / "link.md").unlink()
    assert registry.check_folder(other).name == "other"
    heads.write_bytes(heads.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match="hash"):
        registry.check_folder(other)


def test_a_missing_folder_of_the_active_version_is_told(settings: Settings, engine: Engine, small_model: Path) -> None:
    version = registry.promote(settings, engine, str(small_model), actor="a", reason="x")
    shutil.rmtree(settings.data_dir / "models" / version)
    with pytest.raises(ModelError, match="is missing"):
        registry.resolve(settings, engine)


def test_an_unknown_version_can_be_neither_promoted_nor_rejected(engine: Engine) -> None:
    with pytest.raises(StorageError, match="no version x"), writing(engine) as connection:
        promote_model(connection, "x", actor="a", reason="r")
    with pytest.raises(StorageError, match="no version x"), writing(engine) as connection:
        set_state(connection, "x", "rejected", "r")


def test_shipped_models_are_whole() -> None:
    found = registry.shipped()
    assert "default" in found
    for folder in found.values():
        assert registry.check_folder(folder).version
