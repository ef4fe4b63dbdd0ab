"""Pictures of arrays, as uint8 [H, W, 3]: images, heatmaps over images, filters and mosaics."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import fonts

Picture = NDArray[np.uint8]

OVERLAY = 0.6  # opacity of the strongest place of a heatmap
PERCENTILE = 99.5  # maps are scaled by this percentile, so that a single pixel does not darken the rest


def to_rgb(pixels: NDArray[Any], channels: str = "RGB") -> Picture:
    """Return an image [H, W] or [H, W, C] in 0..255 as RGB.

    Args:
        pixels: the image.
        channels: order of its channels, "L", "RGB" or "BGR".
    """
    pixels = np.asarray(pixels, np.uint8)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    return pixels[..., ::-1] if channels == "BGR" else pixels[..., :3]


def colour(values: NDArray[Any], name: str) -> Picture:
    """Map values in [0, 1] to the colours of a matplotlib colour map."""
    fonts.import_matplotlib()
    import matplotlib

    return matplotlib.colormaps[name](np.clip(values, 0, 1), bytes=True)[..., :3]


def positive(heatmap: NDArray[Any]) -> NDArray[np.float64]:
    """Scale a map of non-negative values to [0, 1]."""
    values = np.maximum(np.asarray(heatmap, np.float64), 0)
    return np.clip(values / max(float(np.percentile(values, PERCENTILE)), 1e-12), 0, 1)


def magnitude(heatmap: NDArray[Any]) -> Picture:
    """Return a map of non-negative values, black to yellow."""
    return colour(positive(heatmap), "inferno")


def signed(heatmap: NDArray[Any]) -> Picture:
    """Return a map of signed values: red above zero, white at zero, blue below."""
    values = np.asarray(heatmap, np.float64)
    scale = max(float(np.percentile(np.abs(values), PERCENTILE)), 1e-12)
    return colour(0.5 + values / (2 * scale), "RdBu_r")


def overlay(pixels: NDArray[Any], heatmap: NDArray[Any], channels: str = "RGB") -> Picture:
    """Lay a heatmap of non-negative values [H, W] over an image of the same size, in grey, opaque where it is high."""
    grey = to_rgb(pixels, channels).mean(-1, keepdims=True)
    values = positive(heatmap)
    opacity = OVERLAY * np.sqrt(values)[..., None]
    return ((1 - opacity) * grey + opacity * colour(values, "turbo")).round().astype(np.uint8)


def filter_pictures(filters: NDArray[Any]) -> list[Picture]:
    """Return a picture of each kernel [F, kh, kw, C], scaled by its largest weight.

    With three channels zero is grey; with another number, the channels lie side by side, red above zero, blue below.
    """
    pictures = []
    for kernel in np.asarray(filters, np.float64):
        scaled = kernel / max(float(np.abs(kernel).max()), 1e-12)
        if kernel.shape[-1] == 3:
            pictures.append((255 * (0.5 + scaled / 2)).round().astype(np.uint8))
        else:
            pictures.append(colour(0.5 + np.concatenate(list(scaled.transpose(2, 0, 1)), axis=1) / 2, "RdBu_r"))
    return pictures


def enlarge(picture: Picture, side: int) -> Picture:
    """Repeat the pixels of a small picture so that its longer side is at most `side`; larger ones are left alone."""
    factor = max(side // max(picture.shape[:2]), 1)
    return picture.repeat(factor, 0).repeat(factor, 1)


def mosaic(pictures: Sequence[Picture], columns: int, gap: int = 1, background: int = 255) -> Picture:
    """Arrange pictures of equal size in rows, with a gap between them."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, background, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def data_uri(picture: Picture, limit: int = 0) -> str:
    """Encode a picture as a data URI: PNG if small, else JPEG.

    Args:
        picture: the picture.
        limit: maximum number of pixels of the longer side; larger pictures are reduced. 0 for none.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    if limit and max(image.size) > limit:
        image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= 64:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
