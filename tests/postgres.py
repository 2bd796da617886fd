"""A throwaway PostgreSQL cluster for the session, where the server's programs are installed.

It listens on a Unix socket in a folder of its own only, and both are gone when the session ends.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.storage.tables import metadata

STORE = "store"
OWNER = "monitor"


def find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`, the newest version's; None where there is no server."""
    on_path = shutil.which("initdb")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for place in [*([Path(on_path).parent] if on_path else []), *places]:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    return None


def _account() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: arguments that make a program somebody else's."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name for entry in pwd.getpwall()}
    name = next(name for name in ("postgres", "nobody") if name in known)
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


@contextmanager
def running_postgres() -> Iterator[str]:
    """The socket folder of a fresh cluster that runs until the block ends. Needs `find_programs()`."""
    programs = find_programs()
    assert programs is not None
    account = _account()
    home = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if account:
            shutil.chown(home, account["user"], account["group"])
        data = home / "data"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": home}
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", OWNER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"],
            check=False,
            **quiet,
            **account,
        )
        assert made.returncode == 0, made.stderr.decode()
        options = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=64MB"]
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", home, "-c", "listen_addresses="]
            + [part for option in options for part in ("-c", option)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=home,
            **account,
        )
        try:
            _wait_for(server, home)
            yield str(home)
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait_for(server: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host=str(home), user=OWNER, dbname="postgres").close()
        except psycopg.OperationalError:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        else:
            return


def execute(home: str, statement: str) -> None:
    """Run a statement outside of a transaction, as `create database` wants it."""
    with psycopg.connect(host=home, user=OWNER, dbname="postgres", autocommit=True) as connection:
        connection.execute(statement.encode())


def database_url(home: str, name: str) -> str:
    """SQLAlchemy URL of a database of the cluster."""
    return f"postgresql+psycopg://{OWNER}@/{name}?host={home}"


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[str]:
    """Socket folder of the session's cluster, with a migrated database in it. Skips where there is no server."""
    if find_programs() is None:
        pytest.skip("no PostgreSQL server is installed")
    with running_postgres() as home:
        execute(home, f"create database {STORE}")
        engine = open_engine(database_url(home, STORE))
        upgrade(engine)
        engine.dispose()
        yield home


@pytest.fixture
def empty_postgres_url(postgres_cluster: str) -> Iterator[str]:
    """URL of a database of this test's own without any tables."""
    name = f"t{uuid.uuid4().hex}"
    execute(postgres_cluster, f"create database {name}")
    yield database_url(postgres_cluster, name)
    execute(postgres_cluster, f"drop database {name} with (force)")


@pytest.fixture
def postgres_url(postgres_cluster: str) -> Iterator[str]:
    """URL of a migrated store that is empty when the test begins. One test at a time uses it."""
    url = database_url(postgres_cluster, STORE)
    yield url
    engine = open_engine(url)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(table.delete())
    engine.dispose()
