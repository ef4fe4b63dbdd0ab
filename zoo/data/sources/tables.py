"""Tables of images and labels: CSV, TSV or JSON Lines. Each row is a path, relative to the table, and a class."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol

from zoo.data.dataset import Note
from zoo.data.sources.folders import IMAGE_SUFFIXES
from zoo.data.sources.listing import FileStore, Listing, stamp_files
from zoo.data.sources.names import canonical_split, escape, similar_split
from zoo.data.sources.paths import resolve_paths
from zoo.data.splits import Store
from zoo.files import MAX_TEXT, read_bounded
from zoo.text import first_few

JSON_LINES = (".jsonl", ".ndjson")
TAB_SEPARATED = (".tsv", ".tab")
SUFFIXES = (".csv", *TAB_SEPARATED, *JSON_LINES)

# Usual names of the columns, in lower case without "_", "-" and spaces; the latter group counts only without the former
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    "label": ("label", "labels", "class", "classname", "category", "target", "y", "species", "diagnosis"),
    "split": ("split", "set", "subset", "partition", "fold"),
}
WEAK_COLUMNS: dict[str, tuple[str, ...]] = {
    "path": (
        "id", "imageid", "imgid", "idcode", "fileid", "fname", "name", "photo", "picture", "imagefilename", "relpath",
        "filenames", "files", "images", "imgname", "imgfile", "isicid",
    ),
    "label": (
        "classid", "labelid", "labelname", "categoryid", "categoryname", "breed", "cls", "tag", "tags", "classlabel",
        "dx", "level", "whaleid", "groundtruth", "annotation",
    ),
    "split": (),
}  # fmt: skip
FLAG_COLUMNS = {"train": ("istrain",), "validation": ("isvalid", "isval", "isvalidation"), "test": ("istest",)}
TRUE, FALSE = ("true", "1", "1.0", "yes", "y", "t"), ("false", "0", "0.0", "no", "n", "f", "")
OTHER = "column "
MISSING = ("nan", "<na>", "#n/a", "null")  # as programs write missing values, in lower case

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

# (line number, {role: cell}); the roles are the keys of COLUMNS and FLAG_COLUMNS, and OTHER + name for other columns
Row = tuple[int, Mapping[str, str]]
Rows = list[Row]


def is_table(path: Path) -> bool:
    """Return True if the path is a file with the suffix of a table."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


class TableFiles(Protocol):
    """The files that a table may name, with the table itself."""

    def read(self) -> bytes:
        """Return the content of the table."""

    def resolve(self, names: Sequence[str], split: str) -> tuple[list[str], list[Note]]:
        """Return the names under which `open` finds the files, as `resolve_paths` does."""

    def open(self, names: Sequence[str], columns: Mapping[str, tuple[str, ...]]) -> tuple[Store, str]:
        """Return the store of files, and a stamp that changes with the table and any of them."""


class _OnDisk:
    """The files of a table on disk."""

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> bytes:
        return read_bounded(self.file, MAX_TEXT)

    def resolve(self, names: Sequence[str], split: str) -> tuple[list[str], list[Note]]:
        return resolve_paths(self.file.parent, names, split)

    def open(self, names: Sequence[str], columns: Mapping[str, tuple[str, ...]]) -> tuple[Store, str]:
        root = str(self.file.parent)
        return FileStore(root, tuple(names), columns), stamp_files(root, [self.file.name, *names])


def list_table(file: Path) -> Listing:
    """List the images that a table names.

    Columns are recognised by their names (COLUMNS, WEAK_COLUMNS). A table without a header, whose first cell is an
    existing file, has the columns path, label and optionally split. The split column may use any usual name of a split;
    columns such as is_valid are true or false. A column "fold" of numbers is not used. A table may also have one column
    per class, with 1 for the class of the image and 0 otherwise. Paths may have backslashes or lack the folder or the
    ending; see `resolve_paths`.

    Raises:
        ValueError: the file is not a table, its columns are missing or ambiguous, or a row has no path, label or known
            split, or another class than an earlier row for the same file.
    """
    return listing_of_table(file, _OnDisk(file))


def listing_of_table(file: PurePath, files: TableFiles) -> Listing:
    """List the images that a table names.

    Args:
        file: path or address of the table.
        files: the table and the files that it may name.

    Raises:
        ValueError: as `list_table`.
    """
    text = _decode_text(files.read(), file)
    read_rows = _read_json_rows if file.suffix.lower() in JSON_LINES else _read_separated_rows
    rows, reading = read_rows(text, file)
    if not rows:
        raise ValueError(f"{file}: has no rows")
    notes = [Note("source", f"read as a table {reading}")]
    rows = _without_folds(rows, notes)
    splits = [_row_split(row, f"{file}, line {number}") for number, row in rows]
    rows, splits = _without_unlabelled_test(rows, splits, notes)
    for number, row in rows:
        for role in ("path", "label"):
            if not row.get(role, "") or (role == "label" and row[role].lower() in MISSING):
                written = f" ({row[role]!r})" if row.get(role) else ""
                raise ValueError(f"{file}, line {number}: has no {role}{written}")
        if "\0" in row["path"]:
            raise ValueError(f"{file}, line {number}: the path has a NUL character in it")
    split = next(filter(None, map(canonical_split, re.split(r"[^A-Za-z]+", file.stem))), "")
    names, spelling = files.resolve([row["path"] for _, row in rows], split)
    used = _distinct_rows(rows, names, splits, file, notes)
    store, stamp = files.open([names[i] for i in used], _other_columns([rows[i][1] for i in used]))
    return Listing(
        name=str(file),
        store=store,
        splits=tuple(splits[i] for i in used),
        labels=tuple(rows[i][1]["label"] for i in used),
        stamp=stamp,
        notes=(*notes, *spelling),
    )


def _other_columns(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return the cells of the columns that have no role, by column."""
    names = dict.fromkeys(key for row in rows for key in row if key.startswith(OTHER))
    return {name.removeprefix(OTHER): tuple(row.get(name, "") for row in rows) for name in names}


def _decode_text(data: bytes, file: PurePath) -> str:
    encoding = BYTE_ORDER_MARKS.get(data[:2], "utf-8-sig")
    try:
        if encoding != "utf-16" and b"\0" in data[:2]:  # UTF-16 without a byte order mark
            raise ValueError
        return data.decode(encoding)
    except ValueError:  # UnicodeDecodeError is one
        raise ValueError(f"{file}: is not a text file in UTF-8; save the table as UTF-8") from None


def _without_folds(rows: Rows, notes: list[Note]) -> Rows:
    """Return the rows without their split if it is the number of a fold for cross-validation."""
    folds = sorted({row.get("split", "") for _, row in rows})
    if not all(fold.isdecimal() for fold in folds) or "fold" not in rows[0][1]:
        return rows
    text = f"not used: the folds {first_few(folds)} of a cross-validation; for splits, name them train, val and test"
    notes.append(Note("unused", text))
    return [(number, {role: cell for role, cell in row.items() if role != "split"}) for number, row in rows]


def _row_split(row: Mapping[str, str], where: str) -> str:
    """Return the split of a row, "" if it does not say."""
    if "split" in row:
        if split := canonical_split(row["split"]):
            return split
        meant = similar_split(row["split"])
        hint = f"did you mean {meant!r}?" if meant else "use train, val or test"
        raise ValueError(f"{where}: unknown split {row['split']!r}; {hint}")
    flags = {name: row[name].lower() for name in FLAG_COLUMNS if name in row}
    for name, flag in flags.items():
        if flag not in TRUE + FALSE:
            raise ValueError(f"{where}: {flag!r} must be true or false, since the column says which images are {name}")
    chosen = [name for name, flag in flags.items() if flag in TRUE]
    if len(chosen) > 1:
        raise ValueError(f"{where}: is both {' and '.join(chosen)}; every image must be in one split")
    if chosen or not flags:
        return chosen[0] if chosen else ""
    without_column = [name for name in ("train", "test", "validation") if name not in flags]
    if not without_column:
        raise ValueError(f"{where}: is in none of {', '.join(flags)}; every image must be in one split")
    return without_column[0]


def _without_unlabelled_test(rows: Rows, splits: list[str], notes: list[Note]) -> tuple[Rows, list[str]]:
    """Return the rows without the test split if none of its rows has a label."""
    test = [row for (_, row), split in zip(rows, splits, strict=True) if split == "test"]
    if not test or len(test) == len(rows) or any(row.get("label") for row in test):
        return rows, splits
    notes.append(Note("unused", f"not used: the {len(test):,} rows of the test split, which have no label", "test"))
    labelled = [i for i, split in enumerate(splits) if split != "test"]
    return [rows[i] for i in labelled], [splits[i] for i in labelled]


def _distinct_rows(
    rows: Rows, names: Sequence[str], splits: Sequence[str], file: PurePath, notes: list[Note]
) -> list[int]:
    """Return the indices of the rows without those that repeat an earlier one; "./a.png" is "a.png".

    Raises:
        ValueError: two rows for one file with different labels or splits.
    """
    first: dict[str, int] = {}
    for i, ((number, row), name) in enumerate(zip(rows, names, strict=True)):
        k = first.setdefault(posixpath.normpath(name), i)
        for what, a, b in (("class", rows[k][1]["label"], row["label"]), ("split", splits[k], splits[i])):
            if a != b:
                raise ValueError(
                    f"{file}, line {number}: {escape(name)} has the {what} {b}, but {a} in line {rows[k][0]}; give "
                    f"every image one {what}"
                )
    if repeated := len(rows) - len(first):
        notes.append(Note("unused", f"not used: {repeated:,} rows that repeat an earlier one"))
    return list(first.values())


def _plain(column: str) -> str:
    return "".join(c for c in column.lower() if c not in "_- ")


def _find_columns(columns: Sequence[str], file: PurePath) -> dict[str, str]:
    """Return {role: column}; label, split and flags may be absent. A number of a fold has the role "fold" as well."""
    roles = {}
    for role, spellings in COLUMNS.items():
        matching = [c for c in columns if _plain(c) in spellings]
        matching = matching or [c for c in columns if _plain(c) in WEAK_COLUMNS[role]]
        if role == "split" and len(matching) > 1:
            matching = [c for c in matching if _plain(c) != "fold"]
        if len(matching) > 1:
            raise ValueError(f"{file}: columns {' and '.join(matching)} may both be the {role}; rename one of them")
        if matching:
            roles[role] = matching[0]
    if _plain(roles.get("split", "")) == "fold":
        roles["fold"] = roles["split"]
    if "split" not in roles or "fold" in roles:
        flags = {name: c for name, spellings in FLAG_COLUMNS.items() for c in columns if _plain(c) in spellings}
        if flags:
            roles = {role: column for role, column in roles.items() if role not in ("split", "fold")} | flags
    return roles


def _require_columns(roles: Mapping[str, str], columns: Sequence[str], file: PurePath) -> None:
    for role in ("path", "label"):
        if role not in roles:
            raise ValueError(f"{file}: no {role} column among {', '.join(columns)}; name one of them {role!r}")


def _column_of_splits(
    header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]], roles: Mapping[str, str]
) -> str:
    """Return the only other column whose cells are all names of splits, at least two of them; "" without one."""
    columns = []
    for k, name in enumerate(header):
        cells = {row[k].strip() for _, row in lines} if name not in roles.values() else set()
        if len(cells) > 1 and all(map(canonical_split, cells)):
            columns.append(name)
    return columns[0] if len(columns) == 1 else ""


def _one_hot_columns(
    header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]], roles: Mapping[str, str]
) -> list[int]:
    """Return the columns of a table with one column per class, or [] for other tables."""
    if "label" in roles or "path" not in roles:
        return []
    columns = [k for k, name in enumerate(header) if name not in roles.values()]
    cells = {row[k].strip() for _, row in lines for k in columns if k < len(row)}
    return columns if len(columns) > 1 and cells and cells <= {"0", "1", "0.0", "1.0"} else []


def _describe_columns(roles: Mapping[str, str], columns: Sequence[str]) -> str:
    """Return text that says which columns are used for what, so that people can check it."""
    used = ", ".join(f"{role} from {escape(column)!r}" for role, column in roles.items() if role != "fold")
    unused = [repr(escape(column)) for column in columns if column not in roles.values()]
    has_split = "split" in roles or any(name in roles for name in FLAG_COLUMNS)
    return used + ("" if has_split else ", no split") + (f"; not used: {first_few(unused)}" if unused else "")


def _read_separated_rows(text: str, file: PurePath) -> tuple[Rows, str]:
    """Return the rows of a table of separated cells, and text that says how it was read."""
    separator = ""
    if text.startswith("sep=") and text[4:5] in SEPARATORS:  # as Excel writes it
        separator, text = text[4], "\n" + text.partition("\n")[2]
    first = re.sub(r'"[^"]*"', "", text.lstrip("\n").split("\n", 1)[0])  # without the cells in quotes
    if file.suffix.lower() in TAB_SEPARATED:
        separator = "\t"
    separator = separator or max(SEPARATORS, key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{file}: is not a valid table ({error})") from None
    if not lines:
        return [], ""
    header = [cell.strip() for cell in lines[0][1]]
    for number, row in lines:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {number}: has {len(row)} cells; the first line has {len(header)}")
    roles = _find_columns(header, file)
    if len(header) in (2, 3) and (_is_file(header[0], file) or not roles) and _is_image_path(header[0], file):
        positions = {role: k for k, role in enumerate(("path", "label", "split")[: len(header)])}
        reading = f"without a header: {', '.join(f'column {k + 1} is the {role}' for role, k in positions.items())}"
        return [(n, {role: row[k].strip() for role, k in positions.items()}) for n, row in lines], reading
    del lines[0]
    if classes := _one_hot_columns(header, lines, roles):
        return _one_hot_rows(header, lines, roles, classes, file)
    _require_columns(roles, header, file)
    if not {"split", *FLAG_COLUMNS} & set(roles) and (column := _column_of_splits(header, lines, roles)):
        roles["split"] = column
    positions = {role: header.index(column) for role, column in roles.items()}
    positions |= {OTHER + name: header.index(name) for name in header if name and name not in roles.values()}
    reading = f"with {SEPARATORS[separator]} between cells: {_describe_columns(roles, header)}"
    return [(n, {role: row[k].strip() for role, k in positions.items()}) for n, row in lines], reading


def _is_file(name: str, file: PurePath) -> bool:
    return os.path.isfile(file.parent / name)


def _is_image_path(name: str, file: PurePath) -> bool:
    """Return True if a cell is the path of an existing file, or has the ending of an image."""
    return _is_file(name, file) or name.lower().endswith(tuple(IMAGE_SUFFIXES))


def _one_hot_rows(
    header: Sequence[str],
    lines: Sequence[tuple[int, Sequence[str]]],
    roles: Mapping[str, str],
    classes: Sequence[int],
    file: PurePath,
) -> tuple[Rows, str]:
    """Return the rows of a table with one column per class."""
    rows: Rows = []
    for number, row in lines:
        chosen = [header[k] for k in classes if row[k].strip().startswith("1")]
        if len(chosen) != 1:
            listed = " and ".join(chosen) or "no class"
            raise ValueError(f"{file}, line {number}: has {listed}; every image must have one class")
        cells = {role: row[header.index(column)].strip() for role, column in roles.items()}
        rows.append((number, {**cells, "label": chosen[0]}))
    names = first_few([repr(escape(header[k])) for k in classes])
    return rows, f"with one column per class ({names}): {_describe_columns(roles, list(roles.values()))}"


def _read_json_rows(text: str, file: PurePath) -> tuple[Rows, str]:
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
            _require_columns(roles, columns, file)
        cells = {role: json_cell(record, column, where) for role, column in roles.items()}
        others = {name: value for name, value in record.items() if name not in roles.values()}
        plain = {OTHER + name: str(value) for name, value in others.items() if isinstance(value, str | int | float)}
        rows.append((number, {**cells, **plain}))
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
    """Return the text or whole number under `column` as text, "" if absent or null. Other types raise ValueError.

    The columns of FLAG_COLUMNS may also be true or false.
    """
    value = record.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) and any(_plain(column) in names for names in FLAG_COLUMNS.values()):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where} {column!r} must be text or a whole number")
    return str(value)
