"""Pixel operations shared by the augmentations, on float32 images [B, H, W, C]."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def sample_bilinear(images: Array, coordinates: Array, fill: Array) -> Array:
    """Interpolate images bilinearly.

    Implemented as four gathers from the padded image (measured in docs/performance.md).

    Args:
        images: float32 [B, H, W, C].
        coordinates: float32 [B, 2, H, W], (y, x) of the source of each pixel; whole numbers are centres of pixels.
        fill: [C], the colour outside the image.

    Returns:
        float32 [B, H, W, C].
    """
    height, width = images.shape[1:3]
    y = jnp.clip(coordinates[:, 0], -1, height) + 1  # in the padded image, whose outermost pixels are fill
    x = jnp.clip(coordinates[:, 1], -1, width) + 1
    top, left = jnp.minimum(jnp.floor(y), height), jnp.minimum(jnp.floor(x), width)
    dy, dx = (y - top)[..., None], (x - left)[..., None]
    index = top.astype(jnp.int32) * (width + 2) + left.astype(jnp.int32)
    flat = _pad_with_fill(images, fill, 1).reshape(len(images), -1, images.shape[-1])
    upper = (1 - dx) * _gather_pixels(flat, index) + dx * _gather_pixels(flat, index + 1)
    lower = (1 - dx) * _gather_pixels(flat, index + width + 2) + dx * _gather_pixels(flat, index + width + 3)
    return (1 - dy) * upper + dy * lower


def box_weights(start: Array, extent: Array, size: int, method: str) -> Array:
    """Return the weights that enlarge parts of a line of pixels to the whole line.

    Enlarging needs no antialiasing, and pixels outside the part are not used.

    Args:
        start: int [B], first pixel of each part.
        extent: int [B], pixels of each part, at most `size`.
        size: pixels of the line.
        method: "nearest", "bilinear", "bicubic" (Keys 1981, with -0.5, as in Pillow), or "area", the mean over the
            interval that a pixel of the result covers.

    Returns:
        float32 [B, size, size], from pixel of the line (last axis) to pixel of the result.
    """
    first, length = start[:, None], extent[:, None]
    pixels = jnp.arange(size)
    last = first + length - 1
    if method == "nearest":
        return jax.nn.one_hot(first + (2 * pixels + 1) * length // (2 * size), size)
    if method == "area":
        low, high = (first[..., None] + (pixels[:, None] + end) * (length[..., None] / size) for end in (0, 1))
        overlap = jnp.minimum(high, pixels + 1) - jnp.maximum(low, pixels)
        return jnp.maximum(0, overlap) * (size / length[..., None])
    position = first + pixels + (pixels + 0.5) * ((length - size) / size)  # exact if the part is the whole line
    if method == "bilinear":
        return jnp.maximum(0, 1 - jnp.abs(jnp.clip(position, first, last)[..., None] - pixels))
    distance = jnp.abs(position[..., None] - pixels)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))
    weights = jnp.where((pixels >= first[..., None]) & (pixels <= last[..., None]), weights, 0)
    return weights / weights.sum(-1, keepdims=True)


def translate(images: Array, offsets: Array, fill: Array | None, reach: int) -> Array:
    """Translate images by whole pixels.

    Implemented as a slice of each padded image (measured in docs/performance.md).

    Args:
        images: float32 [B, H, W, C].
        offsets: int [B, 2], (down, right) in pixels.
        fill: [C], the colour that enters at the edges; None for a reflection at the outermost pixels.
        reach: largest absolute offset in pixels.

    Returns:
        float32 [B, H, W, C].
    """
    if fill is None:
        padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    else:
        padded = _pad_with_fill(images, fill, reach)
    shape = images.shape[1:]
    return jax.vmap(
        lambda image, offset: jax.lax.dynamic_slice(image, (reach - offset[0], reach - offset[1], 0), shape)
    )(padded, offsets)


def _pad_with_fill(images: Array, fill: Array, width: int) -> Array:
    """Pad images [B, H, W, C] with fill by `width` pixels on every side."""
    inside = np.pad(np.ones((*images.shape[1:3], 1), bool), ((width, width), (width, width), (0, 0)))
    return jnp.where(inside, jnp.pad(images, ((0, 0), (width, width), (width, width), (0, 0))), fill)


def _gather_pixels(flat: Array, index: Array) -> Array:
    """Gather pixels of flat [B, N, C] at indices [B, H, W] to [B, H, W, C]; the batch axis can stay sharded."""
    taken = jnp.take_along_axis(flat, index.reshape(len(index), -1, 1), axis=1, mode="promise_in_bounds")
    return taken.reshape(*index.shape, flat.shape[-1])


def box_mask(centre: Array, extent: Array, height: int, width: int) -> Array:
    """Return masks of boxes, clipped at the edge of the image.

    Args:
        centre: int [B, 2], (row, column).
        extent: int [B, 2], (height, width) in pixels.
        height: of the image.
        width: of the image.

    Returns:
        bool [B, H, W], True inside the box, which begins at `centre - extent // 2`.
    """
    start = centre - extent // 2
    rows = (jnp.arange(height) >= start[:, :1]) & (jnp.arange(height) < start[:, :1] + extent[:, :1])
    columns = (jnp.arange(width) >= start[:, 1:]) & (jnp.arange(width) < start[:, 1:] + extent[:, 1:])
    return rows[:, :, None] & columns[:, None, :]
