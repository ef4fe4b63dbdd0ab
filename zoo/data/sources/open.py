"""Data sets: whatever `--data` names, opened as splits of random-access records and class names.

Every source gives the same `Dataset`. A new kind of source is one file and one line in the tables above
`open_dataset`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.cache import cache_folder
from zoo.data.dataset import (
    ArraySplit,
    Dataset,
    EncodedSplit,
    Split,
    held_out,
    limited,
    nearest_names,
    record_keys,
    subset,
)
from zoo.data.sources.arrays import from_arrays
from zoo.data.sources.folders import has_images, list_folder
from zoo.data.sources.hf import list_hf
from zoo.data.sources.listing import Listing, open_listing
from zoo.data.sources.npz_idx import digits, idx_files, idx_folder, npz
from zoo.data.sources.shards import TAR, braces, list_shards, tar_files
from zoo.data.sources.tables import list_table
from zoo.data.sources.tfds import tfds_dataset

__all__ = [
    "ArraySplit",
    "Dataset",
    "EncodedSplit",
    "Split",
    "cache_folder",
    "from_arrays",
    "held_out",
    "limited",
    "open_dataset",
    "record_keys",
    "subset",
]

NAMED: dict[str, Callable[[], Dataset]] = {"digits": digits}
SCHEMES: dict[str, Callable[[str, str | Path | None], Dataset]] = {"tfds": tfds_dataset}
FILES: dict[str, Callable[[Path], Dataset]] = {".npz": npz}
FOLDERS: tuple[tuple[Callable[[Path], Any], Callable[[Path], Dataset]], ...] = ((idx_files, idx_folder),)

# The same for sources that are lists of encoded images, which are looked at before they are used
LISTED_SCHEMES: dict[str, Callable[[str, str | Path | None], Listing]] = {"hf": list_hf}
LISTED_FILES: tuple[tuple[str, Callable[[Path], Listing]], ...] = (
    (r"\.(csv|tsv|tab|jsonl|ndjson)", list_table),
    (TAR, list_shards),
)
LISTED_FOLDERS: tuple[tuple[Callable[[Path], Any], Callable[[Path], Listing]], ...] = (
    (tar_files, list_shards),
    (has_images, list_folder),
)

UNDERSTOOD = (
    "digits, tfds:NAME[/CONFIG], hf:NAME, a folder of class folders (with train, val, test above them or not), a .csv, "
    ".tsv or .jsonl of path and label, .tar shards, an .npz file, or a folder of IDX files"
)


def list_source(spec: str | Path, data_dir: str | Path | None = None) -> Listing | None:
    """The encoded images that `spec` names, before any is opened; None where it is a source of another kind."""
    text = os.fspath(spec)
    scheme, colon, rest = text.partition(":")
    if colon and rest and scheme in LISTED_SCHEMES:
        return LISTED_SCHEMES[scheme](rest, data_dir)
    path = Path(text).expanduser()
    if text and path.is_dir():
        if any(recognise(path) for recognise, _ in FOLDERS):
            return None
        return next((reader(path) for recognise, reader in LISTED_FOLDERS if recognise(path)), None)
    for ending, reader in LISTED_FILES:
        if re.search(ending + "$", path.name.lower()) and (path.is_file() or braces(text) != [text]):
            return reader(path)
    return None


def open_dataset(spec: str | Path, data_dir: str | Path | None = None) -> Dataset:
    """Open what `--data` names: see UNDERSTOOD.

    Args:
        spec: a name, "tfds:NAME[/CONFIG]", "hf:NAME", or the path of a file or folder.
        data_dir: where TFDS and `datasets` keep what they prepared; their own defaults if not given.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: not understood, or not what it should be; one line.
    """
    text = os.fspath(spec)
    if isinstance(spec, str) and text in NAMED:
        return NAMED[text]()
    scheme, colon, rest = text.partition(":")
    if colon and scheme in (*SCHEMES, *LISTED_SCHEMES) and not rest:
        raise ValueError(f"{text!r} names no data set; give {scheme}:NAME, for example tfds:mnist")
    if colon and scheme in SCHEMES:
        return SCHEMES[scheme](rest, data_dir)
    if listing := list_source(spec, data_dir):
        return open_listing(listing)
    path = Path(text).expanduser()
    if text and path.is_dir():
        for recognise, reader in FOLDERS:
            if recognise(path):
                return reader(path)
        raise ValueError(
            f"{path}: is a folder, but neither one of class folders with images in them nor one of tar shards or IDX "
            "files; put each class's images in a folder, or name them in a table of path and label"
        )
    if path.is_file():
        if (suffix := path.suffix.lower()) in FILES:
            return FILES[suffix](path)
        raise ValueError(f"{path}: is not a file that is understood as data; understood are {UNDERSTOOD}")
    if re.search(r"\.\w{2,6}$", path.name) or os.sep in text:
        raise FileNotFoundError(f"{path}: no such file or folder")
    here = [name for name in os.listdir() if not name.startswith(".")]
    hint = nearest_names(text, (*NAMED, *here))
    if colon and not hint:
        hint = nearest_names(scheme, (*SCHEMES, *LISTED_SCHEMES))
    raise ValueError(f"data {text!r} is no file or folder here, and not understood{hint}; understood are {UNDERSTOOD}")
