"""Tables of images and labels: CSV, TSV or JSON Lines. Each row is a path, relative to the table, and a class."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.data.dataset import Note
from zoo.data.sources.listing import FileStore, Listing, canonical_split, first_few, printable, stamp_files

JSON_LINES = (".jsonl", ".ndjson")
TAB_SEPARATED = (".tsv", ".tab")
SUFFIXES = (".csv", *TAB_SEPARATED, *JSON_LINES)

# Usual names of the columns, in lower case without "_", "-" and spaces
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    "label": ("label", "labels", "class", "classname", "category", "target", "y", "species", "diagnosis"),
    "split": ("split", "set", "subset", "partition", "fold"),
}

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}

Rows = list[tuple[int, Mapping[str, str]]]  # (line number, {role: cell}); the roles are the keys of COLUMNS


def is_table(path: Path) -> bool:
    """Return True if the path is a file with the suffix of a table."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def list_table(file: Path) -> Listing:
    """List the images that a table names.

    Columns are recognised by their names (COLUMNS). A table without a header, whose first cell is an existing file, has
    the columns path, label and optionally split. The split column may use any usual name of a split.

    Raises:
        ValueError: the file is not a table, its columns are missing or ambiguous, or a row has no path, label or known
            split.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not a text file in UTF-8; save the table as UTF-8") from None
    read_rows = _read_json_rows if file.suffix.lower() in JSON_LINES else _read_separated_rows
    rows, reading = read_rows(text, file)
    if not rows:
        raise ValueError(f"{file}: has no rows")
    names, labels, splits = [], [], []
    for number, row in rows:
        for role in ("path", "label"):
            if not row.get(role, ""):
                raise ValueError(f"{file}, line {number}: has no {role}")
        if "\0" in row["path"]:
            raise ValueError(f"{file}, line {number}: the path has a NUL character in it")
        split = ""
        if "split" in row:
            split = canonical_split(row["split"])
            if not split:
                raise ValueError(f"{file}, line {number}: unknown split {row['split']!r}; use train, val or test")
        names.append(row["path"])
        labels.append(row["label"])
        splits.append(split)
    return Listing(
        name=str(file),
        store=FileStore(str(file.parent), tuple(names)),
        splits=tuple(splits),
        labels=tuple(labels),
        stamp=stamp_files(str(file.parent), [file.name, *names]),
        notes=(Note("source", f"read as a table {reading}"),),
    )


def _find_columns(columns: Sequence[str], file: Path) -> dict[str, str]:
    """Return {role: column}; the split may be absent."""
    roles = {}
    for role, spellings in COLUMNS.items():
        matching = [c for c in columns if "".join(k for k in c.lower() if k not in "_- ") in spellings]
        if len(matching) > 1:
            raise ValueError(f"{file}: columns {' and '.join(matching)} may both be the {role}; rename one of them")
        if matching:
            roles[role] = matching[0]
    for role in ("path", "label"):
        if role not in roles:
            raise ValueError(f"{file}: no {role} column among {', '.join(columns)}; name one of them {role!r}")
    return roles


def _describe_columns(roles: Mapping[str, str], columns: Sequence[str]) -> str:
    """Return text that says which columns are used for what, so that people can check it."""
    used = ", ".join(f"{role} from {printable(column)!r}" for role, column in roles.items())
    unused = [repr(printable(column)) for column in columns if column not in roles.values()]
    return used + ("" if "split" in roles else ", no split") + (f"; not used: {first_few(unused)}" if unused else "")


def _read_separated_rows(text: str, file: Path) -> tuple[Rows, str]:
    """Return the rows of a table of separated cells, and text that says how it was read."""
    first = text.split("\n", 1)[0]
    separator = "\t" if file.suffix.lower() in TAB_SEPARATED else max(SEPARATORS, key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{file}: is not a valid table ({error})") from None
    if not lines:
        return [], ""
    header = [cell.strip() for cell in lines[0][1]]
    if len(header) in (2, 3) and os.path.isfile(file.parent / header[0]):  # no header
        positions = {role: k for k, role in enumerate(("path", "label", "split")[: len(header)])}
        reading = f"without a header: {', '.join(f'column {k + 1} is the {role}' for role, k in positions.items())}"
    else:
        roles = _find_columns(header, file)
        positions = {role: header.index(column) for role, column in roles.items()}
        reading = f"with {SEPARATORS[separator]} between cells: {_describe_columns(roles, header)}"
        del lines[0]
    rows: Rows = []
    for number, row in lines:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {number}: has {len(row)} cells; the first line has {len(header)}")
        rows.append((number, {role: row[k].strip() for role, k in positions.items()}))
    return rows, reading


def _read_json_rows(text: str, file: Path) -> tuple[Rows, str]:
    """Return the rows of a file of JSON objects, one per line, and text that says how it was read."""
    rows: Rows = []
    roles: dict[str, str] = {}
    columns: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}:"
        record = json_object(line, where)
        if not roles:
            columns = list(record)
            roles = _find_columns(columns, file)
        rows.append((number, {role: json_cell(record, column, where) for role, column in roles.items()}))
    return rows, f"of JSON objects: {_describe_columns(roles, columns)}"


def json_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object. Anything else raises ValueError with a message that begins with `where`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object")
    return value


def json_cell(record: Mapping[str, Any], column: str, where: str) -> str:
    """Return the text or whole number under `column` as text, "" if absent or null. Other types raise ValueError."""
    value = record.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where} {column!r} must be text or a whole number")
    return str(value)
