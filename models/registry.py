"""Which model a name stands for, and the folder of registered versions.

A name is a shipped adapter (`default`), a version of the registry, or the path of a model folder. Registered versions
lie in `data_dir/models/<version>/`; their states are in the store (`monitor.storage.models`). Everything but states
works without a store, so that `score` and `evaluate` need none. Only safetensors are taken: a folder with a pickle in
it, or with weights whose hash is not the one in its `model.json`, is refused.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from models.model_file import ModelFile, read_model_file
from monitor.errors import ModelError, StorageError
from monitor.storage.engine import reading, writing
from monitor.storage.models import (
    ModelState,
    Promotion,
    RegisteredModel,
    active_model,
    add_model,
    get_model,
    list_promotions,
    lock_registry,
    promote_model,
    retire_active,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from monitor.settings import Settings

__all__ = [
    "DEFAULT",
    "OvertakenError",
    "Resolved",
    "check_folder",
    "existing_store",
    "gate_result",
    "models_folder",
    "promote",
    "register",
    "resolve",
    "rollback",
    "shipped",
]

DEFAULT: Final = "default"
_SHIPPED: Final = "shipped:"
_ALLOWED: Final = frozenset({".safetensors", ".json", ".md", ".txt", ".toml"})
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Resolved(NamedTuple):
    """A model found by name: the folder that holds it, and the registry's version ("" for a shipped one or a path)."""

    path: Path
    version: str


def _weights() -> Path:
    return Path(str(resources.files("models") / "weights"))


def shipped() -> dict[str, Path]:
    """Name to folder of the adapters that come with the package."""
    return {path.parent.name: path.parent for path in sorted(_weights().glob("*/model.json"))}


def models_folder(settings: Settings) -> Path:
    """Where registered versions lie."""
    return settings.data_dir / "models"


def check_folder(folder: Path) -> ModelFile:
    """What a model folder holds, once it is known to be whole and harmless.

    Raises `ModelError` for a missing or damaged file, one that `model.json` does not name, a link, or any file of a
    kind that could carry code (pickled weights among them).
    """
    file = read_model_file(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelError(f"The model in {folder} holds a link ({name}).", "Replace it by the file itself.")
        if path.is_dir():
            continue
        if path.suffix not in _ALLOWED:
            raise ModelError(
                f"The model in {folder} holds {name}, which is not accepted.", "Weights are taken as safetensors only."
            )
        if path.suffix == ".safetensors" and name not in file.files:
            raise ModelError(f"The model in {folder} holds {name}, which model.json does not name.")
    return file


def _located(model: RegisteredModel, settings: Settings) -> Path:
    if model.path.startswith(_SHIPPED):
        return _weights() / model.path.removeprefix(_SHIPPED)
    path = Path(model.path)
    return path if path.is_absolute() else models_folder(settings) / path


def _active(engine: Engine) -> RegisteredModel | None:
    try:
        with reading(engine) as connection:
            return active_model(connection)
    except StorageError as error:
        # A database without tables yet has promoted nothing; one that is down must not change the model.
        if "no tables" in error.message:
            return None
        raise


def resolve(settings: Settings, engine: Engine | None = None, name: str = "") -> Resolved:
    """The folder of a model.

    Parameters
    ----------
    settings : `model` stands in for an empty `name`; `data_dir` holds the registered versions.
    engine : the store; None: the registry's states are not consulted.
    name : shipped name, version or path; empty: `settings.model`, else the promoted version, else `default`.

    Raises `ModelError` when there is no such model, `StorageError` when the store fails.
    """
    wanted = name or settings.model
    if not wanted:
        active = _active(engine) if engine is not None else None
        if active is None:
            return Resolved(_weights() / DEFAULT, "")
        return _existing(Resolved(_located(active, settings), active.version))
    if wanted in shipped() or wanted == DEFAULT:
        return Resolved(_weights() / wanted, "")
    if _VERSION.fullmatch(wanted):
        if engine is not None:
            with reading(engine) as connection:
                model = get_model(connection, wanted)
            if model is not None:
                return _existing(Resolved(_located(model, settings), model.version))
        if (models_folder(settings) / wanted / "model.json").is_file():
            return Resolved(models_folder(settings) / wanted, wanted)
    if Path(wanted).is_dir():
        return Resolved(Path(wanted), "")
    raise ModelError(
        f"There is no model {wanted}.",
        f"Shipped: {', '.join(shipped()) or 'none'}. `sentiment-monitor models list` names the registered versions; "
        "the path of a model folder works too.",
    )


def _existing(found: Resolved) -> Resolved:
    if not found.path.is_dir():
        raise ModelError(
            f"The registered model {found.version} is missing: there is no folder {found.path}.",
            "Promote another version, or roll back.",
        )
    return found


def register(
    settings: Settings,
    engine: Engine,
    folder: Path,
    *,
    parent: str = "",
    metrics: Mapping[str, Any] | None = None,
    reason: str = "",
    state: ModelState = "candidate",
) -> str:
    """Copy a model folder into the registry and note it there; returns its version.

    The copy appears under its final name only when it is complete. Raises `ModelError` for a folder that
    `check_folder` refuses.
    """
    file = check_folder(folder)
    version = file.version
    if not _VERSION.fullmatch(version):
        raise ModelError(f"The version {version[:64]!r} of the model in {folder} cannot name a folder.")
    target = models_folder(settings) / version
    if target.resolve() != folder.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=target.parent) as incoming:
            copied = Path(incoming) / version
            shutil.copytree(folder, copied)
            check_folder(copied)
            if target.exists():
                # The same version is the same weights: what is there already only has to be whole.
                check_folder(target)
            else:
                copied.rename(target)
    with writing(engine) as connection:
        add_model(connection, version, version, parent=parent, metrics=metrics, reason=reason, state=state)
    return version


class OvertakenError(ModelError):
    """The model that was to be replaced is no longer in force."""


def promote(
    settings: Settings,
    engine: Engine,
    name: str,
    *,
    actor: str,
    reason: str,
    force: bool = False,
    instead_of: str | None = None,
) -> str:
    """Make a model the active one; workers take it up at their next look. Returns its version.

    `name` is a registered version, a shipped name or the path of a model folder (which is registered first). Its
    files are checked before anything changes. Raises `StorageError`, or `ModelError`: also for a version that the gate
    rejected, unless `force` is given, which the log then tells. With `instead_of`, the registered version that has to
    be in force still ("": the shipped default), `OvertakenError` when it is not; nothing is changed then.
    """
    found = resolve(settings, engine, name)
    file = check_folder(found.path)
    # The log tells a rollback from a promotion by how its reason begins.
    reason = f"promoted: {reason}" if reason.startswith("rollback") else reason
    if name == DEFAULT:
        with writing(engine) as connection:
            retire_active(connection, actor=actor, reason=reason)
        return file.version
    if found.path.parent == _weights():
        with writing(engine) as connection:
            add_model(connection, file.version, f"{_SHIPPED}{found.path.name}", reason="shipped")
            promote_model(connection, file.version, actor=actor, reason=reason)
        return file.version
    with reading(engine) as connection:
        known = get_model(connection, file.version)
    if known is None:
        register(settings, engine, found.path, reason=reason)
    elif gate_result(known) == "rejected":
        if not force:
            raise ModelError(
                f"The gate rejected {known.version}: {known.reason}",
                "`models promote --force` puts it in force all the same.",
            )
        reason = f"against the gate: {reason}"
    with writing(engine) as connection:
        if instead_of is not None:
            lock_registry(connection)
            active = active_model(connection)
            if (active.version if active is not None else "") != instead_of:
                raise OvertakenError(
                    f"{active.version if active is not None else DEFAULT} was put in force meanwhile.",
                    f"`models promote {file.version}` puts this one in its place.",
                )
        promote_model(connection, file.version, actor=actor, reason=reason)
    return file.version


def gate_result(model: RegisteredModel) -> str:
    """`passed`, `rejected`, or empty for a version that no gate has judged. It outlives what happens to the version."""
    return "rejected" if model.state == "rejected" else str(model.metrics.get("gate", ""))


def rollback(settings: Settings, engine: Engine, *, actor: str, reason: str = "rollback") -> Promotion:
    """Go back to what was in force before the last promotion; returns the new entry of the log.

    Two rollbacks in a row go two promotions back, as an undo does. Raises `ModelError` when there is nothing to go
    back to.
    """
    with reading(engine) as connection:
        log = list_promotions(connection)
    history: list[str] = []
    for entry in reversed(log):
        if entry.reason.startswith("rollback"):
            if history:
                history.pop()
        else:
            history.append(entry.version)
    if not history:
        raise ModelError("There is no promotion to roll back.", "The shipped default is in force.")
    previous = history[-2] if len(history) > 1 else ""
    told = reason if reason.startswith("rollback") else f"rollback: {reason}"
    if previous:
        with reading(engine) as connection:
            model = get_model(connection, previous)
        if model is None:
            raise ModelError(f"The version {previous} is no longer registered.", "Promote another version.")
        check_folder(_existing(Resolved(_located(model, settings), previous)).path)
    with writing(engine) as connection:
        if previous:
            promote_model(connection, previous, actor=actor, reason=told)
        else:
            retire_active(connection, actor=actor, reason=told)
        return list_promotions(connection, limit=1)[0]


def existing_store(settings: Settings) -> Engine | None:
    """The store, if there is one already: reading a model's name must not make a database."""
    from sqlalchemy import make_url

    from monitor.storage.engine import open_engine

    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        return None
    return open_engine(settings.database)
