"""The data set that every source returns, and the rule by which missing splits are held out.

A data set without a validation or test split gets one from its train split. `hold_out_mask` chooses the records by a
hash of their content and not at random. The choice therefore does not depend on seed, order, library or machine, and
identical images are never on both sides.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.data.spelling import are_numbers, class_key
from zoo.data.splits import (
    ArraySplit,
    EncodedSplit,
    Labels,
    Pixels,
    Split,
    content_chunks,
    content_keys,
    join,
    record_keys,
    relabel,
    subset,
)
from zoo.suggest import did_you_mean
from zoo.text import first_few, one_line

__all__ = [
    "SPLITS",
    "ArraySplit",
    "Dataset",
    "EncodedSplit",
    "Labels",
    "Note",
    "Pixels",
    "Split",
    "all_splits",
    "content_keys",
    "create_missing_splits",
    "hold_out_mask",
    "limited",
    "record_keys",
    "require_distinct_names",
    "subset",
    "with_classes",
]

SPLITS = ("train", "validation", "test")
VALIDATION_FRACTION = 0.1
MAX_VALIDATION = 5_000  # records; a larger validation split does not choose a better checkpoint
TEST_FRACTION = 0.2

NoteKind = Literal["classes", "contradiction", "held_out", "images", "leakage", "source", "splits", "unused"]


@dataclass(frozen=True)
class Note:
    """A remark on how a data set was read or changed. `str(note)` is its text.

    Attributes:
        kind: "classes" (renamed or renumbered), "contradiction" (one image in two classes), "held_out" (a split taken
            from train), "images" (pixels converted),
            "leakage" (splits share images), "source" (how the source was read), "splits" (one used as another) or
            "unused" (files, images or splits ignored).
        text: one line.
        split: the split that it is about, or "".
    """

    kind: NoteKind
    text: str
    split: str = ""

    def __str__(self) -> str:
        return self.text

    def __contains__(self, part: str) -> bool:
        return part in self.text


def require_distinct_names(class_names: Iterable[str], source: str) -> None:
    """Raise ValueError, beginning with `source`, if two classes have the same name."""
    if repeated := sorted(name for name, count in Counter(class_names).items() if count > 1):
        listed = one_line(", ".join(repeated[:3]), 200)
        raise ValueError(f"{source}: duplicate class names: {listed}; give each class its own name")


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The splits of a data set and the names of its classes.

    Attributes:
        name: the name or path under which it was opened.
        splits: some of "train", "validation" and "test", in this order.
        class_names: label k is class_names[k].
        notes: how the data was read or changed where that was not requested, such as records held out.
        left_out: "path: reason" for every image that cannot be read and is therefore in no split.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    notes: tuple[Note, ...] = ()
    left_out: tuple[str, ...] = ()

    def __post_init__(self):
        require_distinct_names(self.class_names, self.name)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(split):,}" for name, split in self.splits.items())
        return f"Dataset {self.name}: {self.num_classes} classes ({first_few(self.class_names, 5)}); {splits}"

    def fingerprint(self) -> str:
        """Return the sha256 of the class names and of the labels and images of train and validation, not of test."""
        digest = hashlib.sha256()
        for name in self.class_names:
            digest.update(len(name.encode()).to_bytes(4, "little") + name.encode())
        for name in ("train", "validation"):
            if name in self.splits:
                digest.update(f"{name} {len(self.splits[name])}".encode())
                digest.update(np.ascontiguousarray(self.splits[name].labels, "<i4").data)
                for part in content_chunks(self.splits[name]):
                    digest.update(part)
        return digest.hexdigest()


def with_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return the data set with its labels renumbered to a model's classes, matched by name.

    Names may differ in case, blanks, Unicode form or the format of a number, if that is unambiguous. If the classes of
    the data are named only "0", "1", … and are as many as the model's, they are taken to be the model's classes in
    order. A model without class names (`placeholder_names`) must have at most ten classes for that: from eleven on,
    sorting numbers as text, as torchvision does, gives another order.

    Args:
        dataset: the data.
        names: class names of the model, in the order of its outputs.

    Raises:
        ValueError: a class of the data is not one of the model's, or the order of numbered classes is ambiguous.
    """
    names = tuple(names)
    if dataset.class_names == names:
        return dataset
    numbers = tuple(map(str, range(len(names))))
    if dataset.class_names == numbers and not set(numbers) & set(names):
        if len(names) > 10 and names == placeholder_names(len(names)):
            raise ValueError(
                f"{dataset.name}: the checkpoint does not name its {len(names)} classes, so the order of numbered "
                "folders is ambiguous (0, 1, 2, … or 0, 1, 10, …); import the weights again with --classes FOLDER"
            )
        text = f"the classes are numbers only; taken to be the model's, in order: {', '.join(names[:3])}, …"
        return replace(dataset, class_names=names, notes=(*dataset.notes, Note("classes", text)))
    new_label = {name: k for k, name in enumerate(names)} | _other_spellings(dataset.class_names, names)
    if unknown := [name for name in dataset.class_names if name not in new_label]:
        raise ValueError(
            f"{dataset.name}: classes not in the checkpoint: {first_few(unknown)} (it has {first_few(names)}); "
            "give the classes its names, use data with its classes, or fine-tune it on these with `zoo train --init`"
        )
    table = np.array([new_label[name] for name in dataset.class_names], np.int32)
    splits = {name: relabel(split, table[split.labels]) for name, split in dataset.splits.items()}
    text = f"classes matched by name: {len(dataset.class_names)} of the model's {len(names)}"
    if respelt := [f"{name} is {names[new_label[name]]}" for name in dataset.class_names if name not in names]:
        text += f"; spelt differently: {first_few(respelt)}"
    return replace(dataset, splits=splits, class_names=names, notes=(*dataset.notes, Note("classes", text)))


def _other_spellings(classes: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return {class: index of the name that is spelt differently} for classes that are not among the names."""
    is_number = are_numbers((*classes, *names))
    keys = Counter(class_key(name, is_number) for name in names)
    used = Counter(class_key(name, is_number) for name in classes)
    index = {class_key(name, is_number): k for k, name in enumerate(names)}
    return {
        name: index[key]
        for name in classes
        if name not in names and keys[key := class_key(name, is_number)] == 1 == used[key]
    }


def placeholder_names(count: int) -> tuple[str, ...]:
    """Return the class names "class 0", "class 1", … of a model whose classes are not named."""
    return tuple(f"class {i}" for i in range(count))


def all_splits(dataset: Dataset) -> Split:
    """Return the records of all splits as one split, in the order of the splits."""
    return join(list(dataset.splits.values()))


def limited(dataset: Dataset, limit: int) -> Dataset:
    """Return the data set with at most `limit` records in each split, evenly spaced.

    Raises:
        ValueError: if `limit` is not positive.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: must be a positive number of records")

    def limit_split(split: Split) -> Split:
        if len(split) <= limit:
            return split
        mask = np.zeros(len(split), bool)
        mask[np.linspace(0, len(split) - 1, limit).round().astype(int)] = True
        return subset(split, mask)

    return replace(dataset, splits={name: limit_split(split) for name, split in dataset.splits.items()})


# --- holding out ------------------------------------------------------------------------------------------------------


def hold_out_mask(keys: Sequence[bytes], labels: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Choose about `count` records to hold out, by content and in proportion from each class.

    Within a class, records are ranked by their key and the first ones are taken. Records with equal keys stay together,
    across classes too; with repeated images the number taken may therefore differ a little from `count`. Every class
    keeps an image in train. One with two different images also has one held out, unless images that are in several
    classes leave no such choice.

    Args:
        keys: a hash of each record's content, N of them.
        labels: integers [N].
        count: number of records to hold out, at least 1.

    Returns:
        bool [N], true for the records held out.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / max(1, len(labels)))
    quota = np.floor(exact).astype(int)
    for k in np.argsort(quota - exact, kind="stable")[: max(0, count - int(quota.sum()))]:  # largest remainders
        quota[k] += 1
    chosen: set[bytes] = set()
    members = [Counter(keys[i] for i in np.flatnonzero(labels == label).tolist()) for label in classes]
    for copies, class_quota in zip(members, quota, strict=True):
        taken = 0
        candidates = sorted(copies)[:-1]  # the last key stays in train
        for key in candidates:
            if taken + copies[key] <= class_quota:
                chosen.add(key)
                taken += copies[key]
        if taken == 0 and candidates:
            chosen.add(min(candidates, key=lambda key: copies[key]))
    for copies in members:
        if copies.keys() <= chosen:  # images that are in other classes too were chosen there
            chosen.remove(max(copies))
    for copies in members:
        if len(copies) > 1 and chosen.isdisjoint(copies):  # its image was removed for another class
            chosen.update(next(([key] for key in sorted(copies) if _leaves_every_class(key, members, chosen)), []))
    return np.fromiter((key in chosen for key in keys), bool, len(keys))


def _leaves_every_class(key: bytes, members: Sequence[Counter[bytes]], chosen: set[bytes]) -> bool:
    """Return True if every class keeps an image in train when `key` is held out too."""
    return all(key not in copies or any(k != key and k not in chosen for k in copies) for copies in members)


def create_missing_splits(splits: Mapping[str, Split], source: str = "") -> tuple[dict[str, Split], list[Note]]:
    """Create missing splits from train.

    Without a test split, 20 % of train is held out for it, and 10 % for validation. With a test split but no
    validation split, only the 10 % are held out. Validation has at most MAX_VALIDATION records. Data with a validation
    split, or without a train split, stays as it is.

    Args:
        splits: the splits that exist.
        source: name of the data, for errors.

    Returns:
        The splits in the order of SPLITS, and a note for each one held out.

    Raises:
        ValueError: train has too few different images.
    """
    splits = dict(splits)
    notes = []
    if "train" in splits and "validation" not in splits:
        total = len(splits["train"])
        counts = {"validation": min(round(VALIDATION_FRACTION * total), MAX_VALIDATION)}
        if "test" not in splits:
            counts = {"test": round(TEST_FRACTION * total), **counts}
        for name, count in counts.items():
            splits["train"], splits[name] = _hold_out(splits["train"], name, count, source)
            text = f"no {name} split: {len(splits[name]):,} of {total:,} records are held out of train by content"
            notes.append(Note("held_out", text, name))
    return {name: splits[name] for name in SPLITS if name in splits}, notes


def _hold_out(train: Split, name: str, count: int, source: str) -> tuple[Split, Split]:
    """Split `train` in two: the rest and the records held out. `name` and `source` are for the error message."""
    keys = content_keys(train)
    mask = hold_out_mask(keys, train.labels, count)
    if not mask.any() and len(keys) > (distinct := len(set(keys))):
        same = "all images are identical" if distinct == 1 else f"only {distinct} of {len(keys)} images are different"
        raise ValueError(
            f"{source}{': ' if source else ''}cannot hold out {name} records: {same}; check how the images were written"
        )
    if not mask.any():
        classes = len(np.unique(train.labels))
        each = f" of {classes:,} classes" if classes > 1 else ""
        raise ValueError(
            f"{source}{': ' if source else ''}too little data: cannot hold out {name} records from "
            f"{len(train):,}{each}; add images of each class, or give a {name} split"
        )
    return subset(train, ~mask), subset(train, mask)


def nearest_names(wrong: str, known: Iterable[str]) -> str:
    """Return a hint such as " (did you mean cat?)", or "" if no known name is similar."""
    hint = did_you_mean(wrong, known)
    return f" ({hint})" if hint else ""
