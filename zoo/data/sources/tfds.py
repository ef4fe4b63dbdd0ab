"""Data sets of TensorFlow Datasets (TFDS), prepared once and then read in random order without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.cache import cached
from zoo.data.dataset import Dataset, Note, create_missing_splits, nearest_names
from zoo.data.splits import ArraySplit, EncodedSplit, Split, decode, record_keys
from zoo.data.threads import tracked
from zoo.text import first_line

IN_MEMORY_BYTES = 2**30  # a split whose decoded pixels take at most this many bytes is decoded once and cached
TFDS_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
PREPARE_EXTRA = "jax-model-zoo[tfds-prepare]"


@dataclass(frozen=True, eq=False)
class TfdsStore:
    """The encoded images of a prepared TFDS split.

    Attributes:
        source: random-access data source of TFDS.
        lock: guards the source, which only one thread may use at a time.
        feature: key of the image in a record.
        title: name of the split in messages.
    """

    source: Any
    lock: Any
    feature: str
    title: str

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        with self.lock:
            return [record[self.feature] for record in _fetch(self.source, list(records), self.title)]

    def name(self, record: int) -> str:
        return f"{self.title} record {record}"


def _fetch(source: Any, records: list[int], title: str) -> Sequence[Mapping[str, Any]]:
    """Return records of a TFDS source. Any failure raises ValueError."""
    try:
        return cast(Sequence[Mapping[str, Any]], source.__getitems__(records))
    except Exception as error:  # array_record raises errors of many types
        raise ValueError(f"{title}: records cannot be read ({first_line(error)}); a file may be damaged") from error


def tfds_dataset(name: str, data_dir: str | Path | None) -> Dataset:
    """Open a data set of TensorFlow Datasets, after downloading and preparing it if necessary.

    Args:
        name: "NAME", "NAME/CONFIG" or "NAME:VERSION", as in `tfds.builder`.
        data_dir: folder of prepared data; the default of TFDS if None.

    Raises:
        ValueError: an unknown name or configuration, a data set that cannot be prepared or read here, or one that does
            not consist of images with one class each.
    """
    builder = _prepared_builder(name, data_dir)
    image, label = _features(builder, name)
    names = tuple(str(label_name) for label_name in builder.info.features[label].names or ())
    names = names or tuple(str(k) for k in range(builder.info.features[label].num_classes))
    nonempty = [split for split, info in builder.info.splits.items() if info.num_examples]
    used = {tfds_name: split for tfds_name, split in TFDS_SPLITS.items() if tfds_name in nonempty}
    if not used:
        raise ValueError(f"tfds:{name}: has no train, validation or test split, only {', '.join(builder.info.splits)}")
    splits: dict[str, Split] = {
        split: _open_split(builder, tfds_name, image, label, name) for tfds_name, split in used.items()
    }
    notes = []
    if str(builder.name) == "emnist":
        notes.append(Note("images", "EMNIST's pictures are stored transposed; they are turned upright"))
        splits = {split: _transposed(records) for split, records in splits.items()}
    if unused := [split for split in builder.info.splits if split not in used]:
        notes.append(Note("unused", f"not used: {', '.join(unused)}"))
    if "test" in splits and (splits["test"].labels < 0).all():
        del splits["test"]
        notes.append(Note("unused", "not used: the test split, whose labels are not public", "test"))
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append(Note("splits", "no test split: the validation split is used as the test split", "test"))
    for split, records in splits.items():
        if not ((records.labels >= 0) & (records.labels < len(names))).all():
            raise ValueError(f"tfds:{name}: {split} labels must be in 0..{len(names) - 1}")
    splits, held_out = create_missing_splits(splits, f"tfds:{name}")
    return Dataset(f"tfds:{name}", splits, names, (*notes, *held_out))


def _transposed(split: Split) -> Split:
    return replace(split, images=split.images.swapaxes(1, 2)) if isinstance(split, ArraySplit) else split


def _prepared_builder(name: str, data_dir: str | Path | None) -> Any:
    """Return the builder of a data set whose records can be read in random order."""
    with _quiet():
        try:
            import tensorflow_datasets as tfds
        except Exception as error:  # of protobuf and other packages that it imports
            raise ValueError(f"tfds:{name}: TensorFlow Datasets cannot be imported ({first_line(error)})") from error
        try:
            builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
        except tfds.core.DatasetNotFoundError:
            hint = nearest_names(name.split("/")[0], tfds.list_builders(with_community_datasets=False))
            raise ValueError(f"tfds:{name}: TFDS has no such data set{hint}") from None
        except Exception as error:  # AssertionError for a version, ImportError for a missing package, …
            raise ValueError(f"tfds:{name}: {_explain_builder_error(name, error)}") from error
        if not builder.is_prepared():
            _features(builder, name)  # raises before anything is downloaded
            _prepare(builder, name)
    formats = {str(f.value) for f in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"tfds:{name}: is prepared at {builder.data_path} as {', '.join(sorted(formats)) or 'an unknown format'}, "
            f"which cannot be read in random order; run: tfds convert_format --dataset_version_dir={builder.data_path} "
            "--out_file_format=array_record"
        )
    return builder


def _explain_builder_error(name: str, error: Exception) -> str:
    """Return one line that says why TFDS cannot make the builder."""
    import tensorflow_datasets as tfds

    base, _, config = name.partition("/")
    try:
        configs = list(tfds.builder_cls(base).builder_configs)
    except Exception:
        configs = []
    if config and config not in configs:
        hint = nearest_names(config, configs) if configs else " (it has no configurations)"
        return f"has no configuration {config!r}{hint}"
    return first_line(error).rpartition('}": ')[2]  # without the builder's arguments, which TFDS puts first


def _prepare(builder: Any, name: str) -> None:
    """Download a data set and write it as array_record. TFDS shows its own progress on stderr."""
    needs_tensorflow = f"preparing it needs TensorFlow once: pip install '{PREPARE_EXTRA}'"
    not_prepared = f"tfds:{name}: is not prepared in {builder.data_path}"
    if _needs_tensorflow(builder):
        raise ValueError(f"{not_prepared}, and {needs_tensorflow}")
    if host := _unreachable_host(builder):
        raise ValueError(f"{not_prepared}, and {host} cannot be reached to download it")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        if any(isinstance(e, ImportError) and "tensorflow" in str(e).lower() for e in chain):
            raise ValueError(f"tfds:{name}: {needs_tensorflow}") from error
        if any(isinstance(e, ConnectionError) or type(e).__module__.startswith(("requests", "urllib3")) for e in chain):
            raise ValueError(f"tfds:{name}: could not be downloaded ({first_line(error)})") from error
        raise ValueError(f"tfds:{name}: could not be prepared ({type(error).__name__}: {first_line(error)})") from error


def _needs_tensorflow(builder: Any) -> bool:
    """Return True if the code that prepares a data set uses TensorFlow, and TensorFlow is not installed."""
    import importlib.util
    import inspect

    if importlib.util.find_spec("tensorflow") is not None:
        return False
    try:
        return re.search(r"\btf\.\w", inspect.getsource(inspect.getmodule(type(builder)) or builder)) is not None
    except (OSError, TypeError):
        return False


def _unreachable_host(builder: Any) -> str | None:
    """Return the first host to download from if none of them can be resolved. TFDS would retry for minutes."""
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
    """Context in which TFDS logs no warnings, and prints to stderr instead of stdout."""

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
    """Return the keys of the image and of the label in a record."""
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
            f"tfds:{name}: must have one image and one class per record "
            f"(images: {', '.join(images) or 'none'}; classes: {', '.join(labels) or 'none'})"
        )
    if np.dtype(features[image].np_dtype) not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise ValueError(f"tfds:{name}: images must have 8 or 16 bits, not {np.dtype(features[image].np_dtype)}")
    return image, label


def _open_split(builder: Any, tfds_name: str, image: str, label: str, name: str) -> Split:
    """Return a split in memory if its images are small and of one size, else one that decodes on reading."""
    import threading

    import tensorflow_datasets as tfds

    features = builder.info.features
    skipped = {k: tfds.decode.SkipDecoding() for k, f in features.items() if isinstance(f, tfds.features.Image)}
    source = builder.as_data_source(tfds_name, decoders=skipped)
    title = f"tfds:{name} {tfds_name}"
    shape = features[image].shape
    white = 65535.0 if features[image].np_dtype == np.uint16 else None
    small = all(shape) and len(source) * int(np.prod(shape)) <= IN_MEMORY_BYTES

    def read_all() -> dict[str, NDArray[Any]]:
        labels = np.empty(len(source), np.int32)
        pixels = np.empty((len(source), *shape), np.uint8) if small else None
        keys = np.empty((len(source), 16), np.uint8)
        for start in tracked(range(0, len(source), 1024), f"reading {title}"):
            records = _fetch(source, list(range(start, min(start + 1024, len(source)))), title)
            for i, record in enumerate(records, start):
                labels[i] = record[label]
                if pixels is None:
                    keys[i] = np.frombuffer(record_keys([np.frombuffer(record[image], np.uint8)])[0], np.uint8)
                else:
                    decoded = decode(record[image], f"{title} record {i}", white)
                    if decoded.shape != shape:
                        raise ValueError(f"{title} record {i}: has shape {decoded.shape}, not {shape}")
                    pixels[i] = decoded
        return {"labels": labels, "keys": keys} if pixels is None else {"labels": labels, "images": pixels}

    stored = cached(_cache_key(builder, tfds_name, image, label, small), read_all)
    if small:
        return ArraySplit(stored["images"], stored["labels"], white)
    keys = tuple(bytes(key) for key in stored["keys"])
    store = TfdsStore(source, threading.Lock(), image, title)
    return EncodedSplit(store, np.arange(len(source)), stored["labels"], keys, white=white)


def _cache_key(builder: Any, split: str, image: str, label: str, decoded: bool) -> str:
    """Return the cache key of a split, which changes with the version, the files and the way of reading them."""
    digest = hashlib.sha256(f"1 {split} {image} {label} {decoded}".encode())
    folder = Path(str(builder.data_path))
    digest.update(str(folder.resolve()).encode())
    for file in sorted([*builder.info.splits[split].filenames, "features.json", "dataset_info.json"]):
        status = (folder / file).stat() if (folder / file).exists() else None
        digest.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode() if status else b"-")
    return f"tfds-{builder.info.full_name.replace('/', '-')}-{split}-{digest.hexdigest()[:16]}"
