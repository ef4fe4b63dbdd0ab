"""Polarity of drawings: light ink on a dark background, or dark ink on a light one.

A model of light digits on black must also read a photograph of ink on paper. `match_polarity` adapts an image, in
training, evaluation and prediction alike, and leaves images like the training data as they are.
"""

from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import Dataset, Note
from zoo.data.images.colour import Uint8, luma
from zoo.data.images.geometry import crop
from zoo.data.images.sampling import sample_images

POLARITIES = (None, "light-on-dark", "dark-on-light")

GROUND_TOLERANCE = 8  # levels by which the background may differ from black or white without stretching the contrast
MIN_CONTRAST = 32.0  # levels; a smaller range is texture of an empty sheet, not ink
INK_CONTRAST = 64  # levels by which ink differs from the background
MIN_EXTENT = 2 / 3  # share of the usual ink extent from which a drawing is left unchanged; all of MNIST's are
INK_SAMPLES = 1_000  # images on which the ink extent is measured
DARK, LIGHT = 64, 191  # levels below and above which a border counts as dark or light
MIN_AGREEMENT = 0.9  # share of images that must have the same polarity
MAX_CHANGED = 0.001  # share of the training images that an adaptation may change
POLARITY_SAMPLES = 1_000  # records on which `note_polarity` decides; a tenth of it for photographs
POLARITY_COVER = (64, 64)  # size to which large images are shrunk: enough to tell background from ink


def background_level(polarity: str) -> int:
    """Return the grey level of the background: 0 or 255."""
    return 0 if polarity == "light-on-dark" else 255


# --- one image --------------------------------------------------------------------------------------------------------


def _border(images: Uint8, width: int = 1) -> Uint8:
    """Return the outermost `width` pixels of [..., H, W, C] as [..., values]."""
    rows, columns = images.shape[-3:-1]
    mask = np.ones((rows, columns), bool)
    mask[width : rows - width, width : columns - width] = False
    return images[..., mask, :].reshape(*images.shape[:-3], -1)


def convert_polarity(image: Uint8, polarity: str) -> Uint8:
    """Convert a drawing to a polarity, e.g. grey pencil on beige paper to white on black.

    The background is the median of the border, the ink the level farthest from it. An image of the other polarity is
    inverted. If its background is then more than 8 levels away from black (or white), levels are mapped linearly so
    that the background with its noise becomes black (white) and the extreme of the ink the opposite.

    Args:
        image: uint8 [H, W, C].
        polarity: "light-on-dark" or "dark-on-light".

    Returns:
        uint8 [H, W, C]; `image` itself if it already matches.
    """
    if polarity == "dark-on-light":
        return 255 - convert_polarity(255 - image, "light-on-dark")
    grey = image if image.shape[-1] == 1 else luma(image)
    border = _border(grey, max(1, min(grey.shape[:2]) // 20))
    ground = float(np.median(border))
    low, high = float(grey.min()), float(grey.max())
    if ground - low > high - ground:  # ink is darker than its background
        image, border = 255 - image, 255 - border
        ground, high = 255.0 - ground, 255.0 - low
    if ground <= GROUND_TOLERANCE:
        return image
    noise = min(3.0 * float(np.median(np.abs(border - ground))), (high - ground) / 4)
    # Without a lower bound, the faint texture of an empty sheet would be stretched to ink.
    contrast = max(high - ground - noise, MIN_CONTRAST)
    levels = np.rint(np.clip((np.arange(256) - (ground + noise)) * (255.0 / contrast), 0, 255)).astype(np.uint8)
    return cast(Uint8, levels[image])


def _is_ink(images: Uint8, ground: int) -> NDArray[np.bool_]:
    """Return True where levels differ from the background, 0 or 255, by more than INK_CONTRAST."""
    return images > INK_CONTRAST if ground == 0 else images < 255 - INK_CONTRAST


def _ink_box(image: Uint8, ground: int) -> tuple[int, int, int, int] | None:
    """Return (top, bottom, left, right) of the ink, ends exclusive; None for an empty sheet."""
    ink = np.any(_is_ink(image, ground), axis=2)
    rows, columns = np.flatnonzero(np.any(ink, axis=1)), np.flatnonzero(np.any(ink, axis=0))
    if not len(rows):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def reframe_ink(image: Uint8, ink_extent: float, ground: int) -> Uint8:
    """Crop and pad a drawing to a square in whose centre the ink spans the share `ink_extent`.

    People leave margins, while data sets of digits are cropped to the digit.

    Args:
        image: uint8 [H, W, C].
        ink_extent: larger side of the ink divided by the side of the image, as in the training data.
        ground: level of the background, 0 or 255.

    Returns:
        uint8 [side, side, C]; `image` itself if it is empty, or its ink spans at least two thirds of `ink_extent`.
    """
    box = _ink_box(image, ground)
    if box is None:
        return image
    top, bottom, left, right = box
    height, width = bottom - top, right - left
    span = max(height, width)
    if span >= MIN_EXTENT * ink_extent * max(image.shape[:2]):
        return image
    side = max(round(span / ink_extent), span)
    framed = np.full((side, side, image.shape[2]), ground, np.uint8)
    crop(framed, (side - height) // 2, (side - width) // 2, (height, width))[...] = image[top:bottom, left:right]
    return framed


def match_polarity(image: Uint8, polarity: str, ink_extent: float | None) -> Uint8:
    """Adapt an image to the drawings that a model was trained on.

    For a model of clean drawings (`ink_extent` is known), levels are inverted and stretched (`convert_polarity`) and
    the drawing is cropped or padded to the usual extent (`reframe_ink`). Otherwise an image is only inverted, if its
    border is clearly of the other polarity (`has_other_polarity`).

    Args:
        image: uint8 [H, W, C].
        polarity: the model's.
        ink_extent: the model's, or None.

    Returns:
        uint8 [h, w, C]; `image` itself if nothing is to be done.
    """
    if ink_extent is None:
        return 255 - image if has_other_polarity(image[None], polarity)[0] else image
    return reframe_ink(convert_polarity(image, polarity), ink_extent, background_level(polarity))


# --- many images ------------------------------------------------------------------------------------------------------

ADAPTED_AT_A_TIME = 1024  # images checked at a time by `needs_adaptation`


def _levels(images: Uint8) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return background, lowest and highest level of each image [N, H, W, C], as `convert_polarity` measures them."""
    grey = images if images.shape[-1] == 1 else luma(images)
    ground = np.median(_border(grey, max(1, min(grey.shape[1:3]) // 20)), axis=1)
    return ground, grey.min(axis=(1, 2, 3)).astype(float), grey.max(axis=(1, 2, 3)).astype(float)


def has_other_polarity(images: Uint8, polarity: str) -> NDArray[np.bool_]:
    """Return for each image [N, H, W, C] whether its border is as light (dark) as the model's is dark (light)."""
    ground, low, high = _levels(images)
    if polarity == "light-on-dark":
        return (ground > LIGHT) & (ground - low > high - ground)
    return (ground < DARK) & (high - ground > ground - low)


def needs_adaptation(images: Uint8, polarity: str, ink_extent: float | None) -> NDArray[np.bool_]:
    """Return for each image [N, H, W, C] whether `match_polarity` changes it: much faster than calling that."""
    changed = np.zeros(len(images), bool)
    for start in range(0, len(images), ADAPTED_AT_A_TIME):
        part = images[start : start + ADAPTED_AT_A_TIME]
        changed[start : start + len(part)] = _needs_adaptation(part, polarity, ink_extent)
    return changed


def _needs_adaptation(images: Uint8, polarity: str, ink_extent: float | None) -> NDArray[np.bool_]:
    if ink_extent is None:
        return has_other_polarity(images, polarity)
    ground, low, high = _levels(images)
    if polarity == "dark-on-light":
        ground, low, high = 255 - ground, 255 - high, 255 - low
    levels_change = (ground - low > high - ground) | (ground > GROUND_TOLERANCE)
    ink = np.any(_is_ink(images, background_level(polarity)), axis=3)
    spans = []
    for axis in (2, 1):
        lines = cast(NDArray[np.bool_], np.any(ink, axis=axis))
        first, last = lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
        spans.append(np.where(np.any(lines, axis=1), last - first + 1, 0))
    span = np.maximum(*spans)
    small = (span > 0) & (span < MIN_EXTENT * ink_extent * max(images.shape[1:3]))
    return levels_change | small


def leaves_unchanged(images: Uint8 | list[Uint8], polarity: str, ink_extent: float | None) -> bool:
    """Return True if `match_polarity` changes at most one in a thousand of these images."""
    if isinstance(images, np.ndarray):
        changed = needs_adaptation(images, polarity, ink_extent)
    else:
        changed = np.array([needs_adaptation(image[None], polarity, ink_extent)[0] for image in images])
    return bool(changed.mean() <= MAX_CHANGED)


def measure_ink_extent(images: Uint8 | list[Uint8], ground: int) -> float | None:
    """Return the median over images of the larger side of the ink by the larger side of the image.

    None if all are empty. Of many images, a thousand or a few more are measured, evenly spaced.
    """
    shares = []
    for image in images[:: max(1, len(images) // INK_SAMPLES)]:
        box = _ink_box(image, ground)
        if box is not None:
            shares.append(max(box[1] - box[0], box[3] - box[2]) / max(image.shape[:2]))
    return round(float(np.median(shares)), 4) if shares else None


def measure_polarity(images: Uint8 | list[Uint8]) -> str | None:
    """Return the polarity of over 90 % of the images, judged by the median of their borders.

    Args:
        images: uint8 [N, H, W, C] or a list of [H, W, C].

    Returns:
        "light-on-dark" or "dark-on-light"; None for colour images, or without such a majority.
    """
    if any(image.shape[-1] != 1 for image in images):
        return None
    if isinstance(images, np.ndarray):
        ground = np.median(_border(images), axis=1)
    else:
        ground = np.array([np.median(_border(image)) for image in images])
    if (ground < DARK).mean() > MIN_AGREEMENT:
        return "light-on-dark"
    return "dark-on-light" if (ground > LIGHT).mean() > MIN_AGREEMENT else None


def note_polarity(dataset: Dataset, polarity: str | None) -> Dataset:
    """Add a note to a data set whose drawings have another polarity than the model was trained on.

    `image_to_input` inverts each of them. The polarity is measured on the first split.

    Args:
        dataset: the data.
        polarity: the model's, or None.

    Returns:
        The data set with a note, or `dataset` itself.
    """
    split = next(iter(dataset.splits.values()))
    if polarity is None or not len(split):
        return dataset
    sample = sample_images(split, POLARITY_COVER, POLARITY_SAMPLES)
    images = [image if image.shape[-1] == 1 else luma(image[..., :3]) for image in sample]
    measured = measure_polarity(images)
    if measured is None or measured == polarity:
        return dataset
    note = f"images are {measured} but the model was trained on {polarity}: they are inverted"
    return replace(dataset, notes=(*dataset.notes, Note("images", note)))
