import numpy as np
import pytest

from zoo.data.images.decode import apply_orientation
from zoo.data.images.geometry import (
    Box,
    centre_crop,
    centre_offsets,
    crop,
    pad_to_shape,
    resize_geometry,
    undo_orientation,
)

# (source, box, mode, input) -> (scaled, cropped), worked out by hand
GEOMETRY = [
    # The shorter side matches the box; the longer one is rounded down, as in torchvision: 256 * 401 / 300 = 342.19.
    ((300, 401), (256, 256), "crop", (224, 224), (256, 342), (224, 224)),
    ((401, 300), (256, 256), "crop", (224, 224), (342, 256), (224, 224)),
    ((333, 500), (256, 256), "crop", (256, 256), (256, 384), (256, 256)),  # 384.38
    ((100, 199), (10, 10), "crop", (10, 10), (10, 19), (10, 10)),  # 19.9 is not rounded up
    ((20, 20), (10, 16), "crop", (10, 16), (16, 16), (10, 16)),
    ((20, 20), (16, 10), "crop", (16, 10), (16, 16), (16, 10)),
    # Cropped to the box even if the input is larger: the rest is padded.
    ((20, 40), (10, 10), "crop", (16, 16), (10, 20), (10, 10)),
    ((20, 40), (10, 10), "crop", (6, 30), (10, 20), (6, 10)),
    # The longer side matches the box; the shorter one is rounded to the nearest, halves to even, at least 1.
    ((30, 20), (10, 10), "pad", (10, 10), (10, 7), (10, 7)),  # 6.67
    ((20, 30), (10, 10), "pad", (10, 10), (7, 10), (7, 10)),
    ((4, 1), (10, 10), "pad", (10, 10), (10, 2), (10, 2)),  # 2.5
    ((4, 3), (10, 10), "pad", (10, 10), (10, 8), (10, 8)),  # 7.5
    ((1, 4), (10, 10), "pad", (10, 10), (2, 10), (2, 10)),
    ((500, 1), (8, 6), "pad", (8, 6), (8, 1), (8, 1)),
    ((1, 500), (8, 6), "pad", (8, 6), (1, 6), (1, 6)),
    ((10, 10), (6, 8), "pad", (9, 9), (6, 6), (6, 6)),
    ((10, 10), (8, 6), "pad", (4, 9), (6, 6), (4, 6)),
    ((30, 20), (7, 9), "squash", (5, 20), (7, 9), (5, 9)),
]


@pytest.mark.parametrize("source, resize, mode, size, scaled, cropped", GEOMETRY)
def test_resize_geometry(source, resize, mode, size, scaled, cropped):
    assert resize_geometry(source, resize, mode, size) == (scaled, cropped)


@pytest.mark.parametrize(
    "source, size, offsets",
    [
        ((10, 10), (4, 6), (3, 2)),
        ((5, 7), (4, 4), (0, 2)),  # 0.5 and 1.5 round to even
        ((7, 9), (4, 4), (2, 2)),  # 1.5 and 2.5
        ((11, 4), (4, 4), (4, 0)),  # 3.5
    ],
)
def test_centre_crop_rounds_halves_to_even(source, size, offsets):
    images = np.arange(2 * source[0] * source[1], dtype=np.uint8).reshape(2, *source, 1)
    assert centre_offsets(source, size) == offsets
    expected = images[:, offsets[0] : offsets[0] + size[0], offsets[1] : offsets[1] + size[1]]
    np.testing.assert_array_equal(centre_crop(images, size), expected)
    np.testing.assert_array_equal(crop(images[0], *offsets, size), expected[0])
    assert centre_crop(images, source) is images


def test_padding_is_centred_and_wider_at_the_end():
    image = np.full((2, 3, 1), 9, np.uint8)
    padded = pad_to_shape(image, (5, 8, 3), (1, 2, 3))
    expected = np.broadcast_to(np.array([1, 2, 3], np.uint8), (5, 8, 3)).copy()
    expected[1:3, 2:5] = 9  # margins of 1 and 2 rows, 2 and 3 columns; the grey channel is repeated
    np.testing.assert_array_equal(padded, expected)
    np.testing.assert_array_equal(pad_to_shape(image[None], (5, 8, 3), (1, 2, 3))[0], expected)


def test_padding_one_side_or_channels_only():
    image = np.full((2, 3, 1), 9, np.uint8)
    assert pad_to_shape(image, (2, 3, 1), (0,)) is image
    assert (pad_to_shape(image, (2, 3, 3), (0, 0, 0)) == 9).all()
    assert pad_to_shape(image, (2, 5, 1), (4,))[..., 0].tolist() == [[4, 9, 9, 9, 4]] * 2
    assert pad_to_shape(image, (4, 3, 1), (4,))[:, 0, 0].tolist() == [4, 9, 9, 4]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box", [Box(1, 2, 3, 2), Box(0, 0, 1, 4), Box(2, 1, 3, 1)])
def test_boxes_of_the_upright_image_are_mapped_to_the_stored_one(orientation, box):
    stored = np.arange(6 * 7).reshape(6, 7, 1)
    upright = apply_orientation(stored, orientation)
    top, left, height, width = undo_orientation(box, orientation, *upright.shape[:2])
    inside = stored[top : top + height, left : left + width]
    expected = upright[box.top : box.top + box.height, box.left : box.left + box.width]
    np.testing.assert_array_equal(apply_orientation(inside, orientation), expected)
