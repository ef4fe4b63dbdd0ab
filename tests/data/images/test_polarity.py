import numpy as np
import pytest
from photos import encoded, preprocess_of, stroke
from PIL import Image

from zoo.data import loader
from zoo.data.dataset import ArraySplit, Dataset, EncodedSplit
from zoo.data.images.decode import read_image
from zoo.data.images.polarity import (
    background_level,
    convert_polarity,
    match_polarity,
    measure_ink_extent,
    measure_polarity,
    needs_adaptation,
    note_polarity,
    reframe_ink,
)
from zoo.data.images.preprocess import Preprocess, image_to_input
from zoo.data.loader import eval_batches
from zoo.data.sources import from_arrays, open_dataset

PREPROCESS = Preprocess((16, 16), (16, 16), polarity="light-on-dark")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Return a data set of scanned sheets: colour files, larger than any model's input."""
    root = tmp_path_factory.mktemp("drawings")
    for n in range(48):
        sheet = np.full((120, 160, 3), 245, np.uint8)
        sheet[30 + n : 60 + n, 40 : 60 + n] = (20, 30, 60)
        path = root / "train" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(sheet))
    return open_dataset(root)


@pytest.fixture
def reads(monkeypatch):
    """Record the number of images that each call of `read` decodes."""
    counts = []
    original = EncodedSplit.read

    def read(self, indices):
        counts.append(len(indices))
        return original(self, indices)

    monkeypatch.setattr(EncodedSplit, "read", read)
    return counts


def test_large_drawings_are_measured_one_by_one(drawings, reads):
    noted = note_polarity(drawings, "light-on-dark")
    assert "inverted" in noted.notes[-1] and noted.splits is drawings.splits
    assert set(reads) == {1} and len(reads) == 1 + len(drawings.splits["train"])
    assert note_polarity(drawings, "dark-on-light") is drawings


@pytest.mark.parametrize("once", [True, False])
def test_inverted_files_are_decoded_in_pieces(once, drawings, reads, monkeypatch):
    monkeypatch.setattr(loader, "CACHE_BYTES", 2**31 if once else 0)
    split = drawings.splits["train"]
    (batch,) = eval_batches(split, PREPROCESS, batch_size=len(split), workers=2)
    assert max(reads) <= EncodedSplit.read_chunk and sum(reads) == len(split)
    expected = loader.images_to_input(split.read(np.arange(len(split))), PREPROCESS)
    np.testing.assert_array_equal(batch["image"], expected)
    assert batch["image"][:, 0, 0].max() < 64 < 128 < batch["image"].max()


# --- one image -----------------------------------------------------------------------------------------------------


def test_matching_images_are_unchanged():
    image = stroke() // 2 + 3
    assert convert_polarity(image, "light-on-dark") is image
    assert np.array_equal(convert_polarity(255 - image, "dark-on-light"), 255 - image)


@pytest.mark.parametrize("polarity", ["light-on-dark", "dark-on-light"])
@pytest.mark.parametrize("paper, ink", [(255, 0), (0, 255), (230, 40), (120, 20), (90, 200), (140, 255)])
def test_any_ink_on_any_paper_is_converted(paper, ink, polarity):
    want = stroke() if polarity == "light-on-dark" else 255 - stroke()
    image = np.where(stroke() > 0, ink, paper).astype(np.uint8)
    assert np.array_equal(convert_polarity(image, polarity), want)
    assert np.array_equal(convert_polarity(np.repeat(image, 3, -1), polarity), np.repeat(want, 3, -1))


def test_paper_texture_does_not_become_ink():
    rng = np.random.default_rng(0)
    sheet = np.clip(rng.normal(215, 3, (60, 60, 1)), 0, 255).astype(np.uint8)
    assert convert_polarity(sheet, "light-on-dark").mean() < 25
    assert (convert_polarity(np.full((9, 9, 1), 180, np.uint8), "light-on-dark") == 0).all()
    written = np.where(stroke(60) > 0, 40, sheet).astype(np.uint8)
    got = convert_polarity(written, "light-on-dark")
    assert got[stroke(60) == 0].mean() < 5 and got[stroke(60) > 0].min() > 230


@pytest.mark.parametrize("height, width", [(24, 24), (48, 48), (24, 40), (90, 60)])
def test_scanned_drawings_in_every_format_match_the_training_data(height, width, tmp_path):
    """Dark ink on light paper is converted to light ink on black, as in the training data."""
    canvas = np.zeros((height, width, 1), np.uint8)
    top, left = (height - 24) // 2, (width - 24) // 2
    canvas[top : top + 24, left : left + 24] = stroke()
    preprocess = preprocess_of((32, 32), resize_mode="pad", polarity="light-on-dark", ink_extent=0.01)
    want = image_to_input(canvas, preprocess)
    paper = 255 - canvas[..., 0]
    grey = Image.fromarray(paper)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.merge("RGBA", [Image.new("L", grey.size, 0)] * 3 + [Image.fromarray(canvas[..., 0])])
    files = {
        "grey.png": encoded(grey, "PNG"),
        "rgb.png": encoded(grey.convert("RGB"), "PNG"),
        "rgba.png": encoded(grey.convert("RGBA"), "PNG"),
        "clear.png": encoded(clear, "PNG"),
        "deep.png": encoded(Image.fromarray(paper.astype(np.uint16) * 257), "PNG"),
        "palette.png": encoded(grey.convert("P"), "PNG"),
        "turned.jpg": encoded(grey.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif),
        "pale.png": encoded(Image.fromarray((90 + paper.astype(int) * 140 // 255).astype(np.uint8)), "PNG"),
    }
    for name, data in files.items():
        got = image_to_input(read_image(data), preprocess)
        assert np.abs(got.astype(int) - want).mean() < (2 if name.endswith("jpg") else 0.6), name


def test_polarity_is_converted_only_for_models_of_drawings():
    image = 255 - stroke()
    assert np.array_equal(image_to_input(image, preprocess_of((24, 24), polarity="light-on-dark")), stroke())
    assert np.array_equal(image_to_input(image, preprocess_of((24, 24), polarity="dark-on-light")), image)
    assert np.array_equal(image_to_input(image, preprocess_of((24, 24))), image)


@pytest.mark.parametrize("ground, inverted", [(190, False), (191, False), (192, True), (255, True)])
@pytest.mark.parametrize("polarity", ["light-on-dark", "dark-on-light"])
def test_scans_are_inverted_only_if_their_border_is_clearly_of_the_other_polarity(ground, inverted, polarity):
    """Without a known extent of the ink, levels are neither stretched nor the image cropped."""
    image = np.full((20, 20, 1), ground, np.uint8)
    image[8:12, 8:12] = 30
    image[0, 0] = 40
    given, want = (image, 255 - image) if polarity == "light-on-dark" else (255 - image, image)
    got = image_to_input(given, preprocess_of((20, 20), polarity=polarity))
    assert np.array_equal(got, want if inverted else given)


def test_scans_with_a_light_border_and_lighter_ink_are_not_inverted():
    image = np.full((20, 20, 1), 200, np.uint8)
    image[8:12, 8:12] = 255
    assert np.array_equal(image_to_input(image, preprocess_of((20, 20), polarity="light-on-dark")), image)


@pytest.mark.parametrize("extent", [None, 0.5, 1.0])
@pytest.mark.parametrize("polarity", ["light-on-dark", "dark-on-light"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stack_is_adapted_as_its_images_are(extent, polarity, channels):
    """Images of every kind together: matching, inverted, pale, small, empty, and noise."""
    rng = np.random.default_rng(0)
    images = np.zeros((40, 24, 30, channels), np.uint8)
    for n, image in enumerate(images):
        image[...] = rng.choice([0, 5, 20, 128, 240, 255])
        side = n % 20
        image[2 : 2 + side, 3 : 3 + side] = rng.choice([0, 100, 255])
        if n % 3 == 0:
            image[...] = rng.integers(0, 256, image.shape)
    preprocess = preprocess_of((16, 20), resize_mode="pad", polarity=polarity, ink_extent=extent, channels="L")
    want = np.stack([image_to_input(image, preprocess) for image in images])
    np.testing.assert_array_equal(loader.images_to_input(images, preprocess), want)
    changed = needs_adaptation(images, polarity, extent)
    for image in images[~changed]:
        np.testing.assert_array_equal(match_polarity(image, polarity, extent), image)
    assert changed.any()


@pytest.mark.parametrize("offset, changed", [(8, False), (9, True)])
def test_contrast_is_stretched_if_the_background_is_over_8_levels_off(offset, changed):
    image = np.full((20, 20, 1), offset, np.uint8)
    image[8:12, 8:12] = 200
    got = convert_polarity(image, "light-on-dark")
    assert (got is not image) == changed
    if changed:
        np.testing.assert_array_equal(got, (image == 200) * np.uint8(255))
    inverted = convert_polarity(255 - image, "dark-on-light")
    np.testing.assert_array_equal(inverted, 255 - got)


def convert_by_hand(image):
    """Convert a grey image with light ink to light-on-dark, step by step as documented."""
    height, width = image.shape[:2]
    ring = max(1, min(height, width) // 20)
    border = [image[y, x, 0] for y in range(height) for x in range(width)
              if min(y, x, height - 1 - y, width - 1 - x) < ring]  # fmt: skip
    ground = float(np.median(border))
    noise = 3 * np.median([abs(level - ground) for level in border])
    noise = min(noise, (image.max() - ground) / 4)
    contrast = max(image.max() - ground - noise, 32)
    return np.rint(np.clip((image.astype(float) - ground - noise) * 255 / contrast, 0, 255))


@pytest.mark.parametrize("noise", [0, 1, 3, 30])
@pytest.mark.parametrize("ink", [1, 20, 33, 90])
@pytest.mark.parametrize("side", [12, 39, 60])
def test_levels_are_stretched_from_background_and_noise_to_the_ink(noise, ink, side):
    rng = np.random.default_rng(noise)
    image = (40 + rng.integers(-noise, noise + 1, (side, side + 3, 1))).astype(np.uint8)
    image[side // 3 : side // 2, side // 3 : side // 2] = 40 + noise + ink
    np.testing.assert_array_equal(convert_polarity(image, "light-on-dark"), convert_by_hand(image))


def test_an_image_with_equal_distances_is_not_inverted():
    image = np.full((9, 9, 1), 100, np.uint8)
    image[4, 4], image[4, 5] = 50, 150
    assert convert_polarity(image, "light-on-dark")[4, 5] == 255


def test_background_level():
    assert (background_level("light-on-dark"), background_level("dark-on-light")) == (0, 255)


def drawing(height, width, top, left, ink_height, ink_width, channels=1):
    """Return ink on black with different levels per pixel, so that position and content can be checked."""
    image = np.zeros((height, width, channels), np.uint8)
    ink = 65 + np.arange(ink_height * ink_width).reshape(ink_height, ink_width, 1) % 190
    image[top : top + ink_height, left : left + ink_width] = ink
    return image


@pytest.mark.parametrize(
    "ink_height, ink_width, side",
    [
        (10, 4, 20),  # tall
        (4, 10, 20),  # wide and low: the larger side counts
        (3, 3, 6),
        (7, 2, 14),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_drawings_are_reframed_to_the_usual_extent(ink_height, ink_width, side, channels):
    image = drawing(60, 50, 5, 30, ink_height, ink_width, channels)
    framed = reframe_ink(image, 0.5, 0)
    top, left = (side - ink_height) // 2, (side - ink_width) // 2
    np.testing.assert_array_equal(framed, drawing(side, side, top, left, ink_height, ink_width, channels))
    on_white = reframe_ink(255 - image, 0.5, 255)
    np.testing.assert_array_equal(on_white, 255 - framed)


@pytest.mark.parametrize("shape", [(40, 40), (40, 20), (20, 40)])
@pytest.mark.parametrize("extent, changed", [(0.8, False), (0.7, False), (0.65, True), (1.0, False)])
@pytest.mark.parametrize("wide", [False, True])
def test_drawings_of_nearly_the_usual_extent_are_unchanged(shape, extent, changed, wide):
    """The limit is two thirds of the extent, relative to the larger side of the image."""
    ink = round(extent * 0.5 * 40)
    height, width = (2, ink) if wide else (ink, 2)
    image = drawing(*shape, 0, 0, height, width)
    assert (reframe_ink(image, 0.5, 0) is not image) == changed


def test_an_empty_sheet_is_not_reframed():
    image = np.zeros((20, 20, 1), np.uint8)
    assert reframe_ink(image, 0.5, 0) is image
    image[3, 3] = 64  # ink differs by more than 64 levels
    assert reframe_ink(image, 0.5, 0) is image
    image[3, 3] = 65
    assert reframe_ink(image, 0.5, 0).shape == (2, 2, 1)


def test_an_extent_over_one_does_not_crop_the_ink():
    assert reframe_ink(drawing(40, 40, 4, 4, 10, 6), 1.5, 0).shape == (10, 10, 1)


def test_image_to_input_reframes_only_with_a_known_extent():
    image = drawing(40, 40, 0, 0, 10, 5)
    known = preprocess_of((20, 20), resize_mode="pad", polarity="light-on-dark", ink_extent=0.5)
    unknown = preprocess_of((20, 20), resize_mode="pad", polarity="light-on-dark")
    np.testing.assert_array_equal(image_to_input(image, known), drawing(20, 20, 5, 7, 10, 5))
    shrunk = Image.fromarray(image[..., 0]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image_to_input(image, unknown)[..., 0], np.asarray(shrunk))


# --- many images ------------------------------------------------------------------------------------------------------


def test_ink_extent_is_the_median_of_the_larger_side():
    images = [drawing(20, 20, 1, 1, 10, 2), drawing(20, 20, 1, 1, 2, 12), drawing(40, 20, 3, 3, 20, 17)]
    assert measure_ink_extent(images, 0) == 0.5
    assert measure_ink_extent(images[:2], 0) == 0.55
    assert measure_ink_extent([255 - image for image in images], 255) == 0.5
    assert measure_ink_extent([*images, np.zeros((9, 9, 1), np.uint8)], 0) == 0.5  # an empty sheet does not count
    assert measure_ink_extent([np.zeros((9, 9, 1), np.uint8)], 0) is None
    assert measure_ink_extent([drawing(30, 30, 0, 0, 1, 10)], 0) == 0.3333  # four digits


def test_ink_extent_of_many_images_is_measured_on_a_thousand():
    images = np.zeros((2000, 4, 4, 1), np.uint8)
    images[::2, :2, 0] = 255  # every second image is measured
    images[1::2, 0, 0] = 255
    assert measure_ink_extent(images, 0) == 0.5
    assert measure_ink_extent(images[:1999], 0) == 0.5 and measure_ink_extent(images[1:2000], 0) in (0.25, 0.375)


def grounds(level, count, of=100):
    """Return grey images, `count` of them with this level at the border, the others and every centre with 128."""
    images = np.full((of, 5, 5, 1), 128, np.uint8)
    images[:count] = level
    images[:, 1:4, 1:4] = 128
    return images


@pytest.mark.parametrize(
    "level, count, polarity",
    [
        (0, 91, "light-on-dark"),
        (0, 90, None),  # over 90 %
        (63, 100, "light-on-dark"),
        (64, 100, None),
        (255, 91, "dark-on-light"),
        (255, 90, None),
        (192, 100, "dark-on-light"),
        (191, 100, None),
    ],
)
def test_polarity_is_that_of_over_90_percent_of_the_borders(level, count, polarity):
    images = grounds(level, count)
    assert measure_polarity(images) == measure_polarity(list(images)) == polarity


def test_polarity_is_the_median_of_the_outermost_pixels():
    image = np.zeros((1, 5, 5, 1), np.uint8)
    image[0, 0, :5] = image[0, 1:3, 0] = 255  # 7 of 16 border pixels
    assert measure_polarity(image) == "light-on-dark"
    image[0, 4, :2] = 255  # 9 of 16
    assert measure_polarity(image) == "dark-on-light"


def test_colour_images_have_no_polarity():
    images = list(grounds(0, 100))
    images[50] = np.repeat(images[50], 3, -1)
    assert measure_polarity(images) is None


def small_dataset(count=20):
    images = np.zeros((count, 8, 8, 1), np.uint8)
    images[:, 3:5, 3:5] = 200
    part = (images[:4], [0, 1, 0, 1])
    return from_arrays((images, np.arange(count) % 2), validation=part, test=part)


def test_the_other_polarity_of_a_data_set_is_noted():
    dataset = small_dataset()
    noted = note_polarity(dataset, "dark-on-light")
    assert noted.splits is dataset.splits and len(noted.notes) == len(dataset.notes) + 1
    assert "light-on-dark" in noted.notes[-1] and "dark-on-light" in noted.notes[-1]


def test_models_without_polarity_and_matching_data_leave_a_data_set_unchanged():
    dataset = small_dataset()
    assert note_polarity(dataset, None) is dataset
    assert note_polarity(dataset, "light-on-dark") is dataset


def test_ink_of_one_colour_channel_counts():
    image = np.zeros((40, 40, 3), np.uint8)
    image[5:15, 5:9, 0] = 255
    assert reframe_ink(image, 0.5, 0).shape == (20, 20, 3)


def test_large_colour_drawings_are_judged_by_their_luma():
    rgba = np.full((20, 8, 8, 4), 255, np.uint8)
    rgba[:, 3:5, 3:5, :3] = 0
    labels = np.arange(20, dtype=np.int32) % 2
    dataset = Dataset("drawings", {"train": ArraySplit(rgba, labels)}, ("a", "b"))
    assert note_polarity(dataset, "dark-on-light") is dataset
    assert note_polarity(dataset, "light-on-dark") is not dataset
