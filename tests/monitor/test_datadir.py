"""The data folder: one owner at a time, and space to write."""

from __future__ import annotations

import fcntl
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from monitor.datadir import LEAST_FREE_BYTES, LOCK_FILE, announce, announced, check_space, owned, supervised
from monitor.errors import ConfigurationError, StorageError


def test_a_folder_is_free_again_when_its_owner_has_left(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert not supervised(folder)
    with owned(folder), pytest.raises(ConfigurationError, match="Another"), owned(folder):
        pass
    with owned(folder):
        assert folder.is_dir()
        assert supervised(folder)
    assert not supervised(folder)


def test_one_who_only_looks_keeps_no_owner_out(tmp_path: Path) -> None:
    with owned(tmp_path):
        pass
    looking = (tmp_path / LOCK_FILE).open()
    fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
    threading.Timer(0.2, looking.close).start()
    with owned(tmp_path):
        assert looking.closed


def test_an_address_counts_while_its_process_lives(tmp_path: Path) -> None:
    file = tmp_path / "address"
    assert announced(file) is None
    with announce(file, "127.0.0.1:4711"):
        assert announced(file) == announced(file) == "127.0.0.1:4711"
        # The next one takes its place, whoever looks meanwhile.
        with announce(file, "127.0.0.1:4712"):
            assert announced(file) == "127.0.0.1:4712"
    assert file.exists()
    assert announced(file) is None


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, LEAST_FREE_BYTES - 1))
    with pytest.raises(StorageError, match=f"The disk that holds {tmp_path} is full"):
        check_space(tmp_path)
