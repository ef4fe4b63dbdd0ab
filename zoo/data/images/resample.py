"""Resizing on the host, as Pillow does it.

Antialiased when shrinking, a horizontal and then a vertical pass, each rounded to 8 bits with 22-bit coefficients.
(Pillow 13 takes the passes of some tall images in the other order, which moves pixels by a few levels; here the order
is always the older one.) `resize` calls Pillow; `resize_stack` does the same sums for a stack of small images as matrix
products in float64, which are exact here, so both give the same bits for a stack of any size.
"""

from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.decode import Uint8

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box")


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


_FILTERS = {"box": (_box, 0.5), "bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0), "lanczos": (_lanczos, 3.0)}
_BITS = 22  # of Pillow's fixed-point coefficients: 32, less 8 for the pixel, less 2 for the overshoot


@lru_cache(maxsize=64)
def _weights(length: int, target: int, interpolation: str) -> NDArray[np.float64]:
    """[target, length]: the coefficients with which Pillow makes `target` pixels of `length`, multiples of 2^-22."""
    kernel, reach = _FILTERS[interpolation]
    scale = length / target
    stretch = max(scale, 1.0)  # when shrinking, the filter widens: that is the antialiasing
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum(0, (centre - reach * stretch + 0.5).astype(np.int64))
    last = np.minimum(length, (centre + reach * stretch + 0.5).astype(np.int64))
    pixel = np.arange(length)
    weights = kernel((pixel - centre[:, None] + 0.5) / stretch)
    weights = np.where((pixel >= first[:, None]) & (pixel < last[:, None]), weights, 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    fixed = np.trunc(weights * 2.0**_BITS + np.copysign(0.5, weights))
    return cast(NDArray[np.float64], fixed * 2.0**-_BITS)


def _nearest(length: int, target: int) -> NDArray[np.int64]:
    step = length / target
    return np.minimum(np.add.accumulate(np.r_[step * 0.5, np.full(target - 1, step)]).astype(np.int64), length - 1)


def _to_bytes(values: NDArray[np.float64]) -> Uint8:
    values += 0.5
    return np.clip(values, 0.0, 255.0, out=values).astype(np.uint8)


def resize(image: Uint8, scaled: tuple[int, int], interpolation: str) -> Uint8:
    """Resize one [H, W, C], by Pillow, in two calls: from version 13 on one call may take the vertical pass first."""
    from PIL import Image

    if image.shape[:2] == scaled:
        return image
    grey = image.shape[-1] == 1
    method = Image.Resampling[interpolation.upper()]
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    resized = np.asarray(picture.resize((scaled[1], image.shape[0]), method).resize((scaled[1], scaled[0]), method))
    return resized[..., None] if grey else resized


def resize_each(images: Uint8, scaled: tuple[int, int], interpolation: str) -> Uint8:
    """Resize [N, H, W, C] to [N, *scaled, C], image by image."""
    out = np.empty((len(images), *scaled, images.shape[-1]), np.uint8)
    for row, image in zip(out, images, strict=True):
        row[...] = resize(image, scaled, interpolation)
    return out


def resize_stack(images: Uint8, scaled: tuple[int, int], interpolation: str) -> Uint8:
    """Resize [N, H, W, C] to [N, *scaled, C]. Sums of multiples of 2^-22 below 2^9 are exact in float64."""
    count, height, width, channels = images.shape
    if interpolation == "nearest":
        return images[:, _nearest(height, scaled[0])][:, :, _nearest(width, scaled[1])]
    out = np.empty((count, *scaled, channels), np.uint8)
    chunk = max(1, 2**21 // (max(height, scaled[0]) * max(width, scaled[1]) * channels))  # some 16 MiB at a time
    for start in range(0, count, chunk):
        x = images[start : start + chunk]
        if width != scaled[1]:
            rows = x.transpose(0, 1, 3, 2).reshape(-1, width).astype(np.float64)
            wide = _to_bytes(rows @ _weights(width, scaled[1], interpolation).T)
            x = wide.reshape(len(x), height, channels, scaled[1]).transpose(0, 1, 3, 2)
        if height != scaled[0]:
            columns = x.reshape(len(x), height, -1).astype(np.float64)
            tall = _to_bytes(_weights(height, scaled[0], interpolation) @ columns)
            x = tall.reshape(len(x), *scaled, channels)
        out[start : start + chunk] = x
    return out
