"""What the augmentations are made of: sampling, moving and boxing pixels of float32 images [B, H, W, C]."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def sample(images: Array, coordinates: Array, fill: Array) -> Array:
    """Bilinear interpolation of images [B, H, W, C] at coordinates [B, 2, H, W] (y, x); outside, all is `fill` [C].

    Four gathers from a frame one pixel wider: on a CPU five times faster than products with interpolation weights at
    32x32.
    """
    height, width = images.shape[1:3]
    y = jnp.clip(coordinates[:, 0], -1, height) + 1  # in the frame, whose outermost pixels are all fill
    x = jnp.clip(coordinates[:, 1], -1, width) + 1
    top, left = jnp.minimum(jnp.floor(y), height), jnp.minimum(jnp.floor(x), width)
    dy, dx = (y - top)[..., None], (x - left)[..., None]
    at = top.astype(jnp.int32) * (width + 2) + left.astype(jnp.int32)
    flat = _framed(images, fill, 1).reshape(len(images), -1, images.shape[-1])
    upper = (1 - dx) * _take(flat, at) + dx * _take(flat, at + 1)
    lower = (1 - dx) * _take(flat, at + width + 2) + dx * _take(flat, at + width + 3)
    return (1 - dy) * upper + dy * lower


def translate(images: Array, offsets: Array, fill: Array, reach: int) -> Array:
    """Move image b by offsets int [B, 2] = (down, right), at most `reach` pixels; what comes in is `fill` [C].

    A slice of each image padded by reach: on a CPU ten times faster than a gather of pixels.
    """
    padded = _framed(images, fill, reach)
    shape = images.shape[1:]
    return jax.vmap(lambda image, by: jax.lax.dynamic_slice(image, (reach - by[0], reach - by[1], 0), shape))(
        padded, offsets
    )


def _framed(images: Array, fill: Array, width: int) -> Array:
    """The images in a frame of fill, so many pixels wide on every side."""
    inside = np.pad(np.ones((*images.shape[1:3], 1), bool), ((width, width), (width, width), (0, 0)))
    return jnp.where(inside, jnp.pad(images, ((0, 0), (width, width), (width, width), (0, 0))), fill)


def _take(flat: Array, at: Array) -> Array:
    """Pixels of flat [B, N, C] at at int [B, H, W] -> [B, H, W, C]. The batch stays a batch, so it can stay sharded."""
    taken = jnp.take_along_axis(flat, at.reshape(len(at), -1, 1), axis=1, mode="promise_in_bounds")
    return taken.reshape(*at.shape, flat.shape[-1])


def box_mask(centre: Array, extent: Array, height: int, width: int) -> Array:
    """Boxes as bool [B, H, W]: extent int [B, 2] (high, wide) about centre int [B, 2], cut off at the image's edge."""
    start = centre - extent // 2
    rows = (jnp.arange(height) >= start[:, :1]) & (jnp.arange(height) < start[:, :1] + extent[:, :1])
    columns = (jnp.arange(width) >= start[:, 1:]) & (jnp.arange(width) < start[:, 1:] + extent[:, 1:])
    return rows[:, :, None] & columns[:, None, :]
