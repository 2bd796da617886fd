"""A database server, where one is installed, for the tests of whole pipelines."""

from __future__ import annotations

from tests.postgres import empty_postgres_url, postgres_cluster

__all__ = ["empty_postgres_url", "postgres_cluster"]
