"""Data sets of the Hugging Face `datasets` library: hf:NAME, hf:NAME/CONFIG or hf:FOLDER made by save_to_disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data.dataset import first_line
from zoo.data.sources.listing import Listing, split_of, stamp_of

EXTRA = "jax-model-zoo[hf]"


@dataclass(frozen=True, eq=False)
class HfStore:
    """Records of several splits, one after the other: images still encoded."""

    tables: tuple[Any, ...]
    starts: tuple[int, ...]
    names: tuple[str, ...]
    image: str

    def _place(self, record: int) -> tuple[int, int]:
        table = max(i for i, start in enumerate(self.starts) if start <= record)
        return table, record - self.starts[table]

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return [self._read(record) for record in records]

    def _read(self, record: int) -> bytes:
        table, row = self._place(record)
        cell = self.tables[table][row][self.image] or {}
        if (data := cell.get("bytes")) is not None:
            return bytes(data)
        try:
            return Path(cell["path"]).read_bytes()
        except (KeyError, TypeError, OSError) as error:
            raise ValueError(f"{self.name(record)}: cannot be read ({first_line(error)})") from error

    def name(self, record: int) -> str:
        table, row = self._place(record)
        return f"{self.names[table]}[{row}]"


def list_hf(name: str, data_dir: str | Path | None) -> Listing:
    """List the records of a data set with one column of images and one of classes.

    Args:
        name: of the hub, "owner/name" or "owner/name:config"; or a folder made by `save_to_disk`.
        data_dir: where the library keeps what it downloads; its own default if not given.

    Raises:
        ValueError: `datasets` is not installed, the data set cannot be loaded, or is not of such columns.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"hf:{name}: needs the library datasets: pip install '{EXTRA}'") from None
    try:
        if os.path.isdir(name):
            loaded = datasets.load_from_disk(name)
        else:
            base, _, config = name.partition(":")
            loaded = datasets.load_dataset(base, config or None, cache_dir=data_dir and os.fspath(data_dir))
    except Exception as error:  # of many types: the library's, the network's, pyarrow's
        raise ValueError(f"hf:{name}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from None
    tables = dict(loaded.items()) if isinstance(loaded, dict) else {"train": loaded}
    image, label = _columns(next(iter(tables.values())), name)
    known = {theirs: split_of(theirs) for theirs in tables if split_of(theirs)}
    if not known:
        raise ValueError(f"hf:{name}: has the splits {', '.join(tables)}; none of them is train, validation or test")
    stored: list[Any] = []
    starts: list[int] = []
    kept: list[str] = []
    splits: list[str] = []
    labels: list[str] = []
    names = tuple(getattr(next(iter(tables.values())).features[label], "names", None) or ())
    notes = []
    for theirs, ours in known.items():
        table = tables[theirs]
        values = list(table[label])
        if None in values or (names and -1 in values):
            notes.append(f"the {theirs} labels are not public")
            continue
        starts.append(len(labels))
        kept.append(theirs)
        stored.append(table.cast_column(image, datasets.Image(decode=False)).select_columns([image]))
        labels += [names[value] if names else str(value) for value in values]
        splits += [ours] * len(values)
    if unused := [theirs for theirs in tables if theirs not in known]:
        notes.append(f"not used: {', '.join(unused)}")
    return Listing(
        name=f"hf:{name}",
        store=HfStore(tuple(stored), tuple(starts), tuple(kept), image),
        splits=tuple(splits),
        labels=tuple(labels),
        stamp=stamp_of(["hf", name, *(table._fingerprint for table in tables.values())]),
        notes=tuple(notes),
        class_names=names,
    )


def _columns(table: Any, name: str) -> tuple[str, str]:
    """The columns of the image and of the class."""
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
            f"hf:{name}: is not a data set of images with one class each; its columns are "
            f"{', '.join(f'{column} ({kind})' for column, kind in kinds.items())}"
        )
    return images[0], labels[0]
