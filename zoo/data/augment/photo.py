"""Augmentation of photographs: random-resized crops, colour jitter, RandAugment, TrivialAugment, random erasing.

Functions of the same form as those of augment.py, whose table names them: (keys, index, images, targets, fill, numbers)
-> (images, targets), with drawing apart from applying. Images are float32 [B, H, W, C] in 0..255 and stay so. What
concerns colour takes three channels to be red, green and blue; images of another number of channels have no colour.

They act on the image that the loader made, already of the model's size, where the papers' pipelines act on the file's.
"""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.data.augment.pixels import box_mask, sample

# ------------------------------------------------------------ boxes


def draw_box(key: Array, smallest: float, largest: float, ratio: float, height: int, width: int) -> tuple[Array, Array]:
    """A box within the image: its first row and column, and its height and width in pixels, both int32 [2].

    Its area is uniform between smallest and largest, as shares of the image. Its proportions (width to height, those
    of the image being 1) are log-uniform between ratio and 1/ratio. Of ten such boxes the first that fits is taken,
    and put anywhere; the first is cut to the image if none does.
    """
    for_shape, for_place = jax.random.split(key)
    area, stretch = jax.random.uniform(for_shape, (2, 10))
    area = smallest + (largest - smallest) * area
    stretch = ratio ** (2 * stretch - 1)
    sides = jnp.sqrt(jnp.stack([area / stretch, area * stretch]))
    size = jnp.array([height, width])
    wanted = sides[:, jnp.argmax((sides <= 1).all(0))]
    extent = jnp.clip(jnp.round(wanted * size), 1, size).astype(jnp.int32)
    return jax.random.randint(for_place, (2,), 0, size - extent + 1), extent


def crop_and_resize(images: Array, start: Array, extent: Array) -> Array:
    """Enlarge boxes to the size of the images, bilinear: start and extent int [B, 2], whole boxes inside the images.

    Products with interpolation weights: an enlargement needs no filter against aliasing, and every pixel of a row
    moves alike. Pixels outside the box do not enter.
    """

    def weights(axis: int, size: int) -> Array:  # [B, out, in]
        first, length = start[:, axis, None], extent[:, axis, None]
        pixels = jnp.arange(size)
        at = first + pixels + (pixels + 0.5) * ((length - size) / size)  # exact where the box is the whole image
        at = jnp.clip(at, first, first + length - 1)
        return jnp.maximum(0, 1 - jnp.abs(at[..., None] - pixels))

    height, width = images.shape[1:3]
    images = jnp.einsum("bij,bjkc->bikc", weights(0, height), images, precision="highest")
    return jnp.einsum("bij,bkjc->bkic", weights(1, width), images, precision="highest")


def resized_crop(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, area: float = 0.08, ratio: float = 0.75
) -> tuple[Array, Array]:
    """A random patch of the image, brought back to its size (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    The patch has between `area` and all of the image's area, uniform, and proportions between `ratio` and 1/ratio of
    the image's own, log-uniform (torchvision's reading; the paper has 8 to 100 % and 3/4 to 4/3).
    """
    height, width = images.shape[1:3]
    start, extent = jax.vmap(lambda key: draw_box(key, area, 1.0, ratio, height, width))(keys)
    return crop_and_resize(images, start, extent), targets


def draw_erasing(key: Array, p: float, height: int, width: int, **box: float) -> tuple[Array, Array]:
    """A box as `draw_box` has it, whose height and width are zero unless a coin of probability p says otherwise."""
    for_coin, for_box = jax.random.split(key)
    start, extent = draw_box(for_box, height=height, width=width, **box)
    return start, jnp.where(jax.random.bernoulli(for_coin, float(p)), extent, 0)


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
    """Random erasing (Zhong et al. 2017, arXiv:1708.04896): with probability p, cover a box inside the image.

    The box has between `smallest` and `largest` of the image's area and proportions between `ratio` and 1/ratio. It is
    filled with `fill`, which is the zero of normalised photographs and torchvision's default; the paper prefers noise
    by a little. Its p is 0.5, timm's and torchvision's recipes take 0.1 to 0.25.
    """
    height, width = images.shape[1:3]
    box = {"smallest": smallest, "largest": largest, "ratio": ratio}
    start, extent = jax.vmap(lambda key: draw_erasing(key, p, height, width, **box))(keys)
    mask = box_mask(start + extent // 2, extent, height, width)
    return jnp.where(mask[..., None], fill, images), targets


# ------------------------------------------------------------ colour


def grey(images: Array) -> Array:
    """Luma [B, H, W, 1] (ITU-R BT.601, as Pillow's); of other than three channels, their mean."""
    if images.shape[-1] != 3:
        return images.mean(-1, keepdims=True)
    red, green, blue = jnp.split(images, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def smooth(images: Array) -> Array:
    """Weighted mean of 3x3 pixels, the middle one five times; the border is left as it is (Pillow's SMOOTH)."""
    if min(images.shape[1:3]) < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    boxes = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smoothed = (boxes + 4 * images[:, 1:-1, 1:-1]) / 13
    inside = np.zeros((*images.shape[1:3], 1), bool)
    inside[1:-1, 1:-1] = True
    return jnp.where(inside, jnp.pad(smoothed, ((0, 0), (1, 1), (1, 1), (0, 0))), images)


def blend(images: Array, poorer: Array, factor: Array) -> Array:
    """Away from `poorer`, which lacks something, by factor [B]: 0 gives it, 1 the images, 2 twice as much; clipped."""
    return jnp.clip(poorer + factor[:, None, None, None] * (images - poorer), 0, 255)


def _choose(which: Array, cases: Sequence[Array]) -> Array:
    """cases[which[b]] for example b; the cases broadcast to [B, H, W, C]."""
    chosen = cases[0]
    for n, case in enumerate(cases[1:], 1):
        chosen = jnp.where((which == n)[:, None, None, None], case, chosen)
    return chosen


def turn_hue(images: Array, turns: Array) -> Array:
    """Turn the hue of each colour by turns [B] of a whole circle; saturation and value (of HSV) stay."""
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
    """Factors [3] within 1 ± strength (never below 0), the order int32 [3] to apply them in, and turns of hue, all
    uniform."""
    for_factors, for_order, for_hue = jax.random.split(key, 3)
    strength = jnp.array(strengths, jnp.float32)
    factors = jax.random.uniform(for_factors, (3,), minval=jnp.maximum(0, 1 - strength), maxval=1 + strength)
    orders = jnp.array(list(itertools.permutations(range(3))), jnp.int32)
    turns = jax.random.uniform(for_hue, minval=-hue, maxval=hue)
    return factors, orders[jax.random.randint(for_order, (), 0, len(orders))], turns


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

    Each becomes 1 ± its number of what it was, uniform (the paper: 0.5); `hue` is the largest turn either way, as a
    part of the circle, and comes last. The numbers mean what they mean in torchvision. Grey images have no saturation
    and no hue to change.
    """
    strengths = (brightness, contrast, saturation)
    factors, orders, turns = jax.vmap(lambda key: draw_jitter(key, strengths, hue))(keys)
    for which in orders.T if any(strengths) else ():
        luma = grey(images)
        poorer = _choose(which, [jnp.zeros_like(luma), luma.mean((1, 2), keepdims=True), luma])
        images = blend(images, poorer, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0])
    return (turn_hue(images, turns) if hue else images), targets


# ------------------------------------------------------------ one of fourteen operations

# The operations of RandAugment and, at magnitude 10, how far they go: Cubuk et al. 2018 (arXiv:1805.09501), table 6,
# to which Cubuk et al. 2019 refer. Degrees; pixels per pixel; shares of the image's side (150 of their 331 pixels);
# deviation of the factor from 1; bits taken from 8; levels that the threshold falls from 256.
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

# The same for TrivialAugment: Müller and Hutter 2021 (arXiv:2103.10158), the Wide ranges in their table of spaces, but
# translations are in pixels.
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


def _one_of(kind: Array, *names: str) -> Array:
    """Whether example b's operation is among the names, bool [B]."""
    return jnp.isin(kind, np.array([OPERATIONS.index(name) for name in names]))


def affine_maps(kind: Array, strength: Array, height: int, width: int) -> Array:
    """Where pixels come from, as the six numbers (a, b, c, d, e, f) of Pillow's Image.transform, float32 [B, 6].

    The pixel at (x, y) of the result is at (ax + by + c, dx + ey + f) of the image, x going right, y down, from the
    outer corner of the first pixel. Shears hold that corner, as Pillow's do, rotations the centre. What is not an
    affine operation maps every pixel to itself, exactly.
    """

    def only(*names: str) -> Array:
        return jnp.where(_one_of(kind, *names), strength, 0)

    angle = jnp.deg2rad(only("rotate"))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    c = width / 2 - cosine * (width / 2) + sine * (height / 2) - only("translate_x")
    f = height / 2 - sine * (width / 2) - cosine * (height / 2) - only("translate_y")
    return jnp.stack([cosine, only("shear_x") - sine, c, only("shear_y") + sine, cosine, f], axis=1)


def move(images: Array, maps: Array, fill: Array) -> Array:
    """Images under `affine_maps`, bilinear, `fill` coming in from outside."""
    a, b, c, d, e, f = (maps[:, n, None, None] for n in range(6))
    y, x = jnp.arange(images.shape[1])[:, None] + 0.5, jnp.arange(images.shape[2]) + 0.5
    return sample(images, jnp.stack([d * x + e * y + f, a * x + b * y + c], axis=1) - 0.5, fill)


def enhance(images: Array, kind: Array, strength: Array) -> Array:
    """Brightness, contrast, colour and sharpness times 1 + strength [B], as Pillow's ImageEnhance; others unchanged.

    One blend with, of each example, the image that lacks the thing: black, its mean grey, its greys, its smoothed self.
    """
    luma = grey(images)
    poorer = [jnp.zeros_like(luma), luma.mean((1, 2), keepdims=True), luma, smooth(images)]
    blended = blend(images, _choose(kind - OPERATIONS.index("brightness"), poorer), 1 + strength)
    meant = _one_of(kind, "brightness", "contrast", "color", "sharpness")
    return jnp.where(meant[:, None, None, None], blended, images)


def _places(levels: Array) -> Array:
    """Where a pixel's level is in a table [B, C * 256]: [B, H * W * C]."""
    return (levels + 256 * jnp.arange(levels.shape[-1])).reshape(len(levels), -1)


def cumulative_counts(levels: Array) -> Array:
    """How many pixels of each channel are at or below each of 256 levels: int32 [B, H, W, C] -> [B, C, 256].

    Pixels are counted one by one, in whole numbers, whose sum has no order: on a CPU 10 to 200 times faster than
    sorting them, comparing them with every level, or products of one-hot halves.
    """
    channels = levels.shape[-1]
    empty = jnp.zeros(256 * channels, jnp.int32)
    counts = jax.vmap(lambda at: empty.at[at].add(1, mode="promise_in_bounds"))(_places(levels))
    return jnp.cumsum(counts.reshape(-1, channels, 256), axis=-1)


def level_tables(kind: Array, strength: Array, counts: Array) -> Array:
    """What each of 256 levels becomes under posterize, solarize, autocontrast and equalize, int32 [B, C, 256].

    counts are `cumulative_counts`; the strength's sign means nothing. As Pillow's ImageOps: its functions of the same
    names, per channel. Others leave the levels alone.
    """
    levels = jnp.arange(256)
    amount = jnp.round(jnp.abs(strength)).astype(jnp.int32)[:, None, None]
    posterized = levels >> amount << amount
    solarized = jnp.where(levels < 256 - amount, levels, 255 - levels)

    total = counts[..., -1:]
    low = (counts == 0).sum(-1, keepdims=True)  # the darkest level that occurs
    high = (counts < total).sum(-1, keepdims=True)  # and the brightest
    stretched = jnp.clip((levels - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    stretched = jnp.where(high > low, stretched, levels)

    darker = jnp.pad(counts[..., :-1], ((0, 0), (0, 0), (1, 0)))  # pixels below each level
    step = jnp.where(counts < total, counts, 0).max(-1, keepdims=True) // 255  # all but the brightest, in 255 parts
    equalized = jnp.clip((darker + step // 2) // jnp.maximum(step, 1), 0, 255)
    equalized = jnp.where(step > 0, equalized, levels)

    tables = jnp.broadcast_to(levels, counts.shape)
    named = {"posterize": posterized, "solarize": solarized, "autocontrast": stretched, "equalize": equalized}
    for name, table in named.items():
        tables = jnp.where(_one_of(kind, name)[:, None, None], table, tables)
    return tables


def tabulate(images: Array, kind: Array, strength: Array) -> Array:
    """Posterize, solarize, autocontrast and equalize, by one table per channel over whole levels; others unchanged."""
    # Halves, common after a blend, go up; so do those that rounding errors keep just below, whatever compiled them.
    levels = jnp.clip(jnp.floor(images + 0.501), 0, 255).astype(jnp.int32)
    tables = level_tables(kind, strength, cumulative_counts(levels))
    flat = tables.reshape(len(tables), -1)
    found = jnp.take_along_axis(flat, _places(levels), axis=1, mode="promise_in_bounds").reshape(images.shape)
    meant = _one_of(kind, "posterize", "solarize", "autocontrast", "equalize")
    return jnp.where(meant[:, None, None, None], found.astype(images.dtype), images)


def operate(images: Array, kind: Array, strength: Array, fill: Array) -> Array:
    """Operation OPERATIONS[kind[b]] with strength[b], in the units of RAND_AUGMENT (translations in pixels), [B] both.

    Three passes, for places, blends and levels, each of which leaves alone the examples that it does not concern: a
    choice between fourteen branches would compute all fourteen for every example.
    """
    images = move(images, affine_maps(kind, strength, *images.shape[1:3]), fill)
    return tabulate(enhance(images, kind, strength), kind, strength)


def draw_operation(key: Array) -> tuple[Array, Array, Array]:
    """An operation's number int32 [], a sign (±1.0) and a magnitude among 0, 1/30, …, 1, all uniform."""
    for_kind, for_sign, for_magnitude = jax.random.split(key, 3)
    kind = jax.random.randint(for_kind, (), 0, len(OPERATIONS))
    return kind, jax.random.rademacher(for_sign, (), jnp.float32), jax.random.randint(for_magnitude, (), 0, 31) / 30


def _reach(table: Mapping[str, float], kind: Array) -> Array:
    return jnp.array([table[name] for name in OPERATIONS], jnp.float32)[kind]


def rand_augment(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, number: int = 2, magnitude: float = 9.0
) -> tuple[Array, Array]:
    """RandAugment (Cubuk et al. 2019, arXiv:1909.13719): `number` operations in turn, each of fourteen at random.

    `magnitude`, 0 to 10, is the paper's and timm's scale (torchvision's goes to 30: its 9 is 3 here); at 10 the ranges
    are those of RAND_AUGMENT, and all operations grow with it (timm's "inc"); which way the signed ones go is drawn.
    Bilinear. With autocontrast and equalize among them, magnitude 0 still changes images; number 0 does not.
    """
    height, width = images.shape[1:3]
    reach = RAND_AUGMENT | {
        "translate_x": RAND_AUGMENT["translate_x"] * width,
        "translate_y": RAND_AUGMENT["translate_y"] * height,
    }
    for n in range(number):
        layer = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)
        kind, sign, _ = jax.vmap(draw_operation)(layer)
        images = operate(images, kind, sign * (magnitude / 10) * _reach(reach, kind), fill)
    return images, targets


def trivial_augment(keys: Array, index: Array, images: Array, targets: Array, fill: Array) -> tuple[Array, Array]:
    """TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158): one of fourteen operations at a random magnitude.

    The wide ranges, TRIVIAL_AUGMENT, in 31 steps from nothing to the whole. Bilinear.
    """
    kind, sign, magnitude = jax.vmap(draw_operation)(keys)
    return operate(images, kind, sign * magnitude * _reach(TRIVIAL_AUGMENT, kind), fill), targets
