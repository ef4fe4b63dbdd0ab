"""Data sets of TensorFlow Datasets, prepared once and then read at random without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.cache import cached
from zoo.data.dataset import (
    ArraySplit,
    Dataset,
    EncodedSplit,
    Split,
    complete,
    decode,
    first_line,
    nearest_names,
    record_keys,
)
from zoo.data.threads import tracked

IN_MEMORY = 2**30  # bytes of decoded pixels up to which a prepared data set is decoded once and kept
TFDS_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
PREPARE_EXTRA = "jax-model-zoo[tfds-prepare]"


@dataclass(frozen=True, eq=False)
class TfdsStore:
    """The encoded images of a prepared TFDS split.

    Attributes:
        source: TFDS's random-access source.
        lock: of the source, which is not for several threads at once.
        feature: the image's name in a record.
        what: for messages.
    """

    source: Any
    lock: Any
    feature: str
    what: str

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        with self.lock:
            return [record[self.feature] for record in _fetch(self.source, list(records), self.what)]

    def name(self, record: int) -> str:
        return f"{self.what} record {record}"


def _fetch(source: Any, records: list[int], what: str) -> Sequence[Mapping[str, Any]]:
    try:
        return cast(Sequence[Mapping[str, Any]], source.__getitems__(records))
    except Exception as error:  # array_record raises what its C++ says
        raise ValueError(f"{what}: records cannot be read ({first_line(error)}); is a file of it damaged?") from error


def tfds_dataset(name: str, data_dir: str | Path | None) -> Dataset:
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
    splits, held = complete(splits)
    return Dataset(f"tfds:{name}", splits, names, tuple(notes + held))


def _prepared(name: str, data_dir: str | Path | None) -> Any:
    """A builder whose records can be read at random."""
    with _quiet():
        try:
            import tensorflow_datasets as tfds

            builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
        except tfds.core.DatasetNotFoundError:
            hint = nearest_names(name.split("/")[0], tfds.list_builders(with_community_datasets=False))
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
        return f"has no configuration {config!r}" + (nearest_names(config, configs) or " (it has none at all)")
    return first_line(error).rpartition('}": ')[2]  # TFDS puts the arguments of the builder before the reason


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
            raise ValueError(f"tfds:{name}: could not be downloaded ({first_line(error)})") from error
        raise ValueError(f"tfds:{name}: could not be prepared ({type(error).__name__}: {first_line(error)})") from error


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
        for start in tracked(range(0, len(source), 1024), f"reading {what}"):
            records = _fetch(source, list(range(start, min(start + 1024, len(source)))), what)
            for i, record in enumerate(records, start):
                labels[i] = record[label]
                if pixels is None:
                    keys[i] = np.frombuffer(record_keys([np.frombuffer(record[image], np.uint8)])[0], np.uint8)
                else:
                    decoded = decode(record[image], f"{what} record {i}")
                    if decoded.shape != shape:
                        raise ValueError(f"{what} record {i}: has the shape {decoded.shape}, not {shape}")
                    pixels[i] = decoded
        return {"labels": labels, "keys": keys} if pixels is None else {"labels": labels, "images": pixels}

    stored = cached(_tfds_key(builder, theirs, image, label, small), scan)
    if small:
        return ArraySplit(stored["images"], stored["labels"])
    keys = tuple(bytes(key) for key in stored["keys"])
    store = TfdsStore(source, threading.Lock(), image, what)
    return EncodedSplit(store, np.arange(len(source)), stored["labels"], keys)


def _tfds_key(builder: Any, split: str, image: str, label: str, decoded: bool) -> str:
    """Names what was cached: another version, another file or another way of reading has another name."""
    digest = hashlib.sha256(f"1 {split} {image} {label} {decoded}".encode())
    folder = Path(str(builder.data_path))
    digest.update(str(folder.resolve()).encode())
    for file in sorted([*builder.info.splits[split].filenames, "features.json", "dataset_info.json"]):
        found = (folder / file).stat() if (folder / file).exists() else None
        digest.update(f"{file} {found.st_size} {found.st_mtime_ns}".encode() if found else b"-")
    return f"tfds-{builder.info.full_name.replace('/', '-')}-{split}-{digest.hexdigest()[:16]}"
