"""Data sets by name, from a folder that stands in for their usual addresses."""

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line, random_images, split_sizes
from photos import folder_of

from zoo import download as downloads
from zoo.cache import cache_folder
from zoo.data.sources import named, open_dataset
from zoo.data.sources.named import NAMED_SETS, NamedSet
from zoo.data.sources.open import EMBEDDED, open_source


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist_files():
    files = {}
    for split, count in (("train", 200), ("t10k", 30)):
        images, _ = random_images(count, 8, 8)
        labels = np.arange(count) % 10
        files[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(idx(images), mtime=0)
        files[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels), mtime=0)
    return files


def cifar_files():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for number, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            data = b"".join(bytes([k]) + cifar_pixels(10 * number + k).tobytes() for k in range(10))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {"cifar-10-binary.tar.gz": buffer.getvalue()}


def cifar_pixels(number):
    """Return channels, rows and columns of a picture, uint8 [3, 32, 32]."""
    return np.random.default_rng(number).integers(0, 256, (3, 32, 32), np.uint8)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Files by name; `download` reads from them instead of the network. An absent one is as an unreachable host."""
    files, requests = {}, []

    def transfer(url, part, name):
        requests.append(url)
        if (data := files.get(url, files.get(url.rpartition("/")[2]))) is None:
            raise OSError("Name or service not known")
        part.write_bytes(data)
        return ""

    monkeypatch.setattr(downloads, "_transfer", transfer)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(named.MIRROR, raising=False)
    return files, requests


def publish(monkeypatch, name, files):
    entry = NAMED_SETS[name]
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    assert set(hashes) == set(entry.files)
    monkeypatch.setitem(NAMED_SETS, name, NamedSet(entry.urls, hashes, entry.classes))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_by_name_is_fetched_once(name, server, monkeypatch):
    files, requests = server
    published = mnist_files()
    publish(monkeypatch, name, published)
    files |= published
    dataset = open_dataset(name)
    assert split_sizes(dataset) == {"train": 180, "validation": 20, "test": 30} and dataset.name == name
    np.testing.assert_array_equal(dataset.splits["test"].images[..., 0], random_images(30, 8, 8)[0])
    assert dataset.class_names[0] == {"mnist": "0", "fashion-mnist": "T-shirt/top"}[name]
    assert requests == [NAMED_SETS[name].urls[0] + file for file in published]
    assert open_dataset(name).fingerprint() == dataset.fingerprint() and len(requests) == 4


def test_cifar10_by_name(server, monkeypatch):
    files, requests = server
    published = cifar_files()
    publish(monkeypatch, "cifar10", published)
    files |= published
    dataset = open_dataset("cifar10")
    test = dataset.splits["test"]
    assert dataset.num_classes == 10 and dataset.class_names[3] == "cat" and len(test) == 10
    for k in range(10):
        assert test.labels[k] == k
        np.testing.assert_array_equal(test.images[k], np.moveaxis(cifar_pixels(50 + k), 0, 2))
    assert sum(split_sizes(dataset).values()) == 60 and len(requests) == 1


def test_the_second_address_is_asked_when_the_first_fails(server, monkeypatch):
    files, requests = server
    published = mnist_files()
    publish(monkeypatch, "mnist", published)
    first, second = NAMED_SETS["mnist"].urls
    files |= {second + file: data for file, data in published.items()}
    files[first + "t10k-labels-idx1-ubyte.gz"] = b"another file"
    assert len(open_dataset("mnist").splits["test"]) == 30
    assert len(requests) == 8


def test_offline_the_files_to_bring_are_named(server, monkeypatch):
    published = mnist_files()
    publish(monkeypatch, "mnist", published)
    folder = cache_folder() / "datasets" / "mnist"
    with pytest.raises(ConnectionError) as caught:
        open_dataset("mnist")
    assert_one_line(caught, "mnist: https://", *published, f"put them in {folder}")
    for file, data in published.items():
        (folder / file).write_bytes(data)
    assert len(open_dataset("mnist").splits["test"]) == 30
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(ValueError) as caught:
        open_dataset("mnist")
    assert_one_line(caught, f"{folder / 't10k-images-idx3-ubyte.gz'} is not the published file", f"name {folder}")


def test_a_mirror(server, monkeypatch):
    files, requests = server
    published = mnist_files()
    publish(monkeypatch, "mnist", published)
    files |= published
    monkeypatch.setenv("ZOO_DATA_URL", "https://mirror.test/files")
    open_dataset("mnist")
    assert requests == [f"https://mirror.test/files/{file}" for file in published]


@pytest.mark.parametrize("name", NAMED_SETS)
def test_a_folder_of_the_name_comes_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for spec in (name, Path(name)):
        with pytest.raises(ValueError, match=f"{name}: this folder has no class folders"):
            open_source(spec)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_data_set_comes_before_a_folder_of_its_name(name, tmp_path, monkeypatch):
    """A run records its data by name, which must not mean other data in another folder."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # without a folder, and with an empty one
        assert not any("write ./" in note for note in open_source(name).notes)
        (tmp_path / name).mkdir(exist_ok=True)
    folder_of(tmp_path, {f"{name}/cat": 10, f"{name}/dog": 10})
    for spec in (name, Path(name)):
        dataset = open_source(spec)
        assert dataset.name == name and any(f"write ./{name} for the folder" in note for note in dataset.notes)
    for spec in (f"./{name}", f"{name}/", str(tmp_path / name)):
        assert open_dataset(spec).name == str(tmp_path / name) and open_dataset(spec).class_names == ("cat", "dog")


def test_a_name_may_be_a_path():
    assert len(open_source(Path("moons")).splits["train"]) == len(open_source("moons").splits["train"])


def test_a_misspelt_name():
    with pytest.raises(ValueError, match=r"'minst'.*did you mean mnist"):
        open_source("minst")


def test_published_hashes():
    """As in TensorFlow Datasets' url_checksums/{mnist,fashion_mnist,cifar10}.txt."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from pathlib import Path

    for name, entry in NAMED_SETS.items():
        lines = (Path(tfds.__file__).parent / "url_checksums" / f"{name.replace('-', '_')}.txt").read_text().split("\n")
        listed = {url.rpartition("/")[2]: digest for url, _, digest, *_ in (line.split("\t") for line in lines if line)}
        assert {file: listed[file] for file in entry.files} == dict(entry.files)
