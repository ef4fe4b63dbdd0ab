"""Wrong labels and near-duplicates of a data set: found on purpose, and by `zoo data --suspects`."""

import csv
import json

import jax
import numpy as np
import pytest
from helpers import run_command
from photos import encoded, photo
from PIL import Image

import zoo
from zoo.analysis import suspects
from zoo.analysis.features import Features
from zoo.analysis.suspects import COLUMNS, confident_learning, find_suspects, out_of_fold_probabilities, wrong_labels
from zoo.data.dataset import Dataset
from zoo.data.images.preprocess import Preprocess
from zoo.data.splits import ArraySplit
from zoo.models import abstract_variables


def clusters(count, classes, seed=0):
    """Return features of separable classes, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = rng.normal(0, 3, (classes, 8))
    return (centres[labels] + rng.normal(0, 1, (count, 8))).astype(np.float32), labels.astype(np.int32)


def test_labels_that_were_changed_on_purpose_are_found_and_put_right():
    rows, labels = clusters(600, 4)
    changed = np.random.default_rng(1).choice(600, 30, replace=False)
    given = labels.copy()
    given[changed] = (given[changed] + 1) % 4
    splits = {"train": (rows[:400], given[:400]), "test": (rows[400:], given[400:])}
    found, _ = wrong_labels(Features(splits, tuple("abcd")))
    places = [wrong.index + (400 if wrong.split == "test" else 0) for wrong in found]
    hits = set(places) & set(changed)
    assert len(hits) >= 18 and len(hits) / len(found) > 0.9
    assert all(wrong.suggestion == labels[place] for wrong, place in zip(found, places, strict=True) if place in hits)
    assert all(wrong.label == given[place] for wrong, place in zip(found, places, strict=True))
    scores = [wrong.score for wrong in found]
    assert scores == sorted(scores, reverse=True) and set(places[:15]) <= set(changed)
    assert wrong_labels(Features(splits, tuple("abcd")))[0] == found
    assert len(wrong_labels(Features({"train": (rows, labels)}, tuple("abcd")))[0]) <= 3


def test_no_example_is_judged_by_a_probe_that_saw_its_label():
    rng = np.random.default_rng(0)
    rows, labels = (
        rng.normal(0, 1, (60, 40)),
        rng.integers(0, 2, 60),
    )  # enough features to learn it by heart
    probabilities = out_of_fold_probabilities(rows, labels, 3)
    assert (probabilities[:, 2] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == labels).mean() < 0.75


def test_confident_learning_counts_by_the_thresholds_of_the_classes():
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.1, 0.9], [0.45, 0.55]])
    # thresholds: mean of 0.9, 0.8, 0.3 and of 0.6, 0.9, 0.55
    assert confident_learning(labels, probabilities).tolist() == [2]
    assert confident_learning(labels, np.eye(2)[labels]).tolist() == []
    assert confident_learning(labels, np.eye(2)[1 - labels]).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0, 0], []])
def test_classes_with_one_image_are_an_error(labels):
    with pytest.raises(ValueError, match="two images or more"):
        out_of_fold_probabilities(np.zeros((len(labels), 2)), np.array(labels, int), 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of two kinds of photographs; two test images are copies of a train image, one resized."""
    root = tmp_path_factory.mktemp("suspects")
    for split, count in (("train", 12), ("test", 6)):
        for label, tint in (("red", (200, 60, 60)), ("=blue", (60, 60, 200))):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                picture = photo(40, 50, seed=i + 100 * (label == "red") + 1000 * (split == "test"))
                tinted = (0.4 * picture + 0.6 * np.array(tint)).astype(np.uint8)
                (root / split / label / f"{i}.png").write_bytes(encoded(tinted))
    original = Image.open(root / "train" / "red" / "3.png")
    original.save(root / "test" / "red" / "same.png")
    original.resize((80, 64)).save(root / "test" / "red" / "resized.jpg", quality=60)
    (root / "train" / "red" / "5.png").rename(root / "train" / "=blue" / "red5.png")
    model = zoo.create("mlp", num_classes=2, image_size=8)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), abstract_variables(model, (8, 8, 3))
    )
    zoo.save(root / "ckpt", model, variables, ("red", "=blue"), Preprocess((8, 8), (8, 8)))
    return root


def test_the_command_writes_a_sheet_and_a_table(data, tmp_path, capsys):
    sheet, table = tmp_path / "s.png", tmp_path / "s.csv"
    words = ("data", data, "--suspects", data / "ckpt", "--suspects-sheet", sheet, "--suspects-csv", table)
    code, out, err = run_command(capsys, *words)
    assert code == 0 and str(sheet) in out and str(table) in out, err
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    wrong = [row for row in rows if row["kind"] == "label"]
    assert wrong[0]["file"] == "train/=blue/red5.png" and wrong[0]["suggestion"] == "red"
    assert wrong[0]["label"] == "'=blue"  # no formula for a spreadsheet
    pairs = {(row["file"], row["other_file"]) for row in rows if row["kind"] == "duplicate"}
    assert pairs == {("train/red/3.png", "test/red/same.png"), ("train/red/3.png", "test/red/resized.jpg")}
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.height > 200
    code, out, _ = run_command(capsys, *words[:4], "--json")
    assert code == 0 and json.loads(out)["suspects_csv"].endswith("-suspects.csv")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--suspects-csv", "x.csv"), "--suspects CKPT"),
        (("--suspects", "no such"), "no such"),
        (("--suspects", "CKPT", "--suspects-sheet", "x.jpg"), ".png"),
        (("--suspects", "CKPT", "--suspects-csv", "x.png"), ".csv"),
    ],
)
def test_wrong_options_are_named(words, named, data, capsys):
    words = [data / "ckpt" if word == "CKPT" else word for word in words]
    code, _, err = run_command(capsys, "data", data, *words)
    assert code == 2 and named in err and err.count("\n") == 1


def test_clean_data_gives_an_empty_sheet_and_images_of_one_colour_are_no_duplicates(data, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (40, 8, 8, 3), np.uint8)
    images[::2] += 180
    images[:4] = 7
    labels = np.arange(40, dtype=np.int32) % 2
    labels[:4] = 1
    splits = {"train": ArraySplit(images[::2], labels[::2]), "test": ArraySplit(images[1::2], labels[1::2])}
    found = find_suspects(data / "ckpt", Dataset("made", splits, ("a", "b")))
    assert found.duplicates == ()
    found = suspects.Suspects(found.dataset, (), (), "own")
    found.draw(tmp_path / "empty.png")
    found.write_csv(tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().splitlines() == [",".join(COLUMNS)]
    with Image.open(tmp_path / "empty.png") as picture:
        assert picture.height < 120
