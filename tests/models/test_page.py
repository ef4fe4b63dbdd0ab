"""docs/models.md is what `python -m benchmarks.models` writes."""

import re

from benchmarks.models import PAGE, page
from zoo.models import MODELS
from zoo.pretrained.registry import WEIGHTS


def test_the_page_is_current():
    assert PAGE.read_text("utf-8") == page(), "run: python -m benchmarks.models"


def test_the_page_has_every_model_once_and_every_set_of_weights():
    text = page()
    rows = [row for row in re.findall(r"^\| (\w+) \|", text, re.MULTILINE) if row != "model"]
    assert sorted(rows) == sorted(MODELS)
    assert all(f"`{name.partition('.')[0]}`" in text for name in WEIGHTS)
    tags = sum(len(re.findall(r"(?:\d\d\.\d\d|–)(?: / (?:\d\d\.\d\d|–))?(?: at \d+)?(?=,|<br>| \|)", line))
               for line in text.splitlines() if line.startswith("| "))  # fmt: skip
    assert tags == len(WEIGHTS)
