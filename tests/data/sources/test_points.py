"""Points as data: what the sources hold, what learns them, and what is refused."""

import numpy as np
import pytest
from helpers import run_command

import zoo
from zoo.data.images.preprocess import POINT_SHAPE
from zoo.data.sources.points import COUNTS


@pytest.mark.parametrize("name", ["xor", "moons"])
def test_points_are_fixed_distinct_and_balanced(name):
    dataset = zoo.open_dataset(name)
    assert dataset.fingerprint() == zoo.open_dataset(name).fingerprint()
    assert {split: len(part) for split, part in dataset.splits.items()} == COUNTS
    images = np.concatenate([part.images for part in dataset.splits.values()])
    assert images.shape[1:] == (*POINT_SHAPE, 1)
    assert len(np.unique(images.reshape(-1, 2), axis=0)) == sum(COUNTS.values())
    for part in dataset.splits.values():
        assert 0.4 < part.labels.mean() < 0.6


def test_xor_is_learnt_with_a_hidden_layer(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_REPORT", "0")
    fields = {"widths": (8,), "activation": "tanh"}
    changes = {"epochs": 6, "learning_rate": 0.05}
    checkpoint = zoo.fit("mlp", "xor", fields=fields, quiet=True, workdir=tmp_path / "run", **changes)
    assert checkpoint.model.input_shape == (1, 2, 1)
    assert checkpoint.card.metrics["test"]["accuracy"] > 0.9
    corners = np.array([[60, 60], [60, 190], [190, 60], [190, 190]], np.uint8).reshape(-1, 1, 2)
    labels = [answer.label for answer in zoo.load(checkpoint.workdir / "best").predict(list(corners))]
    assert labels == ["same", "different", "different", "same"]
    for images in ([np.zeros((5, 7), np.uint8)], np.zeros((2, 5, 7, 1), np.uint8)):
        with pytest.raises(ValueError, match=r"takes points, .* not 5x7 pixels"):
            checkpoint.predict(images)


@pytest.mark.parametrize(
    ("line", "parts"),
    {
        "train --data xor --model lenet5": ("lenet5", "--model mlp"),
        "train --data moons --quick": ("points", "without --quick"),
        "train --data moons --image-size 8": ("--image-size 8", "points"),
        "train --data mons": ("mons", "moons"),
    }.items(),
)
def test_what_points_cannot_do_is_said_in_one_line(line, parts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run_command(capsys, *line.split())
    assert code == 2 and len(error.splitlines()) == 1
    for part in parts:
        assert part in error


def test_the_network_of_points_names_itself():
    assert zoo.create("mlp", image_size=1, image_width=2).input_shape == (1, 2, 1)
    with pytest.raises(ValueError, match="exactly 1x2"):
        zoo.init(zoo.create("mlp", image_size=1, image_width=2), 0, (2, 2, 1))
