"""What every source gives: splits of random-access records and class names, and the rule by which records are held out.

Where a data set has no validation or test split, records are held out by `held_out`: a hash of their content decides,
never a random number, so that the split cannot change with seed, order, library or machine, and identical images
never lie on both sides.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.decode import read_image

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1
VALIDATION_LIMIT = 5_000  # records; more make the choice of a checkpoint no better
TEST_SHARE = 0.2

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


@runtime_checkable
class Store(Protocol):
    """Encoded images by number, wherever they lie. Several threads call these at once."""

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        """The bytes of these records. ValueError or OSError, one line, naming what cannot be read.

        The cause of a ValueError is an OSError (`raise … from error`) where another attempt may succeed.
        """

    def name(self, record: int) -> str:
        """What to call a record in messages: a path where there is one."""


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """Records that stay encoded, and are decoded whenever they are asked for.

    Attributes:
        store: where they lie.
        records: int64 [N], their numbers in the store.
        labels: int32 [N].
        keys: a hash of each encoded image.
        sizes: int32 [N, 2], (height, width) as a person sees them; None where nobody looked.
    """

    store: Store
    records: NDArray[np.int64]
    labels: Labels
    keys: tuple[bytes, ...]
    sizes: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.store.name(int(self.records[index]))

    def encoded(self, indices: Any) -> list[bytes]:
        """The files' bytes of these records."""
        return self.store.fetch(self.records[indices].tolist())

    def read(self, indices: Any) -> list[Pixels]:
        wanted = self.records[indices].tolist()
        found = zip(wanted, self.store.fetch(wanted), strict=True)
        return [decode(image, self.store.name(record)) for record, image in found]


def decode(encoded: bytes, name: str) -> Pixels:
    """`read_image`, with the name of what is damaged in its message."""
    try:
        return read_image(encoded)
    except ValueError as error:
        raise ValueError(f"{name}{str(error).removeprefix('image')}") from None


def require_distinct_names(class_names: Iterable[str], where: str) -> None:
    """ValueError, naming `where`, for classes that nobody could tell apart."""
    if twice := sorted(name for name, count in Counter(class_names).items() if count > 1):
        raise ValueError(f"{where}: several classes are called {', '.join(twice[:3])}; names must differ")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one data set and what its labels mean.

    Attributes:
        name: as it was asked for.
        splits: some of "train", "validation" and "test", in this order.
        class_names: label k is class_names[k].
        notes: what was done to the data that was not asked for, such as records held out, a line each.
        left_out: "path: reason" of every image that cannot be used. It is in no split; whoever uses the data says so.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __post_init__(self):
        require_distinct_names(self.class_names, self.name)

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
    if isinstance(split, EncodedSplit):  # the encoded images were hashed when the labels were read
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


def with_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with labels as a model with these classes numbers them; they are matched by name.

    Data that only number their classes from 0 on, as many as the model has, are taken to number the model's.

    Raises:
        ValueError: a class of the data is not among the names.
    """
    if dataset.class_names == tuple(names):
        return dataset
    place = {name: k for k, name in enumerate(names)}
    numbers = tuple(map(str, range(len(names))))
    if dataset.class_names == numbers and not set(numbers) & set(names):
        note = f"the classes are only numbered; they are taken to be the model's: {', '.join(names[:3])}, …"
        return replace(dataset, class_names=tuple(names), notes=(*dataset.notes, note))
    if unknown := [name for name in dataset.class_names if name not in place]:
        ours, theirs = (", ".join(some[:5]) + (", …" if len(some) > 5 else "") for some in (tuple(names), unknown))
        raise ValueError(f"{dataset.name}: its classes {theirs} are not among the checkpoint's ({ours})")
    number = np.array([place[name] for name in dataset.class_names], np.int32)
    splits: dict[str, Split] = {}
    for name, split in dataset.splits.items():
        if not isinstance(split, ArraySplit | EncodedSplit):
            raise ValueError(f"{dataset.name}: its classes are not the checkpoint's, in the same order")
        splits[name] = replace(split, labels=number[split.labels])
    note = f"classes are matched by name: {len(dataset.class_names)} of the model's {len(place)}"
    return replace(dataset, splits=splits, class_names=tuple(names), notes=(*dataset.notes, note))


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


def content_keys(split: Split) -> Sequence[bytes]:
    """A hash of each record: of the encoded image where there is one, else of its pixels."""
    if isinstance(split, EncodedSplit):
        return split.keys
    starts = range(0, len(split), 4096)
    return [key for at in starts for key in record_keys(split.read(np.arange(at, min(at + 4096, len(split)))))]


def subset(split: Split, mask: NDArray[np.bool_]) -> Split:
    """The records of `split` where `mask` [N] is true, in their order."""
    if isinstance(split, EncodedSplit):
        chosen = np.flatnonzero(mask)
        return replace(
            split,
            records=split.records[chosen],
            labels=split.labels[chosen],
            keys=tuple(split.keys[i] for i in chosen.tolist()),
            sizes=None if split.sizes is None else split.sizes[chosen],
        )
    array = cast(ArraySplit, split)
    return ArraySplit(array.images[mask], array.labels[mask])


def all_splits(dataset: Dataset) -> Split:
    """The records of every split as one, in the splits' order. ValueError where they cannot be put together."""
    splits = list(dataset.splits.values())
    if len(splits) == 1:
        return splits[0]
    labels = np.concatenate([split.labels for split in splits])
    if all(isinstance(split, ArraySplit) for split in splits):
        images = [cast(ArraySplit, split).images for split in splits]
        if len({part.shape[1:] for part in images}) == 1:
            return ArraySplit(np.concatenate(images), labels)
    encoded = [split for split in splits if isinstance(split, EncodedSplit)]
    if len(encoded) == len(splits) and len({id(split.store) for split in encoded}) == 1:
        sizes = [split.sizes for split in encoded if split.sizes is not None]
        return EncodedSplit(
            encoded[0].store, np.concatenate([split.records for split in encoded]), labels,
            tuple(key for split in encoded for key in split.keys),
            np.concatenate(sizes) if len(sizes) == len(encoded) else None,
        )  # fmt: skip
    raise ValueError(f"{dataset.name}: its splits cannot be put together; name one: {', '.join(dataset.splits)}")


def limited(dataset: Dataset, limit: int) -> Dataset:
    """At most `limit` records of each split, taken at even distances."""

    def cut(split):
        if len(split) <= limit:
            return split
        mask = np.zeros(len(split), bool)
        mask[np.linspace(0, len(split) - 1, limit).round().astype(int)] = True
        return subset(split, mask)

    splits = {name: cut(split) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits)


def complete(splits: dict[str, Split]) -> tuple[dict[str, Split], list[str]]:
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
    mask = held_out(content_keys(train), train.labels, count)
    if not mask.any():
        raise ValueError(
            f"too little data: no {name} records can be held out of {len(train)}; give more images, or a {name} split"
        )
    splits["train"], splits[name] = subset(train, ~mask), subset(train, mask)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest_names(wrong: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
