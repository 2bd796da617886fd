"""The relational store: tables, migrations and one module of queries per aggregate."""
