"""Data sets stored as arrays in files: scikit-learn's digits, .npz, and the IDX files of the MNIST family."""

from __future__ import annotations

import gzip
import importlib.util
import re
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import Dataset, Note, create_missing_splits, first_line
from zoo.data.sources.arrays import dataset_from_pairs
from zoo.data.splits import ArraySplit, Pixels

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
        with path.open("rb") as raw:
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
                    f"{name}: contains {', '.join(keys) or 'nothing'}; expected x_train, y_train (x_test, y_test), or "
                    "train_images, train_labels (val_…, test_…), or images, labels, or x, y"
                )
            arrays = {split: (_array(file, x, name), _array(file, y, name)) for split, (x, y) in pairs.items()}
            names = [str(n) for n in _array(file, "class_names", name).ravel()] if "class_names" in keys else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{name}: is not a complete .npz file ({first_line(error)})") from None
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(f"{name}: is not an .npz file") from None
    dataset = dataset_from_pairs(arrays, names, name)
    used = {key for pair in pairs.values() for key in pair} | {"class_names"}
    if unused := [key for key in keys if key not in used]:
        return replace(dataset, notes=(*dataset.notes, Note("unused", f"not used: {', '.join(unused)}")))
    return dataset


def _array(file: Any, key: str, name: str) -> NDArray[Any]:
    """Return an array of an .npz file. Arrays that are damaged, too large or pickled raise ValueError."""
    try:
        if not isinstance(array := file[key], np.ndarray):
            raise ValueError("not an array")
        return array
    except MemoryError:
        raise ValueError(f"{name}: the array {key} does not fit in memory") from None
    except ValueError as error:
        if "llow_pickle" not in str(error):
            raise ValueError(f"{name}: the array {key} is damaged ({first_line(error)})") from None
        raise ValueError(
            f"{name}: the array {key} contains Python objects, which are never loaded; save numbers of one shape"
        ) from None


# --- IDX folders ------------------------------------------------------------------------------------------------------

IDX_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx([13])-ubyte(\.gz)?")


def idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """Return {(split, "images" or "labels"): file}; an uncompressed file takes precedence over its .gz."""
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := IDX_NAME.fullmatch(path.name):
            split = "train" if match[1] == "train" else "test"
            files.setdefault((split, match[2]), path)
    return files


def idx_folder(folder: Path) -> Dataset:
    """Open a folder of the MNIST family: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not.

    Class names are read from classes.txt in the same folder, one per line; without it, they are numbers.

    Raises:
        ValueError: images without labels or labels without images, or a damaged file.
    """
    files = idx_files(folder)
    arrays = {}
    for split in ("train", "test"):
        present = [kind for kind in ("images", "labels") if (split, kind) in files]
        if len(present) == 1:
            other = "labels" if present == ["images"] else "images"
            raise ValueError(f"{folder}: has {files[split, present[0]].name} but no {other} file")
        if present:
            arrays[split] = (read_idx(files[split, "images"], 3), read_idx(files[split, "labels"], 1))
    names_file = folder / "classes.txt"
    names = names_file.read_text(encoding="utf-8").splitlines() if names_file.is_file() else None
    return dataset_from_pairs(arrays, names, str(folder))


def read_idx(path: Path, dims: int) -> Pixels:
    """Read an IDX file of unsigned bytes (LeCun, Cortes and Burges, "The MNIST database"), gzipped or not.

    Args:
        path: the file.
        dims: number of dimensions that it must have.

    Returns:
        uint8 array of the shape in the file's header.

    Raises:
        ValueError: the file is not IDX, has another number of dimensions, or another length than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: is damaged ({first_line(error)})") from None
    if data[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(
            f"{path}: is not an IDX file of bytes with {dims} dimensions (it begins with {data[:4].hex(' ')})"
        )
    header = 4 + 4 * dims
    if len(data) < header:
        raise ValueError(f"{path}: is truncated in its header")
    shape = tuple(int(v) for v in np.frombuffer(data, ">u4", dims, 4))
    expected = header + int(np.prod(shape, dtype=np.uint64))
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "too long"
        raise ValueError(f"{path}: is {problem}: {len(data):,} bytes instead of {expected:,} for shape {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
