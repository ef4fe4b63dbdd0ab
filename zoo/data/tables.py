"""A table of images and labels: CSV, TSV or JSON Lines, each row a path (relative to the table) and a class."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.data.listing import FileStore, Listing, split_of, stamp_of_files

# What people call the columns; case, "_", "-" and spaces do not count
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    "label": ("label", "labels", "class", "classname", "category", "target", "y", "species", "diagnosis"),
    "split": ("split", "set", "subset", "partition", "fold"),
}


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
    rows = _json_rows(text, file) if file.suffix.lower() in (".jsonl", ".ndjson") else _separated_rows(text, file)
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


def _separated_rows(text: str, file: Path) -> list[tuple[int, Mapping[str, str]]]:
    first = text.split("\n", 1)[0]
    separator = "\t" if file.suffix.lower() in (".tsv", ".tab") else max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{file}: is not a table that can be read ({error})") from None
    if not lines:
        return []
    header = [cell.strip() for cell in lines[0][1]]
    if len(header) in (2, 3) and os.path.isfile(file.parent / header[0]):  # no header
        places = {role: place for place, role in enumerate(("path", "label", "split")[: len(header)])}
    else:
        places = {role: header.index(column) for role, column in _roles(header, file).items()}
        del lines[0]
    rows: list[tuple[int, Mapping[str, str]]] = []
    for number, row in lines:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {number}: has {len(row)} cells where the first line has {len(header)}")
        rows.append((number, {role: row[place].strip() for role, place in places.items()}))
    return rows


def _json_rows(text: str, file: Path) -> list[tuple[int, Mapping[str, str]]]:
    rows: list[tuple[int, Mapping[str, str]]] = []
    roles: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}:"
        record = json_object(line, where)
        roles = roles or _roles(list(record), file)
        rows.append((number, {role: json_cell(record, column, where) for role, column in roles.items()}))
    return rows


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
