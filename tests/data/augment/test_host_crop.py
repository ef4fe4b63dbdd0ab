import math

import numpy as np
import pytest
from photos import encoded, exif, photo
from PIL import Image

from zoo.data.augment.host_crop import (
    Crop,
    draw_crop,
    place_augmentation,
    read_crop,
    truncate_jpeg,
)
from zoo.data.dataset import ArraySplit, EncodedSplit
from zoo.data.images.decode import apply_orientation, luma, read_image
from zoo.data.images.geometry import Box, undo_orientation
from zoo.data.images.preprocess import Preprocess

SEEN = Preprocess((24, 40), (24, 40))
WHOLE = Crop()


def by_hand(data, preprocess, box):
    """Decode all of it, turn it upright, resize the patch: without shortcuts."""
    image = read_image(data)
    if preprocess.channels == "L" and image.shape[-1] == 3:
        image = luma(image)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    resized = np.asarray(picture.resize(preprocess.size[::-1], Image.Resampling.BILINEAR, box=edges))
    resized = resized[..., None] if resized.ndim == 2 else resized
    resized = resized[..., ::-1] if preprocess.channels == "BGR" else resized
    return np.broadcast_to(resized, preprocess.input_shape).astype(int)


def simulated_areas(height, width, count):
    """Shares of the image that patches have, from the papers' rule and another generator."""
    rng = np.random.default_rng(0)
    found = []
    while len(found) < count:  # the first that fits: those that do not fit are drawn again
        area, ratio = rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        if math.sqrt(area * height * width * ratio) <= width and math.sqrt(area * height * width / ratio) <= height:
            found.append(area)
    return np.array(found)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 300), (300, 7), (37, 53), (480, 640)])
def test_patches_lie_inside_and_have_the_area_and_proportions_asked_for(height, width):
    boxes = [draw_crop(3, 1, record, height, width, WHOLE) for record in range(400)]
    for top, left, h, w in boxes:
        assert top >= 0 and top + h <= height and left >= 0 and left + w <= width and h > 0 and w > 0
    if min(height, width) > 100:
        areas = np.array([b.height * b.width for b in boxes]) / (height * width)
        ratios = np.array([math.log(b.width / b.height) for b in boxes])
        assert areas.min() > 0.078 and areas.max() <= 1
        assert abs(areas.mean() - simulated_areas(height, width, 4000).mean()) < 0.04  # over three standard errors
        assert np.abs(ratios).max() < math.log(4 / 3) + 0.02 and abs(ratios.mean()) < 0.03
        assert np.std([b.top / max(1, height - b.height) for b in boxes if b.height < height]) > 0.25


def test_no_patch_of_a_strip_fits_so_the_middle_is_taken():
    assert draw_crop(0, 0, 0, 7, 300, WHOLE) == Box(0, 145, 7, 9)
    assert draw_crop(0, 0, 0, 300, 7, WHOLE) == Box(145, 0, 9, 7)


def test_a_patch_is_a_function_of_seed_epoch_and_record():
    first = [draw_crop(1, 2, record, 200, 300, WHOLE) for record in range(20)]
    assert [draw_crop(1, 2, record, 200, 300, WHOLE) for record in reversed(range(20))] == first[::-1]
    assert len(set(first)) == 20
    for seed, epoch in ((0, 2), (1, 3), (2, 1)):
        assert not set(first) & {draw_crop(seed, epoch, record, 200, 300, WHOLE) for record in range(20)}


def test_patches_are_pinned():
    """Runs are continued by these; they may change with a new major version only."""
    assert draw_crop(0, 0, 0, 480, 640, WHOLE) == PINNED[0]
    assert draw_crop(2**32 - 1, 599, 10**7, 480, 640, Crop(0.35, 0.5)) == PINNED[1]


PINNED = [Box(53, 23, 157, 177), Box(3, 190, 274, 417)]


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_of_turned_images(turn):
    image = np.arange(5 * 7).reshape(5, 7, 1)
    straight = apply_orientation(image, turn)
    box = Box(1, 2, 3, 2)
    inner = undo_orientation(box, turn, *straight.shape[:2])
    stored = image[inner.top : inner.top + inner.height, inner.left : inner.left + inner.width]
    assert np.array_equal(apply_orientation(stored, turn), straight[1:4, 2:4])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("channels", ["RGB", "L", "BGR"])
def test_a_patch_of_a_turned_file_is_what_a_person_sees(turn, channels):
    count = 1 if channels == "L" else 3
    seen = Preprocess((24, 40), (24, 40), channels=channels, mean=(0.5,) * count, std=(1.0,) * count)
    data = encoded(photo(60, 90), exif=exif(turn))
    height, width = read_image(data).shape[:2]
    assert (height, width) == ((90, 60) if turn >= 5 else (60, 90))
    box = draw_crop(0, 0, 5, height, width, WHOLE)
    got = read_crop(data, seen, 0, 0, 5, WHOLE)
    assert got.shape == (24, 40, count) and got.dtype == np.uint8
    # A turned image is resized before it is turned, so its two passes may round the other way.
    assert np.abs(got - by_hand(data, seen, box)).max() <= (1 if turn >= 5 or channels == "L" else 0)


FORMS = {
    "grey": lambda p: encoded(p.convert("L")),
    "grey jpeg": lambda p: encoded(p.convert("L"), "JPEG", quality=95),
    "palette": lambda p: encoded(p.quantize(64)),
    "cmyk": lambda p: encoded(p.convert("CMYK"), "JPEG", quality=95),
    "alpha": lambda p: encoded(Image.merge("RGBA", (*p.split(), p.convert("L")))),
    "16 bit": lambda p: encoded(Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257)),
    "gif": lambda p: encoded(p.quantize(64), "GIF"),
    "webp": lambda p: encoded(p, "WEBP", lossless=True),
    "jpeg": lambda p: encoded(p, "JPEG", quality=95),
    "progressive": lambda p: encoded(p, "JPEG", quality=95, progressive=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_cut_as_it_is_read(form):
    data = FORMS[form](Image.fromarray(photo(33, 47)))  # too small for a JPEG to be decoded at a part of its size
    for record in range(5):
        box = draw_crop(0, 0, record, 33, 47, WHOLE)
        assert np.array_equal(read_crop(data, SEEN, 0, 0, record, WHOLE), by_hand(data, SEEN, box))


@pytest.mark.parametrize("times", [2, 4, 8, 11])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(times, monkeypatch):
    data = encoded(photo(30 * times, 50 * times), "JPEG", quality=95)
    asked = []
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: asked.append(self.size) or original(self, *a, **k))
    got = read_crop(data, SEEN, 0, 0, 0, Crop(1.0, 0.5))  # all of it
    assert asked[0][1] == -(-30 * times // (times if times < 8 else 8))
    assert np.abs(got - by_hand(data, SEEN, Box(0, 0, 30 * times, 50 * times))).mean() < 1.5


@pytest.mark.parametrize("height, width", [(60, 100), (20, 30)])
def test_a_patch_differs_from_a_cut_that_is_resized_alone_at_its_edges_only(height, width):
    """Pillow's filter reaches over the edge into the image, where a pipeline of two steps has nothing."""
    data = encoded(photo(height, width))
    box = draw_crop(0, 0, 3, height, width, WHOLE)
    cut = read_image(data)[box.top : box.top + box.height, box.left : box.left + box.width]
    alone = np.asarray(Image.fromarray(cut).resize((40, 24), Image.Resampling.BILINEAR)).astype(int)
    edge = max(1, math.ceil(24 / box.height), math.ceil(40 / box.width))
    difference = np.abs(read_crop(data, SEEN, 0, 0, 3, WHOLE) - alone)[edge:-edge, edge:-edge]
    assert difference.size and difference.max() <= 1


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"restart_marker_rows": 2}]
)
@pytest.mark.parametrize("height, width", [(160, 120), (167, 121)])
def test_rows_below_the_patch_are_not_decoded_and_not_missed(height, width, options, monkeypatch):
    data = encoded(photo(height, width), "JPEG", quality=95, **options)
    decoded = []
    original = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *a, **k: decoded.append(self.height) or original(self, *a, **k)
    )
    seen = Preprocess((64, 64), (64, 64))  # so large that none is decoded at a part of its size
    for record in range(12):
        box = draw_crop(0, 0, record, height, width, Crop(0.08, 0.5))
        got = read_crop(data, seen, 0, 0, record, Crop(0.08, 0.5))
        shorter = decoded[-1]
        assert np.array_equal(got, by_hand(data, seen, box))
        assert shorter < height or "progressive" in options or box.top + box.height > 0.6 * height
    assert ("progressive" in options) == (min(decoded) == height)


def test_first_rows_of_what_is_no_baseline_jpeg():
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", encoded(photo(20, 20)), encoded(photo(20, 20), "JPEG")):
        assert truncate_jpeg(data, 20) == data
    assert len(truncate_jpeg(encoded(photo(20, 20), "JPEG"), 9)) == len(encoded(photo(20, 20), "JPEG"))


def test_damage_is_said():
    whole = encoded(photo(60, 90), "JPEG")
    with pytest.raises(ValueError, match=r"image: damaged .*truncated"):
        read_crop(whole[: len(whole) // 2], SEEN, 0, 0, 0, WHOLE)
    with pytest.raises(ValueError, match="empty file"):
        read_crop(b"", SEEN, 0, 0, 0, WHOLE)


def split_of_size(height, width):
    sizes = None if height is None else np.full((5, 2), (height, width), np.int32)
    return EncodedSplit(None, np.arange(5), np.zeros(5, np.int32), (b"",) * 5, sizes)


def test_who_makes_the_crop():
    ops = ("resized_crop(area=0.3)", "flip")
    large, small, unknown = split_of_size(60, 90), split_of_size(24, 90), split_of_size(None, None)
    arrays = ArraySplit(np.zeros((5, 60, 90, 3), np.uint8), np.zeros(5, np.int32))
    assert place_augmentation(large, SEEN, ops) == place_augmentation(unknown, SEEN, ops) == (Crop(area=0.3), ("flip",))
    for split, asked in ((small, ops), (arrays, ops), (large, ("flip", "resized_crop")), (large, ())):
        assert place_augmentation(split, SEEN, asked) == (None, asked)
    drawings = Preprocess((24, 40), (24, 40), channels="L", polarity="light-on-dark", mean=(0.0,), std=(1.0,))
    assert place_augmentation(large, drawings, ops) == (None, ops)
