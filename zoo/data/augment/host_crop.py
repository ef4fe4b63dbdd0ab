"""Random crops on the host, cut from the encoded image files.

On the device, a crop can only be cut from an image that the loader already brought to the model's input size. If the
files hold larger images, which are decoded anew in every epoch anyway, the host cuts the crop instead: fewer pixels are
decoded and resized, and the crop is as sharp as the file. The rest of a recipe's augmentation runs on the device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from zoo.data.augment.interpolation import INTERPOLATIONS, PILLOW_NAMES
from zoo.data.images.decode import Uint8, apply_orientation, exif_orientation, open_image, to_pixels
from zoo.data.images.geometry import Box, FloatBox, pad_to_shape, undo_orientation
from zoo.data.images.preprocess import Preprocess, convert_channels
from zoo.data.splits import Split, encoded_reader, image_sizes

MAX_ATTEMPTS = 10  # shapes drawn until one fits into the image


class Crop(NamedTuple):
    """Distribution of random-resized crops."""

    area: float = 0.08
    """Smallest area, as a share of the image's."""
    ratio: float = 0.75
    """Smallest aspect ratio (width by height); the largest is 1 / ratio."""
    interpolation: str = "bilinear"
    """Key of INTERPOLATIONS, as on the device."""


class ScaleCrop(NamedTuple):
    """Distribution of crops of the input's size from images whose shorter side is resized to a random length."""

    low: float = 256 / 224
    """Smallest length of the shorter side, in units of the input's side."""
    high: float = 256 / 224
    """Largest length."""


#: Operations that the host can do, with the distribution of their crops.
HOST_CROPS: dict[str, Callable[..., Crop | ScaleCrop]] = {"resized_crop": Crop, "scale_crop": ScaleCrop}


class Augmentation(NamedTuple):
    """A recipe's augmentation, divided between host and device."""

    host_crop: Crop | ScaleCrop | None
    """The crop that the loader cuts from the encoded images, or None."""
    device: tuple[str, ...]
    """The operations left to the compiled step, in order."""


def place_augmentation(split: Split, preprocess: Preprocess, augment: Sequence[str]) -> Augmentation:
    """Decide whether host or device cuts the crops of a recipe's augmentation.

    The host does if the augmentation begins with an operation of HOST_CROPS, the images stay encoded until they are
    read, they are not drawings, and most of them are larger than the model's input (or their sizes are unknown).
    """
    on_device = Augmentation(None, tuple(augment))
    if not augment or encoded_reader(split) is None or preprocess.polarity is not None:
        return on_device
    from zoo.data.augment.ops import parse  # imports jax, which loading data does not need

    name, numbers = parse(augment[0])
    if name not in HOST_CROPS:
        return on_device
    sizes = image_sizes(split)
    if sizes is not None and np.median(sizes / np.array(preprocess.size), axis=0).min() <= 1:
        return on_device
    return Augmentation(HOST_CROPS[name](**numbers), tuple(augment[1:]))


def draw_crop(seed: int, epoch: int, record: int, height: int, width: int, crop: Crop, repeat: int = 0) -> Box:
    """Draw a random-resized crop as a pure function of the arguments.

    As in Szegedy et al. 2014 (arXiv:1409.4842, section 6) and torchvision, the area is uniform and the aspect ratio
    log-uniform. The first of ten shapes that fits is placed uniformly; if none fits, the largest centred box of an
    allowed ratio is taken. The random bits come from Philox, with (seed, epoch) as the key and the record in the
    counter, so they do not depend on the worker.

    Args:
        seed: of the run.
        epoch: counted from 0.
        record: index in the split.
        height: of the image, in pixels.
        width: of the image, in pixels.
        crop: distribution of area and aspect ratio.
        repeat: number of the copy of the image, with repeated augmentation.
    """
    uniform = _draw_uniform(seed, epoch, record, repeat, 2 * MAX_ATTEMPTS + 2)
    areas, ratios, (y, x) = uniform[:MAX_ATTEMPTS], uniform[MAX_ATTEMPTS:-2], uniform[-2:]
    for area_draw, ratio_draw in zip(areas, ratios, strict=True):
        area = (crop.area + (1 - crop.area) * area_draw) * height * width
        ratio = math.exp(math.log(crop.ratio) * (1 - 2 * ratio_draw))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(y * (height - h + 1)), int(x * (width - w + 1)), h, w)
    h = min(height, max(1, round(width / crop.ratio)))
    w = min(width, max(1, round(height / crop.ratio)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_method(seed: int, epoch: int, record: int, crop: Crop | ScaleCrop, repeat: int = 0) -> str:
    """Return the method of interpolation for a crop; a ScaleCrop is bilinear. Randomness as in `draw_crop`."""
    if isinstance(crop, ScaleCrop):
        return "bilinear"
    methods = INTERPOLATIONS[crop.interpolation]
    drawn = _draw_uniform(seed, epoch, record, repeat, 2 * MAX_ATTEMPTS + 3)[-1]  # after those of `draw_crop`
    return methods[int(drawn * len(methods))]


def draw_scale_crop(
    seed: int, epoch: int, record: int, height: int, width: int, crop: ScaleCrop, size: tuple[int, int], repeat: int = 0
) -> FloatBox:
    """Draw a crop of `size` from the resized image, and return it in pixels of the image as it is.

    The image is resized so that it covers `size`, times a factor of which the shorter side becomes a whole number of
    pixels, uniform between `low` and `high`; the crop lies on whole pixels of the resized image. Randomness and other
    arguments as in `draw_crop`.

    Args:
        seed: of the run.
        epoch: counted from 0.
        record: index in the split.
        height: of the image, in pixels.
        width: of the image, in pixels.
        crop: distribution of the length of the shorter side.
        size: (height, width) of the crop.
        repeat: number of the copy of the image, with repeated augmentation.
    """
    length, y, x = _draw_uniform(seed, epoch, record, repeat, 3)
    shorter = min(size)
    first, last = round(crop.low * shorter), round(crop.high * shorter)
    factor = (first + int(length * (last - first + 1))) / shorter
    scale = factor * max(size[0] / height, size[1] / width)
    scaled = max(round(height * scale), size[0]), max(round(width * scale), size[1])
    top, left = int(y * (scaled[0] - size[0] + 1)), int(x * (scaled[1] - size[1] + 1))
    down, right = height / scaled[0], width / scaled[1]
    return FloatBox(top * down, left * right, size[0] * down, size[1] * right)


def _draw_uniform(seed: int, epoch: int, record: int, repeat: int, count: int) -> list[float]:
    bits = np.random.Philox(key=[seed, epoch], counter=[0, record, repeat, 0]).random_raw(count)
    return ((bits >> np.uint64(11)) * 2.0**-53).tolist()


def truncate_jpeg(data: bytes, rows: int) -> bytes:
    """Return a baseline JPEG with `rows` as the height in its header, so that decoding stops there.

    The last rows may differ from those of the whole image, because chroma is interpolated across the edge. Other files,
    and JPEGs with no more than `rows` rows, are returned unchanged.
    """
    position = 2
    while position + 7 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xC0, 0xC1):  # start of a baseline or extended sequential frame: precision, height, width
            if rows >= int.from_bytes(data[position + 5 : position + 7], "big"):
                return data
            return data[: position + 5] + rows.to_bytes(2, "big") + data[position + 7 :]
        if marker in (0xC2, 0xDA):  # progressive, or start of scan without a frame
            return data
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data


def read_crop(
    data: bytes, preprocess: Preprocess, seed: int, epoch: int, record: int, crop: Crop | ScaleCrop, repeat: int = 0
) -> Uint8:
    """Decode the crop that `draw_crop` or `draw_scale_crop` draws of an image and bring it to the model's input.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the crop is still at least as large as the input, and only down
    to the last row of the crop.

    Args:
        data: the bytes of an image file.
        preprocess: its size, channels and white are used; its resize box and mode, and its interpolation, which is that
            of evaluation, are not.
        seed: of the run.
        epoch: counted from 0.
        record: index in the split.
        crop: distribution of the crops.
        repeat: number of the copy of the image, with repeated augmentation.

    Returns:
        uint8 [*preprocess.input_shape].

    Raises:
        ValueError: as `read_image`; the message begins with "image".
    """
    from PIL import Image

    with open_image(data) as image:
        orientation = exif_orientation(image)
        transposed = orientation >= 5
        height, width = image.size if transposed else image.size[::-1]
        box: Box | FloatBox
        if isinstance(crop, ScaleCrop):
            drawn = draw_scale_crop(seed, epoch, record, height, width, crop, preprocess.size, repeat)
            box = undo_orientation(drawn, orientation, height, width)
        else:
            box = undo_orientation(
                draw_crop(seed, epoch, record, height, width, crop, repeat), orientation, height, width
            )
        target = preprocess.size[::-1] if transposed else preprocess.size
        reduction = 1
        if image.mode not in ("L", "RGB") or "transparency" in image.info:
            pixels = to_pixels(image, preprocess.white)
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        elif image.format in ("JPEG", "MPO"):
            image, reduction = _draft_jpeg(image, data, box, target)
        left, top = box.left / reduction, box.top / reduction
        right, bottom = left + box.width / reduction, top + box.height / reduction
        edges = (left, top, min(right, image.width), min(bottom, image.height))
        drawn_method = draw_method(seed, epoch, record, crop, repeat)
        method = Image.Resampling[PILLOW_NAMES.get(drawn_method, drawn_method).upper()]
        resized = np.asarray(image.resize((target[1], target[0]), method, box=edges))
        resized = apply_orientation(resized[..., None] if resized.ndim == 2 else resized, orientation)
    converted = convert_channels(resized, preprocess.channels)
    return cast(Uint8, pad_to_shape(converted, preprocess.input_shape, preprocess.fill))


def _draft_jpeg(image: Any, data: bytes, box: Box | FloatBox, target: tuple[int, int]) -> tuple[Any, int]:
    """Return a JPEG set up to decode no more than a box needs, and the factor by which it is reduced."""
    from PIL import Image

    height, width = target
    reduction = next(
        factor
        for factor in (8, 4, 2, 1)
        if factor == 1 or (box.height >= factor * height and box.width >= factor * width)
    )
    support = box.height * 3 / height + 3  # rows below the box that the widest filter reads
    rows = int(box.top + box.height + support) + 16
    if image.format == "JPEG" and rows < 0.95 * image.height:
        image = Image.open(io.BytesIO(truncate_jpeg(data, rows)), formats=("JPEG",))
    if reduction > 1:
        image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))
    return image, reduction
