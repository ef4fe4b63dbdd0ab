"""Each operation against a plain NumPy version with the same random numbers, and a contract that all of them keep."""

import inspect
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.data.augment import mixing, pixels, warp
from zoo.data.augment.ops import AUGMENTATIONS, PAIRING, augment, parse

# For every operation, a text that changes nearly every image, and one that changes nothing.
STRONG = {
    "pad_crop": "pad_crop(pad=3)",
    "shift": "shift(pixels=2)",
    "flip": "flip(p=0.5)",
    "affine": "affine(rotate=20, scale=0.2, shear=0.2, shift=2)",
    "elastic": "elastic(alpha=20, sigma=2)",
    "affine_elastic": "affine_elastic(rotate=20, scale=0.2, shear=0.2, shift=2, alpha=20, sigma=2)",
    "cutout": "cutout(size=4)",
    "mixup": "mixup(alpha=1)",
    "cutmix": "cutmix(alpha=1)",
    "mixup_or_cutmix": "mixup_or_cutmix(mixup=1, cutmix=1)",
    "resized_crop": "resized_crop(area=0.1)",
    "scale_crop": "scale_crop(1.2, 2)",
    "pca_noise": "pca_noise(1)",
    "distort_colour": "distort_colour(0.2)",
    "colour_jitter": "colour_jitter(0.4, 0.4, 0.4, hue=0.1)",
    "rand_augment": "rand_augment(number=1, magnitude=10)",
    "trivial_augment": "trivial_augment",
    "random_erasing": "random_erasing(p=0.7)",
}
IDENTITY = {
    "pad_crop": "pad_crop(0)",
    "shift": "shift(0)",
    "flip": "flip(0)",
    "affine": "affine",
    "elastic": "elastic(alpha=0)",
    "affine_elastic": "affine_elastic(alpha=0)",
    "cutout": "cutout(0)",
    "mixup": "mixup(0)",
    "cutmix": "cutmix(0)",
    "mixup_or_cutmix": "mixup_or_cutmix(0, 0)",
    "resized_crop": "resized_crop(area=1, ratio=1)",
    "scale_crop": "scale_crop(1, 1)",
    "pca_noise": "pca_noise(0)",
    "distort_colour": "distort_colour(0, 0, 0, 0)",
    "colour_jitter": "colour_jitter(0, 0, 0)",
    "rand_augment": "rand_augment(0)",
    "random_erasing": "random_erasing(0)",
}
# Operations that interpolate or blend: XLA may round them differently for another batch size.
ROUNDED = (
    "affine", "elastic", "affine_elastic", "resized_crop", "scale_crop", "colour_jitter", "pca_noise", "distort_colour",
    "rand_augment", "trivial_augment",
)  # fmt: skip
# Compiling dominates the run time; without optimisation it takes half as long.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
UNBOUNDED = ("pca_noise",)  # its sources do not clip
#: Operations made of parts that other operations test.
COMBINED = ("affine_elastic", "mixup_or_cutmix")


def each_of(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in COMBINED else []) for name in names]


every_name = pytest.mark.parametrize("name", each_of(AUGMENTATIONS))


def make_batch(batch=8, height=9, width=12, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, height, width, channels)).astype(np.float32)
    targets = np.eye(5, dtype=np.float32)[rng.integers(0, 5, batch)]
    return np.arange(batch, dtype=np.int32), images, targets


@partial(jit, static_argnames="ops")
def compiled(ops, key, index, images, targets):
    return augment(ops, key, index, images, targets, fill=(7.0,) * images.shape[-1])


def run(ops, key, *batch):
    return jax.tree.map(np.asarray, compiled(ops, key, *batch))


def keys_of_op(key, batch, n=0):
    """Return the keys of operation n for the examples of a batch, as described in the docstring of ops.py."""
    return fold_in_each(jax.random.fold_in(key, n), np.arange(batch))


fold_in_each = jit(jax.vmap(jax.random.fold_in, (None, 0)))


def keys_of(batch):
    return keys_of_op(jax.random.key(0), batch)


def draws(function, keys):
    return jax.tree.map(np.asarray, jit(jax.vmap(function))(keys))


# --- contract of every operation --------------------------------------------------------------------------------------


def test_the_tables_of_this_file_are_complete():
    assert set(STRONG) == set(AUGMENTATIONS)
    assert set(IDENTITY) == set(AUGMENTATIONS) - {"trivial_augment"}  # has no strength
    assert set(PAIRING) < set(AUGMENTATIONS)


@every_name
def test_contract(name):
    index, images, targets = make_batch()
    ops = (STRONG[name],)
    new, soft = run(ops, jax.random.key(1), index, images, targets)
    assert (new.shape, new.dtype) == (images.shape, jnp.float32)
    assert (soft.shape, soft.dtype) == (targets.shape, jnp.float32)
    assert np.isfinite(new).all()
    assert name in UNBOUNDED or (new.min() >= 0 and new.max() <= 255.001)
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-6)
    assert name in PAIRING or (soft == targets).all()
    assert (new != images).any()

    again, _ = run(ops, jax.random.key(1), index, images, targets)
    other, _ = run(ops, jax.random.key(2), index, images, targets)
    assert (again == new).all()
    assert (other != new).any()

    # Other positions in the global batch give other random numbers.
    later, _ = run(ops, jax.random.key(1), index + 8, images, targets)
    assert (later != new).any()


@pytest.mark.parametrize("name", each_of(IDENTITY))
def test_identity_at_zero_strength(name):
    index, images, targets = make_batch(1, channels=1)
    new, soft = run((IDENTITY[name],), jax.random.key(0), index, images, targets)
    assert (new == images).all() and (soft == targets).all()


@every_name
def test_results_do_not_depend_on_how_the_batch_is_sharded(name):
    index, images, targets = make_batch()
    whole = run((STRONG[name],), jax.random.key(3), index, images, targets)
    shards = [slice(0, 4), slice(4, 8)]
    parts = [run((STRONG[name],), jax.random.key(3), index[s], images[s], targets[s]) for s in shards]
    for one, many in zip(whole, zip(*parts, strict=True), strict=True):
        if name in ROUNDED:
            np.testing.assert_allclose(one, np.concatenate(many), atol=1e-3)
        else:
            assert np.array_equal(one, np.concatenate(many))


@pytest.mark.parametrize("name", PAIRING)
def test_examples_without_their_neighbour_are_unchanged(name):
    index, images, targets = make_batch()
    new, soft = run((STRONG[name],), jax.random.key(0), index[1:5], images[1:5], targets[1:5])
    assert (new == images[1:5]).all() and (soft == targets[1:5]).all()


def test_operations_are_applied_in_order_with_independent_numbers():
    index, images, targets = make_batch(32, channels=1)
    key = jax.random.key(5)
    new, _ = run(("shift(2)", "flip(1)", "shift(2)"), key, index, images, targets)
    keys = jnp.stack([keys_of_op(key, 32, n) for n in (0, 2)])
    first, second = draws(jax.vmap(lambda key: warp.draw_translation(key, 2)), keys)
    assert (first != second).any()
    for b in range(32):
        once = translate_by_loops(images[b], first[b], 7)
        assert np.array_equal(new[b], translate_by_loops(once[:, ::-1], second[b], 7))


def test_an_empty_list_of_operations_changes_nothing():
    index, images, targets = make_batch()
    new, soft = augment((), jax.random.key(0), index, images, targets, fill=(0, 0, 0))
    assert new is images and soft is targets


# --- moving pixels ----------------------------------------------------------------------------------------------------


def sample_by_loops(image, coordinates, fill):
    """Interpolate bilinearly, pixel by pixel, with fill outside the image."""
    height, width, _ = image.shape

    def pixel(y, x):
        return image[y, x].astype(float) if 0 <= y < height and 0 <= x < width else np.asarray(fill, float)

    out = np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            y, x = (float(c) for c in coordinates[:, i, j])
            top, left = math.floor(y), math.floor(x)
            for v, wv in ((top, top + 1 - y), (top + 1, y - top)):
                for u, wu in ((left, left + 1 - x), (left + 1, x - left)):
                    out[i, j] += wv * wu * pixel(v, u)
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_is_bilinear_with_fill_outside(channels):
    _, images, _ = make_batch(3, 5, 8, channels)
    fill = np.arange(channels) * 50.0 + 9
    rng = np.random.default_rng(1)
    coordinates = rng.uniform(-3, 11, (3, 2, 5, 8)).astype(np.float32)
    coordinates[0] = np.round(coordinates[0])  # exactly on pixels, inside and outside the image
    coordinates[1, :, 0] = [[4, 4, -1, 5, 0, 1e9, -1e9, 4], [7, 8, 0, 0, -1, 0, 0, -0.5]]  # edges, and far away
    got = jit(pixels.sample_bilinear)(images, coordinates, fill.astype(np.float32))
    expected = [sample_by_loops(i, c, fill) for i, c in zip(images, coordinates, strict=True)]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def translate_by_loops(image, offset, fill):
    (height, width, _), (down, right) = image.shape, offset
    out = np.empty_like(image)
    for i in range(height):
        for j in range(width):
            inside = 0 <= i - down < height and 0 <= j - right < width
            out[i, j] = image[i - down, j - right] if inside else fill
    return out


def test_translate_moves_whole_pixels():
    _, images, _ = make_batch(4, 5, 7, 2)
    offsets = np.array([(0, 0), (2, -3), (-3, 3), (3, 0)])
    got = jit(pixels.translate, static_argnums=3)(images, offsets, jnp.array([1.0, 2.0]), 3)
    for image, offset, moved in zip(images, offsets, np.asarray(got), strict=True):
        assert np.array_equal(moved, translate_by_loops(image, offset, (1, 2)))


def test_translations_are_uniform():
    offsets = draws(lambda key: warp.draw_translation(key, 2), keys_of(5000))
    counts = np.array([[((offsets[:, a]) == v).mean() for v in range(-2, 3)] for a in (0, 1)])
    assert offsets.min() == -2 and offsets.max() == 2
    np.testing.assert_allclose(counts, 0.2, atol=0.025)
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.05


def test_flip_is_left_to_right_for_about_half():
    index, images, targets = make_batch(400, 2, 3, 1)
    new, _ = run((STRONG["flip"],), jax.random.key(0), index, images, targets)
    flipped = draws(lambda key: warp.draw_flip(key, 0.5), keys_of_op(jax.random.key(0), 400))
    assert 160 < flipped.sum() < 240
    for was, now, turned in zip(images, new, flipped, strict=True):
        assert (now == (was[:, ::-1] if turned else was)).all()


def affine_by_matrix(drawn, height, width):
    """Coordinates [2, H, W] by inverting the forward map p -> centre + shift + R S K (p - centre), in (x, y)."""
    angle, scale_y, scale_x, shear, down, right = (float(v) for v in drawn)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    forward = np.array([[c, s], [-s, c]]) @ np.diag([scale_x, scale_y]) @ np.array([[1, shear], [0, 1]])
    back = np.linalg.inv(forward)
    centre, shift = np.array([(width - 1) / 2, (height - 1) / 2]), np.array([right, down])
    out = np.zeros((2, height, width))
    for i in range(height):
        for j in range(width):
            x, y = back @ (np.array([j, i]) - shift - centre) + centre
            out[:, i, j] = y, x
    return out


def test_affine_is_the_inverse_of_its_matrix():
    index, images, targets = make_batch(6, 7, 10, 1)
    numbers = {"rotate": 30, "scale": 0.3, "shear": 0.4, "shift": 3}
    new, _ = run((f"affine{tuple(numbers.values())}",), jax.random.key(4), index, images, targets)
    drawn = draws(lambda key: warp.draw_affine(key, **numbers), keys_of_op(jax.random.key(4), 6))
    for image, number, moved in zip(images, drawn, new, strict=True):
        expected = sample_by_loops(image, affine_by_matrix(number, 7, 10), [7])
        np.testing.assert_allclose(moved, expected, atol=0.02)


def test_affine_units_and_directions():
    rows, columns = jnp.arange(5.0)[:, None], jnp.arange(7.0)
    image = np.zeros((1, 5, 7, 1), np.float32)
    image[0, 2, 4] = 100  # one pixel to the right of the centre (2, 3)

    @jit
    def move(drawn):
        return pixels.sample_bilinear(
            image, warp.affine_coordinates(drawn, rows, columns, (5, 7)), np.zeros(1, np.float32)
        )

    def bright(**numbers):
        names = ("angle", "scale_y", "scale_x", "shear", "down", "right")
        plain = dict(zip(names, (0, 1, 1, 0, 0, 0), strict=True))
        moved = np.asarray(move(np.array([list((plain | numbers).values())], np.float32)))
        return [tuple(p) for p in np.argwhere(moved[0, :, :, 0] > 99).tolist()]

    assert bright() == [(2, 4)]
    assert bright(down=2, right=-1) == [(4, 3)]
    assert bright(scale_x=2) == [(2, 5)]
    assert bright(scale_y=2) == [(2, 4)]
    assert bright(angle=90) == [(1, 3)]  # counter-clockwise on the screen
    assert bright(down=1, shear=1) == [(3, 4)]  # sheared about the centre, whose row stays


def test_affine_numbers_are_uniform_within_their_strength():
    drawn = draws(lambda key: warp.draw_affine(key, 10.0, 0.2, 0.5, 3.0), keys_of(4000))
    unit = (drawn - [0, 1, 1, 0, 0, 0]) / [10, 0.2, 0.2, 0.5, 3, 3]
    assert np.abs(unit).max() <= 1.00001
    np.testing.assert_allclose(unit.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(unit.std(0), 1 / math.sqrt(3), atol=0.02)
    assert np.abs(np.corrcoef(unit.T) - np.eye(6)).max() < 0.07


def test_displacement_is_a_gaussian_blur_times_alpha():
    scipy = pytest.importorskip("scipy.ndimage")
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 2, 12, 17)).astype(np.float32)
    got = warp.displacement(jnp.asarray(noise), 34.0, 2.5)
    for one, field in zip(noise.reshape(4, 12, 17), np.asarray(got).reshape(4, 12, 17), strict=True):
        blurred = scipy.gaussian_filter(one.astype(float), 2.5, mode="constant", truncate=10)
        np.testing.assert_allclose(field, 34 * blurred, atol=1e-4)
    assert (warp.displacement(jnp.asarray(noise), 3.0, 0.0) == 3 * noise).all()


def test_displacements_have_the_size_given_in_the_docstring():
    noise = draws(lambda key: warp.draw_noise(key, 29, 29), keys_of(200))
    assert np.abs(noise).max() == pytest.approx(1)
    assert abs(float(noise.mean())) < 0.005
    assert abs(float(noise.std()) - 1 / math.sqrt(3)) < 0.005
    moved = np.asarray(warp.displacement(noise, 34.0, 4.0))[:, :, 10:19, 10:19]
    assert abs(moved.mean()) < 0.1
    assert 1.3 < np.sqrt((moved**2).mean()) < 1.5
    assert abs(np.corrcoef(moved[:, 0].ravel(), moved[:, 1].ravel())[0, 1]) < 0.1  # down and right are independent
    assert np.abs(np.diff(moved, axis=-1)).max() < 1.5  # smooth: neighbours move together


def test_affine_elastic_is_one_interpolation_of_both_maps():
    index, images, targets = make_batch(3, 8, 11, 1)
    new, _ = run(("affine_elastic(25, 0.2, 0.3, 2, 20, 2)",), jax.random.key(8), index, images, targets)

    def draw(key):
        for_affine, for_noise = jax.random.split(key)
        return warp.draw_affine(for_affine, 25, 0.2, 0.3, 2), warp.draw_noise(for_noise, 8, 11)

    drawn, noise = draws(draw, keys_of_op(jax.random.key(8), 3))
    displaced = np.asarray(jit(warp.displacement, static_argnums=(1, 2))(noise, 20.0, 2.0))
    for b in range(3):
        # Coordinates of the affine map are linear in the pixel's, so displaced pixels follow by extrapolation.
        at = np.stack(np.meshgrid(np.arange(8), np.arange(11), indexing="ij")) + displaced[b]
        base = affine_by_matrix(drawn[b], 8, 11)
        by_row, by_column = base[:, 1, 0] - base[:, 0, 0], base[:, 0, 1] - base[:, 0, 0]
        at = base[:, :1, :1] + by_row[:, None, None] * at[0] + by_column[:, None, None] * at[1]
        np.testing.assert_allclose(new[b], sample_by_loops(images[b], at, [7]), atol=0.05)


# --- covering and mixing ----------------------------------------------------------------------------------------------


def box_by_loops(centre, extent, height, width):
    top, left = (int(c) - int(e) // 2 for c, e in zip(centre, extent, strict=True))
    return np.array(
        [
            [top <= i < top + int(extent[0]) and left <= j < left + int(extent[1]) for j in range(width)]
            for i in range(height)
        ]
    )


def test_boxes_are_clipped_at_the_edge():
    centres = np.array([(4, 5), (0, 0), (8, 11), (3, 7), (2, 2), (4, 4), (0, 11)])
    extents = np.array([(4, 4), (5, 5), (4, 4), (1, 2), (0, 3), (40, 40), (3, 6)])
    masks = jit(pixels.box_mask, static_argnums=(2, 3))(centres, extents, 9, 12)
    expected = [box_by_loops(centre, extent, 9, 12) for centre, extent in zip(centres, extents, strict=True)]
    assert np.array_equal(masks, expected)
    assert masks.sum((1, 2)).tolist() == [16, 9, 9, 2, 0, 108, 8]


def test_cutout_covers_a_square_with_fill():
    index, images, targets = make_batch()
    new, _ = run((STRONG["cutout"],), jax.random.key(2), index, images, targets)
    centres = draws(lambda key: mixing.draw_centre(key, 9, 12), keys_of_op(jax.random.key(2), 8))
    for image, centre, covered in zip(images, centres, new, strict=True):
        box = box_by_loops(centre, (4, 4), 9, 12)
        assert np.array_equal(covered, np.where(box[:, :, None], 7, image))


def test_centres_are_uniform_over_the_image():
    centres = draws(lambda key: mixing.draw_centre(key, 3, 4), keys_of(6000))
    counts = np.bincount(centres[:, 0] * 4 + centres[:, 1], minlength=12)
    assert len(counts) == 12
    np.testing.assert_allclose(counts / 6000, 1 / 12, atol=0.015)


def test_swap_neighbours():
    assert mixing.swap_neighbours(jnp.arange(5)).tolist() == [1, 0, 3, 2, 4]
    assert mixing.swap_neighbours(jnp.arange(1)).tolist() == [0]


def test_mixup_blends_pairs():
    index, images, targets = make_batch(7)
    new, soft = run((STRONG["mixup"],), jax.random.key(0), index, images, targets)
    shares = draws(lambda key: mixing.draw_weight(key, 1.0), keys_of_op(jax.random.key(0), 7))
    for b in range(6):
        share = float(shares[b // 2 * 2])
        assert np.array_equal(new[b], share * images[b] + (1 - share) * images[b ^ 1])
        np.testing.assert_allclose(soft[b], share * targets[b] + (1 - share) * targets[b ^ 1], atol=1e-6)
    np.testing.assert_allclose(soft.sum(0), targets.sum(0), rtol=1e-5)  # every example counts once
    assert (new[6] == images[6]).all() and (soft[6] == targets[6]).all()  # the last of an odd batch


def test_cutmix_mixes_targets_by_the_number_of_pasted_pixels():
    index, images, targets = make_batch(7)
    new, soft = run((STRONG["cutmix"],), jax.random.key(0), index, images, targets)
    centres, extents = draws(lambda key: mixing.draw_cutmix(key, 1.0, 9, 12), keys_of_op(jax.random.key(0), 7))
    pasted = 0
    for b in range(6):
        box = box_by_loops(centres[b // 2 * 2], extents[b // 2 * 2], 9, 12)
        assert (np.asarray(new[b]) == np.where(box[:, :, None], images[b ^ 1], images[b])).all()
        share = np.float32(box.sum()) / np.float32(9 * 12)
        assert (np.asarray(soft[b]) == (1 - share) * targets[b] + share * targets[b ^ 1]).all()
        pasted += box.sum()
    assert pasted > 0
    assert (new[6] == images[6]).all() and (soft[6] == targets[6]).all()  # the last of an odd batch


def test_cutmix_boxes_have_one_minus_the_weight_as_area():
    centre, extent = draws(lambda key: mixing.draw_cutmix(key, 1.0, 100, 200), keys_of(3000))
    area = extent.prod(1) / 20_000
    assert abs(area.mean() - 0.5) < 0.02 and abs((area < 0.25).mean() - 0.25) < 0.03  # Beta(1, 1) is uniform
    np.testing.assert_allclose(extent[:, 1] / 2, extent[:, 0], atol=1)  # same aspect ratio as the image
    assert (centre >= 0).all() and (centre < [100, 200]).all()
    assert abs(np.corrcoef(centre[:, 0], area)[0, 1]) < 0.06


@pytest.mark.parametrize("alpha", [0.2, *(pytest.param(alpha, marks=pytest.mark.slow) for alpha in (1.0, 4.0))])
def test_mixup_weights_are_beta_distributed(alpha):
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)), in steps of 2**-16."""
    weights = draws(lambda key: mixing.draw_weight(key, alpha), keys_of(5000))
    assert weights.min() >= 0 and weights.max() <= 1 and (weights * 2**16 % 1 == 0).all()
    assert (weights * 2**15 % 1 != 0).any()
    assert abs(weights.mean() - 0.5) < 0.025
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


@pytest.mark.parametrize("alpha", [0.3, pytest.param(3.0, marks=pytest.mark.slow)])
def test_cutmix_areas_are_beta_distributed(alpha):
    _, extent = draws(lambda key: mixing.draw_cutmix(key, alpha, 1000, 1000), keys_of(5000))
    area = extent.prod(1) / 1e6
    assert abs(area.mean() - 0.5) < 0.025
    assert area.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


@pytest.mark.slow
def test_mixup_or_cutmix_draws_each_with_its_own_alpha():
    """mixup with a large alpha has weights near 1/2; cutmix with alpha 1 has uniform areas."""
    weights, mean = draws(lambda key: mixing.draw_mixture(key, 200.0, 1.0, 20, 30), keys_of(3000))
    blended = np.ptp(weights, axis=(1, 2)) == 0
    blended &= ~np.isin(weights[:, 0, 0], (0, 1))
    assert abs(blended.mean() - 0.5) < 0.03
    assert np.abs(weights[blended] - 0.5).max() < 0.15
    assert np.isin(weights[~blended], (0, 1)).all()
    np.testing.assert_allclose(mean, weights.mean((1, 2)), atol=1e-6)
    pasted = 1 - mean[~blended]
    assert 0.25 < pasted.mean() < 0.4  # uniform area, clipped at the edge of the image


@pytest.mark.parametrize("p, low, high", [(0.0, 0, 0), (0.25, 0.22, 0.28), (1, 1, 1)])
def test_flip_probability(p, low, high):
    assert low <= draws(lambda key: warp.draw_flip(key, p), keys_of(3000)).mean() <= high


@pytest.mark.parametrize("operation, argument", [(warp.pad_crop, "pad"), (warp.shift, "pixels")])
def test_pad_crop_and_shift_translate_by_whole_pixels(operation, argument):
    index, images, targets = make_batch()
    keys, fill = keys_of(8), np.full(3, 7, np.float32)
    moved, same = jit(partial(operation, **{argument: 3}))(keys, index, images, targets, fill)
    offsets = draws(lambda key: warp.draw_translation(key, 3), keys)
    expected = [translate_by_loops(image, offset, 7) for image, offset in zip(images, offsets, strict=True)]
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(same, targets)


def test_blur_matrix_is_a_normalised_gaussian():
    matrix = warp.blur_matrix(9, 1.5)
    kernel = np.exp(-(np.arange(-40, 41) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    expected = [[kernel[40 + i - j] for j in range(9)] for i in range(9)]
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    wide = warp.blur_matrix(3, 5.0)  # wider than the image
    assert wide.sum() < 1 and wide[0, 0] == pytest.approx(1 / (5 * math.sqrt(2 * math.pi)), rel=1e-4)
    np.testing.assert_array_equal(warp.blur_matrix(3, 0), np.eye(3))


def test_noise_uses_every_level():
    noise = draws(lambda key: warp.draw_noise(key, 5, 3), keys_of(2000))
    assert noise.shape == (2000, 2, 5, 3)
    np.testing.assert_array_equal(np.unique(np.rint((noise + 1) * 127.5)), np.arange(256))
    assert np.abs(np.corrcoef(noise.reshape(2000, -1).T) - np.eye(30)).max() < 0.12


# --- table and parser -------------------------------------------------------------------------------------------------


def test_parse_reads_names_and_numbers():
    assert parse("affine(rotate=10, shift=2)") == ("affine", {"rotate": 10, "shift": 2})
    assert parse(" affine(10, 0.1, shift=+2.5) ") == ("affine", {"rotate": 10, "scale": 0.1, "shift": 2.5})
    assert parse("flip") == parse("flip()") == ("flip", {})
    named = ("resized_crop", {"area": 0.2, "interpolation": "any"})
    assert parse("resized_crop(0.2, interpolation=any)") == parse("resized_crop(0.2, interpolation='any')") == named


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("afine(rotate=10)", ["'afine'", "affine"]),
        ("xyz", ["'xyz'", *AUGMENTATIONS]),
        ("affine(rotat=10)", ["'rotat'", "rotate?"]),
        ("affine(keys=1)", ["'keys'", "rotate", "shear"]),
        ("affine(rotate=10", ["'affine(rotate=10, shift=2)'"]),
        ("", ["'flip'"]),
        ("flip; flip", ["'flip'", "a comma separates"]),
        ("aug.flip(0.5)", ["'flip'"]),
        ("flip(**{'p': 1})", ["'affine(rotate=10, shift=2)'"]),
        ("flip(*[1])", ["p must", "*[1]"]),
        ("flip(0.5, 0.5)", ["flip takes p", "2"]),
        ("trivial_augment(9)", ["trivial_augment", "1"]),
        ("flip(0.5, p=0.5)", [": p "]),
        ("flip(p=print(1))", ["p must", "print(1)"]),
        ("flip(p='1')", ["p must", "not '1'"]),
        ("flip(p=True)", ["p must", "not True"]),
        ("shift(True)", ["pixels must", "not True"]),
        ("flip(p=1.5)", ["p must", "0 and 1", "1.5"]),
        ("flip(p=-1)", ["p must", "0 and 1", "-1"]),
        ("affine(scale=1)", ["scale must", "0 and 0.9"]),
        ("shift(1.5)", ["pixels must", "integer", "1.5"]),
        ("rand_augment(number=1.5)", ["number must", "integer", "1.5"]),
        ("elastic(alpha=1e999)", ["alpha must", "inf"]),
        ("resized_crop(interpolation=bicubik)", ["interpolation must", "bicubik", "bicubic"]),
        ("resized_crop(interpolation=1)", ["interpolation must", "bilinear, bicubic, random, any"]),
        ("resized_crop(interpolation=[bicubic])", ["interpolation must", "[bicubic]"]),
        ("elastic(alpha=1" + "0" * 400 + ")", ["alpha must", "000"]),
        ("mixup(alpha=1e-320)", ["alpha must", "1e-320"]),
        ("mixup(alpha=1e300)", ["alpha must", "1e+06"]),
        ("shift(4294967296)", ["pixels must", "0 and 1024"]),
        ("rand_augment(17)", ["number must", "0 and 16"]),
    ],
)
def test_parse_rejects_in_one_line(text, names):
    with pytest.raises(ValueError, match=re.escape(repr(text))) as error:
        parse(text)
    assert all(name in str(error.value) for name in names) and "\n" not in str(error.value)


# The published or customary values, with their source in each function's docstring. Recipes rely on them.
DEFAULTS = {
    "pad_crop": {"pad": 4, "reflect": 0},
    "shift": {"pixels": 2},
    "flip": {"p": 0.5},
    "affine": {"rotate": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0},
    "elastic": {"alpha": 34.0, "sigma": 4.0},  # Simard et al. 2003
    "affine_elastic": {"rotate": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "alpha": 34.0, "sigma": 4.0},
    "cutout": {"size": 16},  # DeVries and Taylor 2017, CIFAR-10
    "mixup": {"alpha": 0.2},  # Zhang et al. 2017, ImageNet
    "cutmix": {"alpha": 1.0},  # Yun et al. 2019
    "mixup_or_cutmix": {"mixup": 0.2, "cutmix": 1.0},
    "resized_crop": {"area": 0.08, "ratio": 0.75, "interpolation": "bilinear"},  # Szegedy et al. 2014, section 6
    "scale_crop": {"low": 256 / 224, "high": 256 / 224},  # Krizhevsky et al. 2012, section 4.1
    "colour_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.0},
    "pca_noise": {"sigma": 0.1},  # Krizhevsky et al. 2012, section 4.1
    # tensorflow/models, inception/image_processing.py
    "distort_colour": {"brightness": 32 / 255, "contrast": 0.5, "saturation": 0.5, "hue": 0.2, "slim": 0},
    # Cubuk et al. 2019, ImageNet, on the scale of 0 to 10
    "rand_augment": {"number": 2, "magnitude": 9.0, "p": 1.0, "std": 0.0, "increasing": 0},
    "trivial_augment": {},
    "random_erasing": {"p": 0.25, "smallest": 0.02, "largest": 0.33, "ratio": 0.3},  # timm and torchvision
}


def test_operations_parameters_and_defaults_are_pinned():
    """Names, order, types and defaults are public: recipes and --augment use them."""
    assert list(AUGMENTATIONS) == list(DEFAULTS) and PAIRING == ("mixup", "cutmix", "mixup_or_cutmix")
    for name, function in AUGMENTATIONS.items():
        parameters = inspect.signature(function).parameters.values()
        assert [p.name for p in parameters][:5] == ["keys", "index", "images", "targets", "fill"]
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert list(defaults.items()) == list(DEFAULTS[name].items())
        assert [type(value) for value in defaults.values()] == [type(value) for value in DEFAULTS[name].values()]


BOUNDS = {
    ("flip", "p"): (0, 1),
    ("random_erasing", "p"): (0, 1),
    ("affine", "scale"): (0, 0.9),
    ("affine", "rotate"): (0, 180),
    ("affine", "shear"): (0, 10**6),
    ("resized_crop", "area"): (0, 1),
    ("resized_crop", "ratio"): (0.01, 1),
    ("random_erasing", "smallest"): (0, 1),
    ("random_erasing", "largest"): (0, 1),
    ("colour_jitter", "hue"): (0, 0.5),
    ("colour_jitter", "brightness"): (0, 10**6),
    ("rand_augment", "magnitude"): (0, 10),
    ("mixup", "alpha"): (0, 10**6),
    ("pad_crop", "pad"): (0, 1024),
}


@pytest.mark.parametrize(("operation", "argument"), BOUNDS)
def test_bounds_of_arguments_are_inclusive(operation, argument):
    lower, upper = BOUNDS[operation, argument]
    for bound, outside in ((lower, lower - 0.001), (upper, upper + 0.001)):
        assert parse(f"{operation}({argument}={bound})") == (operation, {argument: bound})
        with pytest.raises(ValueError, match=argument):
            parse(f"{operation}({argument}={outside})")


def test_augment_rejects_what_parse_rejects():
    index, images, targets = make_batch()
    with pytest.raises(ValueError, match="'flipp'"):
        augment(("flipp",), jax.random.key(0), index, images, targets, fill=(0, 0, 0))
