"""Predictions of single examples: `zoo eval --csv --wrong`, and the names of examples in every kind of split."""

import csv
import os

import jax
import numpy as np
import pytest
from helpers import run_command
from photos import encoded, photo
from PIL import Image

import zoo
from zoo.analysis.mistakes import draw_mistakes
from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays, open_dataset
from zoo.data.splits import ArraySplit, SubsetSplit, join, record_label, record_name, subset
from zoo.inference.examples import COLUMNS, Examples, classify_logits
from zoo.models import abstract_variables

CLASSES = ("=cat", "dog")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoint with random weights, and a folder of images with names that need care."""
    root = tmp_path_factory.mktemp("examples")
    model = zoo.create("softmax", num_classes=2, image_size=8)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), abstract_variables(model, (8, 8, 3))
    )
    zoo.save(root / "ckpt", model, variables, CLASSES, Preprocess((8, 8), (8, 8)))
    for label in CLASSES:
        folder = root / "photos" / "test" / label
        folder.mkdir(parents=True)
        for i, name in enumerate(["a.png", "ü b.png", "+1.png", "d'é,\".png"]):
            (folder / name).write_bytes(encoded(photo(9, 12, seed=i + 10 * (label == "dog"))))
    return root


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_the_table_agrees_with_the_metrics_and_with_predict(root, tmp_path, capsys):
    table, sheet = tmp_path / "all.csv", tmp_path / "wrong.png"
    words = ("eval", root / "ckpt", "--data", root / "photos", "--csv", table, "--wrong", sheet, "--batch-size", 3)
    code, out, _ = run_command(capsys, *words)
    assert code == 0 and str(table) in out and str(sheet) in out
    rows = rows_of(table)
    result = zoo.evaluate(str(root / "ckpt"), str(root / "photos"))
    assert tuple(rows[0]) == COLUMNS and len(rows) == result.examples == 8
    right = [row["truth"] == row["prediction"] for row in rows]
    assert np.mean(right) == result.accuracy and {row["split"] for row in rows} == {"test"}
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(result.loss, rel=1e-5)
    assert "'=cat" in {row["truth"] for row in rows}  # no formula for a spreadsheet
    files = [root / "photos" / row["file"] for row in rows]
    assert all(file.is_file() for file in files)
    for row, answer in zip(rows, zoo.load(root / "ckpt").predict(files), strict=True):
        assert row["prediction"].lstrip("'") == answer.label
        assert float(row["probability"]) == pytest.approx(answer.probability, rel=1e-5)
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


def test_json_output_stays_json(root, tmp_path, capsys):
    import json

    words = ("eval", root / "ckpt", "--data", root / "photos", "--csv", tmp_path / "t.csv", "--json", "--split", "all")
    code, out, err = run_command(capsys, *words)
    assert code == 0 and json.loads(out)["examples"] == 8 and "t.csv" in err


@pytest.mark.parametrize(
    ("flag", "file", "named"),
    [
        ("--wrong", "x.jpg", ".png"), ("--csv", "x.txt", ".csv"), ("--csv", "no/x.csv", "no such folder"),
        ("--wrong", "dir.png", "folder"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_written_are_noticed_before_anything_is_read(flag, file, named, root, tmp_path, capsys):
    (tmp_path / "dir.png").mkdir()
    code, out, err = run_command(capsys, "eval", "no checkpoint", flag, tmp_path / file)
    assert code == 2 and named in err and not out and err.count("\n") == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "t.csv"
    file.write_text("old")
    examples = Examples(("a",), ("",), np.zeros(1, int), np.zeros(1, int), np.ones(1), np.zeros(1), ("x", "y"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        examples.write_csv(file)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_names_are_files_or_positions_in_the_source(root):
    folder = open_dataset(root / "photos").splits["test"]
    assert record_label(folder, 0) == record_name(folder, 0) == "test/=cat/+1.png"
    assert record_label(join([folder, SubsetSplit(folder, np.array([5]), np.zeros(1, np.int32))]), 8) == folder.name(5)
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    dataset = from_arrays((images, np.arange(40) % 2))
    for split in (*dataset.splits.values(), join(list(dataset.splits.values()))):
        for i in range(len(split)):  # held out or not, the label is the position in the array that was given
            assert images[int(record_label(split, i)), 0, 0, 0] == split.read(np.array([i]))[0, 0, 0, 0]
    part = subset(dataset.splits["test"], np.arange(len(dataset.splits["test"])) % 2 == 1)
    assert record_name(part, 0) == f"record {record_label(dataset.splits['test'], 1)}"
    assert record_label(SubsetSplit(dataset.splits["test"], np.array([3]), np.zeros(1)), 0) == record_label(
        dataset.splits["test"], 3
    )


def test_python_returns_examples_in_the_order_of_the_split(root):
    dataset = from_arrays((np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8), np.arange(30) % 2),
                          class_names=CLASSES)  # fmt: skip
    result = zoo.evaluate(str(root / "ckpt"), dataset, "all", per_example=True)
    examples = result.per_example
    assert [example.split for example in examples].count("train") == len(dataset.splits["train"])
    assert sorted(int(example.file) for example in examples) == list(range(30))
    assert all(example.truth == CLASSES[int(example.file) % 2] for example in examples)
    losses = [examples[i].loss for i in examples.mistakes()]
    assert losses == sorted(losses, reverse=True) and not any(examples[i].is_correct for i in examples.mistakes())
    assert len(losses) == round(30 * (1 - result.accuracy)) and examples[-1] == examples[29] == examples[28:][1]
    assert "per_example" not in result.to_json()
    assert zoo.evaluate(str(root / "ckpt"), dataset).per_example is None


def test_outputs_that_are_not_finite_have_no_prediction_and_come_first():
    logits = np.array([[0, 2.0], [np.nan, 1], [np.inf, 0], [3, 0], [-200, 200]])
    predictions, probabilities, losses = classify_logits(logits, np.array([0, 0, 0, 0, 0]))
    assert predictions.tolist() == [1, -1, -1, 0, 1]
    assert losses[4] == pytest.approx(400) and probabilities[3] == pytest.approx(1 / (1 + np.exp(-3)))
    assert losses[0] == pytest.approx(np.log1p(np.exp(2)))
    examples = Examples(tuple("abcde"), ("",) * 5, np.zeros(5, int), predictions, probabilities, losses, ("x", "y"))
    assert examples.mistakes().tolist() == [1, 2, 4, 0] and examples[1].prediction == ""


@pytest.mark.parametrize("mistakes", [0, 1, 3, 30, 120])
def test_the_sheet_holds_up_to_a_hundred_mistakes(mistakes, tmp_path):
    count = 130
    labels = np.arange(count, dtype=np.int32) % 2
    predictions = np.where(np.arange(count) < mistakes, 1 - labels, labels)
    predictions[: min(1, mistakes)] = -1
    shape, area = ((5, 50), 16 * 160) if mistakes % 2 else ((400, 3), 160)
    magenta = np.array([255, 0, 255], np.uint8)
    split = ArraySplit(np.broadcast_to(magenta, (count, *shape, 3)), labels)
    files = tuple(f"a long folder/of a camera 犬/кот/{i}\x1b[2J.jpeg" for i in range(count))
    examples = Examples(files, ("",) * count, labels, predictions, np.full(count, 0.5, np.float32),
                        np.arange(count, dtype=np.float32), ("x" * 300, ""))  # fmt: skip
    assert draw_mistakes(split, examples, "title " * 50, tmp_path / "sheet.png") == min(mistakes, 100)
    with Image.open(tmp_path / "sheet.png") as picture:
        drawn = (np.asarray(picture) == magenta).all(axis=-1).sum()
        assert drawn == area * min(mistakes, 100) and picture.width < 2500 and picture.height > 100
