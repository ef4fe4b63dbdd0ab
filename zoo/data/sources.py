"""Data sets: whatever `--data` names, opened as splits of random-access records and class names.

Every source gives the same `Dataset`. A new kind of source is one function and one line in the tables above
`open_dataset`.

Where a data set has no validation or test split, records are held out by `held_out`: a hash of their content decides,
never a random number, so that the split cannot change with seed, order, library or machine, and identical images
never lie on both sides.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import hashlib
import importlib.util
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zoo.data.preprocess import composite, read_image

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1
VALIDATION_LIMIT = 5_000  # records; more make the choice of a checkpoint no better
TEST_SHARE = 0.2
IN_MEMORY = 2**30  # bytes of decoded pixels up to which a prepared data set is decoded once and kept

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int32]


@runtime_checkable
class Split(Protocol):
    """Random-access records."""

    @property
    def labels(self) -> Labels:
        """int32 [N], all of them."""

    def __len__(self) -> int: ...

    def read(self, indices: Any) -> Pixels | list[Pixels]:
        """Images of these records, in this order: uint8 [n, H, W, C], or a list of [H, W, C] where sizes differ."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split in memory: images uint8 [N, H, W, C], labels int32 [N]."""

    images: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Any) -> Pixels:
        return cast(Pixels, self.images[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one data set and what its labels mean.

    Attributes:
        name: as it was asked for.
        splits: some of "train", "validation" and "test", in this order.
        class_names: label k is class_names[k].
        notes: what was done to the data that was not asked for, such as records held out, a line each.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fingerprint(self) -> str:
        """sha256 over class names and the labels and pixels of train and validation. Never looks at the test split."""
        digest = hashlib.sha256()
        for name in self.class_names:
            digest.update(len(name.encode()).to_bytes(4, "little") + name.encode())
        for name in ("train", "validation"):
            if name in self.splits:
                digest.update(f"{name} {len(self.splits[name])}".encode())
                digest.update(np.ascontiguousarray(self.splits[name].labels, "<i4").data)
                for part in _contents(self.splits[name]):
                    digest.update(part)
        return digest.hexdigest()


def _contents(split: Split) -> Iterator[Any]:
    """Bytes that stand for the pixels of a split."""
    if isinstance(split, RecordSplit):  # the encoded images were hashed when the labels were read
        yield from split.keys
        return
    for start in range(0, len(split), 4096):
        images = split.read(np.arange(start, min(start + 4096, len(split))))
        if isinstance(images, np.ndarray):
            yield repr(images.shape[1:]).encode()
            yield np.ascontiguousarray(images).data
        else:
            for image in images:
                yield repr(image.shape).encode()
                yield np.ascontiguousarray(image).data


# --- holding out ------------------------------------------------------------------------------------------------------


def record_keys(images: Iterable[NDArray[Any]]) -> list[bytes]:
    """A hash of each image's bytes: what `held_out` ranks by."""
    return [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images]


def held_out(keys: Sequence[bytes], labels: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Choose about `count` records by content, from each class in proportion.

    Within a class, records are ranked by their key and the first ones are taken. Records with equal keys stay together,
    across classes too; where images are repeated the number taken may differ a little from `count`. Every class keeps
    a record on both sides if it has two different ones.

    Args:
        keys: a hash of each record's content.
        labels: [N] integers.
        count: how many of the N to hold out, at least 1.

    Returns:
        bool [N], true for those held out.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / max(1, len(labels)))
    quota = np.floor(exact).astype(int)
    for k in np.argsort(quota - exact, kind="stable")[: max(0, count - int(quota.sum()))]:  # largest remainders
        quota[k] += 1
    chosen: set[bytes] = set()
    for label, wanted in zip(classes, quota, strict=True):
        members = Counter(keys[i] for i in np.flatnonzero(labels == label).tolist())
        taken = 0
        ranked = sorted(members)[:-1]  # the last one stays
        for key in ranked:
            if taken + members[key] <= wanted:
                chosen.add(key)
                taken += members[key]
        if taken == 0 and ranked:
            chosen.add(min(ranked, key=lambda key: members[key]))
    return np.fromiter((key in chosen for key in keys), bool, len(keys))


def _keys(split: Split) -> Sequence[bytes]:
    if isinstance(split, RecordSplit):
        return split.keys
    return record_keys(split.read(np.arange(len(split))))


def subset(split: Split, mask: NDArray[np.bool_]) -> Split:
    """The records of `split` where `mask` [N] is true, in their order."""
    if isinstance(split, RecordSplit):
        chosen = np.flatnonzero(mask)
        return replace(
            split,
            records=split.records[chosen],
            labels=split.labels[chosen],
            keys=tuple(split.keys[i] for i in chosen.tolist()),
        )
    array = cast(ArraySplit, split)
    return ArraySplit(array.images[mask], array.labels[mask])


def _complete(splits: dict[str, Split]) -> tuple[dict[str, Split], list[str]]:
    """Hold out what is missing; train alone gives up 20 % for test and 10 % for validation, else only the latter."""
    notes = []
    if "train" in splits and "validation" not in splits:
        total = len(splits["train"])
        if "test" not in splits:
            _hold_out(splits, "test", round(TEST_SHARE * total))
            notes.append(f"no test split: {len(splits['test']):,} of {total:,} records are held out by content")
        _hold_out(splits, "validation", min(round(VALIDATION_SHARE * total), VALIDATION_LIMIT))
        notes.append(
            f"no validation split: {len(splits['validation']):,} of {total:,} records are held out of train by content"
        )
    return {name: splits[name] for name in SPLITS if name in splits}, notes


def _hold_out(splits: dict[str, Split], name: str, count: int) -> None:
    train = splits["train"]
    mask = held_out(_keys(train), train.labels, count)
    if not mask.any():
        raise ValueError(
            f"too little data: no {name} records can be held out of {len(train)}; give more images, or a {name} split"
        )
    splits["train"], splits[name] = subset(train, ~mask), subset(train, mask)


# --- arrays -----------------------------------------------------------------------------------------------------------

Arrays = tuple[Any, Any]


def from_arrays(
    train: Arrays,
    validation: Arrays | None = None,
    test: Arrays | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays in memory.

    Args:
        train, validation, test: pairs (images, labels). Images are [N, H, W], [N, H, W, C] or, where it is unambiguous,
            [N, C, H, W] with C of 1, 3 (RGB) or 4 (RGBA), uint8, or integers or floats in 0..255, or floats in 0..1.
            They are not copied where they are already what is needed. Labels are [N] or [N, 1] (integers or strings) or
            one-hot [N, K].
        class_names: the meaning of labels 0..K-1. Without it labels may be anything, and are sorted into classes.
        name: for messages.

    Raises:
        ValueError: anything else, by name and with what was found.
    """
    raw = {"train": train, "validation": validation, "test": test}
    given = {key: pair for key, pair in raw.items() if pair is not None}
    return _from_arrays(given, class_names, name)


def _from_arrays(given: Mapping[str, Arrays], class_names: Sequence[str] | None, name: str) -> Dataset:
    images: dict[str, Pixels] = {}
    labels: dict[str, NDArray[Any]] = {}
    factors: dict[str, float] = {}
    notes: list[str] = []
    for split, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{name}: {split} must be a pair (images, labels)")
        x, y = (np.asarray(part) for part in pair)
        images[split], factors[split], scaling = _to_pixels(x, f"{name}: {split} images")
        labels[split] = _to_labels(y, f"{name}: {split} labels")
        if len(images[split]) != len(labels[split]):
            raise ValueError(f"{name}: {split} has {len(images[split])} images but {len(labels[split])} labels")
        if scaling:
            notes.append(f"{split} images: {scaling}")
    shapes = {split: x.shape[1:] for split, x in images.items()}
    if len({shape[-1] for shape in shapes.values()}) > 1:
        raise ValueError(f"{name}: splits differ in channels: {', '.join(f'{k} {v}' for k, v in shapes.items())}")
    if len(set(factors.values())) > 1:
        ranges = ", ".join(f"{k} 0..{'1' if f > 1 else '255'}" for k, f in factors.items())
        raise ValueError(f"{name}: splits differ in the range of their pixel values: {ranges}")
    numbers, names, mapped = _to_classes(labels, class_names, name)
    splits, held = _complete({split: ArraySplit(images[split], numbers[split]) for split in given})
    return Dataset(name, splits, names, tuple(notes + mapped + held))


def _to_pixels(x: NDArray[Any], what: str) -> tuple[Pixels, float, str]:
    """Check and convert to uint8 [N, H, W, C]; with the factor that did it, and a remark if it needs one."""
    if x.dtype == object:
        raise ValueError(f"{what}: sizes differ or entries are no numbers; a rectangular array is needed")
    if x.dtype.kind not in "buif":
        raise ValueError(f"{what}: must be numbers, not {x.dtype}")
    if x.ndim == 2:
        raise ValueError(f"{what}: are flattened to {x.shape}; reshape them to [number, height, width]")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise ValueError(f"{what}: have the shape {x.shape}; [number, height, width(, channels)] is needed")
    if 0 in x.shape:
        raise ValueError(f"{what}: are empty (shape {x.shape})")
    first, last = x.shape[1] in (1, 3, 4), x.shape[3] in (1, 3, 4)
    if not last and not first:
        raise ValueError(f"{what}: have the shape {x.shape}; channels come last and are 1 (grey), 3 (RGB) or 4 (RGBA)")
    if first and last and x.shape[1] != x.shape[2]:
        raise ValueError(f"{what}: in {x.shape} channels may be first or last; use [number, height, width, channels]")
    if first and not last:
        x = x.transpose(0, 2, 3, 1)
    pixels, factor, remark = _to_levels(x, what)
    if pixels.shape[-1] == 4:
        pixels, remark = np.stack([composite(image) for image in pixels]), remark or "transparency is laid over white"
    return np.ascontiguousarray(pixels), factor, remark


def _to_levels(x: NDArray[Any], what: str) -> tuple[Pixels, float, str]:
    """Numbers of any kind to uint8 0..255, by a factor of 1 or 255."""
    low, high = x.min(), x.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{what}: contain values that are not finite (NaN or infinity)")
    if x.dtype == np.uint8 and high > 1:
        return x, 1.0, "" if high >= 64 else f"the brightest pixel is {high} of 255"
    found = f"values range from {low:g} to {high:g}"
    if low < 0 or high > 255:
        raise ValueError(f"{what}: {found}; 0..255 or 0..1 is needed")
    if 1 < high < 128:
        raise ValueError(f"{what}: {found}, which is neither 0..1 nor 0..255; scale them to one of these")
    factor = 1.0 if high > 1 else 255.0
    out = np.empty(x.shape, np.uint8)
    for start in range(0, len(x), 1024):  # floats of a whole data set twice would be a lot of memory
        out[start : start + 1024] = np.rint(x[start : start + 1024].astype(np.float64) * factor)
    return out, factor, "two-valued, scaled to 0 and 255" if factor > 1 and x.dtype.kind != "f" else ""


def _to_labels(y: NDArray[Any], what: str) -> NDArray[Any]:
    """Check and bring to [N], integers or strings."""
    if y.dtype == object:
        y = np.array([str(v) if isinstance(v, str | bytes) else v for v in y.ravel()]).reshape(y.shape)
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "biufU":
        raise ValueError(f"{what}: must be integers or strings, not {y.dtype}")
    if y.ndim == 2 and y.dtype.kind != "U":
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError(f"{what}: of shape {y.shape} are not one-hot; one class per image is needed")
        return cast(NDArray[Any], y.argmax(axis=1))
    if y.ndim != 1:
        raise ValueError(f"{what}: have the shape {y.shape}; [N], [N, 1] or one-hot [N, classes] is needed")
    if y.dtype.kind == "f":
        if not (np.isfinite(y).all() and (y == np.rint(y)).all()):
            raise ValueError(f"{what}: contain fractions or NaN; classes are integers or strings")
        y = y.astype(np.int64)
    return y.astype(np.int64) if y.dtype.kind in "bui" else y


def _to_classes(
    labels: Mapping[str, NDArray[Any]], class_names: Sequence[str] | None, name: str
) -> tuple[dict[str, Labels], tuple[str, ...], list[str]]:
    """Labels as 0..K-1, the classes' names, and a remark if labels were changed. The train split says what there is."""
    reference = labels["train"] if "train" in labels else np.concatenate(list(labels.values()))
    seen = np.unique(reference)
    if "train" in labels and len(seen) < 2:
        raise ValueError(f"{name}: the train labels are all {seen[0]!s}; at least two classes are needed")
    if class_names is not None:
        names = tuple(str(n) for n in class_names)
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(f"{name}: class_names must be two or more different names, not {names}")
        index = np.array(names) if reference.dtype.kind == "U" else np.arange(len(names))
    else:
        index = seen
        if seen.dtype.kind == "i" and seen[0] == 0 and len(seen) > 1:
            index = np.arange(int(seen[-1]) + 1) if int(seen[-1]) + 1 == len(seen) else seen
        names = tuple(str(v) for v in index)
    out: dict[str, Labels] = {}
    order = np.argsort(index, kind="stable")
    for split, y in labels.items():
        if y.dtype.kind != index.dtype.kind:
            raise ValueError(f"{name}: {split} labels are of another type than those of train")
        place = np.minimum(np.searchsorted(index, y, sorter=order), len(index) - 1)
        number = order[place]
        unknown = np.unique(y[index[number] != y])
        if len(unknown):
            known = f"0..{len(index) - 1}" if class_names is not None and y.dtype.kind == "i" else "those of train"
            listed = ", ".join(str(v) for v in unknown[:5]) + (", …" if len(unknown) > 5 else "")
            raise ValueError(f"{name}: {split} labels {listed} are not among the classes ({known})")
        out[split] = number.astype(np.int32)
    remark = []
    if index.dtype.kind == "U" or not np.array_equal(index, np.arange(len(index))):
        shown = [f"{v!s} -> {k}" for k, v in enumerate(names)]
        shown = [*shown[:3], "…", shown[-1]] if len(shown) > 5 else shown
        remark.append(f"labels are numbered in sorted order: {', '.join(shown)}")
    return out, names, remark


# --- digits -----------------------------------------------------------------------------------------------------------


def _digits() -> Dataset:
    """scikit-learn's 1,797 real 8x8 digits (a part of UCI's Optical Recognition of Handwritten Digits, 1998).

    Their 17 levels are spread over 0..255. The split is fixed by content: see `held_out`.
    """
    table = _digits_table()
    pixels = np.rint(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    splits, _ = _complete({"train": ArraySplit(pixels, table[:, 64].astype(np.int32))})
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


def _npz(path: Path) -> Dataset:
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
        raise ValueError(f"{name}: is not a whole .npz file ({_one_line(error)})") from None
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(f"{name}: is not an .npz file") from None
    dataset = _from_arrays(given, names, name)
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
            raise ValueError(f"{name}: the array {key} is damaged ({_one_line(error)})") from None
        raise ValueError(
            f"{name}: the array {key} holds Python objects, which are never loaded; save it as numbers of one shape"
        ) from None


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- IDX folders ------------------------------------------------------------------------------------------------------

IDX_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx([13])-ubyte(\.gz)?")


def _idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """(split, "images" | "labels") -> file; an unpacked file is preferred to its .gz."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := IDX_NAME.fullmatch(path.name):
            split = "train" if match[1] == "train" else "test"
            found.setdefault((split, match[2]), path)
    return found


def _idx_folder(folder: Path) -> Dataset:
    """A folder of the MNIST family's files: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not."""
    files = _idx_files(folder)
    given = {}
    for split in ("train", "test"):
        present = [kind for kind in ("images", "labels") if (split, kind) in files]
        if len(present) == 1:
            other = "labels" if present == ["images"] else "images"
            raise ValueError(f"{folder}: has {files[split, present[0]].name} but no {other} beside it")
        if present:
            given[split] = (read_idx(files[split, "images"], 3), read_idx(files[split, "labels"], 1))
    return _from_arrays(given, None, str(folder))


def read_idx(path: Path, dims: int) -> Pixels:
    """An IDX file of unsigned bytes (LeCun, Cortes and Burges, "The MNIST database"), gzipped or not.

    Raises:
        ValueError: not IDX, another number of dimensions, or shorter or longer than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: is damaged ({_one_line(error)})") from None
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


# --- TFDS -------------------------------------------------------------------------------------------------------------

TFDS_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
PREPARE_EXTRA = "jax-model-zoo[tfds-prepare]"


@dataclass(frozen=True, eq=False)
class RecordSplit:
    """Records of a prepared TFDS data set, read and decoded when they are asked for.

    Attributes:
        source: TFDS's random-access source, giving encoded images.
        lock: of the source; training may be reading ahead while an evaluation reads.
        records: int64 [N], positions in the source.
        labels: int32 [N].
        keys: a hash of each encoded image.
        feature: the image's name in a record.
        name: for messages.
    """

    source: Any
    lock: Any
    records: NDArray[np.int64]
    labels: Labels
    keys: tuple[bytes, ...]
    feature: str
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Any) -> list[Pixels]:
        wanted = self.records[indices].tolist()
        with self.lock:
            found = _fetch(self.source, wanted, self.name)
        images = (record[self.feature] for record in found)
        return [_decode(image, f"{self.name} record {i}") for i, image in zip(wanted, images, strict=True)]


def _fetch(source: Any, records: list[int], what: str) -> Sequence[Mapping[str, Any]]:
    try:
        return cast(Sequence[Mapping[str, Any]], source.__getitems__(records))
    except Exception as error:  # array_record raises what its C++ says
        raise ValueError(f"{what}: records cannot be read ({_one_line(error)}); is a file of it damaged?") from error


def _decode(encoded: bytes, what: str) -> Pixels:
    try:
        return read_image(encoded)
    except ValueError as error:
        raise ValueError(f"{what}{str(error).removeprefix('image')}") from None


def _tfds(name: str, data_dir: str | Path | None) -> Dataset:
    """A data set of TensorFlow Datasets, read without TensorFlow; prepared first if need be."""
    builder = _prepared(name, data_dir)
    image, label = _features(builder, name)
    names = tuple(str(label_name) for label_name in builder.info.features[label].names or ())
    names = names or tuple(str(k) for k in range(builder.info.features[label].num_classes))
    available = {theirs: ours for theirs, ours in TFDS_SPLITS.items() if theirs in builder.info.splits}
    available = {theirs: ours for theirs, ours in available.items() if builder.info.splits[theirs].num_examples}
    if not available:
        raise ValueError(f"tfds:{name}: has the splits {', '.join(builder.info.splits)}; none of them is train or test")
    splits: dict[str, Split] = {
        ours: _tfds_split(builder, theirs, image, label, name) for theirs, ours in available.items()
    }
    notes = []
    if unused := [s for s in builder.info.splits if s not in available]:
        notes.append(f"not used: {', '.join(unused)}")
    if "test" in splits and (splits["test"].labels < 0).all():
        del splits["test"]
        notes.append("the test labels are not public")
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("the validation split is used as the test split")
    for key, split in splits.items():
        if not ((split.labels >= 0) & (split.labels < len(names))).all():
            raise ValueError(f"tfds:{name}: some {key} labels are outside of 0..{len(names) - 1}")
    splits, held = _complete(splits)
    return Dataset(f"tfds:{name}", splits, names, tuple(notes + held))


def _prepared(name: str, data_dir: str | Path | None) -> Any:
    """A builder whose records can be read at random."""
    with _quiet():
        try:
            import tensorflow_datasets as tfds

            builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
        except tfds.core.DatasetNotFoundError:
            hint = _nearest_names(name.split("/")[0], tfds.list_builders(with_community_datasets=False))
            raise ValueError(f"tfds:{name}: no such data set in TFDS{hint}") from None
        except Exception as error:  # of many types: AssertionError for a version, ImportError for what it needs …
            raise ValueError(f"tfds:{name}: {_config_problem(name, error)}") from error
        if not builder.is_prepared():
            _features(builder, name)  # before anything is downloaded
            _prepare(builder, name)
    formats = {str(f.value) for f in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"tfds:{name}: is prepared at {builder.data_path} as {', '.join(sorted(formats)) or 'an unknown format'}, "
            f"which cannot be read at random; run: tfds convert_format --dataset_version_dir={builder.data_path} "
            "--out_file_format=array_record"
        )
    return builder


def _config_problem(name: str, error: Exception) -> str:
    import tensorflow_datasets as tfds

    base, _, config = name.partition("/")
    try:
        configs = list(tfds.builder_cls(base).builder_configs)
    except Exception:
        configs = []
    if config and config not in configs:
        return f"has no configuration {config!r}" + (_nearest_names(config, configs) or " (it has none at all)")
    return _one_line(error).rpartition('}": ')[2]  # TFDS puts the arguments of the builder before the reason


def _nearest_names(wrong: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _prepare(builder: Any, name: str) -> None:
    """Download and write as array_record. TFDS shows its own progress on stderr."""
    missing = f"preparing it needs TensorFlow once: pip install '{PREPARE_EXTRA}'"
    absent = f"tfds:{name}: is not prepared in {builder.data_path}"
    if _needs_tensorflow(builder):
        raise ValueError(f"{absent}, and {missing}")
    if host := _unreachable_host(builder):
        raise ValueError(f"{absent}, and {host} cannot be reached to download it")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        if any(isinstance(e, ImportError) and "tensorflow" in str(e).lower() for e in chain):
            raise ValueError(f"tfds:{name}: {missing}") from error
        if any(isinstance(e, ConnectionError) or type(e).__module__.startswith(("requests", "urllib3")) for e in chain):
            raise ValueError(f"tfds:{name}: could not be downloaded ({_one_line(error)})") from error
        raise ValueError(f"tfds:{name}: could not be prepared ({type(error).__name__}: {_one_line(error)})") from error


def _needs_tensorflow(builder: Any) -> bool:
    """Whether the code that prepares a data set calls TensorFlow, which is missing: better said before the download."""
    import importlib.util
    import inspect

    if importlib.util.find_spec("tensorflow") is not None:
        return False
    try:
        return re.search(r"\btf\.\w", inspect.getsource(inspect.getmodule(type(builder)) or builder)) is not None
    except (OSError, TypeError):
        return False


def _unreachable_host(builder: Any) -> str | None:
    """The first host to download from, if none has an address here. TFDS retries for minutes before it says so."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if getproxies():
        return None
    hosts = sorted({urlsplit(url).hostname or "" for url in builder.url_infos or ()} - {""})
    for host in hosts:
        try:
            socket.getaddrinfo(host, 443)
            return None
        except OSError:
            continue
    return hosts[0] if hosts else None


class _quiet:
    """TFDS logs warnings and prints banners to stdout, where they would mix with a command's output."""

    loggers = ("absl", "urllib3")

    def __enter__(self) -> None:
        import logging

        self.levels = [logging.getLogger(name).level for name in self.loggers]
        for name in self.loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        self.stdout = contextlib.redirect_stdout(sys.stderr)
        self.stdout.__enter__()

    def __exit__(self, *error: Any) -> None:
        import logging

        self.stdout.__exit__(*error)
        for name, level in zip(self.loggers, self.levels, strict=True):
            logging.getLogger(name).setLevel(level)


def _features(builder: Any, name: str) -> tuple[str, str]:
    """The names of the image and of the label in a record."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = sorted(k for k, f in features.items() if isinstance(f, tfds.features.Image))
    labels = sorted(k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel))
    pair = builder.info.supervised_keys
    if pair and len(pair) == 2 and pair[0] in images and pair[1] in labels:
        image, label = pair
    elif len(images) == 1 and len(labels) == 1:
        image, label = images[0], labels[0]
    else:
        raise ValueError(
            f"tfds:{name}: is not a data set of images with one class each "
            f"(images: {', '.join(images) or 'none'}; classes: {', '.join(labels) or 'none'})"
        )
    if np.dtype(features[image].np_dtype) not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise ValueError(f"tfds:{name}: its images are {np.dtype(features[image].np_dtype)}, not 8 or 16 bits")
    return image, label


def _tfds_split(builder: Any, theirs: str, image: str, label: str, name: str) -> Split:
    import threading

    import tensorflow_datasets as tfds

    features = builder.info.features
    skipped = {k: tfds.decode.SkipDecoding() for k, f in features.items() if isinstance(f, tfds.features.Image)}
    source = builder.as_data_source(theirs, decoders=skipped)
    what = f"tfds:{name} {theirs}"
    shape = features[image].shape
    small = all(shape) and len(source) * int(np.prod(shape)) <= IN_MEMORY

    def scan() -> dict[str, NDArray[Any]]:
        labels = np.empty(len(source), np.int32)
        pixels = np.empty((len(source), *shape), np.uint8) if small else None
        keys = np.empty((len(source), 16), np.uint8)
        for start in _progress(range(0, len(source), 1024), f"reading {what}"):
            records = _fetch(source, list(range(start, min(start + 1024, len(source)))), what)
            for i, record in enumerate(records, start):
                labels[i] = record[label]
                if pixels is None:
                    keys[i] = np.frombuffer(record_keys([np.frombuffer(record[image], np.uint8)])[0], np.uint8)
                else:
                    decoded = _decode(record[image], f"{what} record {i}")
                    if decoded.shape != shape:
                        raise ValueError(f"{what} record {i}: has the shape {decoded.shape}, not {shape}")
                    pixels[i] = decoded
        return {"labels": labels, "keys": keys} if pixels is None else {"labels": labels, "images": pixels}

    stored = _cached(_tfds_key(builder, theirs, image, label, small), scan)
    if small:
        return ArraySplit(stored["images"], stored["labels"])
    keys = tuple(bytes(key) for key in stored["keys"])
    return RecordSplit(source, threading.Lock(), np.arange(len(source)), stored["labels"], keys, image, what)


def _tfds_key(builder: Any, split: str, image: str, label: str, decoded: bool) -> str:
    """Names what was cached: another version, another file or another way of reading has another name."""
    digest = hashlib.sha256(f"1 {split} {image} {label} {decoded}".encode())
    folder = Path(str(builder.data_path))
    digest.update(str(folder.resolve()).encode())
    for file in sorted([*builder.info.splits[split].filenames, "features.json", "dataset_info.json"]):
        found = (folder / file).stat() if (folder / file).exists() else None
        digest.update(f"{file} {found.st_size} {found.st_mtime_ns}".encode() if found else b"-")
    return f"tfds-{builder.info.full_name.replace('/', '-')}-{split}-{digest.hexdigest()[:16]}"


def _progress(steps: range, text: str) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(steps, text, console=console, transient=True, disable=not console.is_terminal)


# --- cache ------------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME or the system's usual place, then "jax-model-zoo"."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "jax-model-zoo"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "jax-model-zoo"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "jax-model-zoo"


def _cached(key: str, build: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays from the cache, or made and put there. The checksums of the zip format reveal a damaged file."""
    path = cache_folder() / "data" / f"{key}.npz"
    try:
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            return {name: file[name] for name in file.files}
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, AttributeError):
        pass  # absent or damaged: made anew
    arrays = build()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            np.savez(out, **cast(Any, arrays))
        os.replace(temporary, path)
    except OSError:  # a read-only home or a full disk costs the next start time, and nothing else
        with contextlib.suppress(OSError):
            temporary.unlink()
    return arrays


# --- what --data understands ------------------------------------------------------------------------------------------

NAMED: dict[str, Callable[[], Dataset]] = {"digits": _digits}
SCHEMES: dict[str, Callable[[str, str | Path | None], Dataset]] = {"tfds": _tfds}
FILES: dict[str, Callable[[Path], Dataset]] = {".npz": _npz}
FOLDERS: tuple[tuple[Callable[[Path], Any], Callable[[Path], Dataset]], ...] = ((_idx_files, _idx_folder),)

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
    hint = _nearest_names(text, NAMED)
    if colon and not hint:
        hint = _nearest_names(scheme, SCHEMES)
    raise ValueError(f"data {text!r} is not understood{hint}; understood are {UNDERSTOOD}")
