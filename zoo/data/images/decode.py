"""One way from anything that shows an image to uint8 pixels, for training, evaluation and prediction alike.

`read_image` decodes a file and `to_pixels` a PIL image; `decode_images` takes these, arrays, and lists of all of them.
Pixel values of other types than 8 bits are scaled by the rules of `levels`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.colour import Uint8, composite, flatten_transparency, luma
from zoo.data.images.levels import (
    OVERSHOOT,
    PixelRangeError,
    find_white,
    kind_of_mode,
    require_unmasked,
    scale_to_8_bits,
    value_range,
)
from zoo.files import read_bounded
from zoo.text import escape, first_line

__all__ = [
    "Uint8",
    "apply_orientation",
    "composite",
    "decode_images",
    "exif_orientation",
    "luma",
    "open_image",
    "read_image",
    "to_pixels",
    "upright_pixels",
]

CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGBA
MAX_IMAGE_BYTES = 2**30  # of an encoded image; a sparse file or a header can claim any size

#: Formats of Pillow that are not read: EPS runs Ghostscript, WMF asks Windows to draw, and of the others Pillow only
#: reads the header.
UNREAD_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


def read_image(source: str | Path | bytes | BinaryIO, white: float | None = None) -> Uint8:
    """Decode an image file to pixels, as a viewer would display it.

    EXIF orientation is applied. Palettes, CMYK and other colour spaces become RGB. Transparent images are laid over
    white, or over black if their visible part is light. 16-bit and float pixels are scaled to 8 bits. The first frame
    of several is used.

    Args:
        source: a path, the bytes of a file, or an open binary file.
        white: value of white in 16-bit, 32-bit and float pixels, as in `Preprocess.white`; None for the rules of
            `find_white`.

    Returns:
        uint8 [H, W, C] with C = 1 for grey images and 3 (RGB) otherwise.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one line that names the file, if it is not an image, is truncated or empty, has pixel values of
            unknown range, or has so many pixels that it may be a decompression bomb.
    """
    if isinstance(source, str | Path):
        name = escape(str(source))
        path = Path(source)
        if path.is_dir():
            if not str(source):
                raise ValueError("'' names no image file")
            raise ValueError(f"{name}: is a folder; give a list of its images; `zoo predict` reads folders")
        try:
            data = read_bounded(path, MAX_IMAGE_BYTES)
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: no such file") from None
        except OSError as error:
            raise ValueError(f"{name}: cannot be read ({error.strerror})") from None
    else:
        data = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else source.read()
        name = escape(str(getattr(source, "name", "image")))
        if not isinstance(data, bytes):
            raise ValueError(f"{name}: is open as text; open it in binary mode ('rb')")
    with open_image(data, name) as image:
        return upright_pixels(image, white)


def upright_pixels(image: Any, white: float | None = None) -> Uint8:
    """Convert a PIL image of any mode to uint8 [H, W, 1 or 3], turned upright by its EXIF orientation."""
    image.load()
    return apply_orientation(to_pixels(image, white), exif_orientation(image))


@contextmanager
def open_image(data: bytes, name: str = "image") -> Iterator[Any]:
    """Open the bytes of a file as a PIL image. JPEG files are not yet decoded, so that `draft` can shrink them.

    Raises:
        ValueError: one line that begins with `name`, for every error of Pillow here or in the `with` block.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ValueError(f"{name}: empty file (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            require_known_tiff(image)
            if image.format not in ("JPEG", "MPO"):
                image.load()  # which turns a TIFF upright, and finds EXIF data at the end of a PNG
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"{name}: {_describe_unknown(data)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: has too many pixels to decode safely; scale it down first") from None
    except MemoryError as error:
        raise ValueError(f"{name}: does not fit in memory") from error
    except PixelRangeError as error:
        raise PixelRangeError(f"{name}: {error}") from None
    except Exception as error:  # Pillow's decoders raise exceptions of nearly any type on damaged files
        reason = first_line(error)
        raise ValueError(f"{name}: damaged or not supported ({reason})") from None


def _formats(data: bytes) -> tuple[str, ...]:
    """Return the formats to try: that of JPEG and PNG files alone, because trying every decoder takes long."""
    if data.startswith(b"\xff\xd8\xff"):
        return ("JPEG",)
    return ("PNG",) if data.startswith(b"\x89PNG\r\n\x1a\n") else _other_formats()


def _other_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.OPEN if name not in UNREAD_FORMATS)


def require_known_tiff(image: Any) -> None:
    """Raise ValueError for a TIFF image, not yet decoded, that Pillow would decode to other pixels than it shows."""
    if image.format != "TIFF":
        return
    tags = image.tag_v2
    bits = max(tags.get(258, (1,)))
    is_deep = bits > 8
    faults = (
        (tags.get(254, 0) & 1, "its first image is the thumbnail of another one, as in raw files of cameras"),
        (is_deep and tags.get(262) == 0, f"it stores white as 0, with {bits} bits a channel"),
        (
            is_deep and tags.get(284) == 2 and tags.get(259, 1) == 1,
            f"it stores its channels in planes, with {bits} bits each",
        ),
        (bits == 8 and 2 in tags.get(339, ()), "its pixels are signed: from -128 to 127"),
    )
    if reason := next((text for is_fault, text in faults if is_fault), ""):
        raise ValueError(f"{reason}; convert it to PNG")


def _describe_unknown(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        brand = escape(data[8:12].decode("ascii", "replace").strip())
        return f"is a {brand} file, which cannot be decoded; convert it to JPEG or PNG"
    if data.startswith((b"II*\0", b"MM\0*")):
        return (
            "is a TIFF or a camera's raw file that is damaged, or whose pixels are of a type that cannot be decoded, "
            "such as floats in colour; convert it to JPEG or PNG"
        )
    return f"is not an image file of a known format (it begins with {data[:12]!r}); convert it to JPEG or PNG"


def exif_orientation(image: Any) -> int:
    """Return the EXIF orientation of a PIL image, 1 to 8; 1 (upright) without one, or for any other value."""
    try:
        orientation = int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF does not make the pixels unreadable
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def apply_orientation(image: Uint8, orientation: int) -> Uint8:
    """Turn stored pixels [H, W, C] upright by their EXIF orientation, 1 to 8 (CIPA DC-008, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):  # stored by columns
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def to_pixels(image: Any, white: float | None = None) -> Uint8:
    """Convert a loaded PIL image of any mode to uint8 [H, W, 1 or 3]; `white` as in `read_image`."""
    if kind := kind_of_mode(image.mode, image.format):
        values = np.asarray(image)
        low, peak = value_range(values)
        return scale_to_8_bits(values, find_white(low, peak, kind, white))[..., None]
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return flatten_transparency(image, grey=image.mode in ("1", "L", "LA", "La"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


# --- arrays and collections -------------------------------------------------------------------------------------------


def decode_images(images: Any, white: float | None = None) -> list[Uint8]:
    """Decode whatever may be handed over as one or several images.

    Args:
        images: a path, bytes, an open binary file, a PIL image, an array, or a list of them, also mixed and of
            different sizes. Arrays (NumPy, JAX or convertible) have the shape [H, W], [H, W, C], [N, H, W] or
            [N, H, W, C] with C = 1, 3 or 4, or channels first where that is unambiguous. They are bool, uint8, other
            integers or floats. The arrays of a list are taken to have one range, as a data set has.
        white: value of white in the training images, `Preprocess.white`.

    Returns:
        A list of uint8 [H, W, C] with C = 1 or 3.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one line, for what is not an image and for what could mean two things.
    """
    items = [item if isinstance(item, np.ndarray) else [_pixels_of(item, white)] for item in _flatten(images)]
    ranges = _ranges([item for item in items if isinstance(item, np.ndarray)])
    decoded: list[Uint8] = []
    for item in items:
        decoded += item if isinstance(item, list) else map(_without_alpha, _scale_stack(item, white, ranges))
    return decoded


def is_collection(images: Any) -> bool:
    """Return True for what `decode_images` reads as several images: a list, a tuple or a stack."""
    if isinstance(images, list | tuple):
        return True
    if isinstance(images, str | Path | bytes | bytearray | memoryview) or hasattr(images, "read") or _is_pil(images):
        return False
    array = np.asarray(images)
    return array.ndim == 4 or (array.ndim == 3 and not _is_single(array.shape))


def _flatten(images: Any) -> Iterator[Any]:
    """Yield files, PIL images and stacks [N, H, W, C] in order."""
    if isinstance(images, str | Path | bytes | bytearray | memoryview) or hasattr(images, "read") or _is_pil(images):
        yield images
    elif isinstance(images, list | tuple):
        for image in images:
            yield from _flatten(image)
    else:
        yield to_stack(images)


def _is_pil(image: Any) -> bool:
    return hasattr(image, "getexif") and hasattr(image, "convert")


def _pixels_of(source: Any, white: float | None) -> Uint8:
    """Decode a file or a PIL image."""
    if not _is_pil(source):
        return read_image(source, white)
    name = escape(str(getattr(source, "filename", "") or "image"))
    try:
        require_known_tiff(source)
        return upright_pixels(source, white)
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"{name}: {reason}") from None


def to_stack(images: Any) -> NDArray[Any]:
    """Return an array of one or several images as numbers [N, H, W, C] with C = 1, 3 or 4.

    Raises:
        ValueError: for other types, and for shapes that could mean two things.
    """
    x = as_numbers(images)
    shape = x.shape
    if x.ndim == 2:
        x = x[None, ..., None]
    elif x.ndim == 3:
        x = x[None] if _is_single(shape) else x[..., None]
    if x.ndim != 4:
        raise ValueError(
            f"an array of shape {shape} is not an image: give one image as [H, W] or [H, W, C], several as [N, H, W] "
            "or [N, H, W, C]"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"an array of shape {shape} has no pixels")
    return channels_last(x, f"an array of shape {shape}") if len(shape) == 4 else x


def _is_single(shape: tuple[int, ...]) -> bool:
    """Return True for the shape of one image [H, W, C]; False for [N, H, W]. Ambiguous shapes raise ValueError."""
    first, last = shape[0] in CHANNEL_COUNTS, shape[2] in CHANNEL_COUNTS
    if shape[2] == 2 or (first and shape[0] > 1 and (not last or shape[0] != shape[1])):
        grey = f"for {shape[0]:,} grey images write x[..., None]"
        one = f"for one image with {shape[0]} channels x.transpose(1, 2, 0)" if first else "for one image x[..., :1]"
        raise ValueError(f"an array of shape {shape} is ambiguous: {grey}, {one}")
    return last


def as_numbers(images: Any) -> NDArray[Any]:
    """Return an array of bool, integers or floats; floats that NumPy lacks, such as bfloat16, become float32."""
    require_unmasked(images)
    try:
        x = np.asarray(images)
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"a {type(images).__name__} cannot be read as an array of images ({reason})") from None
    if x.dtype.kind == "V" and x.dtype.names is None and x.dtype.name.startswith(("bfloat", "float", "int", "uint")):
        x = x.astype(np.float32 if "float" in x.dtype.name else np.int32)
    if x.dtype.kind not in "buif":
        what = f"{type(images).__name__} of {x.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(
            f"images must be numbers, not {what}; give a path, bytes, an open file, a PIL image, an array, or a list"
        )
    return x


def channels_last(x: NDArray[Any], title: str) -> NDArray[Any]:
    """Return a stack [N, H, W, C] or [N, C, H, W] with its channels last.

    Raises:
        ValueError: beginning with `title`, if neither axis, or both, may be the channels.
    """
    first, last = x.shape[1] in CHANNEL_COUNTS, x.shape[3] in CHANNEL_COUNTS
    if not last and not first:
        raise ValueError(f"{title}: must have 1 (grey), 3 (RGB) or 4 (RGBA) channels, last in the shape, not {x.shape}")
    if first and last and x.shape[1] != x.shape[2]:
        raise ValueError(f"{title}: ambiguous shape {x.shape}; give images as [N, height, width, channels]")
    return x if last else x.transpose(0, 2, 3, 1)


def type_of(x: NDArray[Any]) -> Literal["bool", "uint8", "integer", "float"]:
    """Return which rule decides the value of white of an array: that of bool, uint8, other integers or floats."""
    if x.dtype.kind == "f":
        return "float"
    return "bool" if x.dtype == bool else "uint8" if x.dtype == np.uint8 else "integer"


def _ranges(stacks: Sequence[NDArray[Any]]) -> dict[str, tuple[float, float]]:
    """Return (smallest, largest) value by type of array. Float images of two ranges raise PixelRangeError."""
    ranges: dict[str, tuple[float, float]] = {}
    for name in ("uint8", "integer", "float"):
        parts = [value_range(x) for x in stacks if type_of(x) == name]
        if not parts:
            continue
        ranges[name] = (min(low for low, _ in parts), max(peak for _, peak in parts))
        peaks = [peak for _, peak in parts if peak > 0]
        if name == "float" and peaks and min(peaks) <= 1 + OVERSHOOT and max(peaks) > 127:
            raise PixelRangeError(
                f"some images have values up to {min(peaks):g}, others up to {max(peaks):g}; scale all to one range"
            )
    return ranges


def _scale_stack(x: NDArray[Any], white: float | None, ranges: Mapping[str, tuple[float, float]]) -> Uint8:
    """Scale numbers [N, H, W, C] of any type to uint8; `ranges` covers all arrays that were handed over with them."""
    if x.dtype == bool:
        return x.astype(np.uint8) * np.uint8(255)
    level = array_white(x, white, ranges[type_of(x)])
    return cast(Uint8, x) if x.dtype == np.uint8 and level == 255 else scale_to_8_bits(x, level)


def array_white(x: NDArray[Any], white: float | None, extent: tuple[float, float] | None = None) -> float:
    """Return the value of white of an array for a model.

    Args:
        x: bool, integers or floats [...].
        white: the model's `Preprocess.white`.
        extent: (smallest, largest) value of all arrays that were handed over together; by default of `x`.
    """
    name = type_of(x)
    low, peak = extent or value_range(x)
    if name == "bool":
        return 1.0
    if name == "uint8" and peak != 1:  # values 0 and 1 alone may be black and white
        return 255.0
    return find_white(low, peak, "float" if name == "float" else "integer", white, array=True)


def _without_alpha(image: Uint8) -> Uint8:
    return composite(image) if image.shape[-1] == 4 else image
