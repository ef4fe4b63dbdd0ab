"""Evaluation on images that were trained on is named, by the content of the images."""

import dataclasses

import numpy as np
import pytest
from helpers import random_images
from PIL import Image

import zoo


@pytest.fixture(scope="module")
def trained_on_files(tmp_path_factory):
    """Return (checkpoint, folder of 40 files in two classes that it was trained on, its data set)."""
    folder = tmp_path_factory.mktemp("files") / "photos"
    images, labels = random_images(40, 6, 6, classes=2)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "ab"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "ab"[label] / f"{i}.png")
    fitted = zoo.fit("softmax", folder, epochs=1, image_size=6, workdir=folder.parent / "run", quiet=True)
    return fitted, folder, zoo.open_dataset(folder)


def remarks(checkpoint, data, split="test"):
    return [note for note in zoo.evaluate(checkpoint, data, split).notes if "trained on" in note]


def test_images_that_were_trained_on_are_recognised_by_content(trained_on_files, tmp_path):
    fitted, folder, dataset = trained_on_files
    assert remarks(fitted, folder) == [] and remarks(fitted, folder, "validation") == []
    assert remarks(fitted, folder, "train")[0].startswith("All of these images were trained on")
    assert remarks(fitted, folder, "all")[0].startswith("70 % of these images")
    train = dataset.splits["train"]
    for i in range(len(train)):  # the same files elsewhere, with other names
        source = folder / train.name(i)
        target = tmp_path / "copy" / "test" / source.parent.name / f"copied-{source.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    assert remarks(fitted, tmp_path / "copy")[0].startswith("All of these images")
    again = zoo.load(fitted.workdir / "best")
    assert remarks(again, folder, "train") and not remarks(again, folder)


def test_arrays_that_were_trained_on_are_recognised(tmp_path):
    images, labels = random_images(40, 6, 6, classes=2)
    fitted = zoo.fit("softmax", (images, labels), epochs=1, image_size=6, workdir=tmp_path / "run", quiet=True)
    assert remarks(fitted, (images, labels))[0].startswith("70 % of these images")
    assert remarks(fitted, (255 - images, labels)) == []


@pytest.mark.slow
def test_images_of_the_initial_checkpoint_are_remembered(trained_on_files, tmp_path, capsys):
    """Both data sets of two trainings are known, and a test split that was trained on is named."""
    fitted, folder, dataset = trained_on_files
    other = random_images(30, 6, 6, classes=2)
    other = zoo.from_arrays((other[0], np.array(["a", "b"])[other[1]]))
    tuned = zoo.fit(init=fitted, data=other, epochs=1, workdir=tmp_path / "tuned", quiet=True)
    assert remarks(tuned, folder, "train") and remarks(tuned, other, "train") and not remarks(tuned, other)
    capsys.readouterr()
    turned = dataclasses.replace(dataset, splits={**dataset.splits, "test": dataset.splits["train"]})
    zoo.fit(init=fitted, data=turned, epochs=1, workdir=tmp_path / "turned")
    assert "test split: All of these images were trained on by" in capsys.readouterr().out


def test_a_card_without_a_sketch_is_known_by_the_name_of_its_data(trained_on_files):
    fitted, folder, dataset = trained_on_files
    card = dataclasses.replace(fitted.card, data={"source": "digits"})
    named = dataclasses.replace(fitted, card=card)
    dataset = dataclasses.replace(dataset, name="digits")
    assert remarks(named, dataset, "train")[0].startswith("All") and remarks(named, dataset, "all")[0].startswith(
        "About 70"
    )
    assert remarks(named, dataset) == [] and remarks(named, dataclasses.replace(dataset, name="mnist"), "train") == []
    for data in ({"source": str(folder)}, {"source": "arrays"}, None, {"source": 3}):
        moved = dataclasses.replace(fitted, card=dataclasses.replace(card, data=data))
        assert remarks(moved, dataclasses.replace(dataset, name=str((data or {}).get("source"))), "train") == []
