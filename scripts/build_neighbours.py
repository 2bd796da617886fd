#!/usr/bin/env python3
"""Writes models/data/neighbours.safetensors: where the shipped model puts the labelled examples that explanations show.

To be run after the shipped model has changed; half a minute on one core.
"""

from __future__ import annotations

from models.bundle import load_model
from models.explain import packaged_index, write_index

if __name__ == "__main__":
    write_index(load_model("default", device="cpu"), packaged_index())
