"""The data folder: one owner at a time, and space to write."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from monitor.datadir import LEAST_FREE_BYTES, check_space, owned
from monitor.errors import ConfigurationError, StorageError


def test_a_folder_is_free_again_when_its_owner_has_left(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with owned(folder), pytest.raises(ConfigurationError, match="Another"), owned(folder):
        pass
    with owned(folder):
        assert folder.is_dir()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, LEAST_FREE_BYTES - 1))
    with pytest.raises(StorageError, match=f"The disk that holds {tmp_path} is full"):
        check_space(tmp_path)
