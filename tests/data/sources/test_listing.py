"""Folders, tables, tar shards and hf: — lists of encoded images, which all give the same Dataset."""

import dataclasses
import gzip
import io
import itertools
import json
import sys
import tarfile
import types

import numpy as np
import pytest
from photos import encoded, folder_of, photo

from zoo.data import imagenet
from zoo.data.dataset import all_splits
from zoo.data.imagenet import class_names, wnids
from zoo.data.sources import shards
from zoo.data.sources.listing import open_listing
from zoo.data.sources.open import Split, from_arrays, list_source, open_dataset
from zoo.data.sources.shards import braces
from zoo.training import plan as planning


def sizes(dataset):
    return {name: len(split) for name, split in dataset.splits.items()}


def one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def names_of(split):
    return {split.name(i): int(split.labels[i]) for i in range(len(split))}


# --- folders ----------------------------------------------------------------------------------------------------------

SPELLED = [
    ("train", "val", "test"),
    ("Training", "validation", "Testing"),
    ("train_set", "valid", "test-set"),
    ("TRAIN", "dev", "TEST"),
]


@pytest.mark.parametrize("spelled", SPELLED)
def test_splits_in_any_usual_spelling(spelled, tmp_path):
    counts = {"train": (5, 6), "validation": (2, 1), "test": (1, 3)}
    pairs = list(zip(spelled, counts.values(), strict=True))
    layout = {f"{folder}/{label}": pair[k] for folder, pair in pairs for k, label in enumerate(("cat", "dog"))}
    dataset = open_dataset(folder_of(tmp_path, layout))
    assert sizes(dataset) == {name: sum(pair) for name, pair in counts.items()} and not dataset.notes
    assert dataset.class_names == ("cat", "dog") and isinstance(dataset.splits["train"], Split)
    for (name, pair), folder in zip(counts.items(), spelled, strict=True):
        assert names_of(dataset.splits[name]) == {
            f"{folder}/{label}/{n}.png": k for k, label in enumerate(("cat", "dog")) for n in range(pair[k])
        }


@pytest.mark.parametrize(
    "given, expected, said",
    [
        ({"": 40}, {"train": 56, "validation": 8, "test": 16}, ["no test split", "no validation split"]),
        ({"train/": 40, "test/": 5}, {"train": 72, "validation": 8, "test": 10}, ["no validation split"]),
        (
            {"train/": 40, "val/": 5},
            {"train": 72, "validation": 8, "test": 10},
            ["validation split is used as the test"],
        ),
        ({"val/": 4, "test/": 5}, {"validation": 8, "test": 10}, []),
    ],
)
def test_what_is_missing_is_held_out_and_said(given, expected, said, tmp_path):
    root = folder_of(tmp_path, {f"{part}{name}": n for part, n in given.items() for name in ("a", "b")}, size=(6, 8))
    dataset = open_dataset(root)
    assert sizes(dataset) == expected
    assert all(any(words in note for note in dataset.notes) for words in said)
    for split in dataset.splits.values():
        assert abs(int((split.labels == 0).sum()) * 2 - len(split)) <= 1  # stratified
    assert open_dataset(root).fingerprint() == dataset.fingerprint()


def test_folders_as_people_have_them(tmp_path):
    """In a folder of the archive's name, classes in folders of folders, a class called test, hidden things."""
    root = folder_of(tmp_path / "photos" / "photos", {"cat/old/1999": 12, "cat": 1, "dog": 12, "test": 12, ".git": 1})
    (root / "dog" / "._0.png").write_bytes(b"of another system")
    dataset = open_dataset(tmp_path / "photos")
    assert dataset.class_names == ("cat", "dog", "test") and sum(sizes(dataset).values()) == 37
    assert not dataset.left_out and not any("not used" in note for note in dataset.notes)


def test_a_class_called_train(tmp_path):
    dataset = open_dataset(folder_of(tmp_path, {"train": 8, "car": 8, "bus": 8}))
    assert dataset.class_names == ("bus", "car", "train")


def test_what_is_left_aside_is_said(tmp_path):
    folder_of(tmp_path, {"train/a": 10, "train/b": 10, "train/c": 0, "extra/a": 3, "test": 4, "train": 2})
    notes = " | ".join(open_dataset(tmp_path).notes)
    for words in ("train/c", "extra", "4 images in test", "2 images in train", "belong in train/cat"):
        assert words in notes, notes


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    folder_of(tmp_path, {f"train/{n}": 3 for n in (0, 2, 10, 9)} | {f"test/{n}": 1 for n in (0, 2, 10, 9)})
    assert open_dataset(tmp_path).class_names == ("0", "2", "9", "10")


def test_a_class_that_train_lacks_is_said(tmp_path):
    folder_of(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 2, "test/new": 2})
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("a", "b", "new")
    assert any("without an image in train: new" in note for note in dataset.notes)


@pytest.mark.parametrize(
    "layout, said",
    [
        ({"train/a": 2, "training/a": 2}, ["train and training are both the train split"]),
        ({"": 3}, ["put each class's images in a folder", "3 images in the folder itself", "belong in cat"]),
        ({"train": 3, "test": 3}, ["no image in it is in a folder of a class", "3 images in train", "in train/cat"]),
        ({"a": 0}, ["class folders"]),
    ],
)
def test_folders_that_cannot_be_used(layout, said, tmp_path):
    with pytest.raises(ValueError) as caught:
        open_dataset(folder_of(tmp_path, layout))
    one_line(caught, *said)


def test_one_class_can_be_looked_at_and_not_learnt(tmp_path):
    dataset = open_dataset(folder_of(tmp_path, {"train/a": 10, "test/a": 2}))
    with pytest.raises(ValueError) as caught:
        planning.plan("lenet5", dataset)
    one_line(caught, "all images are of one class, a")


def test_a_class_that_is_called_like_a_split_is_said(tmp_path):
    dataset = open_dataset(folder_of(tmp_path, {"trian/a": 5, "trian/b": 5, "val/a": 5, "val/b": 5}))
    assert dataset.class_names == ("trian", "val")
    assert any(note.startswith("taken for a class: val, beside trian; where it is a split") for note in dataset.notes)


@pytest.mark.parametrize("streamed", [False, True])
def test_all_splits_as_one(tmp_path, streamed):
    """Each record once, with its label."""
    if streamed:
        dataset = open_dataset(folder_of(tmp_path, {"a": 12, "b": 9}))
    else:
        images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
        dataset = from_arrays((images, np.arange(20) % 2), name="made")
    whole = all_splits(dataset)
    assert len(dataset.splits) == 3 and len(whole) == sum(map(len, dataset.splits.values()))
    at = 0
    for split in dataset.splits.values():
        for i in range(len(split)):
            np.testing.assert_array_equal(whole.read(np.array([at]))[0], split.read(np.array([i]))[0])
            assert whole.labels[at] == split.labels[i]
            at += 1


def test_nothing_that_can_be_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path)
    one_line(caught, "no image that can be read", "a/0.png: empty file")


def test_imagenets_folder_has_words_for_classes(tmp_path):
    folder_of(tmp_path / "ILSVRC", {f"{s}/{w}": n for s, n in (("train", 12), ("val", 3)) for w in list(wnids())[:3]})
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("tench", "goldfish", "great white shark") == class_names()[:3]
    assert sizes(dataset) == {"train": 32, "validation": 4, "test": 9} or sizes(dataset)["test"] == 9
    assert len(set(class_names())) == 1000 and list(wnids()) == sorted(wnids())


def test_imagenets_validation_images_may_lie_loose(tmp_path, monkeypatch):
    """As they come out of the archive; their classes are in a list that TensorFlow Datasets brings."""
    wnid = {1: "n01751748", 2: "n09193705", 3: "n02105855", 49_999: "n10148035", 50_000: "n02437616"}
    layout = {f"train/{name}": 9 for name in wnid.values()}
    root = folder_of(tmp_path / "ILSVRC", {**layout, "val": 1}, size=(6, 8))
    for number in wnid:
        (root / "val" / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(encoded(photo(6, 8, number), "JPEG"))
    dataset = open_dataset(root)
    assert sizes(dataset)["test"] == 5 and dataset.num_classes == 5
    names = sorted(wnid.values())
    assert names_of(dataset.splits["test"]) == {
        f"val/ILSVRC2012_val_{number:08}.JPEG": names.index(name) for number, name in wnid.items()
    }
    assert any("5 images in val have their classes from" in note for note in dataset.notes)
    assert any("not used: 1 images in val" in note for note in dataset.notes)
    alone = open_dataset(root / "val")
    assert sizes(alone) == {"test": 5} and alone.num_classes == 5
    assert alone.class_names[0] == "sea snake"
    monkeypatch.setattr(imagenet, "_validation_list", lambda: ())
    with pytest.raises(ValueError, match="put each class's images in a folder of its name"):
        open_dataset(root / "val")


def test_names_that_only_look_like_wnids_stay(tmp_path):
    folder_of(tmp_path, {"n00000001": 10, "n00000002": 10})
    assert open_dataset(tmp_path).class_names == ("n00000001", "n00000002")


# --- tables -----------------------------------------------------------------------------------------------------------

ROWS = [(f"images/{label}/{n}.png", label, split) for label in ("cat", "dog") for n, split in
        enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2)]  # fmt: skip


def table(rows, header, separator=","):
    return "\n".join(separator.join(row) for row in ([header] if header else []) + rows) + "\n"


TABLES = {
    "a.csv": table(ROWS, ("path", "label", "split")),
    "b.csv": "\ufeff" + table(ROWS, ("File Name", "Class", "subset"), ";"),
    "c.tsv": table([(b, "x", a, c) for a, b, c in ROWS], ("category", "remark", "image_path", "Set"), "\t"),
    "d.jsonl": "\n\n".join(json.dumps({"image": a, "label": b, "split": c, "by": "me"}) for a, b, c in ROWS),
}
READ = {
    "a.csv": "read as a table with commas between cells: path from 'path', label from 'label', split from 'split'",
    "b.csv": "read as a table with semicolons between cells: path from 'File Name', label from 'Class', split from "
    "'subset'",
    "c.tsv": "read as a table with tabs between cells: path from 'image_path', label from 'category', split from "
    "'Set'; not used: 'remark'",
    "d.jsonl": "read as a table of JSON objects: path from 'image', label from 'label', split from 'split'; not used: "
    "'by'",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("table"), {"images/cat": 10, "images/dog": 10})


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_form(name, pictures):
    (pictures / name).write_text(TABLES[name], encoding="utf-8")
    dataset = open_dataset(pictures / name)
    assert sizes(dataset) == {"train": 12, "validation": 4, "test": 4} and dataset.class_names == ("cat", "dog")
    assert names_of(dataset.splits["test"]) == {path: label == "dog" for path, label, split in ROWS if split == "test"}
    np.testing.assert_array_equal(dataset.splits["train"].read([0])[0], photo(24, 32, seed=0))
    assert dataset.notes == (READ[name],)


def test_a_table_of_two_columns_needs_no_header(pictures):
    (pictures / "plain.csv").write_text(table([row[:2] for row in ROWS], None))
    dataset = open_dataset(pictures / "plain.csv")
    assert sizes(dataset) == {"train": 14, "validation": 2, "test": 4}
    assert dataset.notes[0] == "read as a table without a header: column 1 is the path, column 2 is the label"


def test_without_a_header_a_third_column_is_the_split(pictures):
    (pictures / "three.csv").write_text(table(ROWS, None))
    assert sizes(open_dataset(pictures / "three.csv")) == {"train": 12, "validation": 4, "test": 4}


@pytest.mark.parametrize(
    "more, said",
    [
        ("images/dog/1.png,dog,test\n", ["line 2", "3 cells where the first line has 2"]),
        ("images/dog/1.png\n", ["line 2", "1 cells where the first line has 2"]),
    ],
)
def test_without_a_header_rows_are_of_one_length_too(more, said, pictures):
    (pictures / "ragged.csv").write_text("images/cat/0.png,cat\n" + more)
    with pytest.raises(ValueError) as caught:
        open_dataset(pictures / "ragged.csv")
    one_line(caught, "ragged.csv", *said)


def test_without_a_header_a_third_column_of_something_else(pictures):
    (pictures / "odd.csv").write_text("images/cat/0.png,cat,train\nimages/dog/0.png,dog,0.93\n")
    with pytest.raises(ValueError) as caught:
        open_dataset(pictures / "odd.csv")
    one_line(caught, "odd.csv, line 2", "'0.93' is none of train")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_only_a_line_feed_ends_a_row(suffix, pictures):
    """str.splitlines ends lines at U+2028 and others, which are characters of a name like any other."""
    rows = [(a, b + "\u2028\u0085x", c) for a, b, c in ROWS]
    lines = (json.dumps(dict(zip(("path", "label", "split"), row, strict=True)), ensure_ascii=False) for row in rows)
    text = table(rows, ("path", "label", "split")) if suffix == "csv" else "\n".join(lines)
    (pictures / f"ends.{suffix}").write_text(text, encoding="utf-8")
    assert open_dataset(pictures / f"ends.{suffix}").class_names == tuple(f"{c}\\u2028\\x85x" for c in ("cat", "dog"))


def test_a_name_that_no_file_can_have(pictures):
    (pictures / "odd.jsonl").write_text(TABLES["d.jsonl"] + '\n{"image": "\\ud800", "label": "cat", "split": "test"}')
    (line,) = open_dataset(pictures / "odd.jsonl").left_out
    assert line.startswith("\\ud800: ")


def test_a_file_that_a_table_names_and_nobody_has(pictures):
    (pictures / "more.csv").write_text(TABLES["a.csv"] + "images/gone.png,cat,test\n")
    dataset = open_dataset(pictures / "more.csv")
    assert dataset.left_out == ("images/gone.png: no such file",) and sizes(dataset)["test"] == 4


def test_a_whole_number_as_a_label_is_a_class(pictures):
    (pictures / "numbers.jsonl").write_text(
        "\n".join(json.dumps({"path": a, "label": 7 + (b == "dog")}) for a, b, _ in ROWS)
    )
    assert open_dataset(pictures / "numbers.jsonl").class_names == ("7", "8")


WRONG_TABLES = {
    "columns": ("w.csv", "a,b\n1,2\n", ["which column is the path? It has a, b"]),
    "two paths": ("w.csv", "path,file,label\n1,2,3\n", ["path and file may both be the path"]),
    "no label": ("w.csv", "path,label\nimages/cat/0.png,\n", ["line 2", "no label"]),
    "cells": ("w.csv", "path,label\na,b,c\n", ["line 2", "3 cells"]),
    "split": ("w.csv", "path,label,split\na,b,later\n", ["line 2", "'later' is none of train"]),
    "empty": ("w.csv", "", ["no rows"]),
    "not json": ("w.jsonl", '{"path": "a", "label": "b"}\n[1]\n', ["line 2", "not a JSON object"]),
    "a list": ("w.jsonl", '{"path": "a", "label": ["b"]}\n', ["line 1", "'label' must be text or a whole number"]),
    "true": ("w.jsonl", '{"path": "a", "label": true}\n', ["line 1", "'label' must be text or a whole number"]),
    "null": ("w.jsonl", '{"path": "a", "label": null}\n', ["line 1", "has no label"]),
    "deep": ("w.jsonl", "[" * 200_000, ["line 1", "not a JSON object"]),
    "nul": ("w.jsonl", '{"path": "a\\u0000b", "label": "c"}\n', ["line 1", "NUL"]),
    "nul in csv": ("w.csv", "path,label\na\0b,c\n", ["line 2", "NUL"]),
}


@pytest.mark.parametrize("what", WRONG_TABLES)
def test_wrong_tables_are_said_by_line(what, tmp_path):
    name, text, said = WRONG_TABLES[what]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path / name)
    one_line(caught, name, *said)


# --- tar shards -------------------------------------------------------------------------------------------------------


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
    assert sum(sizes(dataset).values()) == {"pattern": 20, "folder": 28, "one": 12}[spec]
    if spec == "folder":
        assert sizes(dataset) == {"train": 20, "validation": 4, "test": 4}
    for split in dataset.splits.values():
        for i, image in enumerate(split.read(np.arange(len(split)))):
            number = int(split.name(i).rsplit("/", 1)[1].split(".")[0])
            np.testing.assert_array_equal(image, photo(12, 16, seed=number))
            assert split.labels[i] == number % 2


def test_shards_are_indexed_once(tmp_path, monkeypatch):
    shard(tmp_path / "train-0.tar", members("cls", range(12)))
    first = open_dataset(tmp_path / "train-0.tar").fingerprint()
    monkeypatch.setattr(shards, "_records", lambda path: pytest.fail("was indexed again"))
    assert open_dataset(tmp_path / "train-0.tar").fingerprint() == first


def test_patterns():
    assert braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert braces("{0..1}/{2..3}.tar") == ["0/2.tar", "0/3.tar", "1/2.tar", "1/3.tar"]
    assert braces("{9..10}") == ["9", "10"] and braces("a.tar") == ["a.tar"]
    with pytest.raises(ValueError, match="does not count upwards"):
        braces("{5..2}.tar")


def test_shards_that_cannot_be_used(tmp_path):
    good = tmp_path / "train-0.tar"
    shard(good, members("cls", range(12)))
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:1300])
    shard(tmp_path / "nameless.tar", [("0.png", encoded(photo(4, 4)))])
    shard(tmp_path / "textual.tar", [("0.txt", b"hello")])
    for name, error, said in (
        ("packed.tar.gz", ValueError, f"run: gunzip -k {packed}"),
        ("cut.tar", ValueError, "not a whole tar file"),
        ("nameless.tar", ValueError, "0.png has no class"),
        ("textual.tar", ValueError, "no images in it"),
        ("train-{0..1}.tar", FileNotFoundError, "train-1.tar: no such file"),
    ):
        with pytest.raises(error) as caught:
            open_dataset(tmp_path / name)
        one_line(caught, said)


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
def test_a_class_in_json_is_text_or_a_whole_number(about, said, tmp_path):
    shard(tmp_path / "train.tar", [("0.json", about.encode()), ("0.png", encoded(photo(4, 4)))])
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path / "train.tar")
    one_line(caught, "train.tar", said)


# --- hf: --------------------------------------------------------------------------------------------------------------


NUMBERS = itertools.count()


class Image:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    names = ("zebra", "ant")


class Table:
    """As much of datasets.Dataset as is used."""

    def __init__(self, rows, split):
        self.rows, self.split, self.features, self._fingerprint = (
            rows,
            split,
            {"image": Image(), "label": ClassLabel()},
            split,
        )

    def __getitem__(self, key):
        return [row["label"] for row in self.rows] if key == "label" else self.rows[key]

    def cast_column(self, column, feature):
        assert column == "image" and not feature.decode
        return self

    def select_columns(self, columns):
        return self


def rows(numbers):
    return [{"image": {"bytes": encoded(photo(12, 16, seed=n)), "path": None}, "label": n % 2} for n in numbers]


@pytest.fixture
def datasets(monkeypatch):
    tables = {"train": Table(rows(range(20)), "train"), "test": Table(rows(range(20, 26)), "test")}

    def load_dataset(name, config=None, cache_dir=None):
        if name != "owner/photos":
            raise FileNotFoundError(f"Dataset {name!r} doesn't exist\non the Hub")
        return dict(tables)

    module = types.SimpleNamespace(load_dataset=load_dataset, load_from_disk=None, Image=Image)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return tables


def test_hf(datasets):
    dataset = open_dataset("hf:owner/photos")
    assert sizes(dataset) == {"train": 18, "validation": 2, "test": 6} and dataset.class_names == ("zebra", "ant")
    test = dataset.splits["test"]
    for i, image in enumerate(test.read(np.arange(6))):
        np.testing.assert_array_equal(image, photo(12, 16, seed=20 + i))
    assert test.labels.tolist() == [0, 1] * 3 and test.name(2) == "test[2]"


def test_hf_test_labels_that_are_not_public(datasets):
    for row in datasets["test"].rows:
        row["label"] = -1
    dataset = open_dataset("hf:owner/photos")
    assert sizes(dataset) == {"train": 14, "validation": 2, "test": 4}
    assert any("test labels are not public" in note for note in dataset.notes)


def test_hf_classes_are_spelled_as_labels_are(datasets, monkeypatch):
    monkeypatch.setattr(ClassLabel, "names", ("cafe\u0301", "snow\u00a0owl"))  # a combining accent, a hard space
    dataset = open_dataset("hf:owner/photos")
    assert dataset.class_names == ("caf\u00e9", "snow\\xa0owl")
    assert dataset.splits["test"].labels.tolist() == [0, 1] * 3


def test_classes_that_are_not_the_sources_own(datasets, monkeypatch):
    source = list_source("hf:owner/photos")
    with pytest.raises(ValueError) as caught:
        open_listing(dataclasses.replace(source, class_names=("ant", "bee")))
    one_line(caught, "hf:owner/photos: train[0] is of class zebra", "(ant, bee)")
    monkeypatch.setattr(ClassLabel, "names", ("caf\u00e9", "cafe\u0301"))
    with pytest.raises(ValueError) as caught:
        open_dataset("hf:owner/photos")
    one_line(caught, "hf:owner/photos: several classes are called caf\u00e9")


def test_hf_mistakes(datasets, monkeypatch):
    with pytest.raises(ValueError) as caught:
        open_dataset("hf:nobody/nothing")
    one_line(caught, "hf:nobody/nothing: cannot be loaded (FileNotFoundError: Dataset 'nobody/nothing' doesn't exist)")
    datasets["train"].features["depth"] = Image()
    del datasets["train"].features["label"]
    with pytest.raises(ValueError) as caught:
        open_dataset("hf:owner/photos")
    one_line(caught, "not a data set of images with one class each", "depth (Image)")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'jax-model-zoo\[hf\]'"):
        open_dataset("hf:owner/photos")
