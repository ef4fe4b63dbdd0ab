from dataclasses import replace

import numpy as np
import pytest

from zoo.data.images.measure import adapt_preprocess, as_trained, preprocess_for
from zoo.data.images.preprocess import images_to_input
from zoo.data.sources import ArraySplit, Dataset, from_arrays


def data(images):
    labels = np.arange(len(images), dtype=np.int32) % 2
    return Dataset("made", {"train": ArraySplit(images, labels)}, ("a", "b"))


def test_small_grey_images_with_a_common_background_are_padded():
    images = np.zeros((40, 28, 28, 1), np.uint8)
    images[:, 10:18, 10:18] = np.random.default_rng(0).integers(100, 256, (40, 8, 8, 1))
    got = preprocess_for(data(images), (32, 32))
    assert (got.size, got.resize, got.resize_mode, got.channels) == ((32, 32), (28, 28), "pad", "L")
    assert got.polarity == "light-on-dark"
    padded = images_to_input(images, got) / 255
    assert got.mean == (round(padded.mean(), 4),) and got.std == (round(padded.std(), 4),)
    inverted = preprocess_for(data(255 - images), (32, 32))
    assert inverted.polarity == "dark-on-light" and inverted.fill == (255,)


def test_photographs_are_cropped_and_have_no_polarity():
    images = np.random.default_rng(0).integers(0, 256, (30, 40, 50, 3), np.uint8)
    got = preprocess_for(data(images), (32, 32))
    assert (got.size, got.resize, got.resize_mode, got.channels, got.polarity) == (
        (32, 32),
        (32, 32),
        "crop",
        "RGB",
        None,
    )
    np.testing.assert_allclose(got.mean, images_to_input(images, got).mean((0, 1, 2)) / 255, atol=6e-5)
    np.testing.assert_allclose(got.std, images_to_input(images, got).std((0, 1, 2)) / 255, atol=6e-5)


@pytest.mark.parametrize(
    "own, box",
    [((32, 32), (32, 32)), ((24, 30), (24, 30)), ((23, 32), (32, 32)), ((33, 32), (32, 32)), ((8, 8), (32, 32))],
)
def test_slightly_smaller_images_keep_their_pixels(own, box):
    images = np.random.default_rng(0).integers(0, 256, (6, *own, 3), np.uint8)
    assert preprocess_for(data(images), (32, 32)).resize == box


def test_photographs_are_padded_with_their_mean_which_excludes_the_padding():
    images = np.full((6, 28, 28, 3), (255, 0, 102), np.uint8)
    got = preprocess_for(data(images), (32, 32))
    assert got.mean == (1.0, 0.0, 0.4) and got.std == (1.0, 1.0, 1.0)
    assert (images_to_input(images, got) == images[0, 0, 0]).all()


def test_mixed_backgrounds_have_no_polarity():
    images = np.zeros((40, 8, 8, 1), np.uint8)
    images[:5] = 255
    images[:, 4, 4] = 128
    assert preprocess_for(data(images), (8, 8)).polarity is None
    images[:2] = 0  # three images are light: most agree, but these would be inverted
    assert preprocess_for(data(images), (8, 8)).polarity is None
    images[:5] = 128
    images[5:, :] = 0
    images[5:, 4, 4] = 128
    images[:4] = 0
    assert preprocess_for(data(images), (8, 8)).polarity == "light-on-dark"


def discs(radii, levels, ground):
    """Return grey discs on a noisy ground, as in scans: uint8 [40, 32, 32, 1]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 15.5
    images = np.full((40, 32, 32), ground, float)
    for n, image in enumerate(images):
        image[np.hypot(y, x) < radii[n % len(radii)]] = levels[n % len(levels)]
    return np.clip(images + rng.normal(0, 1, images.shape), 0, 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize(
    "images, ink_extent",
    [
        (discs((9,), (110, 200), 20), None),  # classes of different brightness on a ground that is not black
        (discs((3, 11), (200,), 3), None),  # classes of different size
        (discs((9,), (200,), 3), 0.5625),  # clean drawings of one size
    ],
)
def test_only_clean_drawings_have_an_extent(images, ink_extent):
    """Training images are never stretched or reframed, because that may be what tells the classes apart."""
    for given, polarity in ((images, "light-on-dark"), (255 - images, "dark-on-light")):
        preprocess = preprocess_for(data(given), (32, 32))
        assert (preprocess.polarity, preprocess.ink_extent) == (polarity, ink_extent)
        np.testing.assert_array_equal(images_to_input(given, preprocess), given)


def test_black_and_white_images_and_their_range_are_recorded():
    two = discs((9,), (200,), 3) // 128 * np.uint8(255)
    assert preprocess_for(data(two), (32, 32)).white == 1
    assert preprocess_for(data(two // 2), (32, 32)).white is None
    deep = Dataset("made", {"train": ArraySplit(two, np.arange(40, dtype=np.int32) % 2, 4095.0)}, ("a", "b"))
    assert preprocess_for(deep, (32, 32)).white == 4095


def test_a_data_set_is_read_with_the_white_of_the_model():
    model = preprocess_for(data(discs((9,), (200,), 3)), (32, 32))
    images, labels = discs((9,), (200,), 3), np.arange(40, dtype=np.int32) % 2
    for white, trained, valid in [
        (None, None, True), (255.0, None, True), (65535.0, None, True), (4095.0, None, False), (1.0, None, False),
        (1.0, 1.0, True), (None, 1.0, True), (4095.0, 4095.0, True), (65535.0, 4095.0, False), (None, 4095.0, True),
    ]:  # fmt: skip
        dataset = Dataset("made", {"test": ArraySplit(images, labels, white)}, ("a", "b"))
        preprocess = replace(model, white=trained)
        if valid:
            assert as_trained(dataset, preprocess).splits["test"].white == white
        else:
            with pytest.raises(ValueError, match="made: test images"):
                as_trained(dataset, preprocess)


def test_fine_tuning_adapts_the_polarity_to_the_new_data():
    drawings = discs((9,), (200,), 3)
    model = preprocess_for(data(drawings), (32, 32))
    wide = discs((13,), (200,), 3)
    scans = discs((9,), (110, 200), 20)
    noise = np.random.default_rng(0).integers(0, 256, scans.shape).astype(np.uint8)
    for images, polarity, extent in [
        (drawings, "light-on-dark", 0.5625), (255 - drawings, "light-on-dark", 0.5625),
        (wide, "light-on-dark", 0.8125), (scans, "light-on-dark", None), (noise, None, None),
    ]:  # fmt: skip
        adapted = adapt_preprocess(model, data(images))
        assert (adapted.polarity, adapted.ink_extent, adapted.mean) == (polarity, extent, model.mean)
    photos = replace(model, polarity=None, ink_extent=None)
    assert adapt_preprocess(photos, data(drawings)) == photos


def test_images_of_different_sizes_in_a_long_split():
    rng = np.random.default_rng(0)

    class Photos:
        labels = np.zeros(12_345, np.int32)
        read_indices = None

        def __len__(self):
            return 12_345

        def read(self, indices):
            self.read_indices = np.asarray(indices)
            return [rng.integers(0, 256, (4 + i % 3, 5, 1 if i % 2 else 3), np.uint8) for i in range(len(indices))]

    photos = Photos()
    got = preprocess_for(Dataset("photos", {"train": photos}, ("a", "b")), (4, 4))
    assert got.channels == "RGB" and got.resize == (4, 4)
    assert (
        len(photos.read_indices) == 10_000
        and photos.read_indices[-1] >= 12_340
        and (np.diff(photos.read_indices) > 0).all()
    )


def test_a_train_split_is_required():
    dataset = from_arrays((np.full((4, 2, 2), 200), [0, 1, 0, 1]), validation=(np.full((2, 2, 2), 200), [0, 1]))
    only = Dataset("made", {"validation": dataset.splits["validation"]}, dataset.class_names)
    with pytest.raises(ValueError, match="no train split"):
        preprocess_for(only, (4, 4))


def test_channels_of_the_model_take_precedence():
    grey = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    assert preprocess_for(data(grey), (8, 8)).channels == "L"
    rgb, luma = preprocess_for(data(grey), (8, 8), "RGB"), preprocess_for(data(colour), (8, 8), "L")
    assert (rgb.channels, len(rgb.mean), len(set(rgb.mean))) == ("RGB", 3, 1)
    assert (luma.channels, len(luma.mean)) == ("L", 1)
    np.testing.assert_allclose(luma.mean, images_to_input(colour, luma).mean() / 255, atol=6e-5)


def test_ink_extent_is_measured_on_drawings_only():
    images = np.zeros((10, 20, 20, 1), np.uint8)
    images[:, 5:15, 8:12] = 255
    assert preprocess_for(data(images), (20, 20)).ink_extent == 0.5
    assert preprocess_for(data(255 - images), (20, 20)).ink_extent == 0.5
    photographs = np.random.default_rng(0).integers(0, 256, (10, 20, 20, 1), np.uint8)
    assert preprocess_for(data(photographs), (20, 20)).ink_extent is None


def test_statistics_are_those_of_the_padded_drawings_and_rounded_to_four_digits():
    images = np.zeros((2, 24, 24, 1), np.uint8)
    images[0, 10] = 200
    got = preprocess_for(data(images), (32, 32))
    share = 24 / (2 * 32 * 32)
    level = 200 / 255
    assert got.mean == (round(share * level, 4),)
    assert got.std == (round(level * (share * (1 - share)) ** 0.5, 4),)


def test_three_quarters_of_the_side_count_per_side():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 23, 3), np.uint8)
    assert preprocess_for(data(images), (32, 32)).resize == (32, 32)
    assert preprocess_for(data(images[:, :24]), (32, 24)).resize == (24, 23)
