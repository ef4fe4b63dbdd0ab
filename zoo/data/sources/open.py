"""Opening a data set from what `--data` names.

Every source returns a `Dataset`, or a `Listing` of encoded images, from which `open_listing` makes one. A new source is
one file and one line in SOURCES.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from zoo.addresses import is_address, parse_address, require_local
from zoo.arguments import check_types
from zoo.data.dataset import Dataset, Note, nearest_names
from zoo.data.sources.folders import IMAGE_SUFFIXES, has_images, list_folder
from zoo.data.sources.hf import list_hf
from zoo.data.sources.listing import Listing, open_listing
from zoo.data.sources.named import NAMED_SETS, named_set
from zoo.data.sources.npz_idx import digits, idx_files, idx_folder, idx_prefix, is_idx_prefix, npz
from zoo.data.sources.points import moons, xor
from zoo.data.sources.remote import open_remote
from zoo.data.sources.shards import is_tar, list_shards, tar_files
from zoo.data.sources.tables import is_table, list_table
from zoo.data.sources.tfds import tfds_dataset
from zoo.suggest import nearest_path
from zoo.text import escape, one_line_errors

Spec = str | Path


class Source(NamedTuple):
    """A kind of data set that `open_source` can open."""

    recognise: Callable[[Spec], Any]
    """Return a true value if the source is one of this kind."""
    open: Callable[[Spec, Spec | None], Dataset | Listing]
    """Open it; the second argument is the folder of prepared data."""
    keyword: str = ""
    """The word in `--data` that names it, for suggestions."""


def _embedded(name: str, load: Callable[[], Dataset]) -> Source:
    """Return a source with a fixed name that needs no file; `./NAME` is a folder of that name."""

    def open_embedded(spec: Spec, data_dir: Spec | None) -> Dataset:
        dataset = load()
        if not _may_be_data(Path(name)):
            return dataset
        note = Note("source", f"the data set of this package; write ./{name} for the folder or file of that name here")
        return dataclasses.replace(dataset, notes=(*dataset.notes, note))

    return Source(lambda spec: os.fspath(spec) == name, open_embedded, name)


def _named(name: str, load: Callable[[], Dataset]) -> Source:
    """Return a source with a fixed name, for which a file or folder of that name takes precedence."""
    return Source(
        lambda spec: os.fspath(spec) == name and not _path(spec).exists(), lambda spec, data_dir: load(), name
    )


def _may_be_data(path: Path) -> bool:
    """Return True for a file, and for a folder that is neither empty nor a run or checkpoint."""
    if not path.is_dir():
        return path.exists()
    return any(path.iterdir()) and not any((path / file).exists() for file in ("config.json", "card.json"))


def _scheme(scheme: str, load: Callable[[str, Spec | None], Dataset | Listing]) -> Source:
    """Return a source that is named as "scheme:NAME"."""

    def recognise(spec: Spec) -> bool:
        return re.match(f"{scheme}:.", os.fspath(spec), re.DOTALL) is not None

    return Source(recognise, lambda spec, data_dir: load(os.fspath(spec).partition(":")[2], data_dir), f"{scheme}:")


def _folder(recognise: Callable[[Path], Any], load: Callable[[Path], Dataset | Listing]) -> Source:
    """Return a source for folders that `recognise` accepts."""
    return Source(lambda spec: _is_folder(spec) and recognise(_path(spec)), lambda spec, data_dir: load(_path(spec)))


def _file(recognise: Callable[[Path], Any], load: Callable[[Path], Dataset | Listing]) -> Source:
    """Return a source for paths, not folders, that `recognise` accepts."""
    return Source(
        lambda spec: not _is_folder(spec) and recognise(_path(spec)), lambda spec, data_dir: load(_path(spec))
    )


EMBEDDED: dict[str, Callable[[], Dataset]] = {"digits": digits, "xor": xor, "moons": moons}

SOURCES: tuple[Source, ...] = (  # the first one that recognises the data opens it
    *(_embedded(name, load) for name, load in EMBEDDED.items()),
    *(_named(name, partial(named_set, name)) for name in NAMED_SETS),
    _scheme("tfds", tfds_dataset),
    _scheme("hf", list_hf),
    _folder(idx_files, idx_folder),
    _folder(tar_files, list_shards),
    _folder(has_images, list_folder),
    _file(is_idx_prefix, idx_prefix),
    _file(is_table, list_table),
    _file(is_tar, list_shards),
    _file(lambda path: path.suffix.lower() == ".npz" and path.is_file(), npz),
)

UNPACK = {".zip": "unzip", ".7z": "7z x", ".rar": "unrar x"}  # suffix of an archive -> command that unpacks it

SUPPORTED = (
    "digits, xor, moons, mnist, fashion-mnist, cifar10, tfds:NAME[/CONFIG], hf:NAME, a folder of class folders (with "
    "or without train, val and test folders above them), a .csv, .tsv or .jsonl table of paths and labels, .tar "
    "shards, an .npz file, or a folder of IDX files"
)


def open_source(spec: Spec, data_dir: Spec | None = None) -> Dataset | Listing:
    """Open what `--data` names, without reading the images of sources that list encoded images.

    Args:
        spec: a name, "tfds:NAME[/CONFIG]", "hf:NAME", or the path of a file or folder.
        data_dir: folder in which TFDS and `datasets` keep prepared data; their own defaults if None.

    Returns:
        A Listing for a source of encoded images, else a Dataset.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the source is not supported or not valid; one line.
    """
    if is_address(spec):
        with one_line_errors():
            return open_remote(parse_address(spec))
    if data_dir is not None:
        require_local(data_dir)
    if _is_folder(spec) and _is_system_root(_path(spec).resolve()):
        raise ValueError(f"{spec}: is not a folder of data; name the folder that contains the class folders")
    if os.fspath(spec) not in EMBEDDED and str(_path(spec)) in EMBEDDED:  # ./digits, which runs record by its path
        spec = _path(spec).absolute()
    for source in SOURCES:
        with one_line_errors():
            if source.recognise(spec):
                return source.open(spec, data_dir)
    raise _unrecognised(spec)


@check_types()
def open_dataset(spec: Spec, data_dir: Spec | None = None) -> Dataset:
    """Open the data set that `--data` names; SUPPORTED lists what it may be.

    Args:
        spec: a name, "tfds:NAME[/CONFIG]", "hf:NAME", or the path of a file or folder.
        data_dir: folder in which TFDS and `datasets` keep prepared data; their own defaults if None.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the source is not supported or not valid; one line.

    Example:
        >>> dataset = open_dataset("digits")
        >>> {name: len(split) for name, split in dataset.splits.items()}
        {'train': 1258, 'validation': 180, 'test': 359}
    """
    source = open_source(spec, data_dir)
    with one_line_errors():
        return open_listing(source) if isinstance(source, Listing) else source


def names_data(spec: Any) -> bool:
    """Return True for the name, file or folder of a data set of a known kind, which may still have faults."""
    try:
        return isinstance(spec, (str, Path)) and any(source.recognise(spec) for source in SOURCES)
    except (ValueError, OSError, RuntimeError):  # of a path such as ~nobody
        return False


def _path(spec: Spec) -> Path:
    return Path(spec).expanduser()


def _is_folder(spec: Spec) -> bool:
    return bool(os.fspath(spec)) and _path(spec).is_dir()  # Path("") is the current folder


def _is_system_root(path: Path) -> bool:
    """Return True for the root of a file system, and below /proc and /sys, whose files have no end."""
    return path == Path(path.anchor) or (os.name == "posix" and path.parts[1] in ("proc", "sys"))


def _unpack_command(path: Path) -> str:
    """Return the command that unpacks an archive that is not read, "" for other files."""
    if not path.is_file():
        return ""
    is_zip = not path.suffix and zipfile.is_zipfile(path)
    program = UNPACK.get(".zip" if is_zip else path.suffix.lower(), "")
    return f"{program} {shlex.quote(escape(str(path)))}" if program else ""


def _unrecognised(spec: Spec) -> Exception:
    """Return the error for a source that none of SOURCES recognises."""
    text, path = os.fspath(spec), _path(spec)
    keywords = [source.keyword for source in SOURCES if source.keyword]
    if text.endswith(":") and text in keywords:
        return ValueError(f"{text!r} names no data set; write {text}NAME, for example {text}mnist")
    if _is_folder(spec):
        if archive := next((file for file in sorted(path.iterdir()) if _unpack_command(file)), None):
            return ValueError(
                f"{path}: this folder has no class folders with images, but an archive; unpack it: "
                f"{_unpack_command(archive)}"
            )
        return ValueError(
            f"{path}: this folder has no class folders with images, tar shards or IDX files; put the images of each "
            "class in a folder, or list them in a table of paths and labels"
        )
    if path.exists() and not path.is_file() and not path.is_dir():
        return ValueError(f"{path}: is a pipe, a socket or a device; write the data to a file")
    if command := _unpack_command(path):
        return ValueError(f"{path}: is an archive; unpack it ({command}) and name the folder")
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return ValueError(
            f"{path}: is a single image; data are a folder with one subfolder of images per class. Classify single "
            "images with `zoo predict`"
        )
    if path.is_file():
        return ValueError(f"{path}: unsupported file type; supported are {SUPPORTED}")
    if re.search(r"\.\w{2,6}$", path.name) or os.sep in text:
        meant = nearest_path(path)
        return FileNotFoundError(f"{path}: no such file or folder" + (f"; did you mean {meant}?" if meant else ""))
    local = [name for name in os.listdir() if not name.startswith(".")]
    scheme, colon, _ = text.partition(":")
    schemes = [keyword for keyword in keywords if keyword.endswith(":")]
    hint = (colon and nearest_names(scheme + colon, schemes)) or nearest_names(text, (*keywords, *local))
    return ValueError(f"unknown data {text!r}: no such file or folder{hint}; supported are {SUPPORTED}")
