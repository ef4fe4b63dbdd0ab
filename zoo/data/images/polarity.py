"""Polarity of drawings: light ink on a dark background, or dark ink on a light one.

A model of light digits on black must also read a photograph of ink on paper. `convert_polarity` and `reframe_ink` adapt
one image; `match_polarity` adapts a data set.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from zoo.data.dataset import Dataset, Note
from zoo.data.images.decode import Uint8, luma
from zoo.data.images.geometry import crop
from zoo.data.images.sampling import sample_images
from zoo.data.splits import Labels, Pixels, Split, read_chunk

POLARITIES = (None, "light-on-dark", "dark-on-light")

GROUND_TOLERANCE = 8  # levels by which the background may differ from black or white without stretching the contrast
MIN_CONTRAST = 32.0  # levels; a smaller range is texture of an empty sheet, not ink
INK_CONTRAST = 64  # levels by which ink differs from the background
MIN_EXTENT = 0.75  # share of the usual ink extent from which a drawing is left unchanged
INK_SAMPLES = 1_000  # images on which the ink extent is measured
DARK, LIGHT = 64, 191  # levels below and above which a border counts as dark or light
MIN_AGREEMENT = 0.9  # share of images that must have the same polarity
POLARITY_SAMPLES = 1_000  # records on which `match_polarity` decides; a tenth of it for photographs
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


def _ink_box(image: Uint8, ground: int) -> tuple[int, int, int, int] | None:
    """Return (top, bottom, left, right) of the ink, ends exclusive; None for an empty sheet."""
    ink = np.any(np.abs(image.astype(np.int16) - ground) > INK_CONTRAST, axis=2)
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
        uint8 [side, side, C]; `image` itself if it is empty, or its ink spans at least 0.75 of `ink_extent`.
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


# --- many images ------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, eq=False)
class InvertedSplit:
    """A split with inverted levels, 255 - x."""

    split: Split

    @property
    def labels(self) -> Labels:
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    @property
    def read_chunk(self) -> int:
        return read_chunk(self.split)

    def read(self, indices: Any) -> Pixels | list[Pixels]:
        images = self.split.read(indices)
        return 255 - images if isinstance(images, np.ndarray) else [255 - image for image in images]


def match_polarity(dataset: Dataset, polarity: str | None) -> Dataset:
    """Invert a data set whose drawings have another polarity than the model was trained on.

    The polarity is measured on the first split. Photographs, which have none, stay as they are.

    Args:
        dataset: the data.
        polarity: the model's, or None.

    Returns:
        The data set with inverted splits and a note, or `dataset` itself.
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
    inverted = {name: InvertedSplit(split) for name, split in dataset.splits.items()}
    return replace(dataset, splits=inverted, notes=(*dataset.notes, Note("images", note)))
