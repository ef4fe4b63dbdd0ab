import numpy as np
import pytest
from photos import photo, preprocess_of
from PIL import Image

from zoo.data.images.preprocess import Preprocess, image_to_input
from zoo.data.images.tta import MARGIN, SCALES, VIEWS, at_size, check_views, images_to_views

MARGIN_2 = Preprocess((14, 14), (16, 16))
TIGHT = Preprocess((14, 14), (14, 14))
DRAWINGS = Preprocess((14, 14), (14, 14), channels="L", polarity="light-on-dark", mean=(0.0,), std=(1.0,))


def resize_and_crop(image, side, cropped=None):
    """Resize the shorter side to `side` with Pillow and crop the central square of `cropped` (by default `side`)."""
    height, width = image.shape[:2]
    size = (side * width // height, side) if width > height else (side, side * height // width)
    picture = Image.fromarray(image).resize((size[0], height), Image.Resampling.BILINEAR)
    picture = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    cropped = cropped or side
    top, left = (round((picture.shape[axis] - cropped) / 2) for axis in (0, 1))
    return picture[top : top + cropped, left : left + cropped]


def crops(square, side):
    margin = square.shape[0] - side
    middle = round(margin / 2)
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (middle, middle)]
    return [square[y : y + side, x : x + side] for y, x in corners]


def expected_views(name, image, preprocess):
    """Return the views as described in the papers."""
    centre = image_to_input(image, preprocess)
    if name == "flip":
        return [centre, centre[:, ::-1]]
    if name == "shift":  # down and right, up and left; the row at an edge is that next to it
        around = [1, *range(14), 12]
        moved = [centre[rows][:, rows] for rows in (around[1:15], around[0:14], around[2:16])]
        return moved + [view[:, ::-1] for view in moved]
    if name == "multi-scale":
        views = [resize_and_crop(image, round(14 * side / 224), 14) for side in (256, 288, 320, 352)]
    else:
        views = crops(resize_and_crop(image, 16), 14)
    return views if name == "five-crop" else views + [view[:, ::-1] for view in views]


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("preprocess", [MARGIN_2, TIGHT], ids=["margin", "tight"])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (16, 16), (9, 11)])
def test_views_are_those_of_the_papers(name, preprocess, shape):
    image = photo(*shape)
    (got,) = images_to_views([image], preprocess, name)
    assert got.shape == (VIEWS[name].num_views, 14, 14, 3)
    np.testing.assert_array_equal(got, np.stack(expected_views(name, image, preprocess)))


def test_drawings_are_not_mirrored():
    check_views("five-crop", DRAWINGS)
    for name in ("flip", "ten-crop", "multi-scale", "shift"):
        check_views(name, MARGIN_2)
        with pytest.raises(ValueError, match=f"'{name}'"):
            check_views(name, DRAWINGS)
    with pytest.raises(ValueError, match=r"twelve-crop.*flip, five-crop, ten-crop, multi-scale, shift"):
        check_views("twelve-crop", MARGIN_2)


@pytest.mark.parametrize("size, box", [(14, 16), (28, 32), (21, 24)])
def test_at_size_keeps_the_proportion_of_the_box(size, box):
    assert at_size(MARGIN_2, size) == Preprocess((size, size), (box, box))
    assert at_size(TIGHT, size) == Preprocess((size, size), (size, size))


@pytest.mark.parametrize(
    "resize, size, box",
    [
        ((16, 20), 7, (8, 10)),
        ((15, 17), 7, (8, 8)),  # 7.5 and 8.5, rounded to even
        ((1, 14), 1, (1, 1)),  # at least 1
    ],
)
def test_at_size_rounds_each_side_of_the_box(resize, size, box):
    got = at_size(Preprocess((14, 14), resize), size)
    assert (got.size, got.resize) == ((size, size), box)


@pytest.mark.parametrize("size", [0, -1, 16_385, 10**400, True])
def test_at_size_refuses_sizes_that_no_input_has(size):
    with pytest.raises(ValueError, match=r"image size .*whole number of pixels up to 16,384"):
        at_size(TIGHT, size)


def test_at_size_makes_oblong_inputs_square():
    assert at_size(Preprocess((10, 20), (12, 30)), 40) == Preprocess((40, 40), (48, 60))


def test_five_crops_of_an_oblong_input():
    """Both sides of the box are at least 256/224 of the input's; offsets of the centre round to even."""
    preprocess = Preprocess((14, 28), (19, 28), resize_mode="squash")
    image = photo(19, 32)
    (views,) = images_to_views([image], preprocess, "five-crop")
    corners = [(0, 0), (0, 4), (5, 0), (5, 4), (2, 2)]
    np.testing.assert_array_equal(views, [image[y : y + 14, x : x + 28] for y, x in corners])


def test_views_adapt_drawings_and_keep_the_rest_of_the_preprocessing():
    """A drawing of the other polarity is inverted in every view; "pad" stays "pad"."""
    preprocess = preprocess_of((14, 14), (14, 14), resize_mode="pad", polarity="light-on-dark")
    image = np.full((14, 14, 1), 255, np.uint8)
    image[4:10, 4:10] = 0
    for views in VIEWS.values():
        plain = views.function(255 - image, preprocess)
        np.testing.assert_array_equal(views.function(image, preprocess), plain)
        assert plain.max() == 255 and plain[:, 0, 0].max() == 0


def test_numbers_of_views_and_mirroring_are_pinned():
    """Krizhevsky et al. 2012 average ten crops; Szegedy et al. 2014 use four scales; Jordan 2024 three places."""
    assert {name: (views.num_views, views.mirrors) for name, views in VIEWS.items()} == {
        "flip": (2, True),
        "five-crop": (5, False),
        "ten-crop": (10, True),
        "multi-scale": (8, True),
        "shift": (6, True),
    }


def test_scales_are_those_of_the_papers():
    """For an input of 224 pixels: Krizhevsky et al. 2012, section 4.1; Szegedy et al. 2014, section 7."""
    assert pytest.approx(256) == MARGIN * 224
    assert [scale * 224 for scale in SCALES] == pytest.approx([256, 288, 320, 352])
