"""Data in an object store, in fsspec's memory file system: as on disk, with a cache of bounded size."""

import io
import json
import tarfile

import numpy as np
import pytest
from helpers import assert_one_line, split_sizes
from photos import encoded, photo

from zoo.data.sources import open_dataset
from zoo.data.sources.open import open_source
from zoo.stores import folders, object_cache, objects
from zoo.stores.objects import StoreError

ROOT = "memory://data"
IMAGES = {f"{('cat', 'dog')[n % 2]}/{n:02}.png": encoded(photo(12, 16, seed=n)) for n in range(20)}


@pytest.fixture(params=["cached", "partly", "ranges"])
def cache(request, tmp_path, monkeypatch):
    """The cache: for everything, for some, for nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(object_cache.LIMIT_VARIABLE, {"cached": "1G", "partly": "4k", "ranges": "0"}[request.param])
    object_cache.shared_cache.cache_clear()
    yield request.param
    size = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("objects/??/*"))
    assert (size == 0) == (request.param == "ranges" or not object_cache.object_cache().touched)
    assert size <= object_cache.limit_bytes()


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in objects.listing(ROOT):
        objects.remove(f"{ROOT}/{name}")


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def shard(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def rows(prefix=""):
    return [(f"{prefix}{name}", name.split("/")[0]) for name in IMAGES]


def csv(rows):
    return "".join(f"{','.join(row)}\n" for row in [("path", "label"), *rows]).encode()


FIRST, SECOND = dict(list(IMAGES.items())[:10]), dict(list(IMAGES.items())[10:])
TEST = shard({"cat/t.png": encoded(photo(9, 9, seed=99))})
LINES = b"".join(json.dumps({"path": path, "label": label}).encode() + b"\n" for path, label in rows())
#: form -> (files, name of the data)
SPLITS = (("train", FIRST), ("val", SECOND))
FORMS = {
    "shard": ({"train-0.tar": shard(IMAGES)}, "train-0.tar"),
    "shards": ({"train-0.tar": shard(FIRST), "train-1.tar": shard(SECOND)}, "train-{0..1}.tar"),
    "folder of shards": ({"s/train-0.tar": shard(IMAGES), "s/test-0.tar": TEST}, "s"),
    "table": ({**IMAGES, "list.csv": csv(rows())}, "list.csv"),
    "JSON Lines": ({**IMAGES, "list.jsonl": LINES}, "list.jsonl"),
    "class folders": ({f"set/{name}": data for name, data in IMAGES.items()}, "set"),
    "split folders": (
        {f"set/{split}/{name}": data for split, part in SPLITS for name, data in part.items()},
        "set",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_same_data_as_on_disk(form, tmp_path, cache):
    files, name = FORMS[form]
    write(tmp_path / "disk", files)
    folders.upload_files(tmp_path / "disk", files, ROOT)
    local, remote = open_dataset(tmp_path / "disk" / name), open_dataset(f"{ROOT}/{name}")
    assert remote.name == f"{ROOT}/{name}"
    assert remote.fingerprint() == local.fingerprint()
    assert split_sizes(remote) == split_sizes(local)
    assert [note.kind for note in remote.notes] == [note.kind for note in local.notes]
    for split, records in local.splits.items():
        wanted, found = (part.read(np.arange(len(part))) for part in (records, remote.splits[split]))
        assert all(map(np.array_equal, wanted, found))


def test_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(30) % 3)
    objects.upload(tmp_path / "a.npz", f"{ROOT}/a.npz")
    remote = open_dataset(f"{ROOT}/a.npz")
    assert remote.name == f"{ROOT}/a.npz"
    assert remote.fingerprint() == open_dataset(tmp_path / "a.npz").fingerprint()


def test_a_table_of_addresses_and_other_spellings(tmp_path):
    write(tmp_path, IMAGES)
    folders.upload_files(tmp_path, IMAGES, f"{ROOT}/images")
    (first, one), (second, two), *others = rows(f"{ROOT}/images/")
    table = [(first, one), (second.replace(f"{ROOT}/", "../x/../").replace("../x/../", "./"), two), *others[:-1]]
    objects.write(f"{ROOT}/list.csv", csv([*table, ("images\\dog\\19.png", "dog"), ("images/none.png", "cat")]))
    objects.write(f"{ROOT}/far/list.csv", csv(rows(f"{ROOT}/images/")))
    dataset = open_dataset(f"{ROOT}/list.csv")
    assert sum(split_sizes(dataset).values()) == 20
    assert dataset.left_out == ("images/none.png: no such object",)
    assert open_dataset(f"{ROOT}/far/list.csv").fingerprint() == open_dataset(f"{ROOT}/list.csv").fingerprint()


def test_a_changed_object_is_other_data(tmp_path):
    write(tmp_path, IMAGES)
    folders.upload_files(tmp_path, IMAGES, f"{ROOT}/set")
    before = open_dataset(f"{ROOT}/set").fingerprint()
    objects.write(f"{ROOT}/set/cat/00.png", encoded(photo(12, 16, seed=77)))
    assert open_dataset(f"{ROOT}/set").fingerprint() != before


@pytest.mark.parametrize(("files", "name", "text"), [
    ({}, "none", "no such object"),
    ({}, "none-{0..1}.tar", "no such object"),
    ({"a.tar": b"\x1f\x8b" + bytes(600)}, "a.tar", "is compressed"),
    ({"a.tar": shard(IMAGES)[:5000]}, "a.tar", "is not a complete tar file"),
    ({"a.zip": b"PK"}, "a.zip", "unsupported file type"),
    ({"x/notes.txt": b"1"}, "x", "no class folders"),
    ({"x/a.tar": shard(IMAGES), "x/cat/1.png": b"1"}, "x", "beside folders"),
    ({"a.csv": b"path,label\n"}, "a.csv", "has no rows"),
    ({"a.npz": b"PK"}, "a.npz", "a.npz"),
])  # fmt: skip
def test_what_cannot_be_used_is_named(files, name, text):
    for key, data in files.items():
        objects.write(f"{ROOT}/{key}", data)
    with pytest.raises((ValueError, OSError)) as caught:
        open_dataset(f"{ROOT}/{name}")
    assert_one_line(caught, ROOT, text)


def test_what_is_not_used_is_named_once(tmp_path):
    others = {"cat/notes.txt": b"text", "dog/@eaDir/1.png": b"1", "one.txt": b"text"}
    write(tmp_path, IMAGES | others)
    folders.upload_files(tmp_path, IMAGES | others, f"{ROOT}/set")
    notes = list(map(str, open_source(f"{ROOT}/set").notes))
    assert notes == list(map(str, open_source(tmp_path).notes)) and len(notes) == 3
    assert "not used: 1 file that is not an image (cat/notes.txt)" in notes


@pytest.mark.parametrize("spec", ["https://b/x.tar", "az://b/x.csv"])
def test_other_schemes_are_refused(spec):
    with pytest.raises(ValueError, match="not supported"):
        open_dataset(spec)


def test_a_folder_of_prepared_data_is_on_disk():
    with pytest.raises(ValueError, match="only a path on disk"):
        open_dataset("tfds:mnist", "gs://bucket/tfds")


def test_a_failing_store_is_no_damaged_image(tmp_path, monkeypatch):
    """An image that the store did not give is reported, but not remembered as unreadable."""
    write(tmp_path, IMAGES)
    folders.upload_files(tmp_path, IMAGES, f"{ROOT}/set")
    monkeypatch.setenv(object_cache.LIMIT_VARIABLE, "0")
    object_cache.shared_cache.cache_clear()

    def fail(address, start=None, stop=None):
        raise StoreError(f"{address}: cannot be read (503); tried for 120 s")

    source = open_source(f"{ROOT}/set")
    with monkeypatch.context() as patch:
        patch.setattr(objects, "read", fail)
        assert len(source.scan().reasons) == 20
    assert not source.scan().reasons
