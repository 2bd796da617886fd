"""TOML files of `[[table]]` and `[table]` entries whose mistakes are reported with file, line and entry."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from monitor.errors import ConfigurationError

__all__ = ["Entry", "read_entries"]

T = TypeVar("T")

_HEADER = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_-]+)\s*\]")
_FIELD = re.compile(r"`\$\.([A-Za-z0-9_]+)|field `([A-Za-z0-9_]+)`")


class Entry:
    """One `[[table]]` of a file with where it stands."""

    def __init__(self, path: Path, table: str, line: int, lines: list[str], values: dict[str, Any]) -> None:
        self.path = path
        self.table = table
        self.line = line
        self.values = values
        self._lines = lines

    def _line_of(self, field: str) -> int:
        for number in range(self.line, len(self._lines)):
            text = self._lines[number]
            if text.lstrip().startswith("["):
                break
            if re.match(rf"\s*{re.escape(field)}\s*=", text):
                return number + 1
        return self.line

    def fail(self, message: str, field: str = "", hint: str = "") -> NoReturn:
        """Raises `ConfigurationError` that names file, line, table and entry."""
        name = self.values.get("name")
        shown = f" {name!r}" if isinstance(name, str) else ""
        line = self._line_of(field) if field else self.line
        raise ConfigurationError(f"{self.path}, line {line}, {self.table}{shown}: {message}.", hint)

    def check(self, field: str, given: Collection[str], known: Collection[str]) -> None:
        """Raises `ConfigurationError` when something `given` is not `known`."""
        wrong = [value for value in given if value not in known]
        if wrong:
            self.fail(f"{wrong[0]!r} is none of {', '.join(known) or 'those defined (there are none)'}", field)

    def convert(self, kind: type[T]) -> T:
        """The entry as a struct. Raises `ConfigurationError` for a missing, unknown or wrongly typed field."""
        try:
            return msgspec.convert(self.values, kind)
        except msgspec.ValidationError as error:
            found = _FIELD.search(str(error))
            self.fail(str(error).replace("Object ", "it "), (found[1] or found[2]) if found else "")


def read_entries(path: Path, tables: Collection[str], single: Collection[str] = ()) -> dict[str, list[Entry]]:
    """All entries of a file by table, in order; the tables in `single` are written `[table]` and are there once or not.

    Raises `ConfigurationError` when the file cannot be read, is not TOML, or has something besides these tables.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"The file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The file {path} is not valid TOML: {error}.") from error
    lines = text.splitlines()
    headers: dict[str, list[int]] = {table: [] for table in tables}
    for number, line in enumerate(lines, start=1):
        header = _HEADER.match(line)
        if header and header[1] in headers:
            headers[header[1]].append(number)
    entries: dict[str, list[Entry]] = {table: [] for table in tables}
    shapes = {table: f"[{table}]" if table in single else f"[[{table}]]" for table in tables}
    for table, values in content.items():
        if table not in entries:
            known = ", ".join(shapes.values())
            raise ConfigurationError(f"The file {path} holds the unknown part {table!r}.", f"It may hold {known}.")
        rows = [values] if table in single else values
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigurationError(f"The file {path} must write {table!r} as {shapes[table]}.")
        # Entries written inline (`rules = [{...}]`) have no header line of their own.
        starts = headers[table] if len(headers[table]) == len(rows) else [1] * len(rows)
        entries[table] = [Entry(path, table, start, lines, row) for start, row in zip(starts, rows, strict=True)]
    return entries
