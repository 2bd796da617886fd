"""The dashboard's way to the store, and what a person sees when it is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import streamlit as st

from dashboard.markup import plain
from monitor.errors import MonitorError
from monitor.settings import Settings, load_settings
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.migrate import upgrade
from monitor.taxonomy import Taxonomy, taxonomy_of

__all__ = ["change", "engine", "guarded", "read", "settings", "taxonomy"]

P = ParamSpec("P")


def settings() -> Settings:
    """The settings that `run_dashboard` put into the environment."""
    return load_settings()


def taxonomy() -> Taxonomy:
    """The topics of this installation. Raises `ConfigurationError`."""
    return taxonomy_of(settings())


@st.cache_resource(show_spinner=False)
def _open(url: str) -> Any:
    opened = open_engine(url)
    upgrade(opened)
    return opened


def engine() -> Any:
    """The store's engine, one for all sessions. Raises `StorageError` while it cannot be reached."""
    return _open(settings().database)


@contextmanager
def read() -> Iterator[Any]:
    """A reading transaction."""
    with reading(engine()) as connection:
        yield connection


@contextmanager
def change() -> Iterator[Any]:
    """A writing transaction."""
    with writing(engine()) as connection:
        yield connection


def guarded(view: Callable[P, None]) -> Callable[P, None]:
    """A view, or a fragment of one, that shows an expected error as one sentence and its remedy."""

    @wraps(view)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            view(*args, **kwargs)
        except MonitorError as error:
            st.error(plain(str(error)), icon=":material/error:")
            # The rest of the page would only say the same again.
            st.stop()

    return shown
