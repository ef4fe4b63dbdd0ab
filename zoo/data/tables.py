"""A table of images and labels: CSV, TSV or JSON Lines, each row a path (relative to the table) and a class."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.data.listing import FileStore, Listing, split_of, stamp_of_files

# What people call the columns; case, "_", "-" and spaces do not count
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    "label": ("label", "labels", "class", "classname", "category", "target", "y", "species", "diagnosis"),
    "split": ("split", "set", "subset", "partition", "fold"),
}


def list_table(file: Path) -> Listing:
    """List the images that a table names.

    The columns are found by their names (COLUMNS); a table of two columns without a header is path and label. A column
    for the split is optional; its values are spelled as people spell splits.

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
        reader = csv.reader(text.splitlines(), delimiter=separator, strict=True)
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{file}: is not a table that can be read ({error})") from None
    if not lines:
        return []
    header = [cell.strip() for cell in lines[0][1]]
    if len(header) == 2 and (file.parent / header[0]).is_file():
        return [(number, dict(zip(("path", "label"), map(str.strip, row), strict=False))) for number, row in lines]
    places = {role: header.index(column) for role, column in _roles(header, file).items()}
    rows: list[tuple[int, Mapping[str, str]]] = []
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {number}: has {len(row)} cells where the first line has {len(header)}")
        rows.append((number, {role: row[place].strip() for role, place in places.items()}))
    return rows


def _json_rows(text: str, file: Path) -> list[tuple[int, Mapping[str, str]]]:
    rows: list[tuple[int, Mapping[str, str]]] = []
    roles: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number}: is not a JSON object")
        roles = roles or _roles(list(record), file)
        cells = {role: record.get(column) for role, column in roles.items()}
        if any(isinstance(cell, (dict, list, float, bool)) for cell in cells.values()):
            raise ValueError(f"{file}, line {number}: path, label and split are text or whole numbers")
        rows.append((number, {role: "" if cell is None else str(cell) for role, cell in cells.items()}))
    return rows
