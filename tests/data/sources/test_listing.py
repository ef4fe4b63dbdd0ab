"""Functions that all lists of encoded images share: split and class names, stamps, files, notes and reports."""

import os

import numpy as np
import pytest
from helpers import assert_one_line, split_sizes
from photos import encoded, folder_of, photo

from zoo.data.dataset import Dataset, Note
from zoo.data.sources import listing, open_dataset
from zoo.data.sources.listing import (
    FileStore,
    Listing,
    class_order,
    describe_left_out,
    leakage,
    open_listing,
    stamp_files,
)
from zoo.data.sources.names import canonical_split, escape
from zoo.data.sources.scan import Scan
from zoo.data.splits import ArraySplit

SPLIT_NAMES = {
    "train": ["train", "Training", "TRN", "tr", "train_set", "train-data", "training images", "trainsplit", "t.r"],
    "validation": ["val", "valid", "validation", "dev", "eval", "val_set", "DevData", "validationimages"],
    "test": ["test", "testing", "tst", "te", "holdout", "hold-out", "test_images", "TestSplit"],
    "": ["", "trainer", "tests", "valset2", "settrain", "cat", "data", "set", "t", "evaluate", "train_set_data"],
}


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_split_names(name):
    assert {word: canonical_split(word) for word in SPLIT_NAMES[name]} == dict.fromkeys(SPLIT_NAMES[name], name)


def test_printable_names():
    assert escape("Straße (1) é.png") == "Straße (1) é.png"
    assert escape("a\nb\tc\x7f") == "a\\nb\\tc\\x7f"
    assert escape(os.fsdecode(b"caf\xe9")) == "caf\\udce9" and escape("\u2028\u200b") == "\\u2028\\u200b"


@pytest.mark.parametrize(
    "names, expected",
    [
        (["10", "9", "0", "9"], ["0", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["10", "9", "-1"], ["-1", "10", "9"]),
        (["10", "9", "1.5"], ["1.5", "10", "9"]),
        (["10", "9", "٣"], ["10", "9", "٣"]),  # a digit, but not of ASCII
        ([], []),
    ],
)
def test_class_order(names, expected):
    assert class_order(names) == expected


# --- stamps -----------------------------------------------------------------------------------------------------------


def change_time(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES = {
    "time": change_time,
    "size": lambda path: (os.truncate(path, 3), os.utime(path, ns=(0, 10**18))),
    "permissions": lambda path: path.chmod(0o400),
    "existence": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stamp_changes_with_every_file(change, tmp_path):
    names = ["a.png", "b.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"1234")
        os.utime(tmp_path / name, ns=(0, 10**18))
        (tmp_path / name).chmod(0o600)
    before = stamp_files(str(tmp_path), names)
    assert stamp_files(str(tmp_path), names) == before
    CHANGES[change](tmp_path / "b.png")
    assert stamp_files(str(tmp_path), names) != before


def test_a_stamp_depends_on_folder_names_and_order(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            (tmp_path / folder / name).write_bytes(b"1")
            os.utime(tmp_path / folder / name, ns=(0, 10**18))
    x, y = str(tmp_path / "x"), str(tmp_path / "y")
    stamps = [stamp_files(x, ["a", "b"]), stamp_files(x, ["b", "a"]), stamp_files(x, ["a"]), stamp_files(y, ["a", "b"])]
    assert len(set(stamps)) == 4 and all(len(stamp) == 32 for stamp in stamps)
    assert stamp_files(x, ["a\0b"]) != stamp_files(x, ["a\0c"])  # names that no file can have


def test_a_file_replaced_by_one_of_the_same_size_changes_the_fingerprint(tmp_path):
    folder_of(tmp_path, {"a": 6, "b": 6}, suffix="bmp")  # BMP is not compressed: equal shapes have equal sizes
    before = open_dataset(tmp_path)
    path = tmp_path / "a" / "0.bmp"
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    path.write_bytes(encoded(photo(24, 32, seed=1000), "BMP"))
    os.utime(path, ns=(time, time + 1))
    assert path.stat().st_size == size
    assert open_dataset(tmp_path).fingerprint() != before.fingerprint()


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_read_whole_and_by_relative_or_absolute_name(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    (tmp_path / "empty").write_bytes(b"")
    store = FileStore(str(tmp_path), ("a", str(tmp_path / "a"), "empty", "gone", "."))
    assert store.fetch([0, 2, 1]) == [bytes(range(200)), b"", bytes(range(200))]
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, count: read(file, min(count, 7)))  # a read may return less
    assert store.fetch([0]) == [bytes(range(200))]
    for record, message in ((3, "gone: no such file"), (4, ".: is not a file")):
        with pytest.raises(ValueError) as caught:
            store.fetch([record])
        assert str(caught.value) == message


# --- from a listing to a data set -------------------------------------------------------------------------------------


def scanned(count, reasons=()):
    """The result of a scan in which every image is different and 4 x 6."""
    keys = tuple(f"{i:04}".encode() * 4 for i in range(count))
    return Scan(np.full((count, 2), (4, 6), np.int32), ("PNG RGB",) * count, keys, dict(reasons))


def listing_of(splits, labels, **options):
    store = FileStore("", tuple(f"{i}.png" for i in range(len(labels))))
    return Listing("mine", store, tuple(splits), tuple(labels), "stamp", **options)


def test_unreadable_images_are_left_out_of_splits_and_classes():
    labels = ["a", "b", "lost", "a", "b", "b"]
    splits = ["train", "train", "train", "test", "test", "validation"]
    dataset = open_listing(listing_of(splits, labels), scanned(6, {2: "empty file", 4: "damaged"}))
    assert split_sizes(dataset) == {"train": 2, "validation": 1, "test": 1} and dataset.class_names == ("a", "b")
    assert dataset.left_out == ("2.png: empty file", "4.png: damaged")
    lost, unreadable = (
        "classes without a readable image, left out: lost",
        "2 of 6 images cannot be read and are left out",
    )
    assert dataset.notes == (Note("unused", lost), Note("unused", unreadable))
    assert [dataset.splits[name].records.tolist() for name in dataset.splits] == [[0, 1], [5], [3]]
    assert dataset.splits["test"].sizes.tolist() == [[4, 6]]


def test_accents_are_compared_in_one_form():
    dataset = open_listing(listing_of(["train", "test", "validation"], ["cafe\u0301", "caf\u00e9", "b"]), scanned(3))
    assert dataset.class_names == ("b", "caf\u00e9") and dataset.splits["test"].labels.tolist() == [1]


def test_images_without_a_split_count_as_train():
    dataset = open_listing(listing_of(["", "train", "test", "validation"], "aabb"), scanned(4))
    assert split_sizes(dataset) == {"train": 2, "validation": 1, "test": 1}
    assert Note("classes", "classes without images in train: b") in dataset.notes


def test_validation_becomes_test_only_beside_train():
    held = open_listing(listing_of(["train"] * 20 + ["validation"] * 2, "ab" * 11), scanned(22))
    assert split_sizes(held) == {"train": 18, "validation": 2, "test": 2}
    assert held.splits["test"].records.tolist() == [20, 21]
    alone = open_listing(listing_of(["validation"] * 2, "ab"), scanned(2))
    assert split_sizes(alone) == {"validation": 2} and not alone.notes


def test_leakage_names_the_images_and_counts_them():
    splits = {
        name: ArraySplit(np.zeros((n, 2, 2, 1), np.uint8), np.zeros(n, np.int32))
        for name, n in (("train", 3), ("test", 5))
    }
    keys = {"train": [b"a", b"b", b"c"], "test": [b"x", b"c", b"c", b"a", b"b"]}
    (note,) = leakage(splits, keys)
    assert note.kind == "leakage" and note.split == "test" and "4 of 5 test images are also in train" in str(note)
    assert "record 1 = record 2, record 2 = record 2, record 3 = record 0 and 1 more" in str(note)
    assert leakage(splits, {"train": [b"a"] * 3, "test": [b"b"] * 5}) == []


@pytest.mark.parametrize("count, lines", [(0, 0), (1, 2), (10, 11), (11, 12)])
def test_the_report_of_left_out_images(count, lines):
    dataset = Dataset("mine", {}, ("a", "b"), left_out=tuple(f"{i}.png: damaged" for i in range(count)))
    report = describe_left_out(dataset)
    assert len(report) == lines
    if count > listing.MAX_LINES:
        assert "and 1 more" in report[-1]
        with open(report[-1].rsplit(" ", 1)[1], encoding="utf-8") as file:
            assert file.read().splitlines() == list(dataset.left_out)


def test_the_report_without_a_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    dataset = Dataset("mine", {}, ("a", "b"), left_out=("x.png: damaged",) * 12)
    assert describe_left_out(dataset)[-1] == "   … and 2 more"


def test_splits_of_a_table_without_a_class_in_common(tmp_path):
    folder_of(tmp_path, {"a": 6}, size=(4, 4))
    rows = [f"a/{n}.png,{'cat' if n % 2 else 'dog'},train" for n in range(5)] + ["a/5.png,kat,test"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path / "t.csv")
    assert_one_line(caught, "t.csv: the test images have the classes kat", "train has cat, dog")


def test_files_too_large_for_an_image_are_not_read(tmp_path):
    """A sparse file takes no space on the disk; reading it would take memory."""
    for name, size in (("large.png", 2**30 + 1), ("small.png", 10)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    store = FileStore(str(tmp_path), ("large.png", "small.png"))
    with pytest.raises(ValueError, match=r"large\.png: has 1,073,741,825 bytes"):
        store.fetch([0])
    assert store.fetch([1]) == [bytes(10)]
