"""Data sets: whatever `--data` names, opened as splits of random-access records and class names.

Every source gives the same `Dataset`. A new kind of source is one file and one line in the tables above
`open_dataset`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.data.array_files import digits, idx_files, idx_folder, npz
from zoo.data.arrays import from_arrays
from zoo.data.cache import cache_folder
from zoo.data.dataset import ArraySplit, Dataset, EncodedSplit, Split, held_out, nearest_names, record_keys, subset
from zoo.data.tfds import tfds_dataset

__all__ = [
    "ArraySplit",
    "Dataset",
    "EncodedSplit",
    "Split",
    "cache_folder",
    "from_arrays",
    "held_out",
    "open_dataset",
    "record_keys",
    "subset",
]

NAMED: dict[str, Callable[[], Dataset]] = {"digits": digits}
SCHEMES: dict[str, Callable[[str, str | Path | None], Dataset]] = {"tfds": tfds_dataset}
FILES: dict[str, Callable[[Path], Dataset]] = {".npz": npz}
FOLDERS: tuple[tuple[Callable[[Path], Any], Callable[[Path], Dataset]], ...] = ((idx_files, idx_folder),)

UNDERSTOOD = "digits, tfds:NAME[/CONFIG], an .npz file, or a folder of IDX files (train-images-idx3-ubyte[.gz], …)"


def open_dataset(spec: str | Path, data_dir: str | Path | None = None) -> Dataset:
    """Open what `--data` names.

    Args:
        spec: "digits", "tfds:NAME[/CONFIG]", the path of an .npz file, or of a folder of IDX files.
        data_dir: where TFDS keeps its prepared data sets; its own default if not given. Other sources need none.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: not understood, or not what it should be; one line.
    """
    text = os.fspath(spec)
    if isinstance(spec, str) and text in NAMED:
        return NAMED[text]()
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        if not rest:
            raise ValueError(f"{text!r} names no data set; give {scheme}:NAME, for example tfds:mnist")
        return SCHEMES[scheme](rest, data_dir)
    path = Path(text).expanduser()
    if text and path.is_dir():
        for recognise, reader in FOLDERS:
            if recognise(path):
                return reader(path)
        raise ValueError(f"{path}: is a folder, but not one of IDX files; understood are {UNDERSTOOD}")
    if path.is_file():
        if (suffix := path.suffix.lower()) in FILES:
            return FILES[suffix](path)
        raise ValueError(f"{path}: is not a file that is understood as data; understood are {UNDERSTOOD}")
    if path.suffix.lower() in FILES or os.sep in text:
        raise FileNotFoundError(f"{path}: no such file or folder")
    hint = nearest_names(text, NAMED)
    if colon and not hint:
        hint = nearest_names(scheme, SCHEMES)
    raise ValueError(f"data {text!r} is not understood{hint}; understood are {UNDERSTOOD}")
