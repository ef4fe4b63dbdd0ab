"""Every checkpoint that the project ships."""

import re
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.pretrained.names import shipped, shipped_folder

NAMES = shipped()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_whole_and_answers(name, capfd):
    checkpoint = zoo.load(name)
    assert capfd.readouterr() == ("", "")  # loading prints nothing
    card = checkpoint.card
    height, width = card.preprocess.size
    image = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    answer = checkpoint.predict(image)[0]
    assert answer.label in card.classes and 0 < answer.probability <= 1
    assert {"validation", "test"} <= set(card.metrics) and card.metrics["test"]["accuracy"] > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_how_it_was_made(name):
    card = zoo.load(name).card
    assert card.command.startswith("zoo train --model ")
    assert not re.search(r"(^|\s)/", card.command)  # nobody else has that path
    assert len(set(card.classes)) == len(card.classes) and card.recipe and card.source


def test_together_they_are_small_and_listed():
    files = [file for file in shipped_folder().rglob("*") if file.is_file()]
    assert NAMES and sum(file.stat().st_size for file in files) < 60e6
    table = (Path(__file__).parents[1] / "checkpoints" / "README.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in table for name in NAMES)
