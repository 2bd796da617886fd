"""What a run is trained, validated and measured on: bundled sets and the user's files, split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from models.training.config import TrainingConfig
from models.training.datasets import (
    BUNDLED,
    Example,
    LabelledText,
    Part,
    assign_parts,
    bundled_path,
    examples_of,
    fitting,
    read_labelled,
    select,
)
from models.training.duplicates import DuplicateIndex, near_duplicate_groups
from models.training.report_sentences import report_sentences
from monitor.errors import ConfigurationError
from monitor.taxonomy import Taxonomy, bundled_taxonomy

__all__ = ["Datasets", "gather", "held_out", "split_own"]

# What is trained on, what is chosen by, what figures are of: a row may only move on in this order.
_ORDER: Final[tuple[Part, ...]] = ("train", "validation", "test")


@dataclass(frozen=True)
class Datasets:
    """Examples of the three parts, and the names of the sets that they come from."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    names: tuple[str, ...]


class _HeldOut(NamedTuple):
    """Rows of the bundled sets that nothing is trained on, with the place of their parts in `_ORDER`."""

    texts: DuplicateIndex
    places: list[int]


@cache
def _bundled_held_out() -> _HeldOut:
    rows = [row for name in BUNDLED for row in read_labelled(bundled_path(name)) if row.part not in (None, "train")]
    return _HeldOut(DuplicateIndex(row.text for row in rows), [_ORDER.index(row.part or "test") for row in rows])


def split_own(rows: Sequence[LabelledText], config: TrainingConfig) -> list[Part]:
    """Part of each of the user's rows, all files together: a sentence of one may stand in another.

    A row's own `part` counts, else a group of near-duplicates falls into one part as a whole. A group that nearly
    repeats a row of a bundled set's validation or test part goes there, unless it is held out further already: the
    figures on the bundled sets stay figures of texts that no model was trained on.
    """
    texts = [row.text for row in rows]
    groups = near_duplicate_groups(texts)
    assigned = assign_parts(
        texts, test_share=config.test_share, validation_share=config.validation_share, groups=groups
    )
    known, places = _bundled_held_out()
    least: dict[int, int] = {}
    for text, group in zip(texts, groups, strict=True):
        least[group] = max([least.get(group, 0), *(places[number] for number in known.find(text))])
    return [
        _ORDER[max(_ORDER.index(row.part or part), least[group])]
        for row, part, group in zip(rows, assigned, groups, strict=True)
    ]


def held_out(config: TrainingConfig, files: Sequence[Path], taxonomy: Taxonomy | None = None) -> list[LabelledText]:
    """The rows of `files` that a run of `config` with these files would hold out as its test part.

    Raises `InputError` naming file and line of a row that `gather` could not use either.
    """
    rows = [row for path in files for row in read_labelled(path, taxonomy)]
    return [row for row, part in zip(rows, split_own(rows, config), strict=True) if part == "test"]


def gather(config: TrainingConfig, extra: Sequence[Path] = (), taxonomy: Taxonomy | None = None) -> Datasets:
    """All examples of the config's bundled sets and of further labelled files, split.

    Raises `InputError` naming file and line of a row that cannot be used.
    """
    unknown = [name for name in config.sets if name not in BUNDLED]
    if unknown:
        raise ConfigurationError(f"There is no bundled set {unknown[0]}.", f"Known are {', '.join(BUNDLED)}.")
    # Of the bundled sets what another taxonomy has too; a user's rows must fit as they are.
    bundled = [fitting(read_labelled(bundled_path(name)), taxonomy or bundled_taxonomy()) for name in config.sets]
    own = [read_labelled(path, taxonomy) for path in extra]
    names = tuple(held[0].origin for held in bundled + own)
    together = [row for held in own for row in held]
    own_parts = split_own(together, config) if together else []
    parts: dict[Part, list[Example]] = {}
    for part in _ORDER:
        kept = [row for held in bundled for row in select(held, part)]
        if part == "train" and config.set_share < 1.0:
            kept = random.Random(config.seed).sample(kept, int(config.set_share * len(kept)))  # noqa: S311 - no secret
        kept += [row for row, assigned in zip(together, own_parts, strict=True) if assigned == part]
        parts[part] = examples_of(kept, taxonomy)
    parts["train"] += report_sentences(config.report_sentences, seed=config.seed)
    if not parts["train"]:
        raise ConfigurationError("There is nothing to train on.", "Name bundled sets in the config, or pass --data.")
    return Datasets(parts["train"], parts["validation"], parts["test"], names)
