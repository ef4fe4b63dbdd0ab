"""Resizing on the host, with the same bits as Pillow.

Pillow antialiases when shrinking: a horizontal pass, then a vertical one, each rounded to 8 bits, with 22-bit
coefficients. Pillow 13 takes the passes of some tall images in the other order, which changes pixels by a few levels;
here the order is always horizontal first.

`resize_image` calls Pillow. `resize_stack` computes the same sums for a stack of small images as matrix products, which
are exact in float64, so both give the same bits (measured in docs/performance.md).
"""

from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.decode import Uint8
from zoo.data.images.geometry import centre_crop, centre_offsets

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box")
SMALL_IMAGE = 64 * 64  # values (pixels x channels) up to which `resize_stack` is used
CHUNK_VALUES = 2**21  # values resized at a time: 16 MiB in float64
MAX_RESIZED = 2**26  # pixels of a resized image; an elongated image that would have more is cropped first


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
PRECISION_BITS = 22  # Pillow's fixed point: 32 bits, less 8 for the pixel, less 2 for the overshoot


@lru_cache(maxsize=64)
def _weights(length: int, target: int, interpolation: str) -> NDArray[np.float64]:
    """Return Pillow's coefficients [target, length] for resizing `length` pixels to `target`, multiples of 2^-22."""
    kernel, support = _FILTERS[interpolation]
    scale = length / target
    stretch = max(scale, 1.0)  # the filter widens when shrinking: antialiasing
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum(0, (centre - support * stretch + 0.5).astype(np.int64))
    last = np.minimum(length, (centre + support * stretch + 0.5).astype(np.int64))
    pixel = np.arange(length)
    weights = kernel((pixel - centre[:, None] + 0.5) / stretch)
    weights = np.where((pixel >= first[:, None]) & (pixel < last[:, None]), weights, 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    fixed = np.trunc(weights * 2.0**PRECISION_BITS + np.copysign(0.5, weights))
    return cast(NDArray[np.float64], fixed * 2.0**-PRECISION_BITS)


def _nearest_indices(length: int, target: int) -> NDArray[np.int64]:
    """Return the source index of each target pixel, [target]; the position is accumulated in floats, as in Pillow."""
    step = length / target
    return np.minimum(np.add.accumulate(np.r_[step * 0.5, np.full(target - 1, step)]).astype(np.int64), length - 1)


def _to_bytes(values: NDArray[np.float64]) -> Uint8:
    values += 0.5
    return np.clip(values, 0.0, 255.0, out=values).astype(np.uint8)


def resize_image(image: Uint8, size: tuple[int, int], interpolation: str) -> Uint8:
    """Resize an image with Pillow.

    Args:
        image: uint8 [H, W, C] with 1 or 3 channels.
        size: target (height, width) in pixels.
        interpolation: one of INTERPOLATIONS.

    Returns:
        uint8 [*size, C]; `image` itself if it already has this size.
    """
    from PIL import Image

    if image.shape[:2] == size:
        return image
    grey = image.shape[-1] == 1
    method = Image.Resampling[interpolation.upper()]
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    # Two calls: from version 13 on, one call may take the vertical pass first.
    resized = np.asarray(picture.resize((size[1], image.shape[0]), method).resize((size[1], size[0]), method))
    return resized[..., None] if grey else resized


def resize_and_crop(image: Uint8, size: tuple[int, int], cropped: tuple[int, int], interpolation: str) -> Uint8:
    """Resize an image [H, W, C] to `size` and crop its centre of `cropped` = (height, width).

    If the resized image would have more than MAX_RESIZED pixels, as that of an elongated image, only the part that the
    crop shows is resized. The result is the same but for roundings.
    """
    if size[0] * size[1] > MAX_RESIZED:
        return _resize_visible(image, size, cropped, interpolation)
    return centre_crop(resize_image(image, size, interpolation), cropped)


def _resize_visible(image: Uint8, size: tuple[int, int], cropped: tuple[int, int], interpolation: str) -> Uint8:
    """Resize the part of an image [H, W, C] that a centre crop of the resized image shows."""
    from PIL import Image

    part, edges = image, []
    for axis, (length, target) in enumerate(zip(image.shape[:2], size, strict=True)):
        offset = centre_offsets(size, cropped)[axis]
        low, high = offset * length / target, (offset + cropped[axis]) * length / target  # in pixels of the image
        support = int(3 * max(1.0, length / target)) + 2  # pixels beyond the edges that the widest filter reads
        # Cut on whole pixels, since Pillow has float32 edges, which are not precise far from 0
        start, stop = max(0, int(low) - support), min(length, int(high) + support)
        part = part[start:stop] if axis == 0 else part[:, start:stop]
        edges.append((low - start, min(high - start, stop - start)))
    (top, bottom), (left, right) = edges
    method = Image.Resampling[interpolation.upper()]
    grey = image.shape[-1] == 1
    picture = Image.fromarray(np.ascontiguousarray(part[..., 0] if grey else part))
    picture = picture.resize((cropped[1], part.shape[0]), method, box=(left, 0, right, part.shape[0]))
    resized = np.asarray(picture.resize((cropped[1], cropped[0]), method, box=(0, top, cropped[1], bottom)))
    return resized[..., None] if grey else resized


def resize_images(
    images: Uint8, size: tuple[int, int], interpolation: str, cropped: tuple[int, int] | None = None
) -> Uint8:
    """Resize a stack [N, H, W, C] to [N, *size, C] and crop it, as `resize_and_crop` does.

    The faster of the two ways is used; both give the same bits.
    """
    cropped = cropped or size
    if images.shape[1:3] == size:
        return centre_crop(images, cropped)
    pixels = max(images.shape[1] * images.shape[2], size[0] * size[1])
    if pixels * images.shape[3] <= SMALL_IMAGE:
        return centre_crop(resize_stack(images, size, interpolation), cropped)
    resized = np.empty((len(images), *cropped, images.shape[-1]), np.uint8)
    for row, image in zip(resized, images, strict=True):
        row[...] = resize_and_crop(image, size, cropped, interpolation)
    return resized


def resize_stack(images: Uint8, size: tuple[int, int], interpolation: str) -> Uint8:
    """Resize a stack [N, H, W, C] to [N, *size, C] by matrix products.

    The sums, of multiples of 2^-22 below 2^9, are exact in float64.
    """
    count, height, width, channels = images.shape
    if interpolation == "nearest":
        return images[:, _nearest_indices(height, size[0])][:, :, _nearest_indices(width, size[1])]
    resized = np.empty((count, *size, channels), np.uint8)
    chunk = max(1, CHUNK_VALUES // (max(height, size[0]) * max(width, size[1]) * channels))
    for start in range(0, count, chunk):
        x = images[start : start + chunk]
        if width != size[1]:
            rows = x.transpose(0, 1, 3, 2).reshape(-1, width).astype(np.float64)
            horizontal = _to_bytes(rows @ _weights(width, size[1], interpolation).T)
            x = horizontal.reshape(len(x), height, channels, size[1]).transpose(0, 1, 3, 2)
        if height != size[0]:
            columns = x.reshape(len(x), height, -1).astype(np.float64)
            vertical = _to_bytes(_weights(height, size[0], interpolation) @ columns)
            x = vertical.reshape(len(x), *size, channels)
        resized[start : start + chunk] = x
    return resized
