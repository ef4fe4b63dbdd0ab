"""The operations of published recipes against NumPy versions written from their sources, with the same random numbers.

Their common contract is in test_ops.py; crops on the host are in test_host_crop.py.
"""

import colorsys
import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zoo.data.augment import auto, photo, warp
from zoo.data.augment.host_crop import (
    Augmentation,
    ScaleCrop,
    draw_scale_crop,
    place_augmentation,
    read_crop,
)
from zoo.data.augment.ops import augment, parse
from zoo.data.dataset import EncodedSplit
from zoo.data.images.preprocess import Preprocess

FILL = np.float32([7, 70, 140])
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
fold_in_each = jit(jax.vmap(jax.random.fold_in, (None, 0)))


def photographs(batch=6, height=9, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3)).astype(np.float32)


def keys_of_op(batch, key=None, n=0):
    return fold_in_each(jax.random.fold_in(jax.random.key(0) if key is None else key, n), np.arange(batch))


def draws(function, keys):
    return jax.tree.map(np.asarray, jit(jax.vmap(function))(keys))


def run(op, images):
    index, targets = np.arange(len(images), dtype=np.int32), np.ones((len(images), 1), np.float32)
    fill = FILL[: images.shape[-1]]
    new, _ = jit(lambda *batch: augment((op,), jax.random.key(0), *batch, fill=fill))(index, images, targets)
    return np.asarray(new)


# --- crops ------------------------------------------------------------------------------------------------------------


def test_reflected_padding_is_numpys():
    images = photographs()
    offsets = draws(lambda key: warp.draw_translation(key, 4), keys_of_op(len(images)))
    new = run("pad_crop(pad=4, reflect=1)", images)
    for image, (down, right), got in zip(images, offsets, new, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        assert np.array_equal(got, padded[4 - down : 13 - down, 4 - right : 16 - right])


def bilinear(image, height, width):
    """Resize by interpolation between pixel centres, without antialiasing, clamped at the border."""
    rows = np.clip((np.arange(height) + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    dy, dx = (rows - top)[:, None, None], (columns - left)[:, None]
    upper = (1 - dx) * image[top][:, left] + dx * image[top][:, right]
    lower = (1 - dx) * image[bottom][:, left] + dx * image[bottom][:, right]
    return (1 - dy) * upper + dy * lower


@pytest.mark.parametrize("shape", [(9, 12), (10, 10)])
def test_scale_crops_are_crops_of_resized_images(shape):
    images = photographs(8, *shape)
    sizes, starts = draws(lambda key: photo.draw_scale(key, 1.2, 2.0, *shape), keys_of_op(len(images)))
    new = run("scale_crop(low=1.2, high=2)", images)
    shorter = min(shape)
    for image, (height, width), (top, left), got in zip(images, sizes, starts, new, strict=True):
        assert round(1.2 * shorter) <= min(height, width) <= 2 * shorter
        assert abs(height * shape[1] - width * shape[0]) <= max(shape)  # the aspect ratio stays
        expected = bilinear(image, height, width)[top : top + shape[0], left : left + shape[1]]
        np.testing.assert_allclose(got, expected, atol=2e-3)


def test_the_shorter_side_is_uniform_over_its_whole_range():
    """He et al. 2015, section 3.4: randomly sampled in [256, 480] for crops of 224."""
    low, high = parse("scale_crop(low=1.14286, high=2.14286)")[1].values()
    sizes, starts = draws(lambda key: photo.draw_scale(key, low, high, 224, 224), keys_of_op(20_000))
    side = sizes[:, 0]
    assert np.array_equal(sizes[:, 0], sizes[:, 1]) and (side.min(), side.max()) == (256, 480)
    assert np.bincount(side - 256).min() > 40  # 89 each on average
    assert (starts >= 0).all() and (starts <= sizes - 224).all()
    assert 0.45 < (starts / (sizes - 224)).mean() < 0.55


def test_a_scale_crop_with_its_bounds_exchanged_is_an_error():
    with pytest.raises(ValueError, match=r"high=1.2 must be at least low=1.5"):
        parse("scale_crop(low=1.5, high=1.2)")


def encoded(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (40, 200)])
def test_host_scale_crops_are_pillows(shape):
    """The image is resized so that its shorter side has the drawn length, then cropped on whole pixels."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BOX))
    preprocess, crop = Preprocess(size=(32, 32), resize=(32, 32)), ScaleCrop(36 / 32, 60 / 32)
    for record in range(6):
        box = draw_scale_crop(3, 1, record, *shape, crop, (32, 32))
        side = round(32 * min(shape) / min(box.height, box.width))
        assert 36 <= side <= 60
        scaled = (round(shape[0] * side / min(shape)), round(shape[1] * side / min(shape)))
        whole = np.asarray(Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR))
        top, left = (round(edge * s / side_) for edge, s, side_ in zip(box[:2], scaled, shape, strict=True))
        assert 0 <= top <= scaled[0] - 32 and 0 <= left <= scaled[1] - 32
        got = read_crop(encoded(image), preprocess, 3, 1, record, crop)
        np.testing.assert_allclose(got.astype(int), whole[top : top + 32, left : left + 32].astype(int), atol=2)


def test_copies_of_an_image_have_crops_of_their_own():
    boxes = {draw_scale_crop(0, 0, 5, 90, 120, ScaleCrop(1.2, 2), (32, 32), repeat) for repeat in range(4)}
    assert len(boxes) == 4
    assert draw_scale_crop(0, 0, 5, 90, 120, ScaleCrop(1.2, 2), (32, 32)) in boxes


def test_the_host_cuts_scale_crops_of_encoded_images():
    sizes = np.full((3, 2), (90, 120), np.int32)
    split = EncodedSplit(None, np.arange(3), np.zeros(3, np.int32), (b"",) * 3, sizes)
    preprocess = Preprocess(size=(32, 32), resize=(32, 32))
    placed = place_augmentation(split, preprocess, ("scale_crop(1.2, 2)", "flip", "pca_noise"))
    assert placed == Augmentation(ScaleCrop(1.2, 2), ("flip", "pca_noise"))


# --- colour -----------------------------------------------------------------------------------------------------------


def test_colour_noise_is_that_of_fb_resnet_torch():
    """datasets/transforms.lua, Lighting: the sum over components of alpha * eigenvalue * eigenvector, on 0..1."""
    values = [0.2175, 0.0188, 0.0045]
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    images = photographs()
    alphas = draws(lambda key: photo.draw_normal(key, 0.1), keys_of_op(len(images)))
    new = run("pca_noise(sigma=0.1)", images)
    for image, alpha, got in zip(images, alphas, new, strict=True):
        rgb = [sum(vectors[c][k] * alpha[k] * values[k] for k in range(3)) for c in range(3)]
        np.testing.assert_allclose(got, 255 * (image / 255 + np.array(rgb)), atol=1e-3)
    many = draws(lambda key: photo.draw_normal(key, 0.1), keys_of_op(20_000))
    np.testing.assert_allclose(many.std(0), 0.1, rtol=0.03)
    np.testing.assert_allclose(many.mean(0), 0, atol=0.003)


def test_grey_images_have_no_colour_noise():
    images = photographs()[..., :1]
    assert np.array_equal(run("pca_noise(1)", images), images)


def distort_by_numpy(image, deviations, order):
    """tensorflow/models, distort_color: on floats in 0..1, clipped at the end only."""
    image = image.astype(np.float64) / 255
    brightness, contrast, saturation, hue = deviations
    for which in order:
        if which == 0:
            image = image + brightness
        elif which == 1:
            mean = image.mean((0, 1))
            image = (image - mean) * (1 + contrast) + mean
        else:
            image = np.array([[change_hsv(pixel, which, saturation, hue) for pixel in row] for row in image])
    return 255 * np.clip(image, 0, 1)


def change_hsv(pixel, which, saturation, hue):
    value, chroma = pixel.max(), pixel.max() - pixel.min()
    if chroma == 0:
        return pixel
    h, s, _ = colorsys.rgb_to_hsv(*((pixel - pixel.min()) / chroma))  # the hue does not depend on level and chroma
    if which == 2:
        if value <= 0:
            return np.full(3, value)
        chroma = value * min(1, (1 + saturation) * chroma / value)
    else:
        h = (h + hue) % 1
    pure = np.array(colorsys.hsv_to_rgb(h, s, 1.0))
    return value - chroma * (1 - pure)


@pytest.mark.parametrize("slim", [0, 1])
def test_distortions_are_those_of_the_inception_code(slim):
    images = photographs(8, 4, 5)
    orders = photo.SLIM_ORDERS if slim else photo.INCEPTION_ORDERS
    strengths = (32 / 255, 0.5, 0.5, 0.2)
    drawn = draws(lambda key: photo.draw_distortion(key, strengths, orders), keys_of_op(len(images)))
    new = run(f"distort_colour(slim={slim})", images)
    for image, deviations, order, got in zip(images, *drawn, new, strict=True):
        assert tuple(order) in orders
        np.testing.assert_allclose(got, distort_by_numpy(image, deviations, order), atol=0.02)


def test_distortions_are_uniform_and_every_order_occurs():
    strengths = (32 / 255, 0.5, 0.4, 0.2)
    deviations, order = draws(lambda key: photo.draw_distortion(key, strengths, photo.SLIM_ORDERS), keys_of_op(8000))
    np.testing.assert_allclose(deviations.max(0), strengths, rtol=0.01)
    np.testing.assert_allclose(deviations.min(0), np.negative(strengths), rtol=0.01)
    np.testing.assert_allclose(deviations.mean(0), 0, atol=0.02)
    names, counts = np.unique(order, axis=0, return_counts=True)
    assert {tuple(row) for row in names} == set(photo.SLIM_ORDERS) and counts.min() > 1800


# --- RandAugment as in timm -------------------------------------------------------------------------------------------


def test_probability_and_noise_of_magnitudes():
    """timm's AugmentOp: probability 0.5, magnitude ~ N(7, 0.5) clipped to 0..10."""
    kinds, signs, levels = draws(lambda key: auto.draw_layer(key, 0.5, 7, 0.5, True), keys_of_op(15_000))
    counts = np.bincount(kinds, minlength=16)
    assert 0.48 < counts[0] / len(kinds) < 0.52  # identity: not applied
    assert counts[1:].min() > 400 and len(counts) == 16  # 500 of each of fifteen on average
    assert 0.48 < (signs == 1).mean() < 0.52
    assert abs(levels.mean() - 7) < 0.02 and abs(levels.std() - 0.5) < 0.02
    _, _, high = draws(lambda key: auto.draw_layer(key, 1.0, 9.9, 0.5, False), keys_of_op(500))
    assert high.max() == 10
    always, _, fixed = draws(lambda key: auto.draw_layer(key, 1.0, 4, 0.0, False), keys_of_op(3000))
    assert (fixed == 4).all() and set(always) == set(range(14))


def test_the_default_layers_are_those_of_draw_operation():
    keys = keys_of_op(500)
    kinds, signs, _ = draws(auto.draw_operation, keys)
    again, same, _ = draws(lambda key: auto.draw_layer(key, 1.0, 9, 0.0, False), keys)
    assert np.array_equal(kinds, again) and np.array_equal(signs, same)


@pytest.mark.parametrize("level", [0.0, 2.4, 7.0, 9.99, 10.0])
def test_strengths_of_the_increasing_set(level):
    """timm's LEVEL_TO_ARG for the transforms of its "inc" set, at sign +1 and images of 40 x 30 pixels."""
    expected = {
        "rotate": level / 10 * 30,
        "shear_x": level / 10 * 0.3,
        "shear_y": level / 10 * 0.3,
        "translate_x": level / 10 * 0.45 * 30,
        "translate_y": level / 10 * 0.45 * 40,
        "brightness": level / 10 * 0.9,
        "contrast": level / 10 * 0.9,
        "color": level / 10 * 0.9,
        "sharpness": level / 10 * 0.9,
        "posterize": 8 - (4 - int(level / 10 * 4)),  # bits removed; timm gives bits kept
        "solarize": int(level / 10 * 256),  # below 256
        "solarize_add": int(level / 10 * 110),
        "autocontrast": 0,
        "equalize": 0,
        "invert": 0,
    }
    kinds = np.array([auto.ALL_OPERATIONS.index(name) for name in expected])
    ones = jnp.ones(len(kinds), jnp.float32)
    strengths = auto.increasing_strengths(kinds, ones, level * ones, 40, 30)
    np.testing.assert_allclose(strengths, list(expected.values()), rtol=1e-6)
    assert set(expected) == set(auto.ALL_OPERATIONS) - {"identity"}


def test_invert_and_solarize_add_are_pillows():
    images = np.floor(photographs(2, 16, 16))
    kinds = np.array([auto.ALL_OPERATIONS.index("invert"), auto.ALL_OPERATIONS.index("solarize_add")])
    new = np.asarray(jit(auto.apply_operation)(images, kinds, np.float32([0, 77]), FILL))
    assert np.array_equal(new[0], 255 - images[0])
    assert np.array_equal(new[1], np.where(images[1] < 128, np.minimum(images[1] + 77, 255), images[1]))
