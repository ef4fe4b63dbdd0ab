"""From a list of encoded images, wherever it is from, to a data set: looked at, sorted into classes, held out."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.cache import cache_folder
from zoo.data.dataset import SPLITS, Dataset, EncodedSplit, Split, Store, complete, content_keys, require_distinct_names
from zoo.data.sources.scan import Scan, scan

SHOWN = 10  # of a list that may be long
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would wait for ever

# How people spell the splits, without "_", "-", " " and a final "set" or "data"
SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst", "te", "holdout"),
}


@dataclass(frozen=True, eq=False)
class Listing:
    """Every image that a source names, before any is opened: N of them.

    Attributes:
        name: of the source, as it was asked for.
        store: where the images lie; record n is the n-th here.
        splits: of each, "train", "validation" or "test", or "" where nothing says.
        labels: of each, its class by name.
        stamp: changes with any image's name, size or time.
        faults: "path: reason" of what cannot be opened at all, such as links that lead nowhere.
        notes: what was understood or left aside, a line each.
        class_names: the classes in the source's own order, if it has one.
    """

    name: str
    store: Store
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    stamp: str
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def scan(self, workers: int | None = None) -> Scan:
        return scan(self.store, len(self.labels), self.stamp, workers)


@dataclass(frozen=True, eq=False)
class FileStore:
    """Files under a folder: `names` are relative to `root`, or absolute."""

    root: str
    names: tuple[str, ...]

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return [self._read(record) for record in records]

    def _read(self, record: int) -> bytes:
        try:
            file = os.open(os.path.join(self.root, self.names[record]), OPEN_FLAGS)
            try:
                about = os.fstat(file)
                if not stat.S_ISREG(about.st_mode):
                    raise ValueError(f"{self.name(record)}: is not a file")
                parts = [os.read(file, about.st_size)]
                while sum(map(len, parts)) < about.st_size and parts[-1]:  # a read may return less than was asked for
                    parts.append(os.read(file, about.st_size))
                return parts[0] if len(parts) == 1 else b"".join(parts)
            finally:
                os.close(file)
        except FileNotFoundError:
            raise ValueError(f"{self.name(record)}: no such file") from None
        except OSError as error:
            raise ValueError(f"{self.name(record)}: cannot be read ({error.strerror})") from error

    def name(self, record: int) -> str:
        return shown(self.names[record])


def shown(text: str) -> str:
    """A file's name as it can be printed: whatever is no character, or ends the line, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def split_of(word: str) -> str:
    """ "train", "validation" or "test" for any usual spelling of it, else ""."""
    plain = "".join(c for c in word.lower() if c not in "_- .")
    for name, spellings in SPELLINGS.items():
        if plain in (ending for s in spellings for ending in (s, s + "set", s + "data", s + "images", s + "split")):
            return name
    return ""


def stamp_of(parts: Iterable[object]) -> str:
    """A hash of these parts in this order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:32]


def stamp_of_files(root: str, names: Sequence[str]) -> str:
    """A stamp of files' names, sizes and times; who may read them is part of it."""

    def about(name: str) -> tuple[object, ...]:
        try:
            found = os.stat(os.path.join(root, name))
        except OSError as error:
            return name, error.errno
        except ValueError:  # no name that a file can have
            return name, None
        return name, found.st_size, found.st_mtime_ns, found.st_mode

    return stamp_of([os.path.abspath(root), *(about(name) for name in names)])


def class_order(names: Iterable[str]) -> list[str]:
    """Whole numbers by value, anything else by its characters."""
    found = sorted(set(names))
    return sorted(found, key=int) if all(name.isdecimal() and name.isascii() for name in found) else found


def open_listing(listing: Listing, found: Scan | None = None) -> Dataset:
    """The data set: every image is looked at first, and what cannot be read is left out and said.

    Where nothing says the split, or one is missing, records are held out by content; a validation split without a test
    split is the test split, as everybody's use of ImageNet has it, and another is held out of train.

    Args:
        listing: of at least one image that can be read.
        found: what was found in it, where that is known already.

    Raises:
        ValueError: no image can be read, or the source's own classes are not what
            the images are labelled with.
    """
    if not listing.labels:
        raise ValueError(
            f"{listing.name}: no image in it is in a folder of a class; put each class's images in a folder of its "
            "name, or name them in a table of path and label" + "".join(f"; {n}" for n in listing.notes)
        )
    found = found or listing.scan()
    left_out = left_out_of(listing, found)
    good = np.setdiff1d(np.arange(len(listing.labels)), list(found.reasons)).astype(np.int64)
    if not len(good):
        first = f"; the first: {left_out[0]}" if left_out else ""
        raise ValueError(f"{listing.name}: has no image that can be read{first}")
    labels, names = _classes(listing, good)
    split_names = np.array([name or "train" for name in listing.splits])
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if len(chosen := good[split_names[good] == name]):
            keys = tuple(found.keys[i] for i in chosen.tolist())
            splits[name] = EncodedSplit(listing.store, chosen, labels[chosen], keys, found.sizes[chosen])
    notes = list(listing.notes)
    if left_out:
        notes.append(f"{len(left_out):,} of {len(listing.labels):,} images are left out: they cannot be read")
    if "train" in splits and (absent := sorted(set(range(len(names))) - set(splits["train"].labels.tolist()))):
        notes.append(f"classes without an image in train: {some([names[k] for k in absent])}")
    if "train" in splits and "validation" in splits and "test" not in splits:
        splits["test"] = splits.pop("validation")
        notes.append("there is no test split: the validation split is used as the test split")
    splits, held = complete(splits)
    class_names, remark = in_words(names)
    leaking = leaks(splits, {name: content_keys(split) for name, split in splits.items()})
    return Dataset(listing.name, splits, class_names, (*notes, *remark, *held, *leaking), tuple(left_out))


def _classes(listing: Listing, good: NDArray[np.int64]) -> tuple[NDArray[np.int32], list[str]]:
    """int32 [N], the class of each image by number, and the classes' names; -1 only of what is not among `good`."""
    folded = [_folded(label) for label in listing.labels]
    names = [_folded(name) for name in listing.class_names] or class_order(folded[i] for i in good.tolist())
    require_distinct_names(names, listing.name)
    place = {name: number for number, name in enumerate(names)}
    labels = np.array([place.get(label, -1) for label in folded], np.int32)
    if len(lost := good[labels[good] < 0]):
        raise ValueError(
            f"{listing.name}: {listing.store.name(int(lost[0]))} is of class {folded[lost[0]]}, which is not among "
            f"the source's classes ({some(names)})"
        )
    return labels, names


def _folded(name: str) -> str:
    """A class's name as it is compared and printed: systems differ in how they spell an accent."""
    return unicodedata.normalize("NFC", shown(name))


def left_out_of(listing: Listing, found: Scan) -> list[str]:
    """ "path: reason" of every image that cannot be used, sorted."""
    unreadable = (f"{listing.store.name(record)}: {reason}" for record, reason in found.reasons.items())
    return sorted([*listing.faults, *unreadable])


def some(items: Sequence[str], limit: int = 5) -> str:
    """ "a, b, c and 7 more"."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def record_name(split: Split, index: int) -> str:
    """What to call a record: its file, or its number."""
    return split.name(index) if isinstance(split, EncodedSplit) else f"record {index}"


def leaks(splits: Mapping[str, Split], keys: Mapping[str, Sequence[bytes]]) -> list[str]:
    """A line for every pair of splits that have images in common, by their content."""
    lines = []
    for first, second in itertools.combinations(splits, 2):
        places = {key: i for i, key in enumerate(keys[first])}
        shared = [(i, places[key]) for i, key in enumerate(keys[second]) if key in places]
        if shared:
            pairs = [f"{record_name(splits[second], i)} = {record_name(splits[first], j)}" for i, j in shared]
            lines.append(
                f"LEAKAGE: {len(shared):,} of the {len(keys[second]):,} {second} images are in {first} too "
                f"({some(pairs, 3)}); what is measured on {second} will look better than it is"
            )
    return lines


def describe_left_out(dataset: Dataset) -> list[str]:
    """What a person is told before work on the data begins: the first few lines, and where all of them are."""
    if not dataset.left_out:
        return []
    lines = [f"left out, since they cannot be read: {len(dataset.left_out):,} images"]
    lines += [f"   {line}" for line in dataset.left_out[:SHOWN]]
    if len(dataset.left_out) > SHOWN:
        place = _written(dataset.left_out)
        whole = f"; the whole list is in {place}" if place else ""
        lines.append(f"   … and {len(dataset.left_out) - SHOWN:,} more{whole}")
    return lines


def _written(lines: Sequence[str]) -> Path | None:
    text = "\n".join(lines) + "\n"
    path = cache_folder() / "left-out" / f"{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError:
        return None
    return path


def in_words(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """ImageNet's wnids as words, where all names are wnids; the order stays."""
    from zoo.data.imagenet import words_of

    words = words_of(names)
    if words is None:
        return tuple(names), []
    return words, [f"the classes are wnids ({names[0]} is {words[0]!r}), shown as words"]
