"""Transparency and colour of uint8 pixels. Large images are converted by bands of rows, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Uint8 = NDArray[np.uint8]

BLOCK_VALUES = 2**20  # values converted at a time


def composite(rgba: Uint8, grey: bool = False) -> Uint8:
    """Lay RGBA [H, W, 4] over white, or over black if the visible part is light and would vanish on white.

    Args:
        rgba: uint8 [H, W, 4].
        grey: use the first colour channel only.

    Returns:
        uint8 [H, W, 1] if grey, else [H, W, 3].
    """
    rows = _rows_per_block(rgba.shape[1] * 4)
    bands = [rgba[start : start + rows] for start in range(0, len(rgba), rows)]
    ground = _contrasting_ground(bands)
    return np.concatenate([_blend(band, ground, grey) for band in bands]) if bands else rgba[..., : 1 if grey else 3]


def flatten_transparency(image: Any, grey: bool) -> Uint8:
    """Composite a loaded PIL image by bands of rows, because RGBA pixels take four bytes each."""
    width, height = image.size
    rows = _rows_per_block(width * 4)
    if height <= rows:
        return composite(np.asarray(image.convert("RGBA")), grey)

    def bands() -> Iterator[Uint8]:
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(top + rows, height)))
            yield np.asarray(band.convert("RGBA"))

    ground = _contrasting_ground(bands())
    pixels = np.empty((height, width, 1 if grey else 3), np.uint8)
    for number, band in enumerate(bands()):
        pixels[number * rows : number * rows + len(band)] = _blend(band, ground, grey)
    return pixels


def _rows_per_block(values_per_row: int) -> int:
    return max(1, BLOCK_VALUES // max(1, values_per_row))


def _contrasting_ground(bands: Iterable[Uint8]) -> int:
    """Return 0 if the visible part of RGBA bands is light on average, else 255."""
    visible = weighted = 0
    for band in bands:
        alpha = band[..., 3].astype(np.uint32)
        visible += int(alpha.sum(dtype=np.int64))
        weighted += int((luma(band[..., :3])[..., 0] * alpha).sum(dtype=np.int64))
    return 0 if visible > 0 and weighted > 127 * visible else 255


def _blend(rgba: Uint8, ground: int, grey: bool) -> Uint8:
    """Blend RGBA with a grey level; every intermediate value is at most 255 * 255 + 127 and fits in 16 bits."""
    alpha = rgba[..., 3:].astype(np.uint16)
    blended = (rgba[..., :1] if grey else rgba[..., :3]) * alpha
    blended += np.uint16(ground) * (np.uint16(255) - alpha) + np.uint16(127)
    return cast(Uint8, (blended // np.uint16(255)).astype(np.uint8))


def luma(rgb: Uint8) -> Uint8:
    """Convert RGB uint8 [..., 3] to grey [..., 1] by ITU-R BT.601; same bits as Pillow's `convert("L")`."""
    if rgb.size > 3 * BLOCK_VALUES and rgb.ndim > 1:
        rows = _rows_per_block(rgb.size // len(rgb))
        grey = np.empty((*rgb.shape[:-1], 1), np.uint8)
        for start in range(0, len(rgb), rows):
            grey[start : start + rows] = _luma(rgb[start : start + rows])
        return grey
    return _luma(rgb)


def _luma(rgb: Uint8) -> Uint8:
    total = rgb[..., :1] * np.uint32(19595)
    total += rgb[..., 1:2] * np.uint32(38470)
    total += rgb[..., 2:3] * np.uint32(7471)
    return cast(Uint8, ((total + np.uint32(0x8000)) >> 16).astype(np.uint8))
