"""Finding the files that a table names: with backslashes, without an ending, or relative to another folder."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from zoo.data.dataset import Note
from zoo.data.sources.folders import IMAGE_SUFFIXES, FolderWalk
from zoo.data.sources.names import canonical_split, escape
from zoo.text import first_few

DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])|file://")


def resolve_paths(root: Path, names: Sequence[str], split: str = "") -> tuple[list[str], list[Note]]:
    """Find the files that a table means.

    Names of existing files stay. Others are compared with the files below `root`, without regard to case, with
    backslashes as slashes and with or without an ending. A name means a file if it is the end of the file's path, as in
    "1" for train/1.png, or if the file's path is the end of the name, as in C:\\data\\train\\1.png.

    Args:
        root: the folder that paths are relative to.
        names: the paths in the table.
        split: the split of the whole table, as in train.csv; a name that may mean files in several folders means that
            in the folder of this split.

    Returns:
        The paths relative to `root`, or the names themselves where there is no such file; and a note if some of them
        are spelt differently.

    Raises:
        ValueError: a name that may mean several files, or two names that mean the same file.
    """
    missing = sorted({name for name in names if not os.path.exists(root / name)})
    if not missing:
        return list(names), []
    files = _index_files(root, {len(_parts(name)) for name in missing})
    found = {name: path for name in missing if (path := _find(name, files, root, split))}
    meaning: dict[str, str] = {}
    given = set(names)
    for name, path in found.items():
        if path in given or meaning.setdefault(path, name) != name:
            other = path if path in given else meaning[path]
            raise ValueError(
                f"{root}: {escape(other)!r} and {escape(name)!r} may both mean the file {escape(path)}; "
                "write paths relative to the table"
            )
    notes = []
    if found:
        examples = [f"{escape(name)!r} is {escape(path)}" for name, path in found.items()]
        notes.append(
            Note("source", f"{len(found):,} paths are spelt differently on this system: {first_few(examples, 2)}")
        )
    return [found.get(name, name) for name in names], notes


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path in lower case, without drive, root and dots."""
    posix = DRIVE.sub("", name).replace("\\", "/").casefold()
    return tuple(part for part in PurePosixPath(posix).parts if part not in ("/", "//", ".", ".."))


def _without_suffix(part: str) -> str:
    stem, suffix = os.path.splitext(part)
    return stem if suffix in IMAGE_SUFFIXES else part


Files = dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]]


def _key(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parts of a path with the last one without the ending of an image."""
    return (*parts[:-1], _without_suffix(parts[-1]))


def _index_files(root: Path, lengths: Collection[int]) -> Files:
    """Return {key: [(parts, path relative to root)]} of all images below root.

    The keys are those of the whole path and of its last parts, as many as `lengths` has, so that a name need not be
    compared with every file.
    """
    index: Files = defaultdict(list)
    for path in FolderWalk(str(root)).images(""):
        parts = _parts(path)
        for length in {len(parts), *(length for length in lengths if 0 < length <= len(parts))}:
            index[_key(parts[-length:])].append((parts, path))
    return index


def _find(name: str, files: Files, root: Path, split: str) -> str | None:
    """Return the file that a name means, or None."""
    parts = _parts(name)
    if not parts:
        return None
    is_relative = DRIVE.match(name) is None and name[:1] not in ("/", "\\")
    is_elsewhere = not is_relative or not os.path.exists(root / name.replace("\\", "/").split("/")[0])
    has_suffix = _key(parts) != parts
    paths: list[str] = []
    for shared in range(len(parts), 0, -1):  # parts that name and file have in common: all parts of one of them
        if paths or (shared < len(parts) and not is_elsewhere):
            break
        paths = [
            path
            for file_parts, path in files.get(_key(parts[-shared:]), ())
            if (shared == len(parts) or len(file_parts) == shared) and (not has_suffix or file_parts[-1] == parts[-1])
        ]
    if len(paths) > 1 and split:
        paths = [path for path in paths if split in map(canonical_split, Path(path).parts[:-1])] or paths
    if len(paths) > 1:
        raise ValueError(
            f"{root}: {escape(name)!r} may mean {' or '.join(map(escape, paths[:3]))}; write paths relative "
            "to the table"
        )
    return paths[0] if paths else None
