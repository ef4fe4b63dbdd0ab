import numpy as np
import pytest
from photos import preprocess_of
from PIL import Image

from zoo.data.images import resample
from zoo.data.images.preprocess import image_to_input, images_to_input
from zoo.data.images.resample import INTERPOLATIONS, SMALL_IMAGE, resize_image, resize_images, resize_stack


@pytest.mark.parametrize("resize_mode", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    "source, target", [((9, 7), (16, 5)), ((28, 28), (32, 32)), ((33, 20), (11, 13)), ((5, 40), (7, 9))]
)
def test_a_stack_is_resized_with_pillows_bits(source, target, interpolation, resize_mode):
    rng = np.random.default_rng(0)
    for channels in ("L", "RGB"):
        images = rng.integers(0, 256, (5, *source, len(channels)), np.uint8)
        images[0] = rng.choice(np.array([0, 255], np.uint8), images[0].shape)  # overshoots are clipped
        assert np.prod(source) * len(channels) <= SMALL_IMAGE
        preprocess = preprocess_of(target, channels=channels, interpolation=interpolation, resize_mode=resize_mode)
        got = images_to_input(images, preprocess)
        assert got.shape == (5, *target, len(channels)) and got.dtype == np.uint8
        assert np.array_equal(got, images_to_input(list(images), preprocess))
        assert np.array_equal(got[2], image_to_input(images[2], preprocess))
        if resize_mode == "squash":
            method = Image.Resampling[interpolation.upper()]
            for row, image in zip(got, images, strict=True):
                picture = Image.fromarray(image.squeeze(-1) if channels == "L" else image)
                want = picture.resize((target[1], source[0]), method).resize(target[::-1], method)
                assert np.array_equal(row, np.asarray(want).reshape(row.shape))


def test_large_images_give_the_same_bits_alone_and_in_a_stack():
    images = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), np.uint8)
    preprocess = preprocess_of((64, 64), (72, 72), "RGB")
    assert np.array_equal(
        images_to_input(images, preprocess), np.stack([image_to_input(i, preprocess) for i in images])
    )


def test_large_stacks_are_resized_in_chunks_with_the_same_bits():
    images = np.random.default_rng(0).integers(0, 256, (2500, 28, 28, 1), np.uint8)
    preprocess = preprocess_of((32, 32), resize_mode="crop")
    got = images_to_input(images, preprocess)
    for i in (0, 2047, 2048, 2499):
        assert np.array_equal(got[i], image_to_input(images[i], preprocess))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_side_from_1_to_40_is_resized_with_pillows_bits(interpolation):
    """A row and a column of each length, so that the coefficients of both passes are checked at their edges."""
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 5, 8, 28, 33):
        images = rng.integers(0, 256, (2, length, length, 1), np.uint8)
        for target in (1, 2, 3, 7, 28, 40):
            for size in ((target, length), (length, target), (target, target)):
                expected = np.stack([resize_image(image, size, interpolation) for image in images])
                np.testing.assert_array_equal(resize_stack(images, size, interpolation), expected)


def test_an_image_of_the_target_size_is_returned_unchanged():
    images = np.zeros((2, 3, 4, 1), np.uint8)
    assert resize_images(images, (3, 4), "bilinear") is images
    assert resize_image(images[0], (3, 4), "bilinear").base is images


@pytest.mark.parametrize("side, target, small", [(64, 8, True), (65, 8, False), (8, 64, True), (8, 65, False)])
def test_only_small_images_are_resized_as_a_stack(side, target, small, monkeypatch):
    """Larger ones are faster one by one: docs/performance.md."""
    calls = []
    monkeypatch.setattr(resample, "resize_stack", lambda images, size, how: calls.append(size) or images)
    resize_images(np.zeros((1, side, side, 1), np.uint8), (target, target), "box")
    assert bool(calls) == small
    del calls[:]
    resize_images(np.zeros((1, side, side, 3), np.uint8), (target, target), "box")
    assert not calls  # values count, not pixels


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", ["L", "RGB"])
@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (3, 700), (40, 2000), (2000, 41)])
def test_elongated_images_are_cropped_before_they_are_enlarged(shape, channels, interpolation, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, len(channels)), np.uint8)
    preprocess = preprocess_of((30, 31), (36, 34), channels, interpolation=interpolation)
    expected = images_to_input(images, preprocess)
    sizes, resize = [], Image.Image.resize

    def counted(image, size, *arguments, **options):
        sizes.append(size)
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", counted)
    monkeypatch.setattr(resample, "MAX_RESIZED", 1000)
    got = images_to_input(images, preprocess)
    np.testing.assert_array_equal(got, np.stack([image_to_input(image, preprocess) for image in images]))
    assert sizes and max(width * height for width, height in sizes) < 36 * 80
    difference = np.abs(got.astype(int) - expected)
    if interpolation in ("nearest", "box"):  # of two pixels equally near, either may be taken
        assert (difference > 1).mean() < 0.3
    else:
        assert difference.max() <= 2  # a level in each pass


def test_an_elongated_image_that_does_not_fit_in_memory_enlarged():
    image = np.random.default_rng(0).integers(0, 256, (1, 60_000, 3), np.uint8)
    got = image_to_input(image, preprocess_of((224, 224), (224, 224), "RGB"))
    expected = image_to_input(image[:, 29_990:30_010], preprocess_of((224, 224), (224, 224), "RGB"))
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_names_of_interpolations_are_pinned():
    assert INTERPOLATIONS == ("nearest", "bilinear", "bicubic", "lanczos", "box")
