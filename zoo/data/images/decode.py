"""Decoding image files to uint8 pixels, as a viewer would display them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

Uint8 = NDArray[np.uint8]


def read_image(source: str | Path | bytes | BinaryIO) -> Uint8:
    """Decode an image file to pixels, as a viewer would display it.

    EXIF orientation is applied. Palettes, CMYK and other colour spaces become RGB. Transparent images are laid over
    white, or over black if their visible part is light. 16-bit and float pixels are scaled to 8 bits. The first frame
    of several is used.

    Args:
        source: a path, the bytes of a file, or an open binary file.

    Returns:
        uint8 [H, W, C] with C = 1 for grey images and 3 (RGB) otherwise.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one line that names the file, if it is not an image, is truncated or empty, or has so many pixels
            that it may be a decompression bomb.
    """
    if isinstance(source, str | Path):
        name = str(source)
        path = Path(source)
        if path.is_dir():
            raise ValueError(f"{name}: is a folder, not an image file")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: no such file") from None
        except OSError as error:
            raise ValueError(f"{name}: cannot be read ({error.strerror})") from None
    else:
        data = source if isinstance(source, bytes) else source.read()
        name = str(getattr(source, "name", "image"))
    with open_image(data, name) as image:
        image.load()
        return apply_orientation(to_pixels(image), exif_orientation(image))


@contextmanager
def open_image(data: bytes, name: str = "image") -> Iterator[Any]:
    """Open the bytes of a file as a PIL image, not yet decoded.

    Raises:
        ValueError: one line that begins with `name`, for every error of Pillow here or in the `with` block.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ValueError(f"{name}: empty file (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_format(data)) as image:
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"{name}: {_describe_unknown(data)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: has too many pixels to decode safely; scale it down first") from None
    except MemoryError as error:
        raise ValueError(f"{name}: does not fit in memory") from error
    except Exception as error:  # Pillow's decoders raise exceptions of nearly any type on damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: damaged or not supported ({reason})") from None


def _format(data: bytes) -> tuple[str] | None:
    """Return the format of JPEG and PNG files, else None; trying every decoder takes longer than decoding one."""
    if data.startswith(b"\xff\xd8\xff"):
        return ("JPEG",)
    return ("PNG",) if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def _describe_unknown(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace").strip()
        return f"is a {brand} file, which cannot be decoded; convert it to JPEG or PNG"
    return f"is not an image file of a known format (it begins with {data[:12]!r}); convert it to JPEG or PNG"


def exif_orientation(image: Any) -> int:
    """Return the EXIF orientation of a PIL image, 1 to 8; 1 (upright) by default."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF does not make the pixels unreadable
        return 1


def apply_orientation(image: Uint8, orientation: int) -> Uint8:
    """Turn stored pixels [H, W, C] upright by their EXIF orientation, 1 to 8 (CIPA DC-008, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):  # stored by columns
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def to_pixels(image: Any) -> Uint8:
    """Convert a loaded PIL image of any mode to uint8 [H, W, 1 or 3]."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_to_8_bits(np.asarray(image), image.mode, image.format)[..., None]
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return composite(np.asarray(image.convert("RGBA")), grey=image.mode in ("1", "L", "LA", "La"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def _scale_to_8_bits(values: NDArray[Any], mode: str, file_format: str | None) -> Uint8:
    """Scale 16-bit, 32-bit and float grey values to 8 bits; Pillow's own conversion clips at 255 instead."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0:
        raise ValueError(f"pixel values range from {low:g} to {high:g}; they must be finite and at least 0")
    if mode.startswith("I;16") or file_format in ("PNG", "PPM"):  # some versions of Pillow open 16-bit PNG as "I"
        top = 65535.0
    else:  # TIFF stores no range for 32-bit and float pixels: use the smallest usual range that contains them
        ranges = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
        top = next((limit for limit in ranges if high <= limit), 0.0)
        if not top:
            raise ValueError(f"pixel values range from {low:g} to {high:g}; expected 0..1, 0..255 or 0..65535")
    return np.rint(values * (255.0 / top)).astype(np.uint8)


def composite(rgba: Uint8, grey: bool = False) -> Uint8:
    """Lay RGBA [H, W, 4] over white, or over black if the visible part is light and would vanish on white.

    Args:
        rgba: uint8 [H, W, 4].
        grey: use the first colour channel only.

    Returns:
        uint8 [H, W, 1] if grey, else [H, W, 3].
    """
    alpha = rgba[..., 3:].astype(np.int64)
    visible = int(alpha.sum())
    light = visible > 0 and int((luma(rgba[..., :3]).astype(np.int64) * alpha).sum()) > 127 * visible
    colour = rgba[..., :1] if grey else rgba[..., :3]
    ground = 0 if light else 255
    return cast(Uint8, ((colour * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8))


def luma(rgb: Uint8) -> Uint8:
    """Convert RGB uint8 [..., 3] to grey [..., 1] by ITU-R BT.601; same bits as Pillow's `convert("L")`."""
    total = rgb[..., :1] * np.uint32(19595)
    total += rgb[..., 1:2] * np.uint32(38470)
    total += rgb[..., 2:3] * np.uint32(7471)
    return cast(Uint8, ((total + np.uint32(0x8000)) >> 16).astype(np.uint8))
