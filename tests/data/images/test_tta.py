import numpy as np
import pytest
from photos import photo
from PIL import Image

from zoo.data.images.preprocess import Preprocess, image_to_input
from zoo.data.images.tta import VIEWS, at_size, check_views, images_to_views

SEEN = Preprocess((14, 14), (16, 16))
TIGHT = Preprocess((14, 14), (14, 14))
DRAWN = Preprocess((14, 14), (14, 14), channels="L", polarity="light-on-dark", mean=(0.0,), std=(1.0,))


def scaled(image, side, kept=None):
    """Resized until its shorter side is `side`, and the central square of that size or of `kept`, by Pillow."""
    height, width = image.shape[:2]
    size = (side * width // height, side) if width > height else (side, side * height // width)
    picture = Image.fromarray(image).resize((size[0], height), Image.Resampling.BILINEAR)
    picture = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    kept = kept or side
    top, left = (round((picture.shape[axis] - kept) / 2) for axis in (0, 1))
    return picture[top : top + kept, left : left + kept]


def crops(square, side):
    rest = square.shape[0] - side
    middle = round(rest / 2)
    places = [(0, 0), (0, rest), (rest, 0), (rest, rest), (middle, middle)]
    return [square[y : y + side, x : x + side] for y, x in places]


def by_hand(name, image, preprocess):
    """The views as the papers describe them."""
    plain = image_to_input(image, preprocess)
    if name == "flip":
        return [plain, plain[:, ::-1]]
    if name == "multi-scale":
        views = [scaled(image, round(14 * side / 224), 14) for side in (256, 288, 320, 352)]
    else:
        views = crops(scaled(image, 16), 14)
    return views if name == "five-crop" else views + [view[:, ::-1] for view in views]


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("preprocess", [SEEN, TIGHT], ids=["margin", "tight"])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (16, 16), (9, 11)])
def test_views_are_the_papers(name, preprocess, shape):
    image = photo(*shape)
    (got,) = images_to_views([image], preprocess, name)
    assert got.shape == (VIEWS[name].num_views, 14, 14, 3)
    np.testing.assert_array_equal(got, np.stack(by_hand(name, image, preprocess)))


def test_signs_are_not_mirrored():
    check_views("five-crop", DRAWN)
    for name in ("flip", "ten-crop", "multi-scale"):
        check_views(name, SEEN)
        with pytest.raises(ValueError, match=f"'{name}'"):
            check_views(name, DRAWN)
    with pytest.raises(ValueError, match="choose from flip, five-crop"):
        check_views("twelve-crop", SEEN)


@pytest.mark.parametrize("size, box", [(14, 16), (28, 32), (21, 24)])
def test_another_size_keeps_the_margins_proportion(size, box):
    assert at_size(SEEN, size) == Preprocess((size, size), (box, box))
    assert at_size(TIGHT, size) == Preprocess((size, size), (size, size))
