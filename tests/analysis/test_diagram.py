"""Diagrams: one box for every layer, lines between boxes, nothing outside the frame, equal blocks drawn once."""

import re
import xml.etree.ElementTree as ET

import pytest
from helpers import run_command
from models.test_contract import REDUCED

from zoo.analysis.diagram import collapse, diagram, merge, split_blocks
from zoo.models import MODELS, create
from zoo.models.graph import trace

SVG = "{http://www.w3.org/2000/svg}"
QUICK = ("lenet5", "resnet-cifar", "googlenet", "highway_conv", "resnet-d-se")


def assert_drawn(graph, text):
    """Check the drawing of a graph as XML: boxes lie inside it, do not overlap, and have a line for every input."""
    root = ET.fromstring(text)
    _, _, width, height = map(float, root.get("viewBox").split())
    boxes = {}
    for group in root.iter(f"{SVG}g"):
        box = next((part for part in group.iter(f"{SVG}rect") if "box" in part.get("class")), None)
        if box is not None:
            title = group.find(f"{SVG}title").text
            boxes[title.split(":")[0]] = [float(box.get(side)) for side in ("x", "y", "width", "height")]
    owner, merged = merge(graph)
    blocks = collapse(split_blocks(merged, owner[graph.logits]))
    assert set(boxes) == {box.path for block in blocks for box in block.boxes}
    for x, y, w, h in boxes.values():
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    places = sorted(boxes.values())
    for i, (x, y, w, h) in enumerate(places):
        for a, b, *_ in places[i + 1 :]:
            assert a >= x + w or b >= y + h or b + h <= y, "two boxes overlap"
    lines = [part for part in root.iter(f"{SVG}path") if "edge" in part.get("class")]
    assert len(lines) == sum(len(box.inputs) for block in blocks for box in block.boxes)
    drawn = sum(block.repeats * len(block.boxes) for block in blocks)
    assert drawn == len(merged), "a block is missing or drawn twice"
    assert root.find(f"{SVG}title").text and "href" not in text


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REDUCED])
def test_diagrams_are_whole(name):
    entry, fields, shape = REDUCED[name]
    graph = trace(MODELS[entry](**fields), shape)
    assert_drawn(graph, diagram(graph, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_diagram(name):
    graph = trace(create(name))
    assert_drawn(graph, diagram(graph, name))


def test_equal_blocks_are_drawn_once(tmp_path, capsys):
    code, out, err = run_command(capsys, "info", "resnet20", "--diagram", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert code == 0 and "a.svg" in err
    assert re.findall(r"×(\d)</text>", text)[0] == "3" and text.count("stage1_block2") == 0
    assert "stage1_block1/add" in out and "conv2/norm" in out
    code, _, err = run_command(capsys, "info", "resnet20", "--diagram", tmp_path / "a.png")
    assert code == 2 and ".svg" in err and err.count("\n") == 1
