"""Topics of news as data: the bundled taxonomy, or another one from a user's file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from monitor.errors import ConfigurationError

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["Taxonomy", "Topic", "bundled_taxonomy", "load_taxonomy", "taxonomy_of"]


class Topic(msgspec.Struct, frozen=True):
    """One topic: `name` is its stable key, `title` what a person reads."""

    name: str
    title: str


class Taxonomy(msgspec.Struct, frozen=True):
    """An ordered list of topics; the order is that of every topic probability vector."""

    name: str
    topics: tuple[Topic, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the topics, in order."""
        return tuple(topic.name for topic in self.topics)

    def title(self, name: str) -> str:
        """What a person reads for the topic `name`; the name itself for a topic of another taxonomy."""
        return next((topic.title for topic in self.topics if topic.name == name), name)


def load_taxonomy(path: Path) -> Taxonomy:
    """A taxonomy from a JSON file `{"name": ..., "topics": [{"name": ..., "title": ...}, ...]}`.

    Raises `ConfigurationError` when the file is not readable, has doubles or fewer than two topics.
    """
    try:
        taxonomy = msgspec.json.decode(path.read_bytes(), type=Taxonomy)
    except OSError as error:
        raise ConfigurationError(f"The taxonomy {path} cannot be read: {error.strerror}.") from error
    except (msgspec.MsgspecError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"The taxonomy {path} is not valid: {error}.") from error
    if len(taxonomy.topics) < 2 or len(set(taxonomy.labels)) != len(taxonomy.labels):
        raise ConfigurationError(f"The taxonomy {path} needs at least two topics, each named once.")
    return taxonomy


def taxonomy_of(settings: Settings) -> Taxonomy:
    """The topics of this installation: those of `taxonomy_file`, else the bundled ones. Raises `ConfigurationError`."""
    return load_taxonomy(Path(settings.taxonomy_file)) if settings.taxonomy_file else bundled_taxonomy()


@cache
def bundled_taxonomy() -> Taxonomy:
    """The 20 topics of the Twitter Financial News Topic set, which the shipped model knows."""
    with resources.as_file(resources.files("monitor") / "data" / "taxonomy.json") as path:
        return load_taxonomy(path)
