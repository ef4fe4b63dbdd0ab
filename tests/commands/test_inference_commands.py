"""The commands that use a checkpoint, at their edges: options, exit codes and printed tables."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import run_command
from PIL import Image

import zoo
from zoo.commands import info
from zoo.data.images.preprocess import Preprocess
from zoo.models import abstract_variables

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint of random weights and 33 images, one more than is classified at a time."""
    root = tmp_path_factory.mktemp("commands")
    model = zoo.create("softmax", num_classes=3, image_size=6)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract_variables(model, (6, 6, 3))
    )
    zoo.save(root / "ckpt", model, variables, CLASSES, Preprocess((6, 6), (6, 6)), licence="CC0-1.0", source="here")
    (root / "images").mkdir()
    for i in range(33):
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(root / "images" / f"{i:02}.png")
    return root


def test_predict_prints_and_writes_the_same_in_the_order_of_the_files(folder, tmp_path, capsys):
    table = tmp_path / "table.csv"
    code, out, _ = run_command(capsys, "predict", folder / "ckpt", folder / "images", "--json", "--top", 2, "-o", table)
    lines = [json.loads(line) for line in out.splitlines()]
    files = sorted(str(file) for file in (folder / "images").iterdir())
    assert code == 0 and [line["file"] for line in lines] == files
    expected = zoo.load(folder / "ckpt").predict(files)
    for line, prediction in zip(lines, expected, strict=True):
        assert [label for label, _ in line["top"]] == [label for label, _ in prediction.top[:2]]
        np.testing.assert_allclose([p for _, p in line["top"]], [p for _, p in prediction.top[:2]], rtol=1e-5)
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["file", "class1", "probability1", "class2", "probability2"]
    assert rows[1:] == [[line["file"], *(str(cell) for pair in line["top"] for cell in pair)] for line in lines]


def test_predict_names_the_files_of_a_folder_that_it_does_not_classify(folder, tmp_path, capsys):
    shutil.copy(folder / "images" / "00.png", tmp_path)
    for name in ("film.mp4", "drawing.svg"):
        (tmp_path / name).write_text("no image")
    code, out, err = run_command(capsys, "predict", folder / "ckpt", tmp_path)
    assert code == 0 and len(out.splitlines()) == 1
    names = f"{tmp_path / 'drawing.svg'}, {tmp_path / 'film.mp4'}"
    assert err.splitlines() == [f"zoo predict: not used: 2 files that are not images ({names})"]


def test_predict_shows_no_more_classes_than_there_are_and_no_file_twice(folder, tmp_path, capsys):
    image = folder / "images" / "03.png"
    words = ("predict", folder / "ckpt", image, folder / "images", image, "-o", tmp_path / "table.csv")
    code, out, _ = run_command(capsys, *words)
    assert code == 0 and len(out.splitlines()) == 33 and out.startswith(f"{image}  ")
    assert out.splitlines()[0].count("%") == 3
    assert (tmp_path / "table.csv").read_text().splitlines()[0].endswith("class3,probability3")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("predict", "CKPT", "IMAGE", "--top", "0"), "--top"),
        (("predict", "CKPT", "IMAGE", "--tta", "nine"), "nine"),
        (("eval", "CKPT", "--data", "digits", "--batch-size", "0"), "--batch-size"),
        (("eval", "CKPT", "--data", "digits", "--image-size", "-1"), "--image-size"),
        (("eval", "CKPT"), "--data"),
        (("import", "x.pth", "--set", "blocks=1"), "--as"),
        (("import", "x.pth", "--as", "akamaster:resnet20", "--set", "blocks=1"), "--as"),
    ],
)
def test_wrong_options_are_named(words, named, folder, capsys):
    words = [{"CKPT": folder / "ckpt", "IMAGE": folder / "images" / "00.png"}.get(word, word) for word in words]
    code, out, err = run_command(capsys, *words)
    assert code == 2 and named in err and not out


def test_batches_and_classes_of_one_are_allowed(folder, capsys):
    image = folder / "images" / "00.png"
    code, out, _ = run_command(capsys, "predict", folder / "ckpt", image, "--top", 1)
    assert code == 0 and out.count("%") == 1
    for i in range(6):
        for name in "ab":
            target = folder / "data" / name / f"{i}{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / "images" / f"{2 * i + (name == 'b'):02}.png").read_bytes())
    words = ("eval", folder / "ckpt", "--data", folder / "data", "--split", "all", "--json")
    one, all_at_once = (run_command(capsys, *words, "--batch-size", size) for size in (1, 256))
    assert one[0] == all_at_once[0] == 0
    one, all_at_once = json.loads(one[1]), json.loads(all_at_once[1])
    assert one["examples"] == 12 and one["confusion"] == all_at_once["confusion"]


def test_verify_counts_files_leaves_and_values(folder, capsys):
    code, out, err = run_command(capsys, "verify", folder / "ckpt")
    files = sum(file.is_file() for file in (folder / "ckpt").rglob("*"))
    assert code == 0 and not err
    assert f"ok, {files} files, " in out and "2 leaves, 327 values, softmax" in out  # 6 * 6 * 3 * 3 + 3


def test_info_aligns_the_table_and_prints_the_card(folder, capsys):
    code, out, _ = run_command(capsys, "info", folder / "ckpt")
    lines = out.splitlines()
    assert code == 0 and "softmax, 3 classes (a, b, c)" in lines[0]
    assert any(line.split() == ["licence", "CC0-1.0"] for line in lines)
    assert any(line.split() == ["source", "here"] for line in lines)
    code, out, _ = run_command(capsys, "info", "lenet5")
    table = out.splitlines()[: out.splitlines().index("")]
    assert code == 0 and len({len(line) for line in table}) == 1  # columns are aligned
    assert "61,706 parameters" in out and "32x32x1" in out.splitlines()[len(table) + 1]
    rows = json.loads(run_command(capsys, "info", "lenet5", "--json")[1])
    assert sum(row["parameters"] for row in rows) == 61_706


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"accuracy": 0.98765, "loss": 0.12344, "top5": 1.0}, "accuracy 98.77 %, loss 0.1234"),
        ({"loss": 2.0}, "loss 2.0000"),
        ({"accuracy": None, "loss": None, "top5": 0.5, "note": "x"}, "top5 0.5"),
        ({}, ""),
    ],
)
def test_info_shows_accuracy_and_loss(result, shown):
    assert info._format_metrics(result) == shown


def test_info_names_the_closest_model(capsys):
    code, _, err = run_command(capsys, "info", "lenet6")
    assert code == 2 and "lenet5" in err
