"""Pixel values of more than 8 bits and of other types: which value is white, and scaling to uint8.

8-bit files and uint8 arrays have the range 0..255. Other pixels (16-bit, 32-bit and float files, arrays of other types)
do not say which value is white. A data set decides it once, over all of its images (`choose_white` for files,
`choose_array_white` for arrays), and the checkpoint's card keeps it in `Preprocess.white`. `find_white` applies it to
one image in evaluation and prediction. Without a recorded value only ranges that cannot be mistaken are accepted.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.colour import BLOCK_VALUES, Uint8

Kind = Literal["float", "integer", "16-bit"]

OVERSHOOT = 0.05  # share of the range by which resized floats may leave it; such values are clipped
DEPTHS = (255, 1023, 4095, 16383, 65535)  # largest values of 8, 10, 12, 14 and 16 bits
BLACK_IN_12_BITS = 8  # values of 16-bit files that are black, at half a level of 255, even if white is 4095


class PixelRangeError(ValueError):
    """Pixel values that are negative, not finite, or of a range that could mean two things."""


def kind_of_mode(mode: str, file_format: str | None) -> Kind | None:
    """Return the kind of pixels of a PIL mode, or None for those of 8 bits and less."""
    if mode == "F":
        return "float"
    # Some versions of Pillow open 16-bit PNG as "I".
    if mode.startswith("I;16") or (mode == "I" and file_format in ("PNG", "PPM")):
        return "16-bit"
    return "integer" if mode == "I" else None


def value_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return (smallest, largest) of some values, (0, 0) for none. NaN and infinity raise PixelRangeError."""
    if not values.size:
        return 0.0, 0.0
    low, peak = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(peak)):
        raise PixelRangeError(f"pixel values contain NaN or infinity (range {low:g} to {peak:g})")
    return low, peak


def require_unmasked(values: Any) -> None:
    """Raise ValueError for a masked array with masked values: converting it would silently use what they hide."""
    if isinstance(values, np.ma.MaskedArray) and (count := int(np.ma.count_masked(values))):
        raise ValueError(
            f"{count:,} of {values.size:,} values are masked; leave them out, or choose their value: filled()"
        )


def choose_white(peak: float, kind: Kind) -> float | None:
    """Choose the value of white for a data set of files.

    Args:
        peak: the largest value in all of its 16-bit, 32-bit or float images.
        kind: of these images.

    Returns:
        None for floats in 0..1, 255 for floats in 0..255. For integers the largest value of 8, 10, 12, 14 or 16 bits
        that is not below the peak. Otherwise the smallest 2^k - 1 that is not below it.
    """
    if kind == "float":
        if (usual := _usual_white(peak, kind)) is not None:
            return None if usual == 1 else usual
    elif peak <= DEPTHS[-1]:
        return float(next(depth for depth in DEPTHS if peak <= depth))
    return float(2 ** math.ceil(math.log2(peak + 1)) - 1)


def choose_array_white(low: float, peak: float, kind: Kind) -> float:
    """Choose the value of white for a data set of arrays.

    Args:
        low: smallest value of all images.
        peak: largest value of all images.
        kind: "float" or "integer".

    Returns:
        1 for floats in 0..1 and for integers 0 and 1; 255 for values in 0..255 with a peak over 127; for larger
        integers that of 10, 12, 14 or 16 bits, if the peak is over half of it.

    Raises:
        PixelRangeError: for other ranges, which the owner of an array can scale.
    """
    white = _usual_white(peak, kind)
    if kind == "integer":
        if peak <= 1:
            white = 1.0
        elif peak > 255:
            white = next((float(depth) for depth in DEPTHS if depth // 2 < peak <= depth), white)
    if white is None or low < -_slack(kind) * white:
        raise PixelRangeError(_describe(low, peak, "; scale them to 0..255 or 0..1"))
    return white


def find_white(low: float, peak: float, kind: Kind, white: float | None = None, *, array: bool = False) -> float:
    """Return the value of white of one image, or of arrays that are handed over together.

    A recorded value is used if it contains the image's values. Otherwise floats are in 0..1, with an overshoot of 5 %,
    or in 0..255 if their peak is over 127. Integers are in 0..255 if their peak is over 127, or in 0..65535 if it is
    over 32767. 16-bit files use 0..65535, unless they may hold 12 bits.

    Args:
        low: smallest value.
        peak: largest value.
        kind: of the values; arrays are "float" or "integer".
        white: recorded value, `Preprocess.white`; 1 says that integers are 0 and 1.
        array: True for arrays, False for a file.

    Raises:
        PixelRangeError: for negative values, and for a range that could mean two things.
    """
    level = _recorded_white(peak, kind, white)
    if array and kind == "float" and level == 255 and 0 < peak <= 1 + OVERSHOOT:
        raise PixelRangeError(_describe(low, peak, ", but the model was trained on values in 0..255; scale them to it"))
    if level is None:
        level = _usual_white(peak, kind)
    if level is not None and low >= -_slack(kind) * level:
        return level
    if level is not None:
        advice = "; pixels cannot be negative: scale them to 0..255"
    elif white is not None and white > 1:
        advice = f", but in the images that the model was trained on white is {white:g}"
    elif kind == "16-bit":
        advice = "; white may be 4095 (12 bits) or 65535 (16 bits): save the image with 8 bits"
    elif array and peak == 1:
        advice = ": black and white, or nearly black? pass images.astype(bool) or images * 255"
    else:
        advice = ", neither 0..1 nor 0..255; " + ("scale them" if array else "save the image with 8 bits")
    raise PixelRangeError(_describe(low, peak, advice))


def scale_to_8_bits(values: NDArray[Any], white: float) -> Uint8:
    """Scale values [...] to uint8 so that `white` becomes 255, clipping values outside; Pillow would clip at 255."""
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, BLOCK_VALUES // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values), rows):
        scaled = values[start : start + rows].astype(np.float64) * (255.0 / white)
        pixels[start : start + rows] = np.rint(np.clip(scaled, 0.0, 255.0, out=scaled), out=scaled)
    return pixels


def _recorded_white(peak: float, kind: Kind, white: float | None) -> float | None:
    """Return the recorded value of white if it applies to values up to `peak`, else None."""
    if white is None or peak > white * (1 + _slack(kind)) or (white == 1 and kind == "16-bit"):
        return None
    return white


def _usual_white(peak: float, kind: Kind) -> float | None:
    """Return the value of white if the peak leaves no doubt, else None."""
    if kind == "float":
        if peak <= 1 + OVERSHOOT:
            return 1.0
        return 255.0 if 127 < peak <= 255 * (1 + OVERSHOOT) else None
    if kind == "16-bit":
        return 65535.0 if peak <= BLACK_IN_12_BITS or 4095 < peak <= 65535 else None
    if peak <= 0 or 127 < peak <= 255:
        return 255.0
    if 32767 < peak <= 65535:
        return 65535.0
    return 2.0**31 - 1 if 2**30 < peak < 2**31 else None


def _slack(kind: Kind) -> float:
    return OVERSHOOT if kind == "float" else 0.0


def _describe(low: float, peak: float, advice: str) -> str:
    return f"pixel values range from {low:g} to {peak:g}{advice}"
