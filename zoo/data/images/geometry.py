"""Arithmetic of resizing, cropping and padding, shared by preprocessing, test-time augmentation and host crops."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from zoo.data.images.decode import Uint8

RESIZE_MODES = ("crop", "pad", "squash")


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class FloatBox(NamedTuple):
    """A rectangle of an image, in pixels, whose edges may lie between pixels."""

    top: float
    left: float
    height: float
    width: float


AnyBox = TypeVar("AnyBox", Box, FloatBox)


def resize_geometry(
    source: tuple[int, int], resize: tuple[int, int], resize_mode: str, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Compute the size to which an image is resized and the size of the centre crop that follows.

    Args:
        source: (height, width) of the image.
        resize: (height, width) of the box that the image is brought to.
        resize_mode: "crop" covers the box, "pad" fits inside it, "squash" matches both sides.
        size: (height, width) of the model's input.

    Returns:
        (height, width) after resizing, and (height, width) of the centre crop, no larger than the box or the input.
    """
    (height, width), (box_height, box_width) = source, resize
    scaled = resize
    taller = height * box_width >= width * box_height  # than the box
    if resize_mode == "crop":  # the longer side is rounded down, as in torchvision
        if taller:
            scaled = (max(box_height, box_width * height // width), box_width)
        else:
            scaled = (box_height, max(box_width, box_height * width // height))
    elif resize_mode == "pad":
        if taller:
            scaled = (box_height, max(1, round(box_height * width / height)))
        else:
            scaled = (max(1, round(box_width * height / width)), box_width)
    return scaled, (min(scaled[0], box_height, size[0]), min(scaled[1], box_width, size[1]))


def crop(images: Uint8, top: int, left: int, size: tuple[int, int]) -> Uint8:
    """Crop [..., H, W, C] to `size` = (height, width) at a corner; a view, not a copy."""
    return images[..., top : top + size[0], left : left + size[1], :]


def centre_offsets(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return (top, left) of a centre crop of `size` from `source`; halves round to even, as in torchvision."""
    return round((source[0] - size[0]) / 2), round((source[1] - size[1]) / 2)


def centre_crop(images: Uint8, size: tuple[int, int]) -> Uint8:
    """Crop [..., H, W, C] to the centre of `size` = (height, width), which is no larger than the images."""
    source = (images.shape[-3], images.shape[-2])
    return images if source == size else crop(images, *centre_offsets(source, size), size)


def pad_to_shape(images: Uint8, shape: tuple[int, int, int], fill: Sequence[int]) -> Uint8:
    """Centre images on a background and repeat a single channel.

    Args:
        images: uint8 [..., H, W, C], no larger than `shape`, with C = 1 or as many channels as `shape`.
        shape: (height, width, channels) of the result.
        fill: background colour in 0..255, one value per channel of the result.

    Returns:
        uint8 [..., *shape]; `images` itself if it already has this shape. An odd margin is a pixel wider at the bottom
        and on the right.
    """
    if images.shape[-3:] == shape:
        return images
    height, width = images.shape[-3:-1]
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    padded = np.empty((*images.shape[:-3], *shape), np.uint8)
    if (height, width) != shape[:2]:
        padded[...] = np.asarray(fill, np.uint8)
    padded[..., top : top + height, left : left + width, :] = images
    return padded


def undo_orientation(box: AnyBox, orientation: int, height: int, width: int) -> AnyBox:
    """Map a box of the upright image to the pixels as stored: the inverse of `apply_orientation` for a box.

    Args:
        box: in the upright image.
        orientation: EXIF orientation, 1 to 8.
        height: of the upright image, in pixels.
        width: of the upright image, in pixels.
    """
    top, left, box_height, box_width = box
    if orientation in (2, 3, 6, 7):
        left = width - left - box_width
    if orientation in (3, 4, 7, 8):
        top = height - top - box_height
    kind = type(box)
    return kind(left, top, box_width, box_height) if orientation >= 5 else kind(top, left, box_height, box_width)
