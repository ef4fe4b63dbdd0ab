"""The Python file beside an export gives the pixels of `zoo.preprocess`, without the zoo."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from photos import encoded, exif, photo, preprocess_of, stroke
from PIL import Image

import zoo
from zoo.checkpoint import Card
from zoo.export.preprocess_file import preprocess_file

RGB = {"channels": "RGB", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
DRAWINGS = {"size": (28, 28), "resize": (20, 20), "resize_mode": "pad", "mean": (0.1,), "std": (0.3,)}

CARDS = {
    "torchvision": {"size": (24, 24), "resize": (32, 32), **RGB},
    "bicubic, wide": {"size": (20, 31), "resize": (22, 40), "interpolation": "bicubic", **RGB},
    "squash": {"size": (24, 18), "resize": (24, 18), "resize_mode": "squash", "interpolation": "lanczos", **RGB},
    "pad, BGR": {"size": (30, 30), "resize": (25, 28), "resize_mode": "pad", **RGB, "channels": "BGR"},
    "grey": {"size": (17, 17), "resize": (19, 19), "interpolation": "box"},
    "nearest, larger than the box": {"size": (40, 40), "resize": (32, 32), "interpolation": "nearest", **RGB},
    "12 bits": {"size": (16, 16), "resize": (16, 16), "white": 4095.0},
    "light on dark": {**DRAWINGS, "polarity": "light-on-dark"},
    "dark on light": {**DRAWINGS, "polarity": "dark-on-light"},
    "clean digits": {**DRAWINGS, "polarity": "light-on-dark", "ink_extent": 0.7143},
    "clean ink": {**DRAWINGS, "polarity": "dark-on-light", "ink_extent": 0.7143},
    "clean colour drawings": {
        **DRAWINGS, **RGB, "polarity": "light-on-dark", "ink_extent": 0.6, "interpolation": "bicubic",
    },
}  # fmt: skip


def card_of(fields):
    fields = dict(fields)
    size, resize = fields.pop("size"), fields.pop("resize")
    return Card("any", {}, ("a", "b"), preprocess_of(size, resize, **fields))


def images():
    """Return encoded files by name."""
    colour = photo(37, 50)
    alpha = np.dstack([colour, np.tile(np.linspace(0, 255, 50).astype(np.uint8), (37, 1))])
    light = np.dstack([np.full((20, 20, 3), 250, np.uint8), np.eye(20, dtype=np.uint8) * 255])
    palette = Image.fromarray(colour).quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 3
    paper = 200 - np.pad(stroke(20)[..., 0] // 2, 9)  # grey ink with wide margins on grey paper
    rng = np.random.default_rng(0)
    return {
        "colour": encoded(colour),
        "tall": encoded(photo(61, 23, seed=1)),
        "jpeg": encoded(colour, "JPEG"),
        "turned": encoded(colour, "JPEG", exif=exif(6)),
        "mirrored": encoded(colour, "PNG", exif=exif(5)),
        "grey": encoded(colour[..., 0]),
        "1 bit": encoded(Image.fromarray(colour[..., 1]).convert("1")),
        "alpha": encoded(alpha),
        "light on nothing": encoded(light),
        "grey alpha": encoded(Image.fromarray(alpha).convert("LA")),
        "palette": encoded(palette),
        "transparent palette": encoded(clear, transparency=3),
        "CMYK": encoded(Image.fromarray(colour).convert("CMYK"), "JPEG"),
        "stroke": encoded(stroke(28)[..., 0]),
        "ink": encoded(255 - stroke(28)[..., 0]),
        "paper": encoded(paper.astype(np.uint8)),
        "noisy paper": encoded((paper + rng.integers(-3, 4, paper.shape)).astype(np.uint8)),
        "small stroke": encoded(np.pad(stroke(14)[..., 0], ((3, 40), (10, 1)))),
        "empty": encoded(np.zeros((9, 9), np.uint8)),
        "one pixel": encoded(np.full((1, 1, 3), 77, np.uint8)),
        "line": encoded(photo(1, 40)),
    }


@pytest.mark.parametrize("name", CARDS)
def test_the_pixels_are_those_of_the_zoo(name, tmp_path):
    card = card_of(CARDS[name])
    written = {}
    exec(compile(preprocess_file(card, "net.onnx"), "net_preprocess.py", "exec"), written)
    for kind, data in images().items():
        (tmp_path / "image").write_bytes(data)
        pixels = written["preprocess"](tmp_path / "image")
        expected = zoo.preprocess(tmp_path / "image", card, normalised=False)
        assert pixels.dtype == np.uint8 and pixels.shape == card.preprocess.input_shape
        assert np.array_equal(pixels, expected), f"{kind}: {np.abs(pixels.astype(int) - expected).max()}"
        floats = zoo.preprocess(tmp_path / "image", card)
        np.testing.assert_allclose(written["normalise"](pixels), floats, rtol=1e-5, atol=1e-6)


def test_deep_files_need_the_value_of_white(tmp_path):
    deep = np.linspace(0, 4095, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    known, unknown = card_of(CARDS["12 bits"]), card_of({**CARDS["12 bits"], "white": None})
    written = [{}, {}]
    for card, names in zip((known, unknown), written, strict=True):
        exec(preprocess_file(card, "x"), names)
    expected = zoo.preprocess(tmp_path / "deep.png", known, normalised=False)
    assert np.array_equal(written[0]["preprocess"](tmp_path / "deep.png"), expected) and expected.max() > 240
    with pytest.raises(ValueError, match="8 bits"):
        written[1]["preprocess"](tmp_path / "deep.png")


def test_the_shipped_cards_and_the_registry_have_such_a_file(tmp_path):
    """Cards as they are, through one image each."""
    from zoo.pretrained.registry import WEIGHTS

    (tmp_path / "image.png").write_bytes(images()["colour"])
    (tmp_path / "digit.png").write_bytes(images()["noisy paper"])
    hows = {row.preprocess for row in WEIGHTS.values() if max(row.preprocess.size) < 300}
    for how in (*hows, zoo.load("lenet5-mnist").card.preprocess, zoo.load("resnet20-cifar10").card.preprocess):
        card, written = Card("any", {}, (), how), {}
        exec(preprocess_file(card, "x"), written)
        for file in ("image.png", "digit.png"):
            expected = zoo.preprocess(tmp_path / file, card, normalised=False)
            assert np.array_equal(written["preprocess"](tmp_path / file), expected), how


def test_the_file_is_short_and_needs_neither_zoo_nor_jax(tmp_path):
    text = preprocess_file(card_of(CARDS["torchvision"]), "net.onnx")
    (tmp_path / "net_preprocess.py").write_text(text)
    (tmp_path / "image.png").write_bytes(images()["colour"])
    code = "\n".join(
        [
            "import sys, net_preprocess as n",
            "print(n.preprocess('image.png').sum())",
            "print([m for m in ('zoo', 'jax') if m in sys.modules])",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    total, modules = done.stdout.split("\n")[:2]
    card = card_of(CARDS["torchvision"])
    assert int(total) == int(zoo.preprocess(tmp_path / "image.png", card, normalised=False).sum()) and modules == "[]"
    assert max(map(len, text.splitlines())) <= 120
    names = {field.name for field in dataclasses.fields(card.preprocess)}
    assert names == {
        "size", "resize", "resize_mode", "interpolation", "channels", "polarity", "ink_extent", "white", "mean", "std",
    }  # a new field needs a place in the file  # fmt: skip
