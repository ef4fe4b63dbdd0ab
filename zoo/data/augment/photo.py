"""Augmentation of photographs: random crops, colour jitter, colour noise and random erasing.

The functions have the form that ops.py describes. Colour operations take three channels as red, green and blue; images
with another number of channels have no colour.

The operations act on the model's input, after the loader's resizing, whereas the papers' pipelines act on the file's
pixels.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.data.augment.interpolation import INTERPOLATIONS
from zoo.data.augment.pixels import box_mask, box_weights

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


def crop_and_resize(
    images: Array, start: Array, extent: Array, methods: Sequence[str] = ("bilinear",), which: Array | int = 0
) -> Array:
    """Enlarge boxes to the size of the images, by products with the weights of `box_weights`.

    Args:
        images: float32 [B, H, W, C] in 0..255; bicubic results are clipped to that.
        start: int [B, 2], (row, column) of the first pixel of each box.
        extent: int [B, 2], (height, width) of each box, which lies inside the image.
        methods: methods of interpolation.
        which: int [B], the method of each image, or that of all.

    Returns:
        float32 [B, H, W, C].
    """

    def weights(axis: int, size: int) -> Array:  # [B, out, in]
        chosen = box_weights(start[:, axis], extent[:, axis], size, methods[0])
        for n, method in enumerate(methods[1:], 1):
            other = box_weights(start[:, axis], extent[:, axis], size, method)
            chosen = jnp.where(jnp.reshape(jnp.equal(which, n), (-1, 1, 1)), other, chosen)
        return chosen

    height, width = images.shape[1:3]
    images = jnp.einsum("bij,bjkc->bikc", weights(0, height), images, precision="highest")
    images = jnp.einsum("bij,bkjc->bkic", weights(1, width), images, precision="highest")
    return jnp.clip(images, 0, 255) if "bicubic" in methods else images


def draw_method(key: Array, count: int) -> Array:
    """Draw a method of interpolation, int32 in 0 … count - 1, independent of the box that the key gives."""
    return jax.random.randint(jax.random.split(key, 3)[2], (), 0, count)


def resized_crop(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    area: float = 0.08,
    ratio: float = 0.75,
    interpolation: str = "bilinear",
) -> tuple[Array, Array]:
    """Crop a random box and resize it to the size of the image (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    As in torchvision, the area is uniform between `area` and 1, as a share of the image, and the aspect ratio
    log-uniform between `ratio` and 1/ratio, in units of the image's. The paper uses 8 to 100 % and 3/4 to 4/3.
    `interpolation` is a key of INTERPOLATIONS: the paper draws any of four methods, timm bilinear or bicubic.
    """
    height, width = images.shape[1:3]
    start, extent = jax.vmap(lambda key: draw_box(key, area, 1.0, ratio, height, width))(keys)
    methods = INTERPOLATIONS[interpolation]
    which = jax.vmap(lambda key: draw_method(key, len(methods)))(keys) if len(methods) > 1 else 0
    return crop_and_resize(images, start, extent, methods, which), targets


def draw_scale(key: Array, low: float, high: float, height: int, width: int) -> tuple[Array, Array]:
    """Draw an enlargement and the place of a crop from it.

    The shorter side becomes a whole number of pixels, uniform between low and high times itself.

    Returns:
        (height, width) of the enlarged image and (row, column) of the crop of the original size, both int32 [2].
    """
    side_key, place_key = jax.random.split(key)
    shorter = min(height, width)
    side = jax.random.randint(side_key, (), round(low * shorter), round(high * shorter) + 1)
    size = jnp.array([height, width])
    enlarged = jnp.round(size * (side / shorter)).astype(jnp.int32)
    return enlarged, jax.random.randint(place_key, (2,), 0, enlarged - size + 1)


def crop_of_enlarged(images: Array, enlarged: Array, start: Array) -> Array:
    """Enlarge images bilinearly and crop them at their original size; float32 [B, H, W, C] to the same shape.

    Args:
        images: float32 [B, H, W, C].
        enlarged: int [B, 2], (height, width) of the enlarged images.
        start: int [B, 2], (row, column) of the crops.
    """

    def weights(axis: int, size: int) -> Array:  # [B, out, in]
        pixels = jnp.arange(size)
        position = (start[:, axis, None] + pixels + 0.5) * (size / enlarged[:, axis, None]) - 0.5
        return jnp.maximum(0, 1 - jnp.abs(jnp.clip(position, 0, size - 1)[..., None] - pixels))

    height, width = images.shape[1:3]
    images = jnp.einsum("bij,bjkc->bikc", weights(0, height), images, precision="highest")
    return jnp.einsum("bij,bkjc->bkic", weights(1, width), images, precision="highest")


def scale_crop(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    low: float = 256 / 224,
    high: float = 256 / 224,
) -> tuple[Array, Array]:
    """Resize the shorter side to a random length and crop the size of the input at random.

    The length is uniform between `low` and `high` times the input's side. Krizhevsky et al. 2012, section 4.1, resize
    to 256 for an input of 224; He et al. 2015 (arXiv:1512.03385), section 3.4, to 256 to 480.
    """
    height, width = images.shape[1:3]
    enlarged, start = jax.vmap(lambda key: draw_scale(key, low, high, height, width))(keys)
    return crop_of_enlarged(images, enlarged, start), targets


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


def select_case(which: Array, cases: Sequence[Array]) -> Array:
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
        degenerate = select_case(which, [jnp.zeros_like(luma), luma.mean((1, 2), keepdims=True), luma])
        images = blend(images, degenerate, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0])
    return (rotate_hue(images, turns) if hue else images), targets


# Principal components of the colours of ImageNet's training images, for pixel values in 0..1: magnitudes ("eigval")
# and, in columns, directions (red, green, blue), as published in fb.resnet.torch (datasets/imagenet.lua).
PCA_MAGNITUDES = (0.2175, 0.0188, 0.0045)
PCA_DIRECTIONS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def draw_normal(key: Array, sigma: float) -> Array:
    """Draw three numbers from a normal distribution with standard deviation sigma, float32 [3]."""
    return sigma * jax.random.normal(key, (3,))


def pca_noise(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, sigma: float = 0.1
) -> tuple[Array, Array]:
    """Add a random colour to the whole image, along the principal components of ImageNet's colours.

    Each component is weighted by its magnitude and a normal number with standard deviation `sigma` (Krizhevsky et al.
    2012, section 4.1). The components are those that fb.resnet.torch publishes for ImageNet, whatever the data. Values
    may leave 0..255, as there. Grey images do not change.
    """
    if images.shape[-1] != 3:
        return images, targets
    drawn = jax.vmap(lambda key: draw_normal(key, sigma))(keys)
    colours = jnp.asarray(PCA_DIRECTIONS) * (255 * jnp.asarray(PCA_MAGNITUDES))
    return images + jnp.einsum("bj,cj->bc", drawn, colours, precision="highest")[:, None, None], targets


def scale_saturation(images: Array, factor: Array) -> Array:
    """Multiply the saturation (of HSV, at most 1) by factor [B]; hue and value stay."""
    if images.shape[-1] != 3:
        return images
    value = images.max(-1, keepdims=True)
    chroma = value - images.min(-1, keepdims=True)
    largest = jnp.maximum(value, 0) / jnp.where(chroma == 0, 1, chroma)  # factor that gives saturation 1
    return value - (value - images) * jnp.minimum(factor[:, None, None, None], largest)


# Orders of the four distortions: of tensorflow/models, inception/image_processing.py, and of its slim/preprocessing/
# inception_preprocessing.py.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
INCEPTION_ORDERS = ((BRIGHTNESS, SATURATION, HUE, CONTRAST), (BRIGHTNESS, CONTRAST, SATURATION, HUE))
SLIM_ORDERS = (
    (BRIGHTNESS, SATURATION, HUE, CONTRAST),
    (SATURATION, BRIGHTNESS, CONTRAST, HUE),
    (CONTRAST, HUE, BRIGHTNESS, SATURATION),
    (HUE, SATURATION, CONTRAST, BRIGHTNESS),
)


def draw_distortion(key: Array, strengths: Sequence[float], orders: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Draw deviations uniform on ±strength, float32 [4], and one of the orders, int32 [4]."""
    strength_key, order_key = jax.random.split(key)
    deviations = jax.random.uniform(strength_key, (4,), minval=-1, maxval=1) * jnp.array(strengths, jnp.float32)
    return deviations, jnp.array(orders, jnp.int32)[jax.random.randint(order_key, (), 0, len(orders))]


def distort_colour(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    brightness: float = 32 / 255,
    contrast: float = 0.5,
    saturation: float = 0.5,
    hue: float = 0.2,
    slim: int = 0,
) -> tuple[Array, Array]:
    """Distort the colours as the authors of the Inception networks do (Howard 2013, arXiv:1312.5402).

    `brightness` is the largest share of 255 that is added or subtracted, `contrast` and `saturation` the largest
    deviations of a factor from 1, `hue` the largest turn in full circles; all are uniform. Contrast is about the mean
    of each channel. The order is random among the two of tensorflow/models' inception/image_processing.py, or with
    `slim` among the four of its slim/preprocessing/inception_preprocessing.py. Only the result is clipped to 0..255.
    """
    strengths, orders = (brightness, contrast, saturation, hue), SLIM_ORDERS if slim else INCEPTION_ORDERS
    deviations, order = jax.vmap(lambda key: draw_distortion(key, strengths, orders))(keys)
    factors = 1 + deviations
    for which in order.T if any(strengths) else ():
        mean = images.mean((1, 2), keepdims=True)
        cases = [
            images + 255 * deviations[:, BRIGHTNESS, None, None, None],
            (images - mean) * factors[:, CONTRAST, None, None, None] + mean,
            scale_saturation(images, factors[:, SATURATION]),
            rotate_hue(images, deviations[:, HUE]),
        ]
        images = select_case(which, cases)
    return (jnp.clip(images, 0, 255) if any(strengths) else images), targets
