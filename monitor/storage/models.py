"""The registry of models: versions, their states, and the log of promotions.

States: `candidate` (trained, not judged or passed but not in use), `active` (the workers score with it; one at the
most), `rejected` (the gate refused it) and `retired` (was active). Without an active version the shipped default is in
force.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, select, text, update

from monitor.errors import StorageError
from monitor.storage.tables import model_promotions, models
from monitor.storage.upsert import upsert

__all__ = [
    "ModelState",
    "Promotion",
    "RegisteredModel",
    "active_model",
    "add_model",
    "get_model",
    "list_models",
    "list_promotions",
    "lock_registry",
    "promote_model",
    "retire_active",
    "set_state",
]

ModelState = Literal["candidate", "active", "rejected", "retired"]


class RegisteredModel(msgspec.Struct, frozen=True, kw_only=True):
    """One version. `path` is a folder, or `shipped:NAME`; `parent` the version it was trained from."""

    version: str
    path: str
    state: ModelState
    created_at: datetime
    parent: str = ""
    metrics: dict[str, Any] = {}
    reason: str = ""


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """One change of what the workers score with; an empty `version` is the shipped default."""

    version: str
    at: datetime
    actor: str
    reason: str


def _model(row: Any) -> RegisteredModel:
    return RegisteredModel(
        version=row.version,
        path=row.path,
        state=row.state,
        created_at=row.created_at,
        parent=row.parent or "",
        metrics=dict(row.metrics),
        reason=row.reason,
    )


def add_model(
    connection: Connection,
    version: str,
    path: str,
    *,
    parent: str = "",
    metrics: Mapping[str, Any] | None = None,
    reason: str = "",
    state: ModelState = "candidate",
    now: datetime | None = None,
) -> None:
    """Register a version; one that is there already gets the new path, metrics and reason but keeps its state."""
    row = {
        "version": version,
        "path": path,
        "state": state,
        "parent": parent or None,
        "metrics": dict(metrics or {}),
        "reason": reason,
        "created_at": now or datetime.now(UTC),
    }
    upsert(connection, models, [row], keep=("state", "created_at"))


def get_model(connection: Connection, version: str) -> RegisteredModel | None:
    """The version, or None."""
    row = connection.execute(select(models).where(models.c.version == version)).one_or_none()
    return None if row is None else _model(row)


def active_model(connection: Connection) -> RegisteredModel | None:
    """What the workers score with; None: the shipped default."""
    query = select(models).where(models.c.state == "active").order_by(models.c.created_at.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else _model(row)


def lock_registry(connection: Connection) -> None:
    """Keep others from changing the registry until the transaction ends. On SQLite a writer is alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("lock table models in share row exclusive mode"))


def list_models(connection: Connection) -> list[RegisteredModel]:
    """All versions, newest first."""
    query = select(models).order_by(models.c.created_at.desc(), models.c.version)
    return [_model(row) for row in connection.execute(query)]


def list_promotions(connection: Connection, limit: int | None = None) -> list[Promotion]:
    """The log of promotions, newest first."""
    query = select(model_promotions).order_by(model_promotions.c.id.desc()).limit(limit)
    return [
        Promotion(version=row.version, at=row.at, actor=row.actor, reason=row.reason)
        for row in connection.execute(query)
    ]


def set_state(connection: Connection, version: str, state: ModelState, reason: str) -> None:
    """Change the state of a version that is not active (promotion does that). Raises `StorageError` if unknown."""
    changed = connection.execute(
        update(models).where(models.c.version == version).values(state=state, reason=reason)
    ).rowcount
    if not changed:
        raise StorageError(f"The registry holds no version {version}.")


def _log(connection: Connection, version: str, actor: str, reason: str, now: datetime | None) -> None:
    connection.execute(
        model_promotions.insert().values(version=version, at=now or datetime.now(UTC), actor=actor, reason=reason)
    )


def retire_active(connection: Connection, *, actor: str, reason: str, now: datetime | None = None) -> None:
    """Put the shipped default in force again."""
    connection.execute(update(models).where(models.c.state == "active").values(state="retired"))
    _log(connection, "", actor, reason, now)


def promote_model(
    connection: Connection, version: str, *, actor: str, reason: str, now: datetime | None = None
) -> None:
    """Make a version the active one and retire the one before it, in the caller's transaction.

    Raises `StorageError` when the registry does not hold the version.
    """
    if get_model(connection, version) is None:
        raise StorageError(f"The registry holds no version {version}.", "`sentiment-monitor models list` names them.")
    connection.execute(
        update(models).where(models.c.state == "active", models.c.version != version).values(state="retired")
    )
    connection.execute(update(models).where(models.c.version == version).values(state="active"))
    _log(connection, version, actor, reason, now)
