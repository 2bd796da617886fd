"""The batching engine that scores items."""
