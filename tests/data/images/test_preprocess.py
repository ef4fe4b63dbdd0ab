import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from photos import preprocess_of
from PIL import Image

from zoo.data.images.preprocess import CHANNELS, Preprocess, image_to_input, images_to_input, normalise


def test_json_round_trip_and_hash():
    first = preprocess_of((32, 28), (40, 36), "RGB", resize_mode="pad", polarity="dark-on-light")
    again = Preprocess(**json.loads(json.dumps(dataclasses.asdict(first))))
    assert again == first and hash(again) == hash(first)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": (0, 3)},
        {"size": (3,)},
        {"resize": (3, 2.5)},
        {"resize_mode": "stretch"},
        {"interpolation": "linear"},
        {"channels": "RGBA"},
        {"polarity": "dark"},
        {"mean": (0.5,) * 3},
        {"std": (0.0,)},
        {"std": (-1.0,)},
        {"std": (float("inf"),)},
        {"std": (float("nan"),)},
        {"std": (0.5, 0.5)},
        {"size": (3, 0)},
        {"size": (3, 3, 3)},
    ],
)
def test_invalid_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        preprocess_of(**{"size": (3, 3), "resize": (3, 3), **fields})


def test_fields_and_defaults_are_pinned():
    """They are public: cards hold them. Mean and deviation are torchvision's for ImageNet."""
    assert dataclasses.asdict(Preprocess((3, 4), (5, 6))) == {
        "size": (3, 4),
        "resize": (5, 6),
        "resize_mode": "crop",
        "interpolation": "bilinear",
        "channels": "RGB",
        "polarity": None,
        "ink_extent": None,
        "white": None,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    assert CHANNELS == ("L", "RGB", "BGR")
    assert preprocess_of((1, 1), (1, 1)).size == (1, 1)  # the smallest


@pytest.mark.parametrize("channels, count", [("L", 1), ("RGB", 3), ("BGR", 3)])
def test_input_shape_is_height_width_channels(channels, count):
    assert preprocess_of((3, 4), (5, 6), channels).input_shape == (3, 4, count)


def test_fill_is_the_background_or_the_mean_colour():
    assert preprocess_of((3, 3), polarity="light-on-dark").fill == (0,)
    assert preprocess_of((3, 3), polarity="dark-on-light", channels="RGB").fill == (255, 255, 255)
    assert preprocess_of((3, 3), channels="RGB", mean=(0.485, 0.456, 0.406)).fill == (124, 116, 104)
    assert preprocess_of((3, 3), channels="RGB", mean=(-0.5, 1.5, 1.0)).fill == (0, 255, 255)


def test_import_is_light():
    code = (
        "import sys, zoo.data.images.preprocess, zoo.data.sources.open, zoo.data.loader;"
        "heavy = {'jax', 'PIL', 'sklearn', 'tensorflow_datasets', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_crop_keeps_the_middle_and_pad_keeps_everything():
    image = np.full((10, 30, 1), 150, np.uint8)
    image[:, 10:20] = 200
    assert (image_to_input(image, preprocess_of((10, 10), resize_mode="crop")) == 200).all()
    padded = image_to_input(image, preprocess_of((30, 30), resize_mode="pad", polarity="dark-on-light"))
    assert np.array_equal(padded[10:20], image) and (padded[:10] == 255).all() and (padded[20:] == 255).all()
    squashed = image_to_input(image, preprocess_of((10, 10), resize_mode="squash", interpolation="nearest"))
    assert np.array_equal(squashed[0, :, 0], image[0, 1::3, 0])


def test_exact_pixels_when_only_padding_or_cropping():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    padded = image_to_input(image, preprocess_of((32, 32), (28, 28), polarity="light-on-dark"))
    assert np.array_equal(padded[2:30, 2:30], image) and padded.sum() == image.sum()
    assert np.array_equal(image_to_input(image, preprocess_of((20, 24), (28, 28))), image[4:24, 2:26])


@pytest.mark.parametrize("height, width", [(300, 401), (375, 500), (500, 333), (257, 1000)])
def test_resize_256_centre_crop_224_as_torchvision_does(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    short, long = min(height, width), max(height, width)
    scaled = int(256 * long / short)
    new_w, new_h = (scaled, 256) if width > height else (256, scaled)
    method = Image.Resampling.BILINEAR
    resized = Image.fromarray(image).resize((new_w, height), method).resize((new_w, new_h), method)
    left, top = round((new_w - 224) / 2), round((new_h - 224) / 2)
    want = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(image_to_input(image, preprocess_of((224, 224), (256, 256), "RGB")), want)


def test_images_of_the_input_size_are_not_copied():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    assert images_to_input(images, preprocess_of((8, 8))) is images


@pytest.mark.parametrize("resize_mode", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3)])
def test_extreme_shapes(shape, resize_mode):
    preprocess = preprocess_of((8, 6), channels="RGB", resize_mode=resize_mode)
    assert image_to_input(np.full(shape, 9, np.uint8), preprocess).shape == (8, 6, 3)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("given", [1, 3, 4])
def test_channels(given, channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, given), np.uint8)
    if given == 4:
        image[..., 3] = 255
    got = image_to_input(image, preprocess_of((6, 5), channels=channels))
    assert np.array_equal(got, images_to_input(image[None], preprocess_of((6, 5), channels=channels))[0])
    picture = Image.fromarray(image[..., 0] if given == 1 else image[..., :3])
    if channels == "L":
        assert np.array_equal(got[..., 0], np.asarray(picture.convert("L")))
    else:
        rgb = np.asarray(picture.convert("RGB"))
        assert np.array_equal(got, rgb if channels == "RGB" else rgb[..., ::-1])


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)],
)
def test_invalid_arrays_are_rejected(image):
    with pytest.raises(ValueError, match=r"images must (be uint8|have)"):
        image_to_input(image, preprocess_of((4, 4)))


def test_normalise():
    import jax.numpy as jnp

    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    preprocess = Preprocess((3, 4), (3, 4))
    want = (images / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    got = normalise(images, preprocess)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(got, normalise(images.astype(np.float32), preprocess))
    assert normalise(images, preprocess, jnp.bfloat16).dtype == jnp.bfloat16


def test_normalise_is_in_float32_for_every_dtype():
    """Half precision is rounded at the end only."""
    import jax.numpy as jnp

    preprocess = preprocess_of((1, 256), mean=(0.1307,), std=(0.3081,))
    images = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    full = normalise(images, preprocess)
    assert jnp.array_equal(normalise(images, preprocess, jnp.bfloat16), full.astype(jnp.bfloat16))
    assert jnp.array_equal(normalise(jnp.asarray(images, jnp.bfloat16), preprocess), full)


@pytest.mark.parametrize(
    "images, shape",
    [
        (np.zeros((2, 4, 4), np.uint8), (2, 4, 4, 1)),
        (np.zeros((2, 4, 4, 1), np.uint8), (2, 4, 4, 1)),
        ([np.zeros((3, 9), np.uint8), np.zeros((4, 4, 3), np.uint8)], (2, 4, 4, 1)),
        ([], (0, 4, 4, 1)),
    ],
)
def test_images_may_lack_a_channel_axis_or_differ_in_size(images, shape):
    assert images_to_input(images, preprocess_of((4, 4))).shape == shape


@pytest.mark.parametrize("images", [np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4, 1, 1), np.uint8)])
def test_invalid_stacks_are_rejected(images):
    with pytest.raises(ValueError, match="number, height, width, channels"):
        images_to_input(images, preprocess_of((4, 4)))


def test_grey_images_are_padded_with_the_mean_colour_of_a_colour_model():
    preprocess = preprocess_of((1, 4), (1, 2), "RGB", resize_mode="pad", mean=(0.0, 0.4, 1.0))
    got = image_to_input(np.full((1, 2, 1), 7, np.uint8), preprocess)
    assert got.tolist() == [[[0, 102, 255], [7, 7, 7], [7, 7, 7], [0, 102, 255]]]
