"""Splits: random-access collections of labelled images.

Any object with `labels`, `__len__` and `read` is a `Split` and works everywhere. The functions below ask a split for
what else it can do through optional methods, and fall back to `read` where a method is missing or returns None:

    content_keys() -> Sequence[bytes] | None     a hash of each record, if known without reading the records
    image_sizes() -> int32 [N, 2] | None         (height, width) of each image, if known without reading the records
    in_memory() -> uint8 [N, H, W, C] | None     all images as one array, if they are in memory already
    encoded_reader() -> Callable | None          a function from indices to the encoded files of these records
    name(index) -> str                           the name of a record, such as its file
    number(index) -> int                         the position of a record in its source, if the split is a part of it
    columns() -> Mapping[str, Sequence[str]]     further columns of the table that lists the records
    white: float | None                          value of white in 16-bit, 32-bit and float images, as in `Preprocess`
    with_white(white) -> Split                   the same records, read with another value of white
    subset(indices) -> Split                     the records at these indices, in this order
    relabel(labels) -> Split                     the same records with other labels
    read_chunk: int                              records that one thread reads at a time

`ArraySplit` and `EncodedSplit` implement all of them that apply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.decode import read_image

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int32]

HASH_CHUNK = 4096  # records that are read at a time to be hashed


@runtime_checkable
class Split(Protocol):
    """A random-access collection of labelled images."""

    @property
    def labels(self) -> Labels:
        """Labels of all records, int32 [N]."""

    def __len__(self) -> int: ...

    def read(self, indices: Any) -> Pixels | list[Pixels]:
        """Return the images at these indices, in this order. Several threads may call this at once.

        Args:
            indices: integers [n] in 0..N-1.

        Returns:
            uint8 [n, H, W, C], or a list of n arrays [H, W, C] if sizes differ.
        """


@dataclass(frozen=True, eq=False, repr=False)
class ArraySplit:
    """A split held in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        white: the value that was scaled to 255, if it is not the usual one of the arrays' type.
        numbers: position of each image in the array that the source gave, int64 [N]; None if the split is all of it.
    """

    images: Pixels
    labels: Labels
    white: float | None = None
    numbers: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ArraySplit of {len(self):,} images of shape {self.images.shape[1:]}"

    def read(self, indices: Any) -> Pixels:
        return cast(Pixels, self.images[indices])

    def in_memory(self) -> Pixels:
        return self.images

    def image_sizes(self) -> NDArray[np.int32]:
        return np.tile(np.array(self.images.shape[1:3], np.int32), (len(self), 1))

    def number(self, index: int) -> int:
        return index if self.numbers is None else int(self.numbers[index])

    def subset(self, indices: NDArray[np.int64]) -> ArraySplit:
        numbers = np.asarray(indices) if self.numbers is None else self.numbers[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], numbers=numbers)

    def relabel(self, labels: Labels) -> ArraySplit:
        return replace(self, labels=labels)


@runtime_checkable
class Store(Protocol):
    """Encoded images addressed by record number. Several threads call its methods at once."""

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        """Return the encoded bytes of these records.

        Raises:
            ValueError: a record cannot be read; one line with its name. The cause is an OSError (`raise … from error`)
                if another attempt may succeed.
            OSError: likewise.
        """

    def name(self, record: int) -> str:
        """Return the name of a record in messages, such as its path."""


@dataclass(frozen=True, eq=False, repr=False)
class EncodedSplit:
    """A split of encoded images, decoded each time they are read.

    Attributes:
        store: source of the encoded bytes.
        records: record numbers in the store, int64 [N].
        labels: int32 [N].
        keys: hash of each encoded image.
        sizes: int32 [N, 2], (height, width) after EXIF orientation; None if unknown.
        white: value of white in 16-bit, 32-bit and float images; None if there are none, or if it is the usual one.
    """

    store: Store
    records: NDArray[np.int64]
    labels: Labels
    keys: tuple[bytes, ...]
    sizes: NDArray[np.int32] | None = None
    white: float | None = None

    read_chunk = 8

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"EncodedSplit of {len(self):,} images"

    def name(self, index: int) -> str:
        return self.store.name(int(self.records[index]))

    def columns(self) -> dict[str, list[str]]:
        records, columns = self.records.tolist(), getattr(self.store, "columns", {})
        return {name: [cells[record] for record in records] for name, cells in columns.items()}

    def encoded(self, indices: Any) -> list[bytes]:
        """Return the encoded bytes of the records at these indices."""
        return self.store.fetch(self.records[indices].tolist())

    def read(self, indices: Any) -> list[Pixels]:
        records = self.records[indices].tolist()
        encoded = zip(records, self.store.fetch(records), strict=True)
        return [decode(data, self.store.name(record), self.white) for record, data in encoded]

    def with_white(self, white: float | None) -> EncodedSplit:
        return replace(self, white=white)

    def encoded_reader(self) -> Callable[[Any], list[bytes]]:
        return self.encoded

    def content_keys(self) -> Sequence[bytes]:
        return self.keys

    def image_sizes(self) -> NDArray[np.int32] | None:
        return self.sizes

    def subset(self, indices: NDArray[np.int64]) -> EncodedSplit:
        return replace(
            self,
            records=self.records[indices],
            labels=self.labels[indices],
            keys=tuple(self.keys[i] for i in indices.tolist()),
            sizes=None if self.sizes is None else self.sizes[indices],
        )

    def relabel(self, labels: Labels) -> EncodedSplit:
        return replace(self, labels=labels)


# --- wrappers for splits without the optional methods -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SubsetSplit:
    """The records of another split at some indices, with its labels or new ones.

    Attributes:
        split: the underlying split.
        indices: int64 [N], indices into `split`.
        labels: int32 [N].
    """

    split: Split
    indices: NDArray[np.int64]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def read_chunk(self) -> int:
        return read_chunk(self.split)

    def name(self, index: int) -> str | None:
        return known_name(self.split, int(self.indices[index]))

    def number(self, index: int) -> int:
        return record_number(self.split, int(self.indices[index]))

    def read(self, indices: Any) -> Pixels | list[Pixels]:
        return self.split.read(self.indices[indices])

    def encoded_reader(self) -> Callable[[Any], list[bytes]] | None:
        read = encoded_reader(self.split)
        return None if read is None else lambda indices: read(self.indices[indices])

    @property
    def white(self) -> float | None:
        return white_level(self.split)

    def with_white(self, white: float | None) -> SubsetSplit:
        return replace(self, split=with_white(self.split, white))

    def content_keys(self) -> Sequence[bytes] | None:
        keys = known_keys(self.split)
        return None if keys is None else [keys[i] for i in self.indices.tolist()]

    def image_sizes(self) -> NDArray[np.int32] | None:
        sizes = image_sizes(self.split)
        return None if sizes is None else sizes[self.indices]

    def subset(self, indices: NDArray[np.int64]) -> SubsetSplit:
        return SubsetSplit(self.split, self.indices[indices], self.labels[indices])

    def relabel(self, labels: Labels) -> SubsetSplit:
        return replace(self, labels=labels)


@dataclass(frozen=True, eq=False)
class JoinedSplit:
    """The records of several splits, one split after the other.

    Attributes:
        splits: the underlying splits.
        labels: int32 [N].
    """

    splits: tuple[Split, ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def read_chunk(self) -> int:
        return min(map(read_chunk, self.splits))

    def _starts(self) -> NDArray[np.int64]:
        """Return the index of the first record of each split, and N."""
        return np.cumsum([0, *map(len, self.splits)])

    def _locate(self, index: int) -> tuple[Split, int]:
        """Return the split of a record, and its index in that split."""
        starts = self._starts()
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return self.splits[part], index - int(starts[part])

    def name(self, index: int) -> str | None:
        return known_name(*self._locate(index))

    def number(self, index: int) -> int:
        return record_number(*self._locate(index))

    def content_keys(self) -> Sequence[bytes] | None:
        parts = [known_keys(split) for split in self.splits]
        return None if None in parts else [key for part in parts if part is not None for key in part]

    def image_sizes(self) -> NDArray[np.int32] | None:
        parts = [sizes for split in self.splits if (sizes := image_sizes(split)) is not None]
        return np.concatenate(parts) if len(parts) == len(self.splits) else None

    @property
    def white(self) -> float | None:
        return white_level(self.splits[0])  # a data set has one

    def with_white(self, white: float | None) -> JoinedSplit:
        return replace(self, splits=tuple(with_white(split, white) for split in self.splits))

    def read(self, indices: Any) -> list[Pixels]:
        return self._collect(indices, [split.read for split in self.splits])

    def encoded_reader(self) -> Callable[[Any], list[bytes]] | None:
        readers = [read for split in self.splits if (read := encoded_reader(split)) is not None]
        return partial(self._collect, readers=readers) if len(readers) == len(self.splits) else None

    def _collect(self, indices: Any, readers: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """Return the records at these indices, each from the reader of its split, in this order."""
        wanted = np.arange(len(self))[indices]
        records: list[Any] = [None] * len(wanted)
        for read, start, stop in zip(readers, self._starts()[:-1], self._starts()[1:], strict=True):
            rows = np.flatnonzero((start <= wanted) & (wanted < stop))
            if len(rows):
                for row, record in zip(rows.tolist(), read(wanted[rows] - start), strict=True):
                    records[row] = record
        return records


# --- what can be asked of any split -----------------------------------------------------------------------------------


def _ask(split: Split, method: str) -> Any:
    """Return the result of an optional method of a split, or None without it."""
    function = getattr(split, method, None)
    return function() if callable(function) else None


def known_keys(split: Split) -> Sequence[bytes] | None:
    """Return a hash of each record, or None if the records must be read to hash them."""
    return cast("Sequence[bytes] | None", _ask(split, "content_keys"))


def content_keys(split: Split) -> Sequence[bytes]:
    """Return a hash of each record: of the encoded image if the split knows it, else of the pixels."""
    keys = known_keys(split)
    if keys is not None:
        return keys
    starts = range(0, len(split), HASH_CHUNK)
    return [key for start in starts for key in record_keys(split.read(_chunk(split, start)))]


def content_chunks(split: Split) -> Iterable[Any]:
    """Yield buffers that identify the content of a split: the known keys, else shapes and pixels."""
    keys = known_keys(split)
    if keys is not None:
        yield from keys
        return
    for start in range(0, len(split), HASH_CHUNK):
        images = split.read(_chunk(split, start))
        if isinstance(images, np.ndarray):
            yield repr(images.shape[1:]).encode()
            yield np.ascontiguousarray(images).data
        else:
            for image in images:
                yield repr(image.shape).encode()
                yield np.ascontiguousarray(image).data


def _chunk(split: Split, start: int) -> NDArray[np.int64]:
    return np.arange(start, min(start + HASH_CHUNK, len(split)))


def record_keys(images: Iterable[NDArray[Any]]) -> list[bytes]:
    """Return a hash of each image's bytes (BLAKE2b, 16 bytes)."""
    return [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images]


def image_sizes(split: Split) -> NDArray[np.int32] | None:
    """Return (height, width) of each image, int32 [N, 2], or None if the images must be decoded to know."""
    return cast("NDArray[np.int32] | None", _ask(split, "image_sizes"))


def images_in_memory(split: Split) -> Pixels | None:
    """Return all images as one array uint8 [N, H, W, C], or None if they are not in memory."""
    return cast("Pixels | None", _ask(split, "in_memory"))


def encoded_reader(split: Split) -> Callable[[Any], list[bytes]] | None:
    """Return a function from indices to encoded files, or None if the split has no encoded files."""
    return cast("Callable[[Any], list[bytes]] | None", _ask(split, "encoded_reader"))


def read_chunk(split: Split) -> int:
    """Return the number of records that one thread reads at a time: few if each of them must be decoded."""
    return int(getattr(split, "read_chunk", 1024))


def known_name(split: Split, index: int) -> str | None:
    """Return the name that the split itself gives a record, such as its file; None if records have no names."""
    name = getattr(split, "name", None)
    answer = name(index) if callable(name) else None
    return None if answer is None else str(answer)


def record_number(split: Split, index: int) -> int:
    """Return the position of a record in its source: the split, or the larger array that the split was taken from."""
    number = getattr(split, "number", None)
    return int(number(index)) if callable(number) else index


def record_name(split: Split, index: int) -> str:
    """Return the name of a record in messages: its file, or its number."""
    return known_name(split, index) or f"record {record_number(split, index)}"


def record_label(split: Split, index: int) -> str:
    """Return the name of a record in tables: its file, or its number alone."""
    return known_name(split, index) or str(record_number(split, index))


def record_columns(split: Split) -> Mapping[str, Sequence[str]]:
    """Return the cells of the records in further columns of their table: {} if there are none."""
    return cast("Mapping[str, Sequence[str]]", _ask(split, "columns") or {})


def white_level(split: Split) -> float | None:
    """Return the value of white in the split's 16-bit, 32-bit and float images; None if it is the usual one."""
    return cast("float | None", getattr(split, "white", None))


def with_white(split: Split, white: float | None) -> Split:
    """Return the records of `split`, read with the value of white of a model's training data."""
    method = getattr(split, "with_white", None)
    return cast(Split, method(white)) if callable(method) else split


def subset(split: Split, mask: NDArray[np.bool_]) -> Split:
    """Return the records of `split` where `mask` [N] is true, in their order."""
    indices = np.flatnonzero(mask)
    method = getattr(split, "subset", None)
    if callable(method):
        return cast(Split, method(indices))
    return SubsetSplit(split, indices, np.asarray(split.labels)[indices])


def relabel(split: Split, labels: Labels) -> Split:
    """Return the records of `split` with these labels, int32 [N]."""
    method = getattr(split, "relabel", None)
    return cast(Split, method(labels)) if callable(method) else SubsetSplit(split, np.arange(len(split)), labels)


def join(splits: Sequence[Split]) -> Split:
    """Return the records of all splits as one split, in the order given."""
    if len(splits) == 1:
        return splits[0]
    labels = np.concatenate([split.labels for split in splits])
    in_arrays = [split for split in splits if isinstance(split, ArraySplit)]
    if len(in_arrays) == len(splits) and len({split.images.shape[1:] for split in in_arrays}) == 1:
        numbers = np.concatenate([np.arange(len(s)) if s.numbers is None else s.numbers for s in in_arrays])
        images = np.concatenate([split.images for split in in_arrays])
        return ArraySplit(images, labels, white_level(splits[0]), numbers)
    encoded = [split for split in splits if isinstance(split, EncodedSplit)]
    if len(encoded) == len(splits) and len({id(split.store) for split in encoded}) == 1:
        sizes = [split.sizes for split in encoded if split.sizes is not None]
        return EncodedSplit(
            encoded[0].store, np.concatenate([split.records for split in encoded]), labels,
            tuple(key for split in encoded for key in split.keys),
            np.concatenate(sizes) if len(sizes) == len(encoded) else None, encoded[0].white,
        )  # fmt: skip
    return JoinedSplit(tuple(splits), labels)


def decode(encoded: bytes, name: str, white: float | None = None) -> Pixels:
    """Decode an image as `read_image` does, with the record's name in error messages."""
    try:
        return read_image(encoded, white)
    except ValueError as error:
        raise ValueError(f"{name}{str(error).removeprefix('image')}") from None
