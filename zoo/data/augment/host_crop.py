"""Random-resized crops on the host, out of the files' own pixels.

On the device a crop can only be cut from the image that the loader made, already of the model's size. Where the images
are larger than that, and are decoded anew for every epoch anyway, the host cuts the patch from the file instead: fewer
pixels are decoded and resized, and what the model sees is as sharp as the file. The rest of a recipe's augmentation
stays on the device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from zoo.data.dataset import EncodedSplit, Split
from zoo.data.images.decode import Uint8, opened, orientation, pixels, upright
from zoo.data.images.preprocess import Preprocess, finish, with_channels

TRIES = 10  # of a patch's shape, until one fits


class Crop(NamedTuple):
    """A patch of `area` to all of the image's area, its width to height between `ratio` and 1/`ratio`."""

    area: float = 0.08
    ratio: float = 0.75


class Box(NamedTuple):
    """In pixels."""

    top: int
    left: int
    height: int
    width: int


class Augmentation(NamedTuple):
    """A recipe's augmentation, divided between host and device."""

    host_crop: Crop | None
    """The crop that the loader cuts from the encoded images, or None."""
    device: tuple[str, ...]
    """The operations left to the compiled step, in order."""


def place_augmentation(split: Split, preprocess: Preprocess, augment: Sequence[str]) -> Augmentation:
    """Decide whether host or device cuts the crops of a recipe's augmentation.

    The host does if the augmentation begins with resized_crop, the images stay encoded until they are read, and most of
    them are larger than the model's input (or their sizes are unknown).
    """
    everything = Augmentation(None, tuple(augment))
    if not augment or not isinstance(split, EncodedSplit) or preprocess.polarity is not None:
        return everything
    from zoo.data.augment.ops import parse

    name, numbers = parse(augment[0])
    if name != "resized_crop":
        return everything
    if split.sizes is not None and np.median(split.sizes / np.array(preprocess.size), axis=0).min() <= 1:
        return everything
    return Augmentation(Crop(**numbers), tuple(augment[1:]))


def draw_crop(seed: int, epoch: int, record: int, height: int, width: int, crop: Crop) -> Box:
    """A patch of an image of this height and width: a pure function of its arguments.

    Szegedy et al. 2014 (arXiv:1409.4842, section 6) as torchvision reads it: the area is uniform, the proportions are
    log-uniform, the first of ten that fits is put anywhere; if none does, it is the largest one in the middle. The bits
    are Philox's, whose key is (seed, epoch) and whose counter begins with the record, so no worker's history matters.
    """
    bits = np.random.Philox(key=[seed, epoch], counter=[0, record, 0, 0]).random_raw(2 * TRIES + 2)
    uniform = ((bits >> np.uint64(11)) * 2.0**-53).tolist()
    reach = math.log(crop.ratio)
    for first, second in zip(uniform[:TRIES], uniform[TRIES : 2 * TRIES], strict=True):
        area = (crop.area + (1 - crop.area) * first) * height * width
        ratio = math.exp(reach * (1 - 2 * second))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            down, right = uniform[-2:]
            return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
    h = min(height, max(1, round(width / crop.ratio)))
    w = min(width, max(1, round(height / crop.ratio)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def stored_box(box: Box, turn: int, height: int, width: int) -> Box:
    """Where a box of the upright image, [height, width], lies in the stored one: what `upright` does, undone."""
    top, left, h, w = box
    if turn in (2, 3, 6, 7):
        left = width - left - w
    if turn in (3, 4, 7, 8):
        top = height - top - h
    return Box(left, top, w, h) if turn >= 5 else Box(top, left, h, w)


def first_rows(data: bytes, rows: int) -> bytes:
    """A baseline JPEG that ends after so many rows: the same file with another height in its header.

    A decoder stops when it has as many rows as the header says. The last few of them may differ, where chroma is
    interpolated over the edge. What is no baseline JPEG, or has no more rows, is returned as it is.
    """
    at = 2
    while at + 7 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1):  # baseline and extended sequential: a frame's precision, height, width
            if rows >= int.from_bytes(data[at + 5 : at + 7], "big"):
                return data
            return data[: at + 5] + rows.to_bytes(2, "big") + data[at + 7 :]
        if marker in (0xC2, 0xDA):  # progressive; or the pixels, and no frame was found
            return data
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data


def read_crop(data: bytes, preprocess: Preprocess, seed: int, epoch: int, record: int, crop: Crop) -> Uint8:
    """Decode an image's patch `draw_crop(seed, epoch, record, …)` and bring it to the size that the model sees.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the patch is then still as large as what
    becomes of it, and no further down than the patch reaches.

    Args:
        data: a file's bytes.
        preprocess: its size, interpolation and channels count here; its box and fit do not.

    Returns:
        uint8 [h, w, c] with (h, w) = preprocess.size.

    Raises:
        ValueError: as `read_image`, about "image".
    """
    from PIL import Image

    with opened(data) as image:
        turn = orientation(image)
        stored = image.size[::-1]
        height, width = stored[::-1] if turn >= 5 else stored
        box = stored_box(draw_crop(seed, epoch, record, height, width, crop), turn, height, width)
        target = preprocess.size[::-1] if turn >= 5 else preprocess.size
        by = 1
        if image.mode not in ("L", "RGB") or "transparency" in image.info:
            image.load()
            array = pixels(image)
            image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        elif image.format in ("JPEG", "MPO"):
            by = next(s for s in (8, 4, 2, 1) if s == 1 or (box.height >= s * target[0] and box.width >= s * target[1]))
            reach = box.height * 3 / target[0] + 3  # of any filter, in rows
            if image.format == "JPEG" and (rows := int(box.top + box.height + reach) + 16) < 0.95 * stored[0]:
                image = Image.open(io.BytesIO(first_rows(data, rows)), formats=("JPEG",))
            if by > 1:
                image.draft(None, (max(1, image.width // by), max(1, image.height // by)))
        left, top = box.left / by, box.top / by
        part = (left, top, min(left + box.width / by, image.width), min(top + box.height / by, image.height))
        method = Image.Resampling[preprocess.interpolation.upper()]
        resized = np.asarray(image.resize((target[1], target[0]), method, box=part))
        resized = upright(resized[..., None] if resized.ndim == 2 else resized, turn)
    return cast(Uint8, finish(with_channels(resized, preprocess.channels), preprocess))
