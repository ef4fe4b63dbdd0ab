"""Augmentations that move pixels: crops of padded images, mirror images, affine maps and elastic distortions.

The functions have the form that ops.py describes. Coordinates are (y, x) in pixels; whole numbers are centres of
pixels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.data.augment.pixels import sample_bilinear, translate


def draw_translation(key: Array, pixels: int) -> Array:
    """Draw a translation (down, right), int32 [2], each uniform on -pixels..pixels."""
    return jax.random.randint(key, (2,), -pixels, pixels + 1)


def pad_crop(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, pad: int = 4, reflect: int = 0
) -> tuple[Array, Array]:
    """Pad by `pad` pixels on every side and crop at random, as for CIFAR (Lee et al. 2014, arXiv:1409.5185).

    He et al. 2015 (arXiv:1512.03385) pad with zeros after subtracting the mean; for photographs, `fill` is that mean.
    With `reflect` the padding mirrors the image at its outermost pixels, as in Zagoruyko and Komodakis 2016
    (arXiv:1605.07146).
    """
    fill_colour = None if reflect else fill
    return translate(images, jax.vmap(lambda key: draw_translation(key, pad))(keys), fill_colour, pad), targets


def shift(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, pixels: int = 2
) -> tuple[Array, Array]:
    """Translate by a whole number of pixels, up to `pixels` in each direction (LeCun et al. 1998).

    Same as `pad_crop`, under its usual name for digits.
    """
    return pad_crop(keys, index, images, targets, fill, pad=pixels)


def draw_flip(key: Array, p: float) -> Array:
    """Draw a bool that is True with probability p."""
    return jax.random.bernoulli(key, float(p))


def flip(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, p: float = 0.5
) -> tuple[Array, Array]:
    """Mirror horizontally with probability p (Krizhevsky et al. 2012). Not for digits or letters."""
    flipped = jax.vmap(lambda key: draw_flip(key, p))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images), targets


def draw_affine(key: Array, rotate: float, scale: float, shear: float, shift: float) -> Array:
    """Draw a planar affine map, float32 [6]: angle (degrees), scales of y and x, shear, shifts down and right (pixels).

    All are uniform: the angle on ±rotate, each scale independently on 1 ± scale (which includes squeezing), the shear
    on ±shear (pixels to the right per pixel down), each shift on ±shift.
    """
    strengths = jnp.array([rotate, scale, scale, shear, shift, shift], jnp.float32)
    return jax.random.uniform(key, (6,), minval=-1, maxval=1) * strengths + jnp.array([0, 1, 1, 0, 0, 0], jnp.float32)


def affine_coordinates(drawn: Array, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
    """Compute the source coordinates of the pixels of transformed images.

    The forward map of a point p is centre + shift + R S K (p - centre), where K shears along x, S scales and R rotates.
    This is its inverse.

    Args:
        drawn: float32 [B, 6], as from `draw_affine`.
        rows: target rows, broadcastable to [B, H, W].
        columns: target columns, broadcastable to [B, H, W].
        size: (height, width) of the images.

    Returns:
        float32 [B, 2, H, W], (y, x).
    """
    angle, scale_y, scale_x, shear, down, right = (drawn[:, i, None, None] for i in range(6))
    middle_y, middle_x = (size[0] - 1) / 2, (size[1] - 1) / 2
    sine, cosine = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
    y, x = rows - middle_y - down, columns - middle_x - right
    y, x = (cosine * y + sine * x) / scale_y, (cosine * x - sine * y) / scale_x
    return jnp.stack([y + middle_y, x - shear * y + middle_x], axis=1)


def affine(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    rotate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> tuple[Array, Array]:
    """Apply a random planar affine map about the centre, bilinear: the distortions of LeCun et al. 1998, and rotation.

    Every number is the largest deviation in either direction, drawn uniformly (`draw_affine`): rotate in degrees, scale
    as a fraction (for each axis independently), shear in pixels per pixel, shift in pixels. The paper names shifts,
    scaling, squeezing and shearing, but no strengths.
    """
    drawn = jax.vmap(lambda key: draw_affine(key, rotate, scale, shear, shift))(keys)
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)
    return sample_bilinear(images, affine_coordinates(drawn, rows, columns, (height, width)), fill), targets


def draw_noise(key: Array, height: int, width: int) -> Array:
    """Draw white noise, uniform on 256 levels of [-1, 1], float32 [2, H, W].

    Under a blur, 256 levels suffice; drawing four values from each random word is also faster to compile.
    """
    words = jax.random.bits(key, (math.ceil(2 * height * width / 4),), jnp.uint32)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: 2 * height * width]
    return levels.reshape(2, height, width).astype(jnp.float32) * np.float32(2 / 255) - 1


def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """Return the matrix [size, size] that convolves with a Gaussian of deviation sigma and sum 1, with zero padding."""
    if sigma == 0:
        return np.eye(size, dtype=np.float32)
    reach = max(size, math.ceil(8 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    return kernel[reach + np.subtract.outer(np.arange(size), np.arange(size))].astype(np.float32)


def displacement(noise: Array, alpha: float, sigma: float) -> Array:
    """Blur noise [B, 2, H, W] with sigma and multiply by alpha: smooth displacements in pixels."""
    down, across = (blur_matrix(size, sigma) for size in noise.shape[2:])
    blurred = jnp.einsum("ij,bcjk->bcik", down, noise, precision="highest")
    return alpha * jnp.einsum("bcij,kj->bcik", blurred, across, precision="highest")


def elastic(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    alpha: float = 34.0,
    sigma: float = 4.0,
) -> tuple[Array, Array]:
    """Apply an elastic distortion (Simard et al. 2003): blurred uniform noise displaces the pixels.

    alpha and sigma are in pixels. The paper's best for 29x29 digits, alpha 34 and sigma 4, displaces by 1.4 pixels
    (root mean square in each direction).
    """
    return affine_elastic(keys, index, images, targets, fill, alpha=alpha, sigma=sigma)


def affine_elastic(
    keys: Array,
    index: Array,
    images: Array,
    targets: Array,
    fill: Array,
    *,
    rotate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
    alpha: float = 34.0,
    sigma: float = 4.0,
) -> tuple[Array, Array]:
    """Apply `affine`, then `elastic`, as one map: one interpolation instead of two, which blurs less and is faster."""
    height, width = images.shape[1:3]
    pairs = jax.vmap(jax.random.split)(keys)
    drawn = jax.vmap(lambda key: draw_affine(key, rotate, scale, shear, shift))(pairs[:, 0])
    noise = jax.vmap(lambda key: draw_noise(key, height, width))(pairs[:, 1])
    moved = displacement(noise, alpha, sigma)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] + moved[:, 0]
    columns = jnp.arange(width, dtype=jnp.float32) + moved[:, 1]
    return sample_bilinear(images, affine_coordinates(drawn, rows, columns, (height, width)), fill), targets
