import gzip
import io
import json
import tarfile
import time
import tracemalloc

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


def test_the_splits_of_shards_are_decided_once(tmp_path, monkeypatch):
    """Not once per record: data sets have thousands of shards and millions of records."""
    calls = []
    decide = shards._splits_of_shards
    monkeypatch.setattr(shards, "_splits_of_shards", lambda *names: calls.append(names) or decide(*names))
    shard(tmp_path / "train-0.tar", members("cls", range(12)))
    open_source(tmp_path / "train-0.tar")
    assert len(calls) == 1


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
        ("packed.tar.gz", ValueError, f"run: gzip -dc {packed} > {tmp_path}/packed.tar"),
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
    "data, program", [(b"\x1f\x8b", "gzip"), (b"BZh91", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
@pytest.mark.parametrize("name", ["a.tar", "A.TAR", "a.tar.gz", "a.TGZ", "a.tbz", "a.tbz2", "a.txz", "a.tar.zst"])
def test_compressed_shards(data, program, name, tmp_path):
    """The command does not depend on the suffix, which need not be that of the program."""
    path = tmp_path / name
    path.write_bytes(data + b"more")
    with pytest.raises(ValueError) as caught:
        open_dataset(path)
    plain = f"{path.stem}-unpacked.tar" if path.suffix.lower() == ".tar" else "a.tar"
    assert_one_line(caught, f"{path}: ", f"run: {program} -dc {path} > {tmp_path / plain}")


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


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_one_block_of_zeros_ends_a_shard_whose_last_member_has_no_data(kind, tmp_path):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w", bufsize=512) as archive:
        for n in range(2):
            info = tarfile.TarInfo(f"a/{n}.png")
            info.size = 512
            archive.addfile(info, io.BytesIO(b"x" * 512))
        info = tarfile.TarInfo("last")
        info.type, info.linkname = kind, "a/0.png"
        archive.addfile(info)
    path.write_bytes(path.read_bytes()[: 2 * 1024 + 512 + 512])
    assert open_source(path).labels == ("a", "a")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a complete tar file"):
        open_source(path)


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


# --- names, records and folders in shards -----------------------------------------------------------------------------


def picture(seed=0, kind="PNG"):
    return encoded(photo(4, 4, seed=seed), kind)


def listed(path, *names):
    """Write a shard whose members are pictures, or texts given as (name, text), and open it as a source."""
    members = [(n, picture(i)) if isinstance(n, str) else (n[0], n[1].encode()) for i, n in enumerate(names)]
    shard(path, members)
    return open_source(path)


def contents(source):
    """Return {name: class} of a source."""
    names = [source.store.name(i).partition("/")[2] for i in range(len(source.labels))]
    assert len(set(names)) == len(names)
    return dict(zip(names, source.labels, strict=True))


def test_dots_in_the_names_of_images(tmp_path):
    names = [f"{c}/v1.{m}/IMG.2020.{i}.png" for c in ("cat", "dog") for m in range(2) for i in range(3)]
    source = listed(tmp_path / "a.tar", *names)
    assert contents(source) == {name: name.split("/")[1] for name in names} and not source.notes


def test_images_of_one_name_and_several_endings(tmp_path):
    names = [f"{c}/{i}.{ending}" for c in ("cat", "dog") for i in range(2) for ending in ("jpg", "png", "JPEG")]
    source = listed(tmp_path / "a.tar", *names)
    assert contents(source) == {name: name.split("/")[0] for name in names} and not source.notes


def test_a_class_for_each_name_with_dots(tmp_path):
    source = listed(
        tmp_path / "a.tar", "x 1.01.png", ("x 1.01.cls", "a"), "x 1.02.png", ("x 1.02.json", '{"label": 3}')
    )
    assert contents(source) == {"x 1.01.png": "a", "x 1.02.png": "3"} and not source.notes


@pytest.mark.parametrize(
    "names, used",
    [(["0.seg.png", "0.png"], "0.png"), (["0.left.png", "0.right.png"], "0.left.png"), (["0.jpg", "0.png"], "0.jpg")],
)
def test_several_images_with_one_class(names, used, tmp_path):
    source = listed(tmp_path / "a.tar", *names, ("0.cls", "a"), "1.png", ("1.cls", "b"))
    assert contents(source) == {used: "a", "1.png": "b"}
    (note,) = source.notes
    other = next(name for name in names if name != used)
    assert (
        note.kind == "unused"
        and f"1 images beside another one in their record, of which the first is used ({other})" in note
    )


def test_members_of_a_record_need_not_be_adjacent(tmp_path):
    """As `tar cf a.tar *.png *.cls` writes them; in a folder, which is not their class."""
    images = [f"part/{n}.png" for n in range(4)]
    source = listed(tmp_path / "a.tar", *images, *((f"part/{n}.cls", "ab"[n % 2]) for n in range(4)))
    assert contents(source) == {name: "ab"[n % 2] for n, name in enumerate(images)}


def test_a_name_that_occurs_twice_is_two_records(tmp_path):
    shard(tmp_path / "a.tar", [("0.png", picture(1)), ("0.cls", b"a"), ("0.png", picture(2)), ("0.cls", b"b")])
    source = open_source(tmp_path / "a.tar")
    assert source.labels == ("a", "b") and source.store.fetch([0, 1]) == [picture(1), picture(2)]


def test_members_that_are_not_used_are_named(tmp_path):
    source = listed(
        tmp_path / "a.tar", "cat/1.png", "dog/2.png", "__MACOSX/cat/._1.png", "cat/@eaDir/1.png/SYNO_THUMB.jpg",
        "cat/.hidden.png", "cat/Thumbs.db", ("cat/notes.txt", "text"), "cat/without_suffix", ("cat/empty", ""),
    )  # fmt: skip
    assert contents(source) == {"cat/1.png": "cat", "dog/2.png": "dog", "cat/without_suffix": "cat"}
    assert [note.kind for note in source.notes] == ["unused"] * 2
    assert any("2 files that are neither" in note and "cat/empty" in note for note in source.notes)
    assert any("1 files in folders that the system" in note and "@eaDir" in note for note in source.notes)


def test_hard_links_are_read_and_symbolic_links_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, link in (("cat/1.png", tarfile.REGTYPE, ""), ("dog/2.png", tarfile.LNKTYPE, "cat/1.png"),
                                 ("dog/3.png", tarfile.SYMTYPE, "../cat/1.png")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = 0 if link else len(picture())
            archive.addfile(info, io.BytesIO(b"" if link else picture()))
    source = open_source(tmp_path / "a.tar")
    assert contents(source) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert source.store.fetch([0, 1]) == [picture(), picture()]
    (note,) = source.notes
    assert "1 links" in note and "dog/3.png" in note


@pytest.mark.parametrize(
    "names, expected",
    [
        (["train/cat/1.png", "val/cat/2.png", "test/dog/3.png"], ["train", "validation", "test"]),
        (["d/train/cat/1.png", "d/Testing/dog/3.png"], ["train", "test"]),
        (["cat/train/1.png", "dog/train/2.png", "dog/test/2.png"], ["train", "train", "test"]),
        (["test/1.png", "cat/2.png"], ["", ""]),  # classes
        (["a/test/1.png", "a/cat/2.png"], ["", ""]),
    ],
)
def test_splits_in_the_folders_of_a_shard(names, expected, tmp_path):
    source = listed(tmp_path / "data.tar", *names)
    assert list(source.splits) == expected
    assert set(source.labels) == {"cat", "test" if not any(expected) else "dog"}
    assert all(label in name.split("/") for name, label in contents(source).items())


@pytest.mark.parametrize(
    "names, parts",
    [
        (["train/cat/1.png", "vald/cat/2.png"], ["'vald'", "Did you mean 'validation'?"]),
        (["train/cat/1.png", "extra/cat/2.png"], ["extra/cat/2.png is not in a folder train, val or test"]),
    ],
)
def test_some_images_of_a_shard_in_split_folders(names, parts, tmp_path):
    with pytest.raises(ValueError) as caught:
        listed(tmp_path / "data.tar", *names)
    assert_one_line(caught, str(tmp_path), *parts)


@pytest.mark.parametrize(
    "names, splits",
    [
        (["imagenet-train-0", "imagenet-val-0"], ["train", "validation"]),
        (["train-0", "test-0"], ["train", "test"]),
        (["a-0", "b-0"], ["", ""]),
        (["trian-0", "trian-1"], ["", ""]),  # one word, no splits
        (["trian-0", "val-0"], "'trian'"),
        (["trian-0", "vald-0"], "'trian'"),
        (["my-train-0", "my-val-0", "more"], "more.tar must begin with train"),
    ],
)
def test_splits_in_the_names_of_shards(names, splits, tmp_path):
    for name in names:
        shard(tmp_path / f"{name}.tar", [("cat/1.png", picture())])
    if isinstance(splits, str):
        with pytest.raises(ValueError) as caught:
            open_source(tmp_path)
        assert_one_line(caught, str(tmp_path), splits)
    else:
        assert sorted(open_source(tmp_path).splits) == sorted(splits)


def test_tar_files_beside_class_folders(tmp_path):
    shard(tmp_path / "backup.tar", [("cat/1.png", picture())])
    (tmp_path / "notes").mkdir()
    assert len(open_source(tmp_path).labels) == 1
    (tmp_path / "notes" / "1.png").write_bytes(picture())
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path)
    assert_one_line(caught, "backup.tar", "notes", f"name {tmp_path / 'backup.tar'}")


# --- hostile shards ---------------------------------------------------------------------------------------------------


def header(name, size, kind=b"0"):
    """Return a tar header whose size is any number of 88 bits, negative ones included."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HOSTILE = {
    "negative size": header(b"c0/x.png", -512),
    "negative size, further back": header(b"c0/x.png", -1024) + bytes(512),
    "negative extended header": header(b"c0/x.png", -512, b"x"),
    "negative long name": header(b"c0/x.png", -1, b"L"),
    "8 GB": header(b"c0/x.png", 2**33),
    "8 GB of extended header": header(b"c0/x.png", 2**33, b"x"),
    "8 GB of long name": header(b"c0/x.png", 2**33, b"L"),
    "8 GB of class": header(b"c0/x.cls", 2**33),
    "88 bits": header(b"c0/x.png", 2**87),
    "nested extended headers": header(b"c0/x", 0, b"x") * 3000,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("first", [b"", header(b"c0/a.txt", 0)])
def test_hostile_shards(kind, first, tmp_path):
    path = tmp_path / "train.tar"
    path.write_bytes(first + HOSTILE[kind] + bytes(1024))
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(ValueError) as caught:
        open_source(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_one_line(caught, f"{path}: ")
    assert time.process_time() - begin < 3 and peak < 2**26


def test_brace_patterns_without_end():
    for pattern in ("{0..999999}{0..999999}.tar", "{0..9}" * 7, "{0..999999999999}.tar"):
        with pytest.raises(ValueError, match="must count upwards, to at most"):
            expand_braces(pattern)
    assert expand_braces("{0.." + "9" * 5000 + "}") == ["{0.." + "9" * 5000 + "}"]


def test_members_too_large_for_an_image_are_not_read(tmp_path):
    path = tmp_path / "train.tar"
    path.write_bytes(header(b"c0/x.png", 2**31))
    with path.open("r+b") as file:
        file.truncate(512 + 2**31 + 1024)
    with pytest.raises(ValueError, match=r"train\.tar/c0/x\.png: has 2,147,483,648 bytes"):
        open_source(path).store.fetch([0])
