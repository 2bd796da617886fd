"""Retraining, drift and retention on a schedule."""
