"""The operations for photographs against Pillow, colorsys and plain NumPy, with the same random numbers.

The contract of every operation (shapes, determinism, sharding, identity) is in test_ops.py.
"""

import colorsys
import math
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from zoo.data.augment import auto, mixing, photo
from zoo.data.augment.interpolation import INTERPOLATIONS
from zoo.data.augment.ops import augment, parse

# Compiling dominates the run time; without optimisation it takes half as long.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
fold_in_each = jit(jax.vmap(jax.random.fold_in, (None, 0)))
FILL = 7.0


def make_batch(batch, height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, height, width, channels)).astype(np.float32)
    return np.arange(batch, dtype=np.int32), images, np.eye(batch, dtype=np.float32)


@partial(jit, static_argnames="op")
def compiled(op, index, images, targets):
    return augment((op,), jax.random.key(0), index, images, targets, fill=(FILL,) * images.shape[-1])


def run(op, *batch):
    return jax.tree.map(np.asarray, compiled(op, *batch))


def keys_of(batch):
    """Return the keys of a first operation for the examples of a batch, as described in the docstring of ops.py."""
    return fold_in_each(jax.random.fold_in(jax.random.key(0), 0), np.arange(batch))


def draws(function, keys):
    return jax.tree.map(np.asarray, jit(jax.vmap(function))(keys))


# --- boxes ------------------------------------------------------------------------------------------------------------


def crop_by_pillow(image, start, extent, method="bilinear"):
    (top, left), (high, wide) = start.tolist(), extent.tolist()
    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0)]
    crops = [channel.crop((left, top, left + wide, top + high)) for channel in channels]
    return np.stack([crop.resize(image.shape[1::-1], Image.Resampling[method.upper()]) for crop in crops], axis=-1)


def test_resized_crop_enlarges_a_box_as_pillow_does():
    index, images, targets = make_batch(16, 9, 12)
    new, _ = run("resized_crop(area=0.05, ratio=0.5)", index, images, targets)
    start, extent = draws(lambda key: photo.draw_box(key, 0.05, 1.0, 0.5, 9, 12), keys_of(16))
    assert len(np.unique(extent, axis=0)) > 8
    expected = [crop_by_pillow(*each) for each in zip(images, start, extent, strict=True)]
    np.testing.assert_allclose(new, expected, atol=1e-3)


def test_any_box_can_be_cropped():
    _, images, _ = make_batch(5, 6, 7, 1)
    start = np.array([(0, 0), (5, 6), (0, 3), (2, 0), (1, 1)])
    extent = np.array([(6, 7), (1, 1), (6, 1), (1, 7), (5, 6)])
    new = np.asarray(jit(photo.crop_and_resize)(images, start, extent))
    assert np.array_equal(new[0], images[0])  # the whole
    assert (new[1] == images[1, 5, 6]).all()  # one pixel
    expected = [crop_by_pillow(*each) for each in zip(images, start, extent, strict=True)]
    np.testing.assert_allclose(new, expected, atol=1e-3)


def mean_over_intervals(image, start, extent):
    """Resize a box to the whole image: each pixel is the mean over the interval that it covers, on both axes."""
    for axis in (0, 1):
        size, step = image.shape[axis], extent[axis] / image.shape[axis]
        edges = np.arange(size)
        lines = np.moveaxis(image, axis, 0)
        means = []
        for i in range(size):
            low, high = start[axis] + i * step, start[axis] + (i + 1) * step
            share = np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0, None) / step
            means.append(np.tensordot(share, lines, 1))
        image = np.moveaxis(np.array(means), 0, axis)
    return image


@pytest.mark.parametrize("interpolation", ["random", "any"])
def test_crops_are_interpolated_by_a_drawn_method(interpolation):
    """As Pillow's methods (the area that of OpenCV and TensorFlow), each as often; the boxes do not depend on it."""
    index, images, targets = make_batch(32, 8, 16)  # no position lies between two pixels
    new, _ = run(f"resized_crop(area=0.05, ratio=0.5, interpolation={interpolation})", index, images, targets)
    start, extent = draws(lambda key: photo.draw_box(key, 0.05, 1.0, 0.5, 8, 16), keys_of(32))
    methods = INTERPOLATIONS[interpolation]
    which = draws(lambda key: photo.draw_method(key, len(methods)), keys_of(32))
    assert set(which) == set(range(len(methods)))
    for image, got, box, n in zip(images, new, zip(start, extent, strict=True), which, strict=True):
        if methods[n] == "area":
            expected = mean_over_intervals(image, *box)
        else:
            expected = np.clip(crop_by_pillow(image, *box, methods[n]), 0, 255)
        np.testing.assert_allclose(got, expected, atol=2e-3, err_msg=methods[n])
    many = draws(lambda key: photo.draw_method(key, len(methods)), keys_of(4000))
    np.testing.assert_allclose(np.bincount(many) / 4000, 1 / len(methods), atol=0.04)


def test_a_crop_of_the_whole_image_is_the_image_by_every_method():
    index, images, targets = make_batch(32, 8, 16)
    new, _ = run("resized_crop(area=1, ratio=1, interpolation=any)", index, images, targets)
    np.testing.assert_allclose(new, images, atol=1e-4)


def test_boxes_are_distributed_as_documented():
    start, extent = draws(lambda key: photo.draw_box(key, 0.1, 0.4, 0.5, 200, 400), keys_of(4000))
    assert (start >= 0).all() and (start + extent <= [200, 400]).all()
    area = extent.prod(1) / 80_000
    stretch = np.log2(extent[:, 1] / 400 / (extent[:, 0] / 200))
    assert area.min() > 0.095 and area.max() < 0.405 and np.abs(stretch).max() < 1.05
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.175, 0.25, 0.325], atol=0.015)
    np.testing.assert_allclose(np.quantile(stretch, [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.07)
    place = start / ([200, 400] - extent)
    np.testing.assert_allclose(np.quantile(place, [0.25, 0.5, 0.75], axis=0).T, [[0.25, 0.5, 0.75]] * 2, atol=0.05)
    unit = np.column_stack([area, stretch, place])
    assert np.abs(np.corrcoef(unit.T) - np.eye(4)).max() < 0.07


def test_boxes_that_do_not_fit_are_redrawn_or_clipped():
    start, extent = draws(lambda key: photo.draw_box(key, 0.5, 1.0, 0.5, 64, 64), keys_of(1000))
    assert (start >= 0).all() and (start + extent <= 64).all()
    assert ((extent == 64).mean(0) < 0.05).all()  # clipping would accumulate at the full length
    _, cut = draws(lambda key: photo.draw_box(key, 1.0, 1.0, 0.5, 64, 64), keys_of(50))
    assert (cut.max(1) == 64).all() and cut.min() < 50


def test_random_erasing_covers_a_box_inside_the_image():
    index, images, targets = make_batch(200, 9, 12, 1)
    new, _ = run("random_erasing(p=0.4)", index, images, targets)
    box = {"smallest": 0.02, "largest": 0.33, "ratio": 0.3}
    start, extent = draws(lambda key: photo.draw_erasing(key, 0.4, 9, 12, **box), keys_of(200))
    assert 60 < (extent.prod(1) > 0).sum() < 100
    for image, (top, left), (high, wide), covered in zip(images, start, extent, new, strict=True):
        expected = image.copy()
        expected[top : top + high, left : left + wide] = FILL
        assert np.array_equal(covered, expected)


# --- colour -----------------------------------------------------------------------------------------------------------


def test_grey_is_pillows():
    images = make_batch(1, 8, 9)[1]
    pillows = np.asarray(Image.fromarray(images[0].astype(np.uint8)).convert("L"))
    np.testing.assert_allclose(photo.grey(images)[0, :, :, 0], pillows, atol=0.51)
    assert np.array_equal(photo.grey(images[..., :1]), images[..., :1])


def jitter_by_loops(image, factors, order, turns):
    for which in order:
        grey = image @ [0.299, 0.587, 0.114]
        poorer = (0.0, grey.mean(), grey[..., None])[which]
        image = np.clip(factors[which] * image + (1 - factors[which]) * poorer, 0, 255)
    out = np.empty_like(image)
    for at in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[at] / 255)
        out[at] = np.multiply(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), 255)
    return out


def test_colour_jitter_is_as_documented():
    index, images, targets = make_batch(12, 5, 6)
    images[:, 0, :3] = [[0, 0, 0], [255, 255, 255], [90, 90, 90]]  # without a hue
    images[:, 1, :3] = [[200, 200, 10], [10, 200, 200], [200, 10, 200]]  # ties
    new, _ = run("colour_jitter(0.5, 0.6, 0.7, hue=0.3)", index, images, targets)
    drawn = draws(lambda key: photo.draw_jitter(key, (0.5, 0.6, 0.7), 0.3), keys_of(12))
    expected = [jitter_by_loops(*each) for each in zip(images.astype(float), *drawn, strict=True)]
    np.testing.assert_allclose(new, expected, atol=0.01)


def test_jitter_is_uniform_in_strength_and_order():
    factors, orders, turns = draws(lambda key: photo.draw_jitter(key, (0.4, 0.2, 1.5), 0.1), keys_of(4000))
    assert (factors[:, 2] >= 0).all() and factors[:, 2].max() > 2.4  # never negative
    unit = np.column_stack([(factors[:, 0] - 1) / 0.4, (factors[:, 1] - 1) / 0.2, factors[:, 2] / 1.25 - 1, turns * 10])
    assert np.abs(unit).max() <= 1.00001
    np.testing.assert_allclose(unit.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(unit.std(0), 1 / math.sqrt(3), atol=0.02)
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert (np.sort(found) == [0, 1, 2]).all() and len(found) == 6
    np.testing.assert_allclose(counts / 4000, 1 / 6, atol=0.03)


def test_grey_images_have_no_colour_to_jitter():
    index, images, targets = make_batch(4, 5, 6, 1)
    new, _ = run("colour_jitter(0, 0, saturation=1, hue=0.5)", index, images, targets)
    assert np.array_equal(new, images)


# --- RandAugment and TrivialAugment -----------------------------------------------------------------------------------

HEIGHT, WIDTH = 20, 31
CASES = [  # (operation, strength in its unit)
    ("identity", 1.0),
    *[("rotate", angle) for angle in (30.0, -77.0, 135.0)],
    *[(axis, slope) for axis in ("shear_x", "shear_y") for slope in (0.3, -0.99)],
    *[(axis, pixels) for axis in ("translate_x", "translate_y") for pixels in (5.0, -7.25, 40.0)],
    *[(name, by) for name in ("brightness", "contrast", "color", "sharpness") for by in (0.9, -0.99, 0.31)],
    *[("posterize", bits) for bits in (0.0, 2.6, -4.0, 6.0)],
    *[("solarize", levels) for levels in (0.0, 100.0, -256.0)],
    *[(name, 0.0) for name in ("autocontrast", "equalize") for _ in range(3)],
]
operate = jit(auto.apply_operation)


def affine_by_pillow(image, operation, strength):
    """Transform on a canvas of fill so large that its edge does not matter."""
    pad = 3 * WIDTH
    matrix = {
        "shear_x": (1, strength, -pad * strength, 0, 1, 0),  # the fixed corner is that of the image
        "shear_y": (1, 0, 0, strength, 1, -pad * strength),
        "translate_x": (1, 0, -strength, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -strength),
    }
    moved = []
    for channel in np.moveaxis(image, -1, 0):
        canvas = Image.fromarray(np.pad(channel, pad, constant_values=FILL))
        if operation == "rotate":
            canvas = canvas.rotate(strength, Image.Resampling.BILINEAR)
        else:
            transform, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
            canvas = canvas.transform(canvas.size, transform, matrix[operation], bilinear)
        moved.append(np.asarray(canvas)[pad:-pad, pad:-pad])
    return np.stack(moved, axis=-1)


def operate_by_pillow(image, operation, strength):
    """Return the result and a tolerance: Pillow rounds both images that it blends."""
    if operation == "rotate" or operation[:-2] in ("shear", "translate"):
        return affine_by_pillow(image, operation, strength), 0.05
    channels = image.shape[-1]
    picture = Image.fromarray(image.astype(np.uint8).squeeze(-1) if channels == 1 else image.astype(np.uint8))
    tolerance = 0.0
    if operation in ("brightness", "contrast", "color", "sharpness"):
        picture = getattr(ImageEnhance, operation.title())(picture).enhance(1 + strength)
        tolerance = 2.0
    elif operation == "posterize":
        picture = ImageOps.posterize(picture, 8 - round(abs(strength)))
    elif operation == "solarize":
        picture = ImageOps.solarize(picture, 256 - abs(strength))
    elif operation != "identity":
        picture = getattr(ImageOps, operation)(picture)
        tolerance = 1.0 if operation == "autocontrast" else 0.0  # Pillow's float may fall just below a whole number
    return np.asarray(picture, np.float32).reshape(image.shape), tolerance


def cases(channels):
    images = make_batch(len(CASES), HEIGHT, WIDTH, channels)[1]
    images[-1] = images[-4] = np.floor(images[-1] / 8) + 100  # few levels, and an unequal number of each
    images[-2, ..., 0] = images[-5, ..., 0] = 55  # one level only
    images[-3] = np.where(images[-3] < 230, 31, images[-3])  # most of one level
    kinds = np.array([auto.OPERATIONS.index(name) for name, _ in CASES], np.int32)
    return images, kinds, np.array([strength for _, strength in CASES], np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_is_pillows(channels):
    assert {name for name, _ in CASES} == set(auto.OPERATIONS)
    images, kinds, strengths = cases(channels)
    new = np.asarray(operate(images, kinds, strengths, np.full(channels, FILL, np.float32)))
    for (name, strength), image, got in zip(CASES, images, new, strict=True):
        expected, tolerance = operate_by_pillow(image, name, strength)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=f"{name} {strength}")


def test_images_too_small_to_smooth_are_unchanged():
    _, images, _ = make_batch(2, 2, 9)
    assert photo.smooth(images) is images


def test_fractions_are_rounded_before_they_become_levels():
    images, kinds, strengths = cases(3)
    images = np.maximum(images - 1, 0)
    images[:, 0, :4, 0] = [99.6, 100.4, 100.5, 100.4995]
    new = np.asarray(operate(images, kinds, strengths, np.full(3, FILL, np.float32)))
    assert new[CASES.index(("posterize", 0.0)), 0, :4, 0].tolist() == [100, 100, 101, 101]
    assert np.array_equal(new[CASES.index(("identity", 1.0))], images[0])


def test_operations_are_drawn_uniformly():
    kinds, signs, magnitudes = draws(auto.draw_operation, keys_of(7000))
    counts = np.bincount(kinds)
    assert len(counts) == 14 and len(auto.OPERATIONS) == 14
    np.testing.assert_allclose(counts / 7000, 1 / 14, atol=0.012)
    assert set(np.unique(signs)) == {-1, 1} and abs(signs.mean()) < 0.05
    steps, counts = np.unique(np.round(magnitudes * 30, 4), return_counts=True)
    assert steps.tolist() == list(range(31))
    np.testing.assert_allclose(counts / 7000, 1 / 31, atol=0.01)
    assert np.abs(np.corrcoef([kinds, signs, magnitudes]) - np.eye(3)).max() < 0.05


def test_rand_augment_applies_operations_in_turn():
    images = cases(3)[0]
    index, targets = np.arange(len(images), dtype=np.int32), np.ones((len(images), 1), np.float32)
    new, _ = run("rand_augment(number=2, magnitude=5)", index, images, targets)
    ranges = {  # half of the paper's
        "rotate": 15, "shear_x": 0.15, "shear_y": 0.15, "translate_x": 75 / 331 * 31, "translate_y": 75 / 331 * 20,
        "brightness": 0.45, "contrast": 0.45, "color": 0.45, "sharpness": 0.45, "posterize": 2, "solarize": 128,
    }  # fmt: skip
    expected = images
    for layer in range(2):
        keys = jit(jax.vmap(lambda key, layer=layer: jax.random.fold_in(key, layer)))(keys_of(len(images)))
        kinds, signs, _ = draws(auto.draw_operation, keys)
        strengths = np.array([ranges.get(auto.OPERATIONS[kind], 0) for kind in kinds], np.float32)
        expected = operate(expected, kinds, signs * strengths, np.full(3, FILL, np.float32))
    np.testing.assert_allclose(new, expected, atol=0.05)


def test_trivial_augment_applies_one_operation():
    images = cases(3)[0]
    index, targets = np.arange(len(images), dtype=np.int32), np.ones((len(images), 1), np.float32)
    new, _ = run("trivial_augment", index, images, targets)
    kinds, signs, magnitudes = draws(auto.draw_operation, keys_of(len(images)))
    reach = np.array([auto.TRIVIAL_AUGMENT[auto.OPERATIONS[kind]] for kind in kinds], np.float32)
    expected = operate(images, kinds, signs * magnitudes * reach, np.full(3, FILL, np.float32))
    np.testing.assert_allclose(new, expected, atol=0.05)


def test_both_tables_name_the_same_operations_in_order():
    assert tuple(auto.RAND_AUGMENT) == tuple(auto.TRIVIAL_AUGMENT) == auto.OPERATIONS


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_mixup_or_cutmix_does_either_to_each_pair():
    index, images, targets = make_batch(21, 5, 6, 1)
    new, soft = run("mixup_or_cutmix(mixup=1, cutmix=1)", index, images, targets)
    weights, mean = draws(lambda key: mixing.draw_mixture(key, 1.0, 1.0, 5, 6), keys_of(21))
    blended = 0
    for b in range(20):
        weight = weights[b // 2 * 2][..., None]
        np.testing.assert_allclose(new[b], weight * images[b] + (1 - weight) * images[b ^ 1], atol=1e-3)
        np.testing.assert_allclose(
            soft[b], weight.mean() * targets[b] + (1 - weight.mean()) * targets[b ^ 1], atol=1e-6
        )
        is_constant, is_box = np.ptp(weight) == 0, np.isin(weight, (0, 1)).all()
        assert is_constant or is_box
        blended += is_constant and not is_box
    assert 4 <= blended <= 16
    np.testing.assert_allclose(new[:20].sum(0), images[:20].sum(0), rtol=1e-5)  # every pixel counts once
    assert np.array_equal(new[20], images[20]) and np.array_equal(soft[20], targets[20])  # the last of an odd batch
    assert np.allclose(mean, weights.mean((1, 2)))


@pytest.mark.parametrize(
    ("alphas", "other"), [({"mixup": 0, "cutmix": 0.7}, "cutmix"), ({"mixup": 0.7, "cutmix": 0}, "mixup")]
)
def test_an_alpha_of_zero_selects_the_other_operation(alphas, other, monkeypatch):
    monkeypatch.setattr(mixing, f"apply_{other}", lambda *batch, alpha: (batch, alpha))
    assert mixing.mixup_or_cutmix(1, 2, 3, 4, 5, **alphas) == ((1, 2, 3, 4, 5), 0.7)


# --- published ranges -------------------------------------------------------------------------------------------------


def test_strengths_are_those_of_the_papers():
    """Columns: AutoAugment's ranges (arXiv:1805.09501, table 6), TrivialAugment's Wide ranges (arXiv:2103.10158)."""
    assert {name: (auto.RAND_AUGMENT[name], auto.TRIVIAL_AUGMENT[name]) for name in auto.OPERATIONS} == {
        "identity": (0, 0),
        "rotate": (30, 135),
        "shear_x": (0.3, 0.99),
        "shear_y": (0.3, 0.99),
        "translate_x": (150 / 331, 32),
        "translate_y": (150 / 331, 32),
        "brightness": (0.9, 0.99),
        "contrast": (0.9, 0.99),
        "color": (0.9, 0.99),
        "sharpness": (0.9, 0.99),
        "posterize": (4, 6),
        "solarize": (256, 256),
        "autocontrast": (0, 0),
        "equalize": (0, 0),
    }


def test_smoothing_of_the_smallest_image_changes_its_centre_only():
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1) ** 2
    smoothed = np.asarray(photo.smooth(image))
    expected = image.copy()
    expected[0, 1, 1, 0] = (image.sum() + 4 * image[0, 1, 1, 0]) / 13
    np.testing.assert_allclose(smoothed, expected, rtol=1e-6)
    assert photo.smooth(image[:, :, :2]) is not None and (photo.smooth(image[:, :, :2]) == image[:, :, :2]).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_of_other_channels_is_their_mean(channels):
    images = make_batch(2, 3, 4, channels)[1]
    np.testing.assert_allclose(photo.grey(images)[..., 0], images.mean(-1), rtol=1e-6)


@pytest.mark.parametrize(
    "turns, expected",
    [(0, [200, 50, 50]), (1 / 3, [50, 200, 50]), (-1 / 3, [50, 50, 200]), (1 / 6, [200, 200, 50]), (1, [200, 50, 50])],
)
def test_hue_turns_from_red_to_green(turns, expected):
    red = np.array([[[[200, 50, 50]]]], np.float32)
    np.testing.assert_allclose(photo.rotate_hue(red, np.array([turns], np.float32))[0, 0, 0], expected, atol=1e-3)


def test_blend_extrapolates_and_clips():
    images, degenerate = np.full((4, 1, 1, 1), 100, np.float32), np.full((4, 1, 1, 1), 40, np.float32)
    factors = np.array([0, 0.5, 2, 10], np.float32)
    assert photo.blend(images, degenerate, factors).ravel().tolist() == [40, 70, 160, 255]
    assert photo.blend(images, degenerate, -factors).ravel().tolist() == [40, 10, 0, 0]


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_erasing_probability(p):
    box = {"smallest": 0.1, "largest": 0.2, "ratio": 0.5}
    _, extent = draws(lambda key: photo.draw_erasing(key, p, 30, 40, **box), keys_of(3000))
    assert abs((extent.prod(1) > 0).mean() - p) < 0.03
    area = extent.prod(1)[extent.prod(1) > 0] / 1200
    assert p == 0 or (area.min() > 0.08 and area.max() < 0.22)


def test_boxes_of_a_tiny_image_have_at_least_one_pixel():
    start, extent = draws(lambda key: photo.draw_box(key, 0.0, 0.01, 0.5, 4, 5), keys_of(300))
    assert (extent == 1).all() and (start >= 0).all() and (start < [4, 5]).all()
    assert set(map(tuple, start.tolist())) == {(y, x) for y in range(4) for x in range(5)}


@pytest.mark.parametrize("op", ["colour_jitter(0, 0, 0, hue=0.3)", "colour_jitter(0, 0.8, 0)"])
def test_one_property_can_be_jittered_alone(op):
    index, images, targets = make_batch(6, 4, 5)
    numbers = parse(op)[1]
    strengths = [numbers[name] for name in ("brightness", "contrast", "saturation")]
    new, _ = run(op, index, images, targets)
    drawn = draws(lambda key: photo.draw_jitter(key, strengths, numbers.get("hue", 0.0)), keys_of(6))
    expected = [jitter_by_loops(*each) for each in zip(images.astype(float), *drawn, strict=True)]
    np.testing.assert_allclose(new, expected, atol=0.01)
    assert (new != images).any()
