"""From a list of encoded images to a data set: check every image, number the classes, hold out missing splits."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.cache import cache_folder
from zoo.data.dataset import SPLITS, Dataset, Note, create_missing_splits, require_distinct_names
from zoo.data.images.decode import MAX_IMAGE_BYTES
from zoo.data.images.levels import PixelRangeError, choose_white, find_white, kind_of_mode
from zoo.data.sources.names import check_joined_labels, clean_class_name, escape, unify_class_names
from zoo.data.sources.scan import Scan, scan
from zoo.data.splits import EncodedSplit, Split, Store, content_keys, record_name
from zoo.files import atomic_writer
from zoo.text import first_few

MAX_LINES = 10  # lines printed of a list that may be long
# Without O_NONBLOCK, opening a named pipe waits for ever
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, eq=False)
class Listing:
    """The N images that a source names, before any of them is opened.

    Attributes:
        name: the name or path under which the source was opened.
        store: the encoded images; record n is the n-th of the listing.
        splits: the split of each image: "train", "validation", "test", or "" if the source does not say.
        labels: the class name of each image.
        stamp: a hash that changes with the name, size or modification time of any image.
        unreadable: "path: reason" for what cannot be opened at all, such as broken links.
        notes: how the source was read, and what was ignored.
        class_names: the classes in the source's own order, or () if it has none.
    """

    name: str
    store: Store
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    stamp: str
    unreadable: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    class_names: tuple[str, ...] = ()

    def scan(self, workers: int | None = None) -> Scan:
        """Check every image, or return the cached result; see `scan`."""
        if workers is None:  # a store on another machine keeps more threads waiting than this one has processors
            workers = getattr(self.store, "workers", None)
        return scan(self.store, len(self.labels), self.stamp, workers)


@dataclass(frozen=True, eq=False)
class FileStore:
    """Files in a folder.

    Attributes:
        root: the folder.
        names: the path of each file, relative to `root` or absolute.
        columns: further columns of the table that lists the files: name -> a cell per file.
    """

    root: str
    names: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return [self._read(record) for record in records]

    def _read(self, record: int) -> bytes:
        try:
            file = os.open(os.path.join(self.root, self.names[record]), OPEN_FLAGS)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise ValueError(f"{self.name(record)}: is not a file")
                require_image_size(status.st_size, self.name(record))
                parts = [os.read(file, status.st_size)]
                while sum(map(len, parts)) < status.st_size and parts[-1]:  # os.read may return fewer bytes
                    parts.append(os.read(file, status.st_size))
                return parts[0] if len(parts) == 1 else b"".join(parts)
            finally:
                os.close(file)
        except FileNotFoundError:
            raise ValueError(f"{self.name(record)}: no such file") from None
        except OSError as error:
            raise ValueError(f"{self.name(record)}: cannot be read ({error.strerror})") from error

    def name(self, record: int) -> str:
        return escape(self.names[record])


def require_image_size(size: int, name: str) -> None:
    """Raise ValueError for an encoded image of more than MAX_IMAGE_BYTES; the message begins with `name`."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"{name}: has {size:,} bytes, too many for an image (at most {MAX_IMAGE_BYTES:,})")


def hash_parts(parts: Iterable[object]) -> str:
    """Return a hash of the parts' `repr` in this order, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:32]


def stamp_files(root: str, names: Sequence[str]) -> str:
    """Return a hash of the names, sizes, modification times and permissions of files under `root`."""

    def status(name: str) -> tuple[object, ...]:
        try:
            result = os.stat(os.path.join(root, name))
        except OSError as error:
            return name, error.errno
        except ValueError:  # a name that no file can have, such as one with a NUL character
            return name, None
        return name, result.st_size, result.st_mtime_ns, result.st_mode

    return hash_parts([os.path.abspath(root), *(status(name) for name in names)])


def class_order(names: Iterable[str]) -> list[str]:
    """Return the distinct names in order: by value if all are whole numbers, else alphabetically."""
    distinct = sorted(set(names))
    return sorted(distinct, key=int) if all(name.isdecimal() and name.isascii() for name in distinct) else distinct


def open_listing(listing: Listing, scanned: Scan | None = None) -> Dataset:
    """Make a data set of a listing, after checking every image. Unreadable images are left out and reported.

    Images of no split count as train, and missing splits are held out of train. If the source has a validation split
    but no test split, its validation split is used as the test split, as is usual for ImageNet, and a new validation
    split is held out of train.

    Args:
        listing: the images.
        scanned: the result of `listing.scan()`, if it is known already.

    Raises:
        ValueError: no image can be read, or labels are not among the source's own classes.
    """
    if not listing.labels:
        path = Path(listing.name)
        if _is_class_folder(path):
            raise ValueError(f"{path}: has the images of a single class; for all classes give the folder {path.parent}")
        raise ValueError(
            f"{listing.name}: no image is in a class folder; put the images of each class in a folder with its name, "
            "or list them in a table of paths and labels" + "".join(f"; {note}" for note in listing.notes)
        )
    scanned = scanned or listing.scan()
    white, scanned, white_notes = choose_white_level(scanned)
    left_out = unreadable_images(listing, scanned)
    readable = np.setdiff1d(np.arange(len(listing.labels)), list(scanned.reasons)).astype(np.int64)
    if not len(readable):
        first = f"; the first of {len(left_out):,}: {left_out[0]}" if left_out else ""
        raise ValueError(f"{listing.name}: none of its images can be read{first}")
    labels, names, class_notes = _number_classes(listing, readable)
    split_names = np.array([name or "train" for name in listing.splits])
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if len(members := readable[split_names[readable] == name]):
            keys = tuple(scanned.keys[i] for i in members.tolist())
            splits[name] = EncodedSplit(listing.store, members, labels[members], keys, scanned.sizes[members], white)
    notes = [*listing.notes, *white_notes, *class_notes]
    if left_out:
        text = f"{len(left_out):,} of {len(listing.labels):,} images cannot be read and are left out"
        notes.append(Note("unused", text))
    if "train" in splits and (absent := sorted(set(range(len(names))) - set(splits["train"].labels.tolist()))):
        notes.append(Note("classes", f"classes without images in train: {first_few([names[k] for k in absent])}"))
    _require_common_classes(splits, names, listing.name)
    if "train" in splits and "validation" in splits and "test" not in splits:
        splits["test"] = splits.pop("validation")
        notes.append(Note("splits", "no test split: the validation split is used as the test split", "test"))
    splits, held_out = create_missing_splits(splits, listing.name)
    class_names, words = words_for_wnids(names)
    contents = {name: content_keys(split) for name, split in splits.items()}
    found = [*_note_on_contradictions(contradictions(splits, contents, class_names)), *leakage(splits, contents)]
    return Dataset(listing.name, splits, class_names, (*notes, *words, *held_out, *found), tuple(left_out))


def _is_class_folder(path: Path) -> bool:
    """Return True if a folder and all folders beside it, at least one, have images directly in them."""

    def has_images(folder: Path) -> bool:
        return any(file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".tif") for file in folder.iterdir())

    path = path.expanduser().absolute()
    try:
        if not path.is_dir():
            return False
        folders = [folder for folder in path.parent.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
        return 1 < len(folders) <= 1000 and all(map(has_images, folders))
    except OSError:
        return False


def choose_white_level(scanned: Scan) -> tuple[float | None, Scan, list[Note]]:
    """Choose the value of white in 16-bit, 32-bit and float images, which do not say it.

    Returns:
        The value for `EncodedSplit`; the result of the scan, in which images whose range remains ambiguous are
        unreadable; and a note on a value that is not the usual one.
    """
    kinds = {}
    for record, name in enumerate(scanned.kinds):
        file_format, _, mode = name.partition(" ")
        if scanned.ranges is not None and (kind := kind_of_mode(mode, file_format)):
            kinds[record] = kind
    if scanned.ranges is None or not kinds:
        return None, scanned, []
    peak = float(scanned.ranges[list(kinds), 1].max())
    has_floats = "float" in kinds.values()
    if has_floats and set(kinds.values()) != {"float"}:
        white = None  # float and integer images have no common range
    else:
        white = choose_white(peak, "float" if has_floats else "integer")
    reasons = dict(scanned.reasons)
    for record, kind in kinds.items():
        try:
            find_white(float(scanned.ranges[record, 0]), float(scanned.ranges[record, 1]), kind, white)
        except PixelRangeError as error:
            reasons[record] = str(error)
    scanned = replace(scanned, reasons=reasons)
    if white is None or white == (255 if has_floats else 65535):
        return white, scanned, []
    text = (
        f"{len(kinds):,} images have more than 8 bits and values up to {peak:g}: they are scaled from the range "
        f"0..{white:g}, which the checkpoint keeps"
    )
    return white, scanned, [Note("images", text)]


def _number_classes(listing: Listing, readable: NDArray[np.int64]) -> tuple[NDArray[np.int32], list[str], list[Note]]:
    """Return the label of each image, int32 [N], the class names, and notes on their spellings.

    Only unreadable images may have label -1.
    """
    notes: list[Note] = []
    if listing.class_names:
        names = [clean_class_name(name) for name in listing.class_names]
        image_classes = [clean_class_name(label) for label in listing.labels]
    else:
        spellings, notes = unify_class_names(listing.labels)
        image_classes = [spellings[label] for label in listing.labels]
        names = class_order(image_classes[i] for i in readable.tolist())
        notes += check_joined_labels(names, listing.name)
        if lost := sorted(set(image_classes) - set(names)):
            notes.append(Note("unused", f"classes without a readable image, left out: {first_few(lost)}"))
    require_distinct_names(names, listing.name)
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers.get(name, -1) for name in image_classes], np.int32)
    if len(unknown := readable[labels[readable] < 0]):
        record = int(unknown[0])
        raise ValueError(
            f"{listing.name}: {listing.store.name(record)} has class {image_classes[record]}, which is not one of the "
            f"source's classes ({first_few(names)})"
        )
    return labels, names, notes


def _require_common_classes(splits: Mapping[str, Split], names: Sequence[str], source: str) -> None:
    """Raise ValueError for a split without any image of a class of train, because no such image can be right."""
    if "train" not in splits:
        return
    trained = set(splits["train"].labels.tolist())
    for split, records in splits.items():
        classes = sorted(set(records.labels.tolist()))
        if len(trained) > 1 and not trained.intersection(classes):
            raise ValueError(
                f"{source}: the {split} images have the classes {first_few([names[k] for k in classes])}, but train "
                f"has {first_few([names[k] for k in sorted(trained)])}; use the same names in all splits"
            )


def unreadable_images(listing: Listing, scanned: Scan) -> list[str]:
    """Return "path: reason" for every image that cannot be read, sorted."""
    failed = (f"{listing.store.name(record)}: {reason}" for record, reason in scanned.reasons.items())
    return sorted([*listing.unreadable, *failed])


def leakage(splits: Mapping[str, Split], keys: Mapping[str, Sequence[bytes]]) -> list[Note]:
    """Return a note for every pair of splits that have images in common.

    Args:
        splits: the splits.
        keys: the content keys of each split.
    """
    notes = []
    for first, second in itertools.combinations(splits, 2):
        index = {key: i for i, key in enumerate(keys[first])}
        shared = [(i, index[key]) for i, key in enumerate(keys[second]) if key in index]
        if shared:
            pairs = [f"{record_name(splits[second], i)} = {record_name(splits[first], j)}" for i, j in shared]
            text = (
                f"LEAKAGE: {len(shared):,} of {len(keys[second]):,} {second} images are also in {first} "
                f"({first_few(pairs, 3)}); results on {second} will be too good"
            )
            notes.append(Note("leakage", text, second))
    return notes


def contradictions(
    splits: Mapping[str, Split], keys: Mapping[str, Sequence[bytes]], class_names: Sequence[str]
) -> list[str]:
    """Return a line for every image that has another class than an earlier image with the same content.

    Args:
        splits: the splits.
        keys: the content keys of each split.
        class_names: names of the classes.
    """
    first: dict[bytes, tuple[int, str, int]] = {}
    lines = []
    for name, split in splits.items():
        for i, (key, label) in enumerate(zip(keys[name], np.asarray(split.labels).tolist(), strict=True)):
            first_label, first_split, k = first.setdefault(key, (label, name, i))
            if first_label != label:
                original = record_name(splits[first_split], k)
                lines.append(
                    f"{record_name(split, i)} is {class_names[label]}, {original} is {class_names[first_label]}"
                )
    return lines


def _note_on_contradictions(lines: Sequence[str]) -> list[Note]:
    """Return a note on images that have several classes, given a line for each, if there are any."""
    if not lines:
        return []
    noun = "image is" if len(lines) == 1 else "images are"
    return [Note("contradiction", f"{len(lines):,} {noun} in two classes: {first_few(lines, 2)}; `zoo data` lists all")]


def describe_left_out(dataset: Dataset) -> list[str]:
    """Return lines that report the images left out: the first few, and the file that has the whole list."""
    if not dataset.left_out:
        return []
    noun = "image" if len(dataset.left_out) == 1 else "images"
    lines = [f"left out because unreadable: {len(dataset.left_out):,} {noun}"]
    lines += [f"   {line}" for line in dataset.left_out[:MAX_LINES]]
    if len(dataset.left_out) > MAX_LINES:
        file = _write_list(dataset.left_out)
        location = f"; full list: {file}" if file else ""
        lines.append(f"   … and {len(dataset.left_out) - MAX_LINES:,} more{location}")
    return lines


def _write_list(lines: Sequence[str]) -> Path | None:
    """Write the lines to a file in the cache folder and return its path, or None if it cannot be written."""
    data = ("\n".join(lines) + "\n").encode("utf-8", "replace")
    path = cache_folder() / "left-out" / f"{hashlib.sha256(data).hexdigest()[:16]}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path, durable=False, unique=True) as stream:
            stream.write(data)
    except OSError:
        return None
    return path


def words_for_wnids(names: Sequence[str]) -> tuple[tuple[str, ...], list[Note]]:
    """Return ImageNet's words for class names that are all wnids, with a note; other names unchanged."""
    from zoo.data.imagenet import words_of

    words = words_of(names)
    if words is None:
        return tuple(names), []
    return words, [Note("classes", f"class names are ImageNet wnids; shown as words ({names[0]} is {words[0]!r})")]
