"""TOML files of `[[table]]` and `[table]` entries whose mistakes are reported with file, line and entry."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from monitor.errors import RuleError

__all__ = ["Entry", "parse_entries", "read_entries"]

T = TypeVar("T")

# Far above any file that a person writes; deeper and longer ones are refused before they cost anything.
MAX_BYTES: Final = 1 << 20

_HEADER = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_-]+)\s*\]")
_FIELD = re.compile(r"`\$\.([A-Za-z0-9_]+)|field `([A-Za-z0-9_]+)`")
_AT_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")


class Entry:
    """One `[[table]]` of a file with where it stands; `source` is the file's name."""

    def __init__(self, source: str, table: str, line: int, lines: list[str], values: dict[str, Any]) -> None:
        self.source = source
        self.table = table
        self.line = line
        self.values = values
        self._lines = lines

    def _line_of(self, field: str) -> int:
        for number in range(self.line, len(self._lines)):
            text = self._lines[number]
            if text.lstrip().startswith("["):
                break
            if re.match(rf"\s*[\"']?{re.escape(field)}[\"']?\s*[=.]", text):
                return number + 1
        return self.line

    def fail(self, message: str, field: str = "", hint: str = "") -> NoReturn:
        """Raises `RuleError` that names file, line, table and entry."""
        name = self.values.get("name")
        shown = f" {name[:128]!r}" if isinstance(name, str) else ""
        line = self._line_of(field) if field else self.line
        raise RuleError(f"{self.source}, line {line}, {self.table}{shown}: {message}.", hint, line=line)

    def check(self, field: str, given: Collection[str], known: Collection[str]) -> None:
        """Raises `RuleError` when something `given` is not `known`."""
        wrong = [value for value in given if value not in known]
        if wrong:
            self.fail(f"{wrong[0]!r} is none of {', '.join(known) or 'those defined (there are none)'}", field)

    def convert(self, kind: type[T]) -> T:
        """The entry as a struct. Raises `RuleError` for a missing, unknown or wrongly typed field."""
        try:
            return msgspec.convert(self.values, kind)
        except msgspec.ValidationError as error:
            found = _FIELD.search(str(error))
            self.fail(str(error).replace("Object ", "it "), (found[1] or found[2]) if found else "")


def _fail(source: str, line: int, message: str, hint: str = "") -> NoReturn:
    raise RuleError(f"{source}, line {line}: {message}.", hint, line=line)


def _first_line(lines: list[str], table: str) -> int:
    """Where a part is written that has no header of its own: `table = ...`, `table.field = ...`, `[table.x]`."""
    written = re.compile(rf"\s*\[{{0,2}}\s*[\"']?{re.escape(table)}[\"']?\s*[=.\]]")
    return next((number for number, line in enumerate(lines, start=1) if written.match(line)), 1)


def read_entries(path: Path, tables: Collection[str], single: Collection[str] = ()) -> dict[str, list[Entry]]:
    """`parse_entries` of a file. Raises `RuleError` also when it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuleError(f"The file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise RuleError(f"The file {str(path)!r} cannot be read: its name is impossible.") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        _fail(str(path), data.count(b"\n", 0, error.start) + 1, "this is not UTF-8")
    return parse_entries(str(path), text, tables, single)


def parse_entries(
    source: str, text: str, tables: Collection[str], single: Collection[str] = ()
) -> dict[str, list[Entry]]:
    """All entries of a TOML text by table, in order; those in `single` are written `[table]`, once or not at all.

    Raises `RuleError` with the line when it is not TOML, or has something besides these tables.
    """
    if len(text) > MAX_BYTES:
        _fail(source, 1, f"the file is longer than {MAX_BYTES >> 20} MiB")
    lines = text.splitlines() or [""]
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _AT_LINE.search(str(error))
        line = int(found[1]) if found and found[1] else len(lines)
        _fail(source, line, f"this is not valid TOML: {_AT_LINE.sub('', str(error))}")
    except RecursionError:
        _fail(source, 1, "the values are nested too deeply")
    except ValueError as error:
        # Numbers of more digits than Python reads.
        _fail(source, 1, f"this is not valid TOML: {error}")
    headers: dict[str, list[int]] = {table: [] for table in tables}
    for number, written in enumerate(lines, start=1):
        header = _HEADER.match(written)
        if header and header[1] in headers:
            headers[header[1]].append(number)
    entries: dict[str, list[Entry]] = {table: [] for table in tables}
    shapes = {table: f"[{table}]" if table in single else f"[[{table}]]" for table in tables}
    for table, values in content.items():
        at = _first_line(lines, table)
        if table not in entries:
            _fail(source, at, f"{table[:64]!r} is an unknown part", f"The file may hold {', '.join(shapes.values())}.")
        rows = [values] if table in single else values
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            _fail(source, at, f"{table!r} must be written as {shapes[table]}")
        # Entries written inline (`rules = [{...}]`) have no header line of their own.
        starts = headers[table] if len(headers[table]) == len(rows) else [at] * len(rows)
        entries[table] = [Entry(source, table, start, lines, row) for start, row in zip(starts, rows, strict=True)]
    return entries
