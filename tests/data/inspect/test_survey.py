import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from photos import encoded, folder_of, photo

import zoo
from zoo import cli
from zoo.data.dataset import Note
from zoo.data.inspect import advice
from zoo.data.inspect.survey import describe, survey, wrongly_named
from zoo.data.sources import ArraySplit, Dataset, EncodedSplit
from zoo.data.splits import record_keys
from zoo.text import display_width


def test_repeated_images_and_contradicting_classes(tmp_path, capsys, monkeypatch):
    root = folder_of(tmp_path / "photos", {"train/cat": 6, "train/dog": 6, "test/cat": 2, "test/dog": 2})
    data = encoded(photo(20, 20, seed=99))
    for path in ("train/cat/x.png", "train/dog/x.png", "train/dog/y.png"):
        (root / path).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "photos", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["repeated"] == 2 and not found["leaks"]
    assert len(found["contradictions"]) == 2 and "train/cat/x.png" in found["contradictions"][0]
    (note,) = (note for note in zoo.open_dataset(root).notes if note.kind == "contradiction")  # training prints it
    assert "2 images are in two classes: train/dog/x.png is dog, train/cat/x.png is cat, " in str(note)
    assert str(note) not in found["notes"]


def test_columns_are_aligned_whatever_the_width_of_the_letters():
    splits = {"train": ArraySplit(np.zeros((3, 8, 8, 1), np.uint8), np.arange(3, dtype=np.int32))}
    lines = describe(survey(Dataset("mine", splits, ("猫", "ハムスター", "chien"))))[2:6]
    assert len({display_width(line) for line in lines}) == 1, lines
    assert [line.split() for line in lines[1:]] == [["猫", "1"], ["ハムスター", "1"], ["chien", "1"]]


def test_few_photographs_are_told_what_needs_no_network():
    line = advice.describe_few_images(dataset_of_sizes((99, 99), (99, 99)))
    assert "--init torchvision:resnet18, without --model (a download; without network: --init resnet20-cifar10)" in line


def test_survey_of_arrays(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"] == {"train": 1257, "validation": 180, "test": 360} or sum(found["splits"].values()) == 1797
    assert found["sizes"]["common"] == [[8, 8, 1797]] and found["command"] == "zoo train --data digits --model lenet5"
    assert cli.main(["data", "digits"]) == 0
    assert "1,797 images, 10 classes" in capsys.readouterr().out


# --- figures ----------------------------------------------------------------------------------------------------------


def dataset_of_sizes(*sizes, split="train"):
    """A data set with one image of each size, alternately of two classes."""
    images = [np.full((*size, 3), i, np.uint8) for i, size in enumerate(sizes)]
    store = SimpleNamespace(fetch=lambda records: [encoded(images[i]) for i in records], name=lambda i: f"{i}.png")
    records = np.arange(len(sizes))
    labels = (records % 2).astype(np.int32)
    keys = tuple(record_keys(images))
    return Dataset("mine", {split: EncodedSplit(store, records, labels, keys, np.array(sizes, np.int32))}, ("a", "b"))


def test_figures_of_sizes():
    dataset = dataset_of_sizes((10, 20), (30, 5), (10, 20), (40, 40), (9, 9))
    assert survey(dataset)["sizes"] == {
        "smallest": [9, 9], "median": [10, 20], "largest": [40, 40], "common": [[10, 20, 2], [30, 5, 1], [40, 40, 1]],
    }  # fmt: skip
    lines = describe(survey(dataset))
    assert "sizes (width x height): 9x9 to 40x40, median 20x10; most common: 20x10 (2), 5x30 (1), 40x40 (1)" in lines


def test_who_fine_tunes_is_not_told_to():
    dataset = dataset_of_sizes((10, 20), (30, 5), (10, 20))
    assert "Fine-tune with --init" in "".join(survey(dataset)["advice"])
    assert "--init" not in "".join(survey(dataset, fine_tuned=True)["advice"])


@pytest.mark.parametrize(
    "side, options",
    [
        (64, {"--model": "resnet20"}),
        (65, {"--model": "resnet18", "--image-size": "128", "--augment": "resized_crop,flip"}),
        (199, {"--model": "resnet18", "--image-size": "128", "--augment": "resized_crop,flip"}),
        (200, {"--model": "resnet18", "--image-size": "224", "--augment": "resized_crop,flip"}),
    ],
)
def test_the_suggestion_depends_on_the_shorter_side(side, options, monkeypatch):
    monkeypatch.setattr(advice, "FEW_PHOTOS", 1)
    monkeypatch.setattr(advice, "FEW_SMALL", 1)
    dataset = dataset_of_sizes((side, side + 50), (side + 9, side), (side, side))
    assert survey(dataset)["suggestion"] == {"--data": "mine", **options} and survey(dataset)["advice"] == []


def test_few_images_are_fine_tuned():
    for side, init in ((64, "resnet20-cifar10"), (65, "torchvision:resnet18")):
        figures = survey(dataset_of_sizes((side, side), (side, side)))
        assert figures["suggestion"] == {"--data": "mine", "--init": init}
        (line,) = figures["advice"]
        assert "2 training images of 2 classes" in line and f"--init {init}" in line and line in describe(figures)


def test_one_class_is_no_use_for_training():
    images = [np.full((9, 9, 3), 7, np.uint8)]
    figures = survey(Dataset("mine", {"train": ArraySplit(np.array(images), np.zeros(1, np.int32))}, ("a",)))
    assert figures["command"].startswith("zoo eval CKPT") and "at least two classes" in figures["advice"][0]
    assert describe(figures)[0] == "mine: 1 image, 1 class"


def grey(counts, side=8):
    """A data set of different drawings with so many images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    images = np.zeros((len(labels), side, side, 1), np.uint8)
    images[:, 2:6, 3] = 255
    images[:, 2, 3, 0] = 100 + np.arange(len(labels)) % 150
    return Dataset("my data", {"train": ArraySplit(images, labels)}, tuple("abcdef"[: len(counts)]))


@pytest.mark.parametrize(
    "counts, few, unbalanced",
    [
        ((50, 50), False, ""),
        ((50, 49), True, ""),
        ((149, 50), False, ""),
        ((50, 150), False, "150 training images of b, 50 of a"),
        ((0, 100), False, ""),  # a class without images is named elsewhere
        ((0, 60, 20, 90), True, "90 training images of d, 20 of c"),
    ],
)
def test_advice(counts, few, unbalanced):
    assert bool(advice.describe_few_images(grey(counts))) == few
    line = advice.describe_imbalance(grey(counts))
    assert unbalanced in line and bool(line) == bool(unbalanced)
    assert not line or "--set class_weights=balanced" in line


@pytest.mark.parametrize(
    "images, kind",
    [
        (np.zeros((3, 64, 64, 1), np.uint8), "grey"),
        (np.zeros((3, 64, 64, 3), np.uint8), "colour"),
        (np.zeros((3, 65, 90, 1), np.uint8), "photographs"),
        (np.zeros((3, 90, 64, 3), np.uint8), "colour"),
    ],
)
def test_kinds_of_images(images, kind):
    dataset = Dataset("mine", {"train": ArraySplit(images, np.arange(3, dtype=np.int32) % 2)}, ("a", "b"))
    assert advice.kind_of_images(dataset) == kind


def test_advice_without_a_train_split():
    dataset = dataset_of_sizes((9, 9), (9, 9), split="test")
    assert not advice.describe_few_images(dataset) and not advice.describe_imbalance(dataset)


def test_the_suggestion_for_drawings_and_for_unknown_sizes():
    assert survey(grey((50, 50)))["command"] == "zoo train --data 'my data' --model lenet5"
    assert survey(grey((5, 5)))["command"] == "zoo train --data 'my data' --init lenet5-mnist"
    photographs = dataset_of_sizes((9, 9), (9, 9)).splits["train"]
    unknown = Dataset("mine", {"train": dataclasses.replace(photographs, sizes=None)}, ("a", "b"))
    assert survey(unknown)["suggestion"]["--init"] == "torchvision:resnet18" and survey(unknown)["sizes"] == {}
    assert survey(dataset_of_sizes((9, 9), (9, 9), split="test"))["command"] == "zoo eval CKPT --data mine"


def test_figures_of_content():
    images = np.arange(6, dtype=np.uint8)[[0, 0, 1, 2, 3, 4], None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    train = ArraySplit(images, np.array([0, 0, 1, 1, 0, 0], np.int32))
    test = ArraySplit(images[[0, 5, 3]], np.array([1, 0, 1], np.int32))
    left_out = ("x.png: damaged",)
    notes = (Note("leakage", "LEAKAGE: …", "test"), Note("unused", "not used: extra"))
    figures = survey(Dataset("mine", {"train": train, "test": test}, ("a", "b", "c"), notes, left_out))
    assert figures["classes"] == {
        "a": {"train": 4, "test": 1},
        "b": {"train": 2, "test": 2},
        "c": {"train": 0, "test": 0},
    }
    assert figures["splits"] == {"train": 6, "test": 3} and figures["repeated"] == 1
    assert figures["contradictions"] == ["record 0 is b, record 0 is a"]
    assert len(figures["leaks"]) == 1 and "3 of 3 test images are also in train" in figures["leaks"][0]
    assert figures["left_out"] == ["x.png: damaged"] and figures["notes"] == ["not used: extra"]
    assert figures["kinds"] == {} and figures["wrongly_named"] == []
    lines = describe(figures)
    assert lines[0] == "mine: 9 images, 3 classes" and "note: not used: extra" in lines
    assert [line.split() for line in lines[2:7]] == [
        ["class", "train", "test"], ["a", "4", "1"], ["b", "2", "2"], ["c", "0", "0"], ["total", "6", "3"],
    ]  # fmt: skip
    assert lines[-1].startswith("*** LEAKAGE") and "   record 0 is b, record 0 is a" in lines


NAMED = {
    ("a.png", "PNG P"), ("a.JPEG", "JPEG L"), ("a.jfif", "JPEG RGB"), ("a.jpe", "MPO RGB"), ("a.jpg", "MPO RGB"),
    ("a.apng", "PNG RGB"), ("a", "PNG RGB"), ("a.tiff", "TIFF RGB"), ("a.png", ""),
}  # fmt: skip
MISNAMED = {("a.jpg", "PNG RGB"), ("a.xyz", "GIF P"), ("a.tif", "JPEG RGB")}


@pytest.mark.parametrize("name, kind", sorted(NAMED | MISNAMED))
def test_suffixes_of_another_format(name, kind):
    listing = SimpleNamespace(store=SimpleNamespace(name=lambda record: name))
    lines = wrongly_named(listing, SimpleNamespace(kinds=(kind,)))
    assert lines == ([f"{name}: is {kind.split()[0]}"] if (name, kind) in MISNAMED else [])


@pytest.mark.parametrize("classes, rest", [(30, None), (31, "  … and 1 more"), (1040, "  … and 1,010 more")])
def test_only_thirty_classes_are_listed(classes, rest):
    counts = {f"class {k}": {"train": 1} for k in range(classes)}
    figures = {"name": "mine", "splits": {"train": classes}, "classes": counts, "sizes": {}, "kinds": {}, "repeated": 0,
               "notes": [], "advice": [], "wrongly_named": [], "contradictions": [], "leaks": []}  # fmt: skip
    lines = describe(figures)
    assert (rest in lines) == (rest is not None) and sum(line.startswith("  class ") for line in lines) == 31
    figures |= {
        "wrongly_named": ["x: is PNG"] * 11,
        "contradictions": ["y"] * 10,
        "repeated": 2,
        "kinds": {"PNG RGB": 9},
    }
    lines = describe(figures)
    assert lines.count("   x: is PNG") == 10 and lines.count("   … and 1 more (--json lists all)") == 1
    assert lines.count("   y") == 10 and "formats: PNG RGB 9" in lines
    assert any(line.startswith("repeated: 2 images") for line in lines) and not any(
        "and 0 more" in line for line in lines
    )
    assert [line.split(": ")[-1] for line in lines if line.endswith(" images")] == ["11 images", "10 images"]


def test_large_images_come_first_only_in_area(monkeypatch):
    """The area of a large image does not overflow 32 bits."""
    dataset = dataset_of_sizes((9, 9), (9, 9))
    sizes = np.array([[60_000, 60_000], [9, 9]], np.int32)
    large = dataclasses.replace(dataset.splits["train"], sizes=sizes)
    figures = survey(Dataset("mine", {"train": large}, ("a", "b")))
    assert figures["sizes"]["largest"] == [60_000, 60_000] and figures["sizes"]["smallest"] == [9, 9]
