"""Data sets by name: mnist, fashion-mnist and cifar10, fetched once from their usual addresses."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from zoo.cache import cache_folder, cached
from zoo.data.dataset import Dataset
from zoo.data.sources.arrays import dataset_from_pairs
from zoo.data.sources.npz_idx import idx_files, read_idx
from zoo.download import HashMismatchError, check_digest, download

MIRROR = "ZOO_DATA_URL"  # environment variable: URL of a folder with all files under their own names


@dataclass(frozen=True)
class NamedSet:
    """A data set that can be downloaded.

    Attributes:
        urls: folders that have the files; the first one that answers is used.
        files: sha256 of each file.
        classes: class names in the order of the labels.
    """

    urls: tuple[str, ...]
    files: Mapping[str, str]
    classes: tuple[str, ...]


# Hashes: TensorFlow Datasets' list of checksums
NAMED_SETS: dict[str, NamedSet] = {
    "mnist": NamedSet(  # LeCun, Cortes and Burges, "The MNIST database of handwritten digits"
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        tuple("0123456789"),
    ),
    "fashion-mnist": NamedSet(  # Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": NamedSet(  # Krizhevsky 2009, "Learning multiple layers of features from tiny images"
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
}

CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: label, then red, green and blue, row by row
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}


def named_set(name: str) -> Dataset:
    """Open a data set by name, after downloading it if necessary.

    Raises:
        ConnectionError: a file cannot be downloaded; the message names the files to bring and where to put them.
        HashMismatchError: a file is not the published one.
    """
    folder = fetch_named(name)
    classes = NAMED_SETS[name].classes
    if name == "cifar10":
        return dataset_from_pairs(_read_cifar(folder), classes, name)
    (files,) = idx_files(folder).values()
    pairs = {
        split: (read_idx(files[split, "images"], 3), read_idx(files[split, "labels"], 1)) for split in ("train", "test")
    }
    return dataset_from_pairs(pairs, classes, name)


def fetch_named(name: str) -> Path:
    """Return the folder with the files of a data set, each with the published hash; download those that are missing."""
    entry, folder = NAMED_SETS[name], cache_folder() / "datasets" / name
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a read-only cache may have the files nevertheless
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / ".lock"))
        for file, digest in entry.files.items():
            path = folder / file
            if path.is_file():
                _require_published(path, digest, name)
            else:
                _download_file(name, file, digest, path)
    return folder


def _require_published(path: Path, digest: str, name: str) -> None:
    try:
        check_digest(path, f"sha256:{digest}")
    except HashMismatchError as error:
        text = f"{name}: {path} is not the published file ({error}); remove it, or name {path.parent}"
        raise HashMismatchError(text) from None


def _download_file(name: str, file: str, digest: str, path: Path) -> None:
    """Download a file from the first address that has it."""
    entry = NAMED_SETS[name]
    mirror = os.environ.get(MIRROR)
    urls = (f"{mirror.rstrip('/')}/",) if mirror else entry.urls
    for number, url in enumerate(urls, 1):
        try:
            download(url + file, path, f"sha256:{digest}", name)
            return
        except (ConnectionError, HashMismatchError) as error:
            if number < len(urls):
                continue
            if isinstance(error, HashMismatchError):
                raise
            files = ", ".join(entry.files)
            raise ConnectionError(
                f"{error}; download {files} on another machine and put them in {path.parent}"
            ) from None


def _read_cifar(folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Return images [N, 32, 32, 3] and labels [N] by split; the archive is unpacked once."""
    (archive, digest) = next(iter(NAMED_SETS["cifar10"].files.items()))

    def unpack() -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {}
        with tarfile.open(folder / archive, "r:gz") as file:
            for split, names in CIFAR_FILES.items():
                parts = []
                for name in names:
                    member = file.extractfile(f"{CIFAR_FOLDER}/{name}")
                    if member is None:
                        raise ValueError(f"cifar10: {archive} has no {name}")
                    parts.append(np.frombuffer(member.read(), np.uint8).reshape(-1, CIFAR_RECORD))
                records = np.concatenate(parts)
                pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                arrays |= {f"{split}_images": np.ascontiguousarray(pixels), f"{split}_labels": records[:, 0].copy()}
        return arrays

    arrays = cached(f"cifar10-{digest[:16]}", unpack)
    return {split: (arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in CIFAR_FILES}
