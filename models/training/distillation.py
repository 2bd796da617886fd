"""Soft labels: what several models say on average about every training row (Hinton et al. 2015).

A row with one label gets soft ones for the other tasks too: headlines then teach topics, and tweets about a topic teach
sentiment. Several teachers that were trained alike are an ensemble, which is better than each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from models.bundle import load_model, model_folder
from models.training.datasets import Example
from models.training.losses import SoftLabels
from models.training.report_sentences import MADE_UP
from models.training.text_stage import Cancelled, Progress
from monitor.errors import ConfigurationError

__all__ = ["soft_labels"]

_CHUNK = 256


def soft_labels(
    teachers: Sequence[str],
    examples: Sequence[Example],
    topics: Sequence[str],
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> SoftLabels:
    """The mean of the teachers' calibrated probabilities. `topics` are the names that they must know, in this order.

    The teachers are not asked about made-up sentences: such a one keeps its own sentiment, which is right by the way it
    was made, and says nothing about topics (all zero).

    Raises `ModelError`, `ConfigurationError` for a teacher of other topics, and `Cancelled`.
    """
    sentiment, topic = torch.zeros(len(examples), 3), torch.zeros(len(examples), len(topics))
    made_up = [index for index, example in enumerate(examples) if example.origin == MADE_UP]
    labels = torch.tensor([examples[index].sentiment for index in made_up], dtype=torch.long)
    sentiment[made_up] = functional.one_hot(labels, 3).float()
    asked = set(range(len(examples))) - set(made_up)
    order = sorted(asked, key=lambda index: (len(examples[index].text), index))
    done = 0
    for name in teachers:
        model = load_model(model_folder(name))
        if list(model.taxonomy.labels) != list(topics):
            raise ConfigurationError(f"The teacher {name} knows other topics.", "Name models of the same taxonomy.")
        for start in range(0, len(order), _CHUNK):
            if cancelled is not None and cancelled():
                raise Cancelled
            rows = order[start : start + _CHUNK]
            said = model.predict([examples[index].row for index in rows])
            sentiment[rows] += torch.from_numpy(said.sentiment) / len(teachers)
            topic[rows] += torch.from_numpy(said.topic) / len(teachers)
            done += len(rows)
            if progress is not None:
                progress("teachers", done, len(order) * len(teachers), name)
    return SoftLabels(sentiment, topic)
