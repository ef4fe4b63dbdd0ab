"""Data sets that are arrays in files: scikit-learn's digits, .npz, and the IDX files of the MNIST family."""

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

from zoo.data.dataset import ArraySplit, Dataset, Pixels, complete, first_line
from zoo.data.sources.arrays import splits_from_arrays

# --- digits -----------------------------------------------------------------------------------------------------------


def digits() -> Dataset:
    """scikit-learn's 1,797 real 8x8 digits (a part of UCI's Optical Recognition of Handwritten Digits, 1998).

    Their 17 levels are spread over 0..255. The split is fixed by content: see `held_out`.
    """
    table = _digits_table()
    pixels = np.rint(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    splits, _ = complete({"train": ArraySplit(pixels, table[:, 64].astype(np.int32))})
    return Dataset("digits", splits, tuple("0123456789"), ("the split is fixed by content: 70 % / 10 % / 20 %",))


def _digits_table() -> NDArray[Any]:
    """[1797, 65]: 64 pixels and the label of each digit, from the file in scikit-learn's wheel where it is found.

    Importing sklearn.datasets takes longer than everything else that a short training does on the host.
    """
    package = importlib.util.find_spec("sklearn")
    places = package.submodule_search_locations if package else None
    file = Path(places[0], "datasets", "data", "digits.csv.gz") if places else None
    if file is not None and file.exists():
        return np.loadtxt(file, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])


# --- .npz -------------------------------------------------------------------------------------------------------------

# (images, labels) by split, as the files of Keras, MedMNIST and scikit-learn's users spell them
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
    """An .npz of NumPy arrays, never unpickled."""
    name = str(path)
    try:
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError(f"{name}: is a single array (.npy), not an .npz of images and labels")
            found = list(file.files)
            pairs = {
                split: pair
                for split, spellings in NPZ_KEYS.items()
                if (pair := next((p for p in spellings if p[0] in found and p[1] in found), None))
            }
            if not pairs:
                raise ValueError(
                    f"{name}: holds {', '.join(found) or 'nothing'}; expected x_train, y_train (x_test, y_test), or "
                    "train_images, train_labels (val_…, test_…), or images, labels, or x, y"
                )
            given = {split: (_array(file, x, name), _array(file, y, name)) for split, (x, y) in pairs.items()}
            names = [str(n) for n in _array(file, "class_names", name).ravel()] if "class_names" in found else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{name}: is not a whole .npz file ({first_line(error)})") from None
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(f"{name}: is not an .npz file") from None
    dataset = splits_from_arrays(given, names, name)
    used = {key for pair in pairs.values() for key in pair} | {"class_names"}
    if unused := [key for key in found if key not in used]:
        return replace(dataset, notes=(*dataset.notes, f"not used: {', '.join(unused)}"))
    return dataset


def _array(file: Any, key: str, name: str) -> NDArray[Any]:
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
            f"{name}: the array {key} holds Python objects, which are never loaded; save it as numbers of one shape"
        ) from None


# --- IDX folders ------------------------------------------------------------------------------------------------------

IDX_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx([13])-ubyte(\.gz)?")


def idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """(split, "images" | "labels") -> file; an unpacked file is preferred to its .gz."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := IDX_NAME.fullmatch(path.name):
            split = "train" if match[1] == "train" else "test"
            found.setdefault((split, match[2]), path)
    return found


def idx_folder(folder: Path) -> Dataset:
    """A folder of the MNIST family's files: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not.

    The files only number their classes; a file classes.txt beside them, a name a line, says what they are.
    """
    files = idx_files(folder)
    given = {}
    for split in ("train", "test"):
        present = [kind for kind in ("images", "labels") if (split, kind) in files]
        if len(present) == 1:
            other = "labels" if present == ["images"] else "images"
            raise ValueError(f"{folder}: has {files[split, present[0]].name} but no {other} beside it")
        if present:
            given[split] = (read_idx(files[split, "images"], 3), read_idx(files[split, "labels"], 1))
    words = folder / "classes.txt"
    names = words.read_text(encoding="utf-8").splitlines() if words.is_file() else None
    return splits_from_arrays(given, names, str(folder))


def read_idx(path: Path, dims: int) -> Pixels:
    """An IDX file of unsigned bytes (LeCun, Cortes and Burges, "The MNIST database"), gzipped or not.

    Raises:
        ValueError: not IDX, another number of dimensions, or shorter or longer than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: is damaged ({first_line(error)})") from None
    if data[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(f"{path}: is not an IDX file of {dims}-dimensional bytes (it begins with {data[:4].hex(' ')})")
    header = 4 + 4 * dims
    if len(data) < header:
        raise ValueError(f"{path}: is cut off within its header")
    shape = tuple(int(v) for v in np.frombuffer(data, ">u4", dims, 4))
    expected = header + int(np.prod(shape, dtype=np.uint64))
    if len(data) != expected:
        word = "cut off" if len(data) < expected else "longer than it should be"
        raise ValueError(f"{path}: is {word}: {len(data):,} bytes, but its header ({shape}) needs {expected:,}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
