import inspect
import io
import math

import numpy as np
import pytest
from photos import encoded, exif, photo
from PIL import Image

from zoo.data.augment.host_crop import (
    Crop,
    ScaleCrop,
    draw_crop,
    draw_method,
    place_augmentation,
    read_crop,
    truncate_jpeg,
)
from zoo.data.augment.interpolation import INTERPOLATIONS
from zoo.data.augment.ops import parse
from zoo.data.augment.photo import resized_crop
from zoo.data.dataset import ArraySplit, EncodedSplit
from zoo.data.images.decode import luma, read_image
from zoo.data.images.geometry import Box
from zoo.data.images.preprocess import Preprocess

PREPROCESS = Preprocess((24, 40), (24, 40))
DEFAULT = Crop()


def expected_crop(data, preprocess, box):
    """Decode the whole image, turn it upright and resize the box, without shortcuts."""
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
    """Draw areas, as shares of the image, by the paper's rule with another generator."""
    rng = np.random.default_rng(0)
    areas = []
    while len(areas) < count:  # shapes that do not fit are drawn again
        area, ratio = rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        if math.sqrt(area * height * width * ratio) <= width and math.sqrt(area * height * width / ratio) <= height:
            areas.append(area)
    return np.array(areas)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 300), (300, 7), (37, 53), (480, 640)])
def test_crops_are_inside_with_uniform_area_and_log_uniform_ratio(height, width):
    boxes = [draw_crop(3, 1, record, height, width, DEFAULT) for record in range(400)]
    for top, left, h, w in boxes:
        assert top >= 0 and top + h <= height and left >= 0 and left + w <= width and h > 0 and w > 0
    if min(height, width) > 100:
        areas = np.array([b.height * b.width for b in boxes]) / (height * width)
        ratios = np.array([math.log(b.width / b.height) for b in boxes])
        assert areas.min() > 0.078 and areas.max() <= 1
        assert abs(areas.mean() - simulated_areas(height, width, 4000).mean()) < 0.04  # over three standard errors
        assert np.abs(ratios).max() < math.log(4 / 3) + 0.02 and abs(ratios.mean()) < 0.03
        assert np.std([b.top / max(1, height - b.height) for b in boxes if b.height < height]) > 0.25


def test_the_centre_is_cropped_if_no_shape_fits():
    assert draw_crop(0, 0, 0, 7, 300, DEFAULT) == Box(0, 145, 7, 9)
    assert draw_crop(0, 0, 0, 300, 7, DEFAULT) == Box(145, 0, 9, 7)


def test_a_crop_is_a_function_of_seed_epoch_and_record():
    first = [draw_crop(1, 2, record, 200, 300, DEFAULT) for record in range(20)]
    assert [draw_crop(1, 2, record, 200, 300, DEFAULT) for record in reversed(range(20))] == first[::-1]
    assert len(set(first)) == 20
    for seed, epoch in ((0, 2), (1, 3), (2, 1)):
        assert not set(first) & {draw_crop(seed, epoch, record, 200, 300, DEFAULT) for record in range(20)}


def test_crops_are_pinned():
    """Resumed runs depend on them; they may change only with a new major version."""
    assert draw_crop(0, 0, 0, 480, 640, DEFAULT) == PINNED[0]
    assert draw_crop(2**32 - 1, 599, 10**7, 480, 640, Crop(0.35, 0.5)) == PINNED[1]


PINNED = [Box(53, 23, 157, 177), Box(3, 190, 274, 417)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", ["RGB", "L", "BGR"])
def test_a_crop_of_a_rotated_file_is_upright(orientation, channels):
    count = 1 if channels == "L" else 3
    preprocess = Preprocess((24, 40), (24, 40), channels=channels, mean=(0.5,) * count, std=(1.0,) * count)
    data = encoded(photo(60, 90), exif=exif(orientation))
    height, width = read_image(data).shape[:2]
    assert (height, width) == ((90, 60) if orientation >= 5 else (60, 90))
    box = draw_crop(0, 0, 5, height, width, DEFAULT)
    got = read_crop(data, preprocess, 0, 0, 5, DEFAULT)
    assert got.shape == (24, 40, count) and got.dtype == np.uint8
    # A rotated image is resized before it is turned upright, so its two passes may round differently.
    assert np.abs(got - expected_crop(data, preprocess, box)).max() <= (1 if orientation >= 5 or channels == "L" else 0)


FORMATS = {
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


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_cropped_as_it_is_read(kind):
    data = FORMATS[kind](Image.fromarray(photo(33, 47)))  # too small for a JPEG to be decoded at reduced size
    for record in range(5):
        box = draw_crop(0, 0, record, 33, 47, DEFAULT)
        assert np.array_equal(read_crop(data, PREPROCESS, 0, 0, record, DEFAULT), expected_crop(data, PREPROCESS, box))


@pytest.mark.parametrize("times", [2, 4, 8, 11])
def test_a_large_jpeg_is_decoded_at_reduced_size(times, monkeypatch):
    data = encoded(photo(30 * times, 50 * times), "JPEG", quality=95)
    sizes = []
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.append(self.size) or original(self, *a, **k))
    got = read_crop(data, PREPROCESS, 0, 0, 0, Crop(1.0, 0.5))  # the whole image
    assert sizes[0][1] == -(-30 * times // (times if times < 8 else 8))
    assert np.abs(got - expected_crop(data, PREPROCESS, Box(0, 0, 30 * times, 50 * times))).mean() < 1.5


@pytest.mark.parametrize("height, width", [(60, 100), (20, 30)])
def test_a_crop_differs_from_crop_then_resize_at_its_edges_only(height, width):
    """Pillow's filter reads pixels beyond the edge of the crop, which a pipeline of two steps does not have."""
    data = encoded(photo(height, width))
    box = draw_crop(0, 0, 3, height, width, DEFAULT)
    cropped = read_image(data)[box.top : box.top + box.height, box.left : box.left + box.width]
    two_steps = np.asarray(Image.fromarray(cropped).resize((40, 24), Image.Resampling.BILINEAR)).astype(int)
    edge = max(1, math.ceil(24 / box.height), math.ceil(40 / box.width))
    difference = np.abs(read_crop(data, PREPROCESS, 0, 0, 3, DEFAULT) - two_steps)[edge:-edge, edge:-edge]
    assert difference.size and difference.max() <= 1


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"restart_marker_rows": 2}]
)
@pytest.mark.parametrize("height, width", [(160, 120), (167, 121)])
def test_rows_below_the_crop_are_not_decoded(height, width, options, monkeypatch):
    data = encoded(photo(height, width), "JPEG", quality=95, **options)
    decoded = []
    original = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *a, **k: decoded.append(self.height) or original(self, *a, **k)
    )
    preprocess = Preprocess((64, 64), (64, 64))  # so large that no file is decoded at reduced size
    for record in range(12):
        box = draw_crop(0, 0, record, height, width, Crop(0.08, 0.5))
        got = read_crop(data, preprocess, 0, 0, record, Crop(0.08, 0.5))
        shorter = decoded[-1]
        assert np.array_equal(got, expected_crop(data, preprocess, box))
        assert shorter < height or "progressive" in options or box.top + box.height > 0.6 * height
    assert ("progressive" in options) == (min(decoded) == height)


def test_other_files_are_not_truncated():
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", encoded(photo(20, 20)), encoded(photo(20, 20), "JPEG")):
        assert truncate_jpeg(data, 20) == data
    assert len(truncate_jpeg(encoded(photo(20, 20), "JPEG"), 9)) == len(encoded(photo(20, 20), "JPEG"))


def test_damaged_files_are_reported():
    whole = encoded(photo(60, 90), "JPEG")
    with pytest.raises(ValueError, match=r"image: damaged .*truncated"):
        read_crop(whole[: len(whole) // 2], PREPROCESS, 0, 0, 0, DEFAULT)
    with pytest.raises(ValueError, match="empty file"):
        read_crop(b"", PREPROCESS, 0, 0, 0, DEFAULT)


def split_of_size(height, width):
    sizes = None if height is None else np.full((5, 2), (height, width), np.int32)
    return EncodedSplit(None, np.arange(5), np.zeros(5, np.int32), (b"",) * 5, sizes)


def test_the_host_crops_encoded_large_photographs():
    ops = ("resized_crop(area=0.3)", "flip")
    large, small, unknown = split_of_size(60, 90), split_of_size(24, 90), split_of_size(None, None)
    arrays = ArraySplit(np.zeros((5, 60, 90, 3), np.uint8), np.zeros(5, np.int32))
    assert (
        place_augmentation(large, PREPROCESS, ops)
        == place_augmentation(unknown, PREPROCESS, ops)
        == (Crop(area=0.3), ("flip",))
    )
    for split, augment in ((small, ops), (arrays, ops), (large, ("flip", "resized_crop")), (large, ())):
        assert place_augmentation(split, PREPROCESS, augment) == (None, augment)
    drawings = Preprocess((24, 40), (24, 40), channels="L", polarity="light-on-dark", mean=(0.0,), std=(1.0,))
    assert place_augmentation(large, drawings, ops) == (None, ops)


def test_crop_defaults_are_those_of_the_recipes_operation():
    assert parse("resized_crop")[1] == {} and Crop() == (0.08, 0.75, "bilinear")  # Szegedy et al. 2014, section 6
    on_device = inspect.signature(resized_crop).parameters
    assert Crop() == tuple(on_device[name].default for name in Crop._fields)
    assert place_augmentation(split_of_size(60, 90), PREPROCESS, ("resized_crop",)) == (Crop(), ())
    both = place_augmentation(split_of_size(60, 90), PREPROCESS, ("resized_crop(0.3, ratio=0.5)", "flip", "cutout"))
    assert both == (Crop(0.3, 0.5), ("flip", "cutout"))


@pytest.mark.parametrize(
    "height, width, host", [(25, 41, True), (24, 41, False), (25, 40, False), (24, 40, False), (1000, 39, False)]
)
def test_the_host_crops_if_most_images_are_larger_on_both_sides(height, width, host):
    assert (
        place_augmentation(split_of_size(height, width), PREPROCESS, ("resized_crop",)).host_crop is not None
    ) == host


def test_the_median_size_decides():
    sizes = np.array([(60, 90)] * 3 + [(1, 1)] * 2, np.int32)
    split = EncodedSplit(None, np.arange(5), np.zeros(5, np.int32), (b"",) * 5, sizes)
    assert place_augmentation(split, PREPROCESS, ("resized_crop",)).host_crop == Crop()
    split = EncodedSplit(None, np.arange(5), np.zeros(5, np.int32), (b"",) * 5, sizes[::-1] // [60, 1])
    assert place_augmentation(split, PREPROCESS, ("resized_crop",)).host_crop is None


def draw_by_hand(seed, epoch, record, height, width, crop):
    """Follow the docstring of draw_crop step by step."""
    bits = np.random.Philox(key=[seed, epoch], counter=[0, record, 0, 0]).random_raw(22)
    uniform = [int(word) // 2**11 / 2**53 for word in bits]
    for k in range(10):
        area = (crop.area + (1 - crop.area) * uniform[k]) * height * width
        low, high = math.log(crop.ratio), -math.log(crop.ratio)
        ratio = math.exp(low + (high - low) * uniform[10 + k])
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 1 <= h <= height and 1 <= w <= width:
            return Box(int(uniform[20] * (height - h + 1)), int(uniform[21] * (width - w + 1)), h, w)
    h, w = min(height, round(width / crop.ratio)), min(width, round(height / crop.ratio))
    return Box((height - h) // 2, (width - w) // 2, h, w)


@pytest.mark.parametrize("height, width", [(20, 30), (30, 20), (64, 64), (300, 40), (5, 12), (3, 3)])
@pytest.mark.parametrize("crop", [Crop(), Crop(0.9, 0.5), Crop(1.0, 1.0), Crop(0.3, 0.9)])
def test_crops_follow_the_docstring(height, width, crop):
    for record in range(60):
        assert draw_crop(5, 2, record, height, width, crop) == draw_by_hand(5, 2, record, height, width, crop)


def header(*segments, rows=40, marker=0xC0):
    """A JPEG header: segments, then a frame of this many rows."""
    frame = b"\xff" + bytes([marker]) + b"\x00\x0b\x08" + rows.to_bytes(2, "big") + b"\x00\x10\x01\x01\x11\x00"
    return b"\xff\xd8" + b"".join(segments) + frame + b"\xff\xda\x00\x02"


@pytest.mark.parametrize("marker", [0xC0, 0xC1])
@pytest.mark.parametrize(
    "segments", [(), (b"\xff\xe0\x00\x04ab",), (b"\xff\xe0\x00\x02", b"\xff\xe1\x01\x02" + bytes(256))]
)
def test_only_the_height_of_a_baseline_jpeg_is_changed(marker, segments):
    data = header(*segments, marker=marker)
    for rows in (1, 39):
        assert truncate_jpeg(data, rows) == header(*segments, rows=rows, marker=marker)
    for rows in (40, 41):
        assert truncate_jpeg(data, rows) is data


def test_progressive_and_damaged_headers_are_unchanged():
    for data in (
        header(marker=0xC2),
        header(b"\xff\xda\x00\x02"),
        header(b"\x00\xe0\x00\x02"),
        header()[:8],
        header(b"\xff\xe0\xff\xff"),
    ):
        assert truncate_jpeg(data, 9) is data
    assert truncate_jpeg(header()[:9], 9) == header(rows=9)[:9]  # just long enough to hold the height


def whole_image(height, width):
    """Return a record of which Crop(1, 0.5) takes the whole image; rounding leaves a row or column out for some."""
    whole = Box(0, 0, height, width)
    return next(n for n in range(100) if draw_crop(0, 0, n, height, width, Crop(1.0, 0.5)) == whole)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("factor, expected", [(1.95, 1), (2, 2), (3.9, 2), (4, 4), (8, 8), (17, 8)])
def test_a_jpeg_is_reduced_as_far_as_the_crop_stays_as_large_as_the_input(factor, expected, orientation, monkeypatch):
    height, width = round(24 * factor), round(40 * factor)
    stored = (width, height) if orientation >= 5 else (height, width)
    data = encoded(photo(*stored), "JPEG", exif=exif(orientation))
    sizes = []
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.append(self.size) or original(self, *a, **k))
    read_crop(data, PREPROCESS, 0, 0, whole_image(height, width), Crop(1.0, 0.5))
    assert sizes == [(-(-stored[1] // expected), -(-stored[0] // expected))]


@pytest.mark.parametrize("height, width", [(48, 79), (47, 80)])
def test_both_sides_of_the_crop_limit_the_reduction(height, width, monkeypatch):
    sizes = []
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.append(self.size) or original(self, *a, **k))
    data = encoded(photo(height, width), "JPEG")
    read_crop(data, PREPROCESS, 0, 0, whole_image(height, width), Crop(1.0, 0.5))
    assert sizes == [(width, height)]


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic"])
def test_crops_are_bilinear_as_on_the_device_whatever_the_interpolation_of_evaluation(interpolation):
    data = encoded(photo(33, 47))
    preprocess = Preprocess((24, 40), (24, 40), interpolation=interpolation)
    box = draw_crop(0, 0, 1, 33, 47, DEFAULT)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = Image.fromarray(read_image(data)).resize((40, 24), Image.Resampling.BILINEAR, box=edges)
    np.testing.assert_array_equal(read_crop(data, preprocess, 0, 0, 1, DEFAULT), np.asarray(expected))


def test_deep_files_are_scaled_by_the_white_of_the_training_data():
    """A 12-bit file of one level: 2048 of 4095 is 128 of 255 (127.53), wherever the crop is cut."""
    data = encoded(Image.fromarray(np.full((20, 30), 2048, np.uint16)))
    preprocess = Preprocess((8, 8), (8, 8), channels="L", mean=(0.5,), std=(0.5,), white=4095)
    assert (read_crop(data, preprocess, 0, 0, 0, Crop()) == 128).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_crop_may_name_its_interpolation(interpolation):
    """Each method in its turn, as Pillow's; the box is the same whatever the method."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    _, numbers = parse(f"resized_crop(area=0.5, interpolation={interpolation})")
    crop, seen = Crop(**numbers), set()
    for record in range(24):
        box = draw_crop(3, 1, record, 60, 90, crop)
        assert box == draw_crop(3, 1, record, 60, 90, Crop(area=0.5))
        method = draw_method(3, 1, record, crop)
        seen.add(method)
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        pillow = Image.Resampling[{"area": "BOX"}.get(method, method.upper())]
        expected = np.asarray(Image.fromarray(image).resize((16, 16), pillow, box=edges))
        preprocess = Preprocess(size=(16, 16), resize=(16, 16), interpolation="lanczos")
        assert np.array_equal(read_crop(data.getvalue(), preprocess, 3, 1, record, crop), expected)
    assert seen == set(INTERPOLATIONS[interpolation])
    assert draw_method(3, 1, 0, Crop()) == draw_method(3, 1, 0, ScaleCrop()) == "bilinear"
