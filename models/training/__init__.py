"""Data sets, training, evaluation and the gate that promotes a model."""
