"""RandAugment and TrivialAugment: random operations of one set, as in Pillow, at given or random strengths.

The functions have the form that ops.py describes; see photo.py for the colours of images with one channel.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.data.augment.photo import blend, grey, select_case, smooth
from zoo.data.augment.pixels import sample_bilinear

# Operations of RandAugment with their strength at magnitude 10: Cubuk et al. 2018 (arXiv:1805.09501), table 6, to which
# Cubuk et al. 2019 refer. Units: degrees; pixels per pixel; shares of the image's side (150 of their 331 pixels);
# deviation of the factor from 1; bits removed of 8; levels below 256 of the threshold.
RAND_AUGMENT: dict[str, float] = {
    "identity": 0,
    "rotate": 30,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "brightness": 0.9,
    "contrast": 0.9,
    "color": 0.9,
    "sharpness": 0.9,
    "posterize": 4,
    "solarize": 256,
    "autocontrast": 0,
    "equalize": 0,
}

# The same for TrivialAugment, at its largest magnitude: the Wide space of Müller and Hutter 2021 (arXiv:2103.10158),
# except that translations are in pixels.
TRIVIAL_AUGMENT: dict[str, float] = {
    "identity": 0,
    "rotate": 135,
    "shear_x": 0.99,
    "shear_y": 0.99,
    "translate_x": 32,
    "translate_y": 32,
    "brightness": 0.99,
    "contrast": 0.99,
    "color": 0.99,
    "sharpness": 0.99,
    "posterize": 6,
    "solarize": 256,
    "autocontrast": 0,
    "equalize": 0,
}
#: Operations that `draw_operation` chooses from, and all that `apply_operation` knows.
OPERATIONS = tuple(RAND_AUGMENT)
ALL_OPERATIONS = (*OPERATIONS, "invert", "solarize_add")
LEVEL_OPERATIONS = ("posterize", "solarize", "autocontrast", "equalize", "invert", "solarize_add")


def _is_any_of(kind: Array, *names: str) -> Array:
    """Return True for examples whose operation is among the names, bool [B]."""
    return jnp.isin(kind, np.array([ALL_OPERATIONS.index(name) for name in names]))


def affine_maps(kind: Array, strength: Array, height: int, width: int) -> Array:
    """Compute the coefficients (a, b, c, d, e, f) of Pillow's Image.transform, float32 [B, 6].

    The pixel (x, y) of the result comes from (ax + by + c, dx + ey + f), with x to the right and y down from the outer
    corner of the first pixel. Shears keep that corner, as in Pillow, and rotations the centre. Other operations give
    exactly the identity.
    """

    def strength_if(*names: str) -> Array:
        return jnp.where(_is_any_of(kind, *names), strength, 0)

    angle = jnp.deg2rad(strength_if("rotate"))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    c = width / 2 - cosine * (width / 2) + sine * (height / 2) - strength_if("translate_x")
    f = height / 2 - sine * (width / 2) - cosine * (height / 2) - strength_if("translate_y")
    return jnp.stack([cosine, strength_if("shear_x") - sine, c, strength_if("shear_y") + sine, cosine, f], axis=1)


def apply_affine(images: Array, maps: Array, fill: Array) -> Array:
    """Transform images by `affine_maps`, bilinear, with `fill` [C] outside."""
    a, b, c, d, e, f = (maps[:, n, None, None] for n in range(6))
    y, x = jnp.arange(images.shape[1])[:, None] + 0.5, jnp.arange(images.shape[2]) + 0.5
    return sample_bilinear(images, jnp.stack([d * x + e * y + f, a * x + b * y + c], axis=1) - 0.5, fill)


def enhance(images: Array, kind: Array, strength: Array) -> Array:
    """Scale brightness, contrast, colour or sharpness by 1 + strength [B], as Pillow's ImageEnhance.

    Each is a blend with a degenerate image: black, the mean grey, the grey image or the smoothed image. Examples with
    another operation are unchanged.
    """
    luma = grey(images)
    degenerate = [jnp.zeros_like(luma), luma.mean((1, 2), keepdims=True), luma, smooth(images)]
    blended = blend(images, select_case(kind - OPERATIONS.index("brightness"), degenerate), 1 + strength)
    selected = _is_any_of(kind, "brightness", "contrast", "color", "sharpness")
    return jnp.where(selected[:, None, None, None], blended, images)


def _table_indices(levels: Array) -> Array:
    """Return the index of each pixel's level in a table [B, C * 256], as [B, H * W * C]."""
    return (levels + 256 * jnp.arange(levels.shape[-1])).reshape(len(levels), -1)


def cumulative_counts(levels: Array) -> Array:
    """Count the pixels of each channel at or below each of 256 levels: int32 [B, H, W, C] to int32 [B, C, 256].

    Implemented as a scatter of ones, exact in any order (measured in docs/performance.md).
    """
    channels = levels.shape[-1]
    zeros = jnp.zeros(256 * channels, jnp.int32)
    counts = jax.vmap(lambda index: zeros.at[index].add(1, mode="promise_in_bounds"))(_table_indices(levels))
    return jnp.cumsum(counts.reshape(-1, channels, 256), axis=-1)


def level_tables(kind: Array, strength: Array, counts: Array) -> Array:
    """Return the level tables of LEVEL_OPERATIONS, per channel, as in Pillow's ImageOps.

    Args:
        kind: int [B], indices in ALL_OPERATIONS; the identity table for other operations.
        strength: [B]; its sign is ignored.
        counts: int32 [B, C, 256], `cumulative_counts` of the images.

    Returns:
        int32 [B, C, 256].
    """
    levels = jnp.arange(256)
    amount = jnp.round(jnp.abs(strength)).astype(jnp.int32)[:, None, None]
    posterized = levels >> amount << amount
    solarized = jnp.where(levels < 256 - amount, levels, 255 - levels)

    total = counts[..., -1:]
    low = (counts == 0).sum(-1, keepdims=True)  # the darkest level in use
    high = (counts < total).sum(-1, keepdims=True)  # the brightest level in use
    stretched = jnp.clip((levels - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    stretched = jnp.where(high > low, stretched, levels)

    darker = jnp.pad(counts[..., :-1], ((0, 0), (0, 0), (1, 0)))  # pixels below each level
    step = (
        jnp.where(counts < total, counts, 0).max(-1, keepdims=True) // 255
    )  # pixels below the brightest level, by 255
    equalized = jnp.clip((darker + step // 2) // jnp.maximum(step, 1), 0, 255)
    equalized = jnp.where(step > 0, equalized, levels)

    tables = jnp.broadcast_to(levels, counts.shape)
    named = {
        "posterize": posterized,
        "solarize": solarized,
        "autocontrast": stretched,
        "equalize": equalized,
        "invert": 255 - levels,
        "solarize_add": jnp.where(levels < 128, jnp.minimum(levels + amount, 255), levels),
    }
    for name, table in named.items():
        tables = jnp.where(_is_any_of(kind, name)[:, None, None], table, tables)
    return tables


def apply_level_tables(images: Array, kind: Array, strength: Array) -> Array:
    """Apply the operations of LEVEL_OPERATIONS by a level table per channel; others are unchanged."""
    # Round halves up, which are common after a blend, including those slightly below by rounding errors.
    levels = jnp.clip(jnp.floor(images + 0.501), 0, 255).astype(jnp.int32)
    tables = level_tables(kind, strength, cumulative_counts(levels))
    flat = tables.reshape(len(tables), -1)
    mapped = jnp.take_along_axis(flat, _table_indices(levels), axis=1, mode="promise_in_bounds").reshape(images.shape)
    selected = _is_any_of(kind, *LEVEL_OPERATIONS)
    return jnp.where(selected[:, None, None, None], mapped.astype(images.dtype), images)


def apply_operation(images: Array, kind: Array, strength: Array, fill: Array) -> Array:
    """Apply the operation ALL_OPERATIONS[kind[b]] with strength[b] to example b.

    Three passes (geometry, blends, level tables) each leave the other examples unchanged; a switch between sixteen
    branches would compute all of them for every example.

    Args:
        images: float32 [B, H, W, C].
        kind: int [B].
        strength: [B], in the units of RAND_AUGMENT, but translations in pixels.
        fill: [C].
    """
    images = apply_affine(images, affine_maps(kind, strength, *images.shape[1:3]), fill)
    return apply_level_tables(enhance(images, kind, strength), kind, strength)


def draw_operation(key: Array) -> tuple[Array, Array, Array]:
    """Draw the index of an operation, a sign (±1.0) and a magnitude among 0, 1/30, ..., 1, all uniform."""
    kind_key, sign_key, magnitude_key = jax.random.split(key, 3)
    kind = jax.random.randint(kind_key, (), 0, len(OPERATIONS))
    return kind, jax.random.rademacher(sign_key, (), jnp.float32), jax.random.randint(magnitude_key, (), 0, 31) / 30


def _max_strength(table: Mapping[str, float], kind: Array) -> Array:
    """Look up the largest strength of each example's operation, float32 [B]."""
    return jnp.array([table.get(name, 0) for name in ALL_OPERATIONS], jnp.float32)[kind]


def draw_layer(key: Array, p: float, magnitude: float, std: float, increasing: bool) -> tuple[Array, Array, Array]:
    """Draw the operation of a layer of RandAugment, its sign (±1.0) and its magnitude in 0..10.

    Args:
        key: of one example and layer.
        p: probability of an operation; otherwise the index is that of "identity".
        magnitude: mean of the magnitude.
        std: its standard deviation.
        increasing: choose from timm's "increasing" set: all operations but "identity".
    """
    kind, sign, _ = draw_operation(key)
    coin_key, noise_key, kind_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    if increasing:
        kind = jax.random.randint(kind_key, (), 1, len(ALL_OPERATIONS))
    if p < 1:
        kind = jnp.where(jax.random.bernoulli(coin_key, float(p)), kind, 0)
    level = jnp.asarray(magnitude, jnp.float32)
    if std:
        level = jnp.clip(level + std * jax.random.normal(noise_key), 0, 10)
    return kind, sign, level


def increasing_strengths(kind: Array, sign: Array, level: Array, height: int, width: int) -> Array:
    """Return the strengths of operations of timm's "increasing" set, for `apply_operation`.

    Args:
        kind: int [B], indices in ALL_OPERATIONS.
        sign: float32 [B], ±1.
        level: float32 [B], 0..10.
        height: of the images.
        width: of the images.
    """
    largest = RAND_AUGMENT | {"translate_x": 0.45 * width, "translate_y": 0.45 * height}
    strength = sign * (level / 10) * _max_strength(largest, kind)
    whole = {"posterize": (4, 4), "solarize": (0, 256), "solarize_add": (0, 110)}  # from, and more at magnitude 10
    for name, (least, span) in whole.items():
        strength = jnp.where(_is_any_of(kind, name), least + jnp.floor(level / 10 * span), strength)
    return strength


def rand_augment(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    number: int = 2,
    magnitude: float = 9.0,
    p: float = 1.0,
    std: float = 0.0,
    increasing: int = 0,
) -> tuple[Array, Array]:
    """Apply `number` random operations of fourteen in turn: RandAugment (Cubuk et al. 2019, arXiv:1909.13719).

    `magnitude`, 0 to 10, has the scale of the paper and timm (torchvision's goes to 30: 9 there is 3 here). All
    strengths grow with it, to those of RAND_AUGMENT at 10; their sign is random. Interpolation is bilinear. Magnitude 0
    still changes images, by autocontrast and equalize; number 0 does not.

    timm's "rand-m7-mstd0.5-inc1" is `rand_augment(2, 7, p=0.5, std=0.5, increasing=1)`: each operation is applied with
    probability `p`, at a magnitude with standard deviation `std`, from a set of fifteen with invert and solarize_add,
    without identity, where posterize removes 4 bits more and translations reach 0.45.
    """
    height, width = images.shape[1:3]
    strengths = RAND_AUGMENT | {
        "translate_x": RAND_AUGMENT["translate_x"] * width,
        "translate_y": RAND_AUGMENT["translate_y"] * height,
    }
    for n in range(number):
        layer = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)
        kind, sign, level = jax.vmap(lambda key: draw_layer(key, p, magnitude, std, bool(increasing)))(layer)
        if increasing:
            strength = increasing_strengths(kind, sign, level, height, width)
        elif std:
            strength = sign * (level / 10) * _max_strength(strengths, kind)
        else:
            strength = sign * (magnitude / 10) * _max_strength(strengths, kind)
        images = apply_operation(images, kind, strength, fill)
    return images, targets


def trivial_augment(keys: Array, index: Array, images: Array, targets: Array, fill: Array) -> tuple[Array, Array]:
    """Apply one of fourteen operations at a random magnitude: TrivialAugment (Müller and Hutter 2021).

    The magnitude has 31 steps from 0 to the strengths of TRIVIAL_AUGMENT. Interpolation is bilinear. See
    arXiv:2103.10158, table of spaces, Wide.
    """
    kind, sign, magnitude = jax.vmap(draw_operation)(keys)
    return apply_operation(images, kind, sign * magnitude * _max_strength(TRIVIAL_AUGMENT, kind), fill), targets
