"""Augmentation of photographs: random-resized crops, colour jitter, RandAugment, TrivialAugment, random erasing.

The functions have the same form as those of ops.py, whose table lists them: (keys, index, images, targets, fill,
numbers) -> (images, targets), with drawing separate from applying. Images are float32 [B, H, W, C] in 0..255. Colour
operations take three channels as red, green and blue; images with another number of channels have no colour.

The operations act on the model's input, after the loader's resizing, whereas the papers' pipelines act on the file's
pixels.
"""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.data.augment.pixels import box_mask, sample_bilinear

# --- boxes ------------------------------------------------------------------------------------------------------------


def draw_box(key: Array, smallest: float, largest: float, ratio: float, height: int, width: int) -> tuple[Array, Array]:
    """Draw a box inside the image: (row, column) of its first pixel and (height, width) in pixels, both int32 [2].

    The area, as a share of the image, is uniform between smallest and largest. The aspect ratio, width by height in
    units of the image's, is log-uniform between ratio and 1/ratio. The first of ten shapes that fits is placed
    uniformly; if none fits, the first is clipped to the image.
    """
    shape_key, place_key = jax.random.split(key)
    area, stretch = jax.random.uniform(shape_key, (2, 10))
    area = smallest + (largest - smallest) * area
    stretch = ratio ** (2 * stretch - 1)
    sides = jnp.sqrt(jnp.stack([area / stretch, area * stretch]))
    size = jnp.array([height, width])
    chosen = sides[:, jnp.argmax((sides <= 1).all(0))]
    extent = jnp.clip(jnp.round(chosen * size), 1, size).astype(jnp.int32)
    return jax.random.randint(place_key, (2,), 0, size - extent + 1), extent


def crop_and_resize(images: Array, start: Array, extent: Array) -> Array:
    """Enlarge boxes to the size of the images, bilinear.

    Implemented as products with interpolation weights. Enlarging needs no antialiasing, and pixels outside the box are
    not used.

    Args:
        images: float32 [B, H, W, C].
        start: int [B, 2], (row, column) of the first pixel of each box.
        extent: int [B, 2], (height, width) of each box, which lies inside the image.

    Returns:
        float32 [B, H, W, C].
    """

    def weights(axis: int, size: int) -> Array:  # [B, out, in]
        first, length = start[:, axis, None], extent[:, axis, None]
        pixels = jnp.arange(size)
        position = first + pixels + (pixels + 0.5) * ((length - size) / size)  # exact if the box is the whole image
        position = jnp.clip(position, first, first + length - 1)
        return jnp.maximum(0, 1 - jnp.abs(position[..., None] - pixels))

    height, width = images.shape[1:3]
    images = jnp.einsum("bij,bjkc->bikc", weights(0, height), images, precision="highest")
    return jnp.einsum("bij,bkjc->bkic", weights(1, width), images, precision="highest")


def resized_crop(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, area: float = 0.08, ratio: float = 0.75
) -> tuple[Array, Array]:
    """Crop a random box and resize it to the size of the image (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    As in torchvision, the area is uniform between `area` and 1, as a share of the image, and the aspect ratio
    log-uniform between `ratio` and 1/ratio, in units of the image's. The paper uses 8 to 100 % and 3/4 to 4/3.
    """
    height, width = images.shape[1:3]
    start, extent = jax.vmap(lambda key: draw_box(key, area, 1.0, ratio, height, width))(keys)
    return crop_and_resize(images, start, extent), targets


def draw_erasing(key: Array, p: float, height: int, width: int, **box: float) -> tuple[Array, Array]:
    """Draw a box as `draw_box`, with probability p; otherwise its height and width are 0."""
    coin_key, box_key = jax.random.split(key)
    start, extent = draw_box(box_key, height=height, width=width, **box)
    return start, jnp.where(jax.random.bernoulli(coin_key, float(p)), extent, 0)


def random_erasing(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    p: float = 0.25,
    smallest: float = 0.02,
    largest: float = 0.33,
    ratio: float = 0.3,
) -> tuple[Array, Array]:
    """Cover a random box inside the image with probability p: random erasing (Zhong et al. 2017, arXiv:1708.04896).

    The box has between `smallest` and `largest` of the image's area and an aspect ratio between `ratio` and 1/ratio. It
    is filled with `fill`, which is 0 in normalised photographs, as in torchvision; in the paper, noise is slightly
    better. The paper uses p = 0.5, recipes of timm and torchvision 0.1 to 0.25.
    """
    height, width = images.shape[1:3]
    box = {"smallest": smallest, "largest": largest, "ratio": ratio}
    start, extent = jax.vmap(lambda key: draw_erasing(key, p, height, width, **box))(keys)
    mask = box_mask(start + extent // 2, extent, height, width)
    return jnp.where(mask[..., None], fill, images), targets


# --- colour -----------------------------------------------------------------------------------------------------------


def grey(images: Array) -> Array:
    """Return the luma [B, H, W, 1] of RGB images (ITU-R BT.601, as in Pillow); otherwise the mean of the channels."""
    if images.shape[-1] != 3:
        return images.mean(-1, keepdims=True)
    red, green, blue = jnp.split(images, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def smooth(images: Array) -> Array:
    """Smooth with a 3x3 kernel of ones and a centre of 5; the border is unchanged (Pillow's SMOOTH)."""
    if min(images.shape[1:3]) < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    boxes = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smoothed = (boxes + 4 * images[:, 1:-1, 1:-1]) / 13
    inside = np.zeros((*images.shape[1:3], 1), bool)
    inside[1:-1, 1:-1] = True
    return jnp.where(inside, jnp.pad(smoothed, ((0, 0), (1, 1), (1, 1), (0, 0))), images)


def blend(images: Array, degenerate: Array, factor: Array) -> Array:
    """Interpolate or extrapolate from `degenerate` (factor 0) through `images` (factor 1), clipped; factor is [B]."""
    return jnp.clip(degenerate + factor[:, None, None, None] * (images - degenerate), 0, 255)


def _select(which: Array, cases: Sequence[Array]) -> Array:
    """Select cases[which[b]] for example b; the cases broadcast to [B, H, W, C]."""
    chosen = cases[0]
    for n, case in enumerate(cases[1:], 1):
        chosen = jnp.where((which == n)[:, None, None, None], case, chosen)
    return chosen


def rotate_hue(images: Array, turns: Array) -> Array:
    """Rotate the hue by turns [B], in full circles; saturation and value (of HSV) stay."""
    if images.shape[-1] != 3:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)
    value = images.max(-1, keepdims=True)
    chroma = value - images.min(-1, keepdims=True)
    some = jnp.where(chroma == 0, 1, chroma)
    hue = jnp.where(value == green, (blue - red) / some + 2, (red - green) / some + 4)
    hue = jnp.where(value == red, (green - blue) / some, hue)  # in sixths of the circle, from -1 to 5
    sector = (hue + 6 * turns[:, None, None, None] + jnp.array([5.0, 3.0, 1.0])) % 6
    return value - chroma * jnp.clip(jnp.minimum(sector, 4 - sector), 0, 1)


def draw_jitter(key: Array, strengths: Sequence[float], hue: float) -> tuple[Array, Array, Array]:
    """Draw factors [3] on 1 ± strength (at least 0), their order int32 [3] and the turn of the hue, all uniform."""
    factors_key, order_key, hue_key = jax.random.split(key, 3)
    strength = jnp.array(strengths, jnp.float32)
    factors = jax.random.uniform(factors_key, (3,), minval=jnp.maximum(0, 1 - strength), maxval=1 + strength)
    orders = jnp.array(list(itertools.permutations(range(3))), jnp.int32)
    turns = jax.random.uniform(hue_key, minval=-hue, maxval=hue)
    return factors, orders[jax.random.randint(order_key, (), 0, len(orders))], turns


def colour_jitter(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> tuple[Array, Array]:
    """Change brightness, contrast and saturation at random, in random order (Howard 2013, arXiv:1312.5402).

    Each factor is uniform on 1 ± its number (0.5 in the paper). The hue is rotated last, uniformly by up to `hue` full
    circles in either direction. The numbers have the same meaning as in torchvision. Saturation and hue of grey images
    do not change.
    """
    strengths = (brightness, contrast, saturation)
    factors, orders, turns = jax.vmap(lambda key: draw_jitter(key, strengths, hue))(keys)
    for which in orders.T if any(strengths) else ():
        luma = grey(images)
        degenerate = _select(which, [jnp.zeros_like(luma), luma.mean((1, 2), keepdims=True), luma])
        images = blend(images, degenerate, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0])
    return (rotate_hue(images, turns) if hue else images), targets


# --- RandAugment and TrivialAugment -----------------------------------------------------------------------------------

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
OPERATIONS = tuple(RAND_AUGMENT)


def _is_any_of(kind: Array, *names: str) -> Array:
    """Return True for examples whose operation is among the names, bool [B]."""
    return jnp.isin(kind, np.array([OPERATIONS.index(name) for name in names]))


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
    blended = blend(images, _select(kind - OPERATIONS.index("brightness"), degenerate), 1 + strength)
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
    """Return the level tables of posterize, solarize, autocontrast and equalize, per channel, as in Pillow's ImageOps.

    Args:
        kind: int [B], indices in OPERATIONS; the identity table for other operations.
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
    named = {"posterize": posterized, "solarize": solarized, "autocontrast": stretched, "equalize": equalized}
    for name, table in named.items():
        tables = jnp.where(_is_any_of(kind, name)[:, None, None], table, tables)
    return tables


def apply_level_tables(images: Array, kind: Array, strength: Array) -> Array:
    """Apply posterize, solarize, autocontrast or equalize by a level table per channel; others are unchanged."""
    # Round halves up, which are common after a blend, including those slightly below by rounding errors.
    levels = jnp.clip(jnp.floor(images + 0.501), 0, 255).astype(jnp.int32)
    tables = level_tables(kind, strength, cumulative_counts(levels))
    flat = tables.reshape(len(tables), -1)
    mapped = jnp.take_along_axis(flat, _table_indices(levels), axis=1, mode="promise_in_bounds").reshape(images.shape)
    selected = _is_any_of(kind, "posterize", "solarize", "autocontrast", "equalize")
    return jnp.where(selected[:, None, None, None], mapped.astype(images.dtype), images)


def apply_operation(images: Array, kind: Array, strength: Array, fill: Array) -> Array:
    """Apply the operation OPERATIONS[kind[b]] with strength[b] to example b.

    Three passes (geometry, blends, level tables) each leave the other examples unchanged; a switch between fourteen
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
    return jnp.array([table[name] for name in OPERATIONS], jnp.float32)[kind]


def rand_augment(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, number: int = 2, magnitude: float = 9.0
) -> tuple[Array, Array]:
    """Apply `number` random operations of fourteen in turn: RandAugment (Cubuk et al. 2019, arXiv:1909.13719).

    `magnitude`, 0 to 10, has the scale of the paper and timm (torchvision's goes to 30: 9 there is 3 here). All
    strengths grow with it (timm's "inc"), to those of RAND_AUGMENT at 10; their sign is random. Interpolation is
    bilinear. Magnitude 0 still changes images, by autocontrast and equalize; number 0 does not.
    """
    height, width = images.shape[1:3]
    strengths = RAND_AUGMENT | {
        "translate_x": RAND_AUGMENT["translate_x"] * width,
        "translate_y": RAND_AUGMENT["translate_y"] * height,
    }
    for n in range(number):
        layer = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)
        kind, sign, _ = jax.vmap(draw_operation)(layer)
        images = apply_operation(images, kind, sign * (magnitude / 10) * _max_strength(strengths, kind), fill)
    return images, targets


def trivial_augment(keys: Array, index: Array, images: Array, targets: Array, fill: Array) -> tuple[Array, Array]:
    """Apply one of fourteen operations at a random magnitude: TrivialAugment (Müller and Hutter 2021).

    The magnitude has 31 steps from 0 to the strengths of TRIVIAL_AUGMENT. Interpolation is bilinear. See
    arXiv:2103.10158, table of spaces, Wide.
    """
    kind, sign, magnitude = jax.vmap(draw_operation)(keys)
    return apply_operation(images, kind, sign * magnitude * _max_strength(TRIVIAL_AUGMENT, kind), fill), targets
