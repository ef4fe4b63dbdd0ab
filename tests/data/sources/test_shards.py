import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from helpers import assert_one_line, split_sizes
from photos import encoded, photo

from zoo.data.sources import open_dataset, shards
from zoo.data.sources.open import open_source
from zoo.data.sources.shards import expand_braces


def shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def members(form, numbers):
    """(name, bytes) of records: photograph n, of class n % 2."""
    for n in numbers:
        label = ("cat", "dog")[n % 2]
        image = encoded(photo(12, 16, seed=n))
        if form == "folders":
            yield f"{label}/{n:04}.png", image
            continue
        about = {"cls": label.encode(), "json": json.dumps({"label": label, "by": "me"}).encode()}[form]
        yield f"{n:04}.{form}", about
        yield f"{n:04}.seg.txt", b"something else"
        yield f"{n:04}.png", image


@pytest.mark.parametrize("form", ["cls", "json", "folders"])
@pytest.mark.parametrize("spec", ["pattern", "folder", "one"])
def test_shards(form, spec, tmp_path):
    shard(tmp_path / "train-000.tar", members(form, range(12)))
    shard(tmp_path / "train-001.tar", members(form, range(12, 20)))
    if spec == "folder":
        shard(tmp_path / "val-000.tar", members(form, range(20, 24)))
        shard(tmp_path / "test-000.tar", members(form, range(24, 28)))
    name = {"pattern": "train-{000..001}.tar", "folder": "", "one": "train-000.tar"}[spec]
    dataset = open_dataset(tmp_path / name)
    assert dataset.class_names == ("cat", "dog")
    assert sum(split_sizes(dataset).values()) == {"pattern": 20, "folder": 28, "one": 12}[spec]
    if spec == "folder":
        assert split_sizes(dataset) == {"train": 20, "validation": 4, "test": 4}
    for split in dataset.splits.values():
        for i, image in enumerate(split.read(np.arange(len(split)))):
            number = int(split.name(i).rsplit("/", 1)[1].split(".")[0])
            np.testing.assert_array_equal(image, photo(12, 16, seed=number))
            assert split.labels[i] == number % 2


def test_shards_are_indexed_once(tmp_path, monkeypatch):
    shard(tmp_path / "train-0.tar", members("cls", range(12)))
    first = open_dataset(tmp_path / "train-0.tar").fingerprint()
    monkeypatch.setattr(shards, "index_shard", lambda path: pytest.fail("was indexed again"))
    assert open_dataset(tmp_path / "train-0.tar").fingerprint() == first


def test_ranges_in_braces():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{0..1}/{2..3}.tar") == ["0/2.tar", "0/3.tar", "1/2.tar", "1/3.tar"]
    assert expand_braces("{9..10}") == ["9", "10"] and expand_braces("a.tar") == ["a.tar"]
    with pytest.raises(ValueError, match=r"\{5\.\.2\}"):
        expand_braces("{5..2}.tar")


def test_invalid_shards(tmp_path):
    good = tmp_path / "train-0.tar"
    shard(good, members("cls", range(12)))
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:1300])
    shard(tmp_path / "nameless.tar", [("0.png", encoded(photo(4, 4)))])
    shard(tmp_path / "textual.tar", [("0.txt", b"hello")])
    for name, error, said in (
        ("packed.tar.gz", ValueError, f"run: gunzip -k {packed}"),
        ("cut.tar", ValueError, "not a complete tar file"),
        ("nameless.tar", ValueError, "0.png has no class"),
        ("textual.tar", ValueError, "contains no images"),
        ("train-{0..1}.tar", FileNotFoundError, "train-1.tar: no such file"),
    ):
        with pytest.raises(error) as caught:
            open_dataset(tmp_path / name)
        assert_one_line(caught, said)


@pytest.mark.parametrize(
    "about, said",
    [
        ('["label"]', "0.json is not a JSON object"),
        ("5", "0.json is not a JSON object"),
        ('"text"', "0.json is not a JSON object"),
        ("", "0.json is not a JSON object"),
        ("[" * 200_000, "0.json is not a JSON object"),
        ('{"label": true}', "0.json 'label' must be text or a whole number"),
        ('{"class": {"id": 1}}', "0.json 'class' must be text or a whole number"),
        ('{"label": null}', "0.png has no class"),
        ("{}", "0.png has no class"),
    ],
)
def test_invalid_classes_in_json(about, said, tmp_path):
    shard(tmp_path / "train.tar", [("0.json", about.encode()), ("0.png", encoded(photo(4, 4)))])
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path / "train.tar")
    assert_one_line(caught, "train.tar", said)


def test_records_are_told_apart_by_folder_and_stem(tmp_path):
    """Members of one name in two folders are two records, and so are interrupted groups of members."""
    shard(
        tmp_path / "train.tar",
        [
            ("a/1.jpg", encoded(photo(4, 4, seed=1), "JPEG")), ("b/1.jpg", encoded(photo(4, 4, seed=2), "JPEG")),
            ("a/2.PNG", encoded(photo(4, 4, seed=3))), ("a/.hidden.png", b"no"), ("a/3.txt", b"no image"),
            ("a/4.left.png", encoded(photo(4, 4, seed=4))), ("b/5.png", encoded(photo(4, 4, seed=5))),
            *((f"c/{n}.png", encoded(photo(4, 4, seed=10 + n))) for n in range(9)),
        ],
    )  # fmt: skip
    source = open_source(tmp_path / "train.tar")
    names = ["a/1.jpg", "b/1.jpg", "a/2.PNG", "a/4.left.png", "b/5.png", *(f"c/{n}.png" for n in range(9))]
    assert [source.store.name(i) for i in range(len(names))] == [f"train.tar/{name}" for name in names]
    assert source.labels == ("a", "b", "a", "a", "b", *"ccccccccc")


@pytest.mark.parametrize("form", ["cls", "json"])
def test_the_class_member_takes_precedence(form, tmp_path):
    about = [("0.cls", b" 7\n"), ("0.json", b'{"label": 8}')] if form == "cls" else [("0.json", b'{"cls": "8"}')]
    shard(tmp_path / "a.tar", [(f"folder/{name}", data) for name, data in [*about, ("0.png", encoded(photo(4, 4)))]])
    assert open_source(tmp_path / "a.tar").labels == ("7" if form == "cls" else "8",)


def test_keys_of_the_class_in_json(tmp_path):
    texts = ['{"class": "b", "label": "a"}', '{"class": "b", "cls": "c"}', '{"label": "", "class": null, "cls": 0}']
    for n, text in enumerate(texts):
        shard(tmp_path / f"{n}.tar", [("0.json", text.encode()), ("0.png", encoded(photo(4, 4)))])
    assert [open_source(tmp_path / f"{n}.tar").labels for n in range(3)] == [("a",), ("b",), ("0",)]


@pytest.mark.parametrize(
    "data, command",
    [(b"\x1f\x8b", "gunzip -k"), (b"BZh91", "bunzip2 -k"), (b"\xfd7zXZ\0", "unxz -k"), (b"\x28\xb5\x2f\xfd", "unzstd")],
)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.TGZ", "a.tbz", "a.tbz2", "a.txz", "a.tar.zst"])
def test_compressed_shards(data, command, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(data + b"more")
    with pytest.raises(ValueError) as caught:
        open_dataset(path)
    assert_one_line(caught, f"{path}: ", f"run: {command} {path}")


@pytest.mark.parametrize("cut", [512, 700, 1024, -1])
def test_truncated_shards(cut, tmp_path):
    """Cut within the first image, behind it, within a header, and within the zeros at the end."""
    with tarfile.open(tmp_path / "whole.tar", "w", bufsize=512) as archive:
        for n in range(2):
            info = tarfile.TarInfo(f"a/{n}.png")
            data = b"x" * 512
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    whole = (tmp_path / "whole.tar").read_bytes()
    end = 2048 if cut == -1 else cut
    (tmp_path / "train.tar").write_bytes(whole[:end])
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path / "train.tar")
    assert_one_line(caught, f"{tmp_path / 'train.tar'}: ", "not a complete tar file")
    (tmp_path / "train.tar").write_bytes(whole[: 2048 + 512])  # one block of zeros is enough
    assert open_source(tmp_path / "train.tar").labels == ("a", "a")


def test_a_shard_that_became_shorter_or_is_gone(tmp_path):
    path = tmp_path / "train-0.tar"
    shard(path, members("cls", range(3)))
    store = open_source(path).store
    start, length = store.places[2, 1:].tolist()
    path.write_bytes(path.read_bytes()[: start + length])
    assert len(store.fetch([2])[0]) == length
    path.write_bytes(path.read_bytes()[: start + length - 1])
    with pytest.raises(ValueError, match=r"train-0.tar/0002.png: the shard is truncated"):
        store.fetch([2])
    path.unlink()
    with pytest.raises(ValueError, match=r"train-0.tar/0002.png: cannot be read \(No such file") as caught:
        store.fetch([2])
    assert isinstance(caught.value.__cause__, OSError)  # another attempt may succeed


def test_all_shards_of_a_folder_must_name_their_split(tmp_path):
    for name in ("train-0.tar", "more-0.tar"):
        shard(tmp_path / name, members("cls", range(4)))
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path)
    assert_one_line(caught, f"{tmp_path}: more-0.tar", "train, val or test")
    (tmp_path / "train-0.tar").rename(tmp_path / "other_train.tar")
    assert set(open_source(tmp_path).splits) == {""}


def test_ranges_keep_their_width(monkeypatch):
    assert expand_braces("{008..10}") == ["008", "009", "010"] and expand_braces("{0..10}")[-2:] == ["9", "10"]
    assert expand_braces("{08..100}")[:3] == ["08", "09", "10"] and expand_braces("{5..5}") == ["5"]
    monkeypatch.setattr(shards, "MAX_SHARDS", 20)
    assert len(expand_braces("{0..20}")) == 21
    with pytest.raises(ValueError, match=r"\{0\.\.21\}"):
        expand_braces("{0..21}")
