"""A table of images and labels: CSV, TSV or JSON Lines, each row a path (relative to the table) and a class."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.data.sources.listing import FileStore, Listing, shown, some, split_of, stamp_of_files

# What people call the columns; case, "_", "-" and spaces do not count
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    "label": ("label", "labels", "class", "classname", "category", "target", "y", "species", "diagnosis"),
    "split": ("split", "set", "subset", "partition", "fold"),
}

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def list_table(file: Path) -> Listing:
    """List the images that a table names.

    The columns are found by their names (COLUMNS); without a header, which is where the first cell is a file, they are
    path, label and perhaps split. The split's values are spelled as people spell splits.

    Raises:
        ValueError: not a table, columns that cannot be told apart, a row without a path, label or known split.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not a table in UTF-8") from None
    read = _json_rows if file.suffix.lower() in (".jsonl", ".ndjson") else _separated_rows
    rows, how = read(text, file)
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
            split = split_of(row["split"])
            if not split:
                raise ValueError(f"{file}, line {number}: the split {row['split']!r} is none of train, val and test")
        names.append(row["path"])
        labels.append(row["label"])
        splits.append(split)
    return Listing(
        name=str(file),
        store=FileStore(str(file.parent), tuple(names)),
        splits=tuple(splits),
        labels=tuple(labels),
        stamp=stamp_of_files(str(file.parent), [file.name, *names]),
        notes=(f"read as a table {how}",),
    )


def _roles(columns: Sequence[str], file: Path) -> dict[str, str]:
    """role -> the column that has it."""
    found = {}
    for role, known in COLUMNS.items():
        matching = [c for c in columns if "".join(k for k in c.lower() if k not in "_- ") in known]
        if len(matching) > 1:
            raise ValueError(f"{file}: {' and '.join(matching)} may both be the {role}; name one of them otherwise")
        if matching:
            found[role] = matching[0]
    for role in ("path", "label"):
        if role not in found:
            raise ValueError(
                f"{file}: which column is the {role}? It has {', '.join(columns)}; call it {role!r} in the first line"
            )
    return found


def _understood(roles: Mapping[str, str], columns: Sequence[str]) -> str:
    """What was made of the columns, for people to check."""
    taken = ", ".join(f"{role} from {shown(column)!r}" for role, column in roles.items())
    aside = [repr(shown(column)) for column in columns if column not in roles.values()]
    return taken + ("" if "split" in roles else ", no split") + (f"; not used: {some(aside)}" if aside else "")


def _separated_rows(text: str, file: Path) -> tuple[list[tuple[int, Mapping[str, str]]], str]:
    """(line number, {role: cell}) of every row, and a few words on how the table was read."""
    first = text.split("\n", 1)[0]
    separator = "\t" if file.suffix.lower() in (".tsv", ".tab") else max(SEPARATORS, key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{file}: is not a table that can be read ({error})") from None
    if not lines:
        return [], ""
    header = [cell.strip() for cell in lines[0][1]]
    if len(header) in (2, 3) and os.path.isfile(file.parent / header[0]):  # no header
        places = {role: place for place, role in enumerate(("path", "label", "split")[: len(header)])}
        how = f"without a header: {', '.join(f'column {place + 1} is the {role}' for role, place in places.items())}"
    else:
        roles = _roles(header, file)
        places = {role: header.index(column) for role, column in roles.items()}
        how = f"with {SEPARATORS[separator]} between cells: {_understood(roles, header)}"
        del lines[0]
    rows: list[tuple[int, Mapping[str, str]]] = []
    for number, row in lines:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {number}: has {len(row)} cells where the first line has {len(header)}")
        rows.append((number, {role: row[place].strip() for role, place in places.items()}))
    return rows, how


def _json_rows(text: str, file: Path) -> tuple[list[tuple[int, Mapping[str, str]]], str]:
    """As `_separated_rows`, of JSON objects; the columns are the names in the first one."""
    rows: list[tuple[int, Mapping[str, str]]] = []
    roles: dict[str, str] = {}
    columns: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}:"
        record = json_object(line, where)
        if not roles:
            columns = list(record)
            roles = _roles(columns, file)
        rows.append((number, {role: json_cell(record, column, where) for role, column in roles.items()}))
    return rows, f"of JSON objects: {_understood(roles, columns)}"


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that a text is; anything else is a ValueError that begins with `where`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not a JSON object")
    return found


def json_cell(record: Mapping[str, Any], column: str, where: str) -> str:
    """What a JSON object has under a name, "" for nothing or null; neither text nor a whole number is a ValueError."""
    value = record.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where} {column!r} must be text or a whole number")
    return str(value)
