"""Data sets of the Hugging Face library `datasets`: hf:OWNER/NAME, hf:OWNER/NAME:CONFIG, or hf:FOLDER."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data.dataset import Note
from zoo.data.images.decode import MAX_IMAGE_BYTES
from zoo.data.sources.listing import Listing, hash_parts
from zoo.data.sources.names import canonical_split
from zoo.files import read_bounded
from zoo.text import first_line

EXTRA = "jax-model-zoo[hf]"


@dataclass(frozen=True, eq=False)
class HfStore:
    """The encoded images of several splits, one after the other.

    Attributes:
        tables: the `datasets.Dataset` of each split.
        starts: number of the first record of each split.
        names: the library's name of each split.
        image: the column of images.
    """

    tables: tuple[Any, ...]
    starts: tuple[int, ...]
    names: tuple[str, ...]
    image: str

    def _locate(self, record: int) -> tuple[int, int]:
        """Return the number of the table, and the row in it."""
        table = max(i for i, start in enumerate(self.starts) if start <= record)
        return table, record - self.starts[table]

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return [self._read(record) for record in records]

    def _read(self, record: int) -> bytes:
        table, row = self._locate(record)
        cell = self.tables[table][row][self.image] or {}
        if (data := cell.get("bytes")) is not None:
            return bytes(data)
        try:
            return read_bounded(Path(cell["path"]), MAX_IMAGE_BYTES)
        except (KeyError, TypeError, OSError) as error:
            raise ValueError(f"{self.name(record)}: cannot be read ({first_line(error)})") from error

    def name(self, record: int) -> str:
        table, row = self._locate(record)
        return f"{self.names[table]}[{row}]"


def list_hf(name: str, data_dir: str | Path | None) -> Listing:
    """List the records of a data set that has one column of images and one of classes.

    Args:
        name: "owner/name" or "owner/name:config" on the hub, or a folder written by `save_to_disk`.
        data_dir: folder for downloads; the library's default if None.

    Raises:
        ValueError: `datasets` is not installed, the data set cannot be loaded, or it has other columns.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"hf:{name}: needs the package datasets: pip install '{EXTRA}'") from None
    try:
        if os.path.isdir(name):
            loaded = datasets.load_from_disk(name)
        else:
            base, _, config = name.partition(":")
            loaded = datasets.load_dataset(base, config or None, cache_dir=data_dir and os.fspath(data_dir))
    except Exception as error:  # of the library, the network or pyarrow
        raise ValueError(f"hf:{name}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from None
    tables = dict(loaded.items()) if isinstance(loaded, dict) else {"train": loaded}
    used = {hf_name: canonical_split(hf_name) for hf_name in tables if canonical_split(hf_name)}
    if not used:
        raise ValueError(f"hf:{name}: has no train, validation or test split, only {', '.join(tables)}")
    reference = tables[next((hf_name for hf_name, split in used.items() if split == "train"), next(iter(used)))]
    image, label = find_columns(reference, name)
    image_tables: list[Any] = []
    starts: list[int] = []
    table_names: list[str] = []
    splits: list[str] = []
    labels: list[str] = []
    names = tuple(getattr(reference.features[label], "names", None) or ())
    notes = []
    for hf_name, split in used.items():
        table = tables[hf_name]
        missing = [column for column in (image, label) if column not in table.features]
        values = [] if missing else list(table[label])
        if missing or None in values or (names and -1 in values):
            reason = f"which has no column {missing[0]}" if missing else "whose labels are not public"
            notes.append(Note("unused", f"not used: the {hf_name} split, {reason}", split))
            continue
        starts.append(len(labels))
        table_names.append(hf_name)
        image_tables.append(table.cast_column(image, datasets.Image(decode=False)).select_columns([image]))
        labels += [names[value] if names else str(value) for value in values]
        splits += [split] * len(values)
    if unused := [hf_name for hf_name in tables if hf_name not in used]:
        notes.append(Note("unused", f"not used: {', '.join(unused)}"))
    return Listing(
        name=f"hf:{name}",
        store=HfStore(tuple(image_tables), tuple(starts), tuple(table_names), image),
        splits=tuple(splits),
        labels=tuple(labels),
        stamp=hash_parts(["hf", name, *(table._fingerprint for table in tables.values())]),
        notes=tuple(notes),
        class_names=names,
    )


def find_columns(table: Any, name: str) -> tuple[str, str]:
    """Return the column of images and the column of classes."""
    kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"] or [
        column for column in kinds if column in ("label", "labels", "class")
    ]
    if len(images) > 1 and "image" in images:
        images = ["image"]
    if len(labels) > 1 and "label" in labels:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"hf:{name}: must have one column of images and one of classes; its columns are "
            f"{', '.join(f'{column} ({kind})' for column, kind in kinds.items())}"
        )
    return images[0], labels[0]
