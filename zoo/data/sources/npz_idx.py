"""Data sets stored as arrays in files: scikit-learn's digits, .npz, and the IDX files of the MNIST family."""

from __future__ import annotations

import gzip
import importlib.util
import math
import re
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import SPLITS, Dataset, Note, create_missing_splits
from zoo.data.sources.arrays import dataset_from_pairs
from zoo.data.sources.names import canonical_split
from zoo.data.splits import ArraySplit, Pixels
from zoo.files import ZIP_ERRORS, read_text
from zoo.text import first_few, first_line, one_line

# --- digits -----------------------------------------------------------------------------------------------------------


def digits() -> Dataset:
    """Open scikit-learn's 1,797 handwritten digits of 8x8 pixels.

    They are a part of UCI's "Optical Recognition of Handwritten Digits" (1998). Their 17 grey levels are scaled to
    0..255. Validation and test are held out by content; see `hold_out_mask`.
    """
    table = _digits_table()
    pixels = np.rint(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    splits, _ = create_missing_splits({"train": ArraySplit(pixels, table[:, 64].astype(np.int32))})
    note = Note("source", "train, validation and test are 70 %, 10 % and 20 % of the records, chosen by content")
    return Dataset("digits", splits, tuple("0123456789"), (note,))


def _digits_table() -> NDArray[Any]:
    """Return 64 pixels and the label of each digit, [1797, 65].

    Reads the file in scikit-learn's wheel if it exists, because importing sklearn.datasets takes longer than all other
    host work of a short training.
    """
    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    file = Path(folders[0], "datasets", "data", "digits.csv.gz") if folders else None
    if file is not None and file.exists():
        return np.loadtxt(file, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])


# --- .npz -------------------------------------------------------------------------------------------------------------

# Keys of (images, labels) by split, as in files of Keras, MedMNIST and scikit-learn users
NPZ_KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("x_train", "y_train"),
        ("X_train", "y_train"),
        ("train_images", "train_labels"),
        ("images", "labels"),
        ("x", "y"),
        ("X", "y"),
    ),
    "validation": (
        ("x_val", "y_val"),
        ("X_val", "y_val"),
        ("x_valid", "y_valid"),
        ("x_validation", "y_validation"),
        ("val_images", "val_labels"),
        ("validation_images", "validation_labels"),
    ),
    "test": (("x_test", "y_test"), ("X_test", "y_test"), ("test_images", "test_labels")),
}


def npz(path: Path) -> Dataset:
    """Open an .npz file of NumPy arrays under the keys of NPZ_KEYS, and optionally "class_names". Nothing is unpickled.

    Raises:
        ValueError: a damaged file, other keys, or arrays that `from_arrays` does not accept.
    """
    name = str(path)
    try:
        with path.open("rb") as raw, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, on the headers of damaged arrays
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError(f"{name}: is a single array (.npy), not an .npz of images and labels")
            keys = list(file.files)
            pairs = {
                split: pair
                for split, spellings in NPZ_KEYS.items()
                if (pair := next((p for p in spellings if p[0] in keys and p[1] in keys), None))
            }
            if not pairs:
                raise ValueError(
                    f"{name}: contains {one_line(', '.join(keys) or 'nothing', 200)}; expected x_train, y_train "
                    "(x_test, y_test), or train_images, train_labels (val_…, test_…), or images, labels, or x, y"
                )
            _require_plausible_sizes(file, [key for pair in pairs.values() for key in pair], name)
            arrays = {split: (_array(file, x, name), _array(file, y, name)) for split, (x, y) in pairs.items()}
            names = _array(file, "class_names", name).ravel().tolist() if "class_names" in keys else None
    except ZIP_ERRORS as error:
        raise ValueError(f"{name}: is not a complete .npz file ({first_line(error)})") from None
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(f"{name}: is not an .npz file") from None
    dataset = dataset_from_pairs(arrays, names, name)
    used = {key for pair in pairs.values() for key in pair} | {"class_names"}
    if unused := [key for key in keys if key not in used]:
        return replace(dataset, notes=(*dataset.notes, Note("unused", f"not used: {one_line(', '.join(unused), 200)}")))
    return dataset


def _require_plausible_sizes(file: Any, keys: Sequence[str], name: str) -> None:
    """Raise ValueError for arrays that are compressed more than images can be."""
    for entry in file.zip.infolist():
        size, stored = entry.file_size, entry.compress_size
        if entry.filename.removesuffix(".npy") in keys and size > MAX_UNPACKED and size > MAX_EXPANSION * stored:
            raise ValueError(f"{name}: the array {entry.filename} claims {size:,} bytes, compressed to {stored:,}")


def _array(file: Any, key: str, name: str) -> NDArray[Any]:
    """Return an array of an .npz file. Arrays that are damaged, too large or pickled raise ValueError."""
    try:
        if not isinstance(array := file[key], np.ndarray):
            raise ValueError("not an array")
        if array.dtype.kind == "U" and array.size:
            code_points = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
            if code_points.size and code_points.max() > sys.maxunicode:
                raise ValueError("text with characters that do not exist")
        return array
    except MemoryError:
        raise ValueError(f"{name}: the array {key} does not fit in memory") from None
    except Exception as error:  # NumPy parses the header as Python, whose tokeniser has errors of its own
        if "llow_pickle" not in str(error):
            raise ValueError(f"{name}: the array {key} is damaged ({first_line(error)[:100]})") from None
        raise ValueError(
            f"{name}: the array {key} contains Python objects, which are never loaded; save numbers of one shape"
        ) from None


# --- IDX folders ------------------------------------------------------------------------------------------------------

IDX_NAME = re.compile(
    r"(?:(?P<prefix>.+)[-_.])?(?P<split>train|training|t10k|test|testing|val|valid|validation)[-_.]"
    r"(?P<kind>image|label)s?[-_.]idx\d?(?:[-_.]?ubyte)?(?:\.gz)?",
    re.IGNORECASE,
)
MAX_EXPANSION = 200  # times; images compress less, and files that claim more than MAX_UNPACKED may be bombs
MAX_UNPACKED = 2**30  # bytes

IdxFiles = dict[tuple[str, str], Path]  # {(split, "images" or "labels"): file}


def idx_files(folder: Path) -> dict[str, IdxFiles]:
    """Return the IDX files in a folder by the prefix of their names: "" for train-images-idx3-ubyte, "emnist-letters".

    An uncompressed file takes precedence over its .gz.

    Raises:
        ValueError: two files for the same images or labels.
    """
    groups: dict[str, IdxFiles] = {}
    for path in sorted(folder.iterdir()):
        match = IDX_NAME.fullmatch(path.name)
        if not match or not path.is_file():
            continue
        split = "test" if match["split"].lower() == "t10k" else canonical_split(match["split"])
        files = groups.setdefault(match["prefix"] or "", {})
        other = files.setdefault((split, f"{match['kind'].lower()}s"), path)
        if other.name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise ValueError(f"{folder}: {other.name} and {path.name} are both the {split} {match['kind']}s; keep one")
    return groups


def is_idx_prefix(path: Path) -> bool:
    """Return True for one of the data sets in a folder of IDX files, or one of its files: gzip/emnist-letters."""
    return bool(IDX_NAME.fullmatch(path.name) and path.is_file()) or (
        not path.exists() and path.parent.is_dir() and path.name in idx_files(path.parent)
    )


def idx_prefix(path: Path) -> Dataset:
    """Open the data set that `is_idx_prefix` recognised."""
    match = IDX_NAME.fullmatch(path.name)
    return idx_folder(path.parent, (match["prefix"] or "") if match else path.name)


def idx_folder(folder: Path, prefix: str | None = None) -> Dataset:
    """Open a folder of the MNIST family: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not.

    Names may have a prefix, as in emnist-letters-train-images-idx3-ubyte.gz. EMNIST's pictures (Cohen et al. 2017,
    arXiv:1702.05373) are stored transposed and are turned upright. Class names are read from classes.txt in the same
    folder, one per line, or from EMNIST's PREFIX-mapping.txt; without them, they are numbers.

    Args:
        folder: the folder.
        prefix: prefix of the names; None for the only one.

    Raises:
        ValueError: several prefixes, images without labels or labels without images, or a damaged file.
    """
    groups = idx_files(folder)
    if prefix is None and len(groups) > 1:
        names = first_few([f"{folder / name}" for name in sorted(groups)], 3)
        raise ValueError(f"{folder}: has IDX files of {len(groups)} data sets; name one of them: {names}")
    prefix = next(iter(groups)) if prefix is None else prefix
    files = groups[prefix]
    title = str(folder / prefix) if prefix else str(folder)
    is_transposed = "emnist" in (prefix or folder.name).lower()
    arrays: dict[str, tuple[Any, Any]] = {}
    for split in SPLITS:
        present = [kind for kind in ("images", "labels") if (split, kind) in files]
        if len(present) == 1:
            other = "labels" if present == ["images"] else "images"
            raise ValueError(f"{folder}: has {files[split, present[0]].name} but no {other} file")
        if present:
            images = read_idx(files[split, "images"], 3)
            labels = read_idx(files[split, "labels"], 1)
            arrays[split] = (images.swapaxes(1, 2) if is_transposed else images, labels)
    names_file, mapping_file = folder / "classes.txt", folder / f"{prefix}-mapping.txt"
    class_names = None
    if names_file.is_file():
        class_names = read_text(names_file).splitlines()
    elif mapping_file.is_file():
        characters = _read_mapping(mapping_file)
        class_names = list(characters.values())
        arrays = {split: (images, _renumber(labels, characters, title)) for split, (images, labels) in arrays.items()}
    dataset = dataset_from_pairs(arrays, class_names, title)
    if is_transposed:
        note = Note("images", "EMNIST's pictures are stored transposed; they are turned upright")
        return replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _read_mapping(path: Path) -> dict[int, str]:
    """Read a file of EMNIST with lines "label code", such as "10 65" for A."""
    characters = {}
    try:
        for line in read_text(path, encoding="ascii").splitlines():
            if line.strip():
                label, code = line.split()[:2]
                characters[int(label)] = chr(int(code))
        if not characters:
            raise ValueError("empty")
    except (ValueError, OverflowError):
        raise ValueError(f"{path}: is not a list of labels and character codes; remove it to use numbers") from None
    return dict(sorted(characters.items()))


def _renumber(labels: NDArray[Any], characters: Mapping[int, str], title: str) -> NDArray[np.int64]:
    """Return labels as numbers 0, 1, … of the characters in order; EMNIST's letters begin with 1."""
    values = np.array(list(characters))
    numbers = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    if len(unknown := np.unique(labels[values[numbers] != labels])):
        raise ValueError(f"{title}: label {unknown[0]} is not in the mapping file")
    return numbers.astype(np.int64)


def read_idx(path: Path, dims: int) -> Pixels:
    """Read an IDX file of unsigned bytes (LeCun, Cortes and Burges, "The MNIST database"), gzipped or not.

    Args:
        path: the file.
        dims: number of dimensions that it must have.

    Returns:
        uint8 array of the shape in the file's header.

    Raises:
        ValueError: the file is not IDX, has another number of dimensions, another length than its header says, or is
            compressed more than images can be.
    """
    stored = path.stat().st_size
    try:
        with path.open("rb") as raw:
            is_compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file: Any = gzip.GzipFile(fileobj=raw) if is_compressed else raw
            start = file.read(4 + 4 * dims)
            shape = _idx_shape(start, dims, path)
            size = math.prod(shape)
            if is_compressed and size > MAX_UNPACKED and size > MAX_EXPANSION * stored:
                raise ValueError(
                    f"{path}: claims {size:,} bytes in a file of {stored:,}; if you trust it, unpack it with gunzip"
                )
            data = file.read(size + 1) if is_compressed or stored == len(start) + size else b""
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: is damaged ({first_line(error)})") from None
    length = len(start) + len(data) if is_compressed else stored
    if length != len(start) + size:
        problem, more = ("truncated", "") if length < len(start) + size else ("too long", "at least ")
        more = more if is_compressed else ""
        expected = len(start) + size
        raise ValueError(f"{path}: is {problem}: {more}{length:,} bytes instead of {expected:,} for shape {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _idx_shape(start: bytes, dims: int, path: Path) -> tuple[int, ...]:
    """Return the shape in the header of an IDX file of bytes."""
    if start[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(
            f"{path}: is not an IDX file of bytes with {dims} dimensions (it begins with {start[:4].hex(' ')})"
        )
    if len(start) < 4 + 4 * dims:
        raise ValueError(f"{path}: is truncated in its header")
    return tuple(int(v) for v in np.frombuffer(start, ">u4", dims, 4))
