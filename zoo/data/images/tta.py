"""Test-time augmentation: several views of an image, over which probabilities are averaged.

Each view function is a pure function of an image and returns uint8 [V, h, w, c]. Keyword arguments are passed on to
`image_to_input`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.decode import Uint8
from zoo.data.images.geometry import centre_offsets, crop
from zoo.data.images.preprocess import MAX_SIDE, Preprocess, image_to_input, is_side
from zoo.text import one_line

MARGIN = 256 / 224  # side to which images are scaled, by the side of the crop (Krizhevsky et al. 2012)
SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)  # sides by the crop's (Szegedy et al. 2014, section 7)


def flip(image: NDArray[Any], preprocess: Preprocess, **options: Any) -> Uint8:
    """Return the image and its mirror image, [2, h, w, c] (Krizhevsky et al. 2012, section 4.1)."""
    return _with_mirrored(image_to_input(image, preprocess, **options)[None])


def five_crop(image: NDArray[Any], preprocess: Preprocess, **options: Any) -> Uint8:
    """Return the crops of the four corners and the centre, [5, h, w, c] (Krizhevsky et al. 2012, section 4.1).

    They are cut from the box `preprocess.resize`, but from at least 256/224 of the input's size, as in the paper.
    """
    height, width = preprocess.size
    box_height, box_width = (
        max(box, round(side * MARGIN)) for box, side in zip(preprocess.resize, preprocess.size, strict=True)
    )
    box = (box_height, box_width)
    whole = image_to_input(image, replace(preprocess, size=box, resize=box), **options)
    bottom, right = box_height - height, box_width - width
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), centre_offsets(box, preprocess.size))
    return np.stack([crop(whole, top, left, preprocess.size) for top, left in corners])


def ten_crop(image: NDArray[Any], preprocess: Preprocess, **options: Any) -> Uint8:
    """Return `five_crop` and its mirror images, [10, h, w, c], as AlexNet averages (Krizhevsky et al. 2012)."""
    return _with_mirrored(five_crop(image, preprocess, **options))


def multi_scale(image: NDArray[Any], preprocess: Preprocess, **options: Any) -> Uint8:
    """Return centre crops at four scales, and their mirror images, [8, h, w, c].

    The scales are those of Szegedy et al. 2014 (arXiv:1409.4842, section 7): 256, 288, 320 and 352 pixels for an input
    of 224. The paper takes 18 crops of each scale, of which this is the middle one.
    """
    views = []
    for scale in SCALES:
        box = cast(tuple[int, int], tuple(round(side * scale) for side in preprocess.size))
        views.append(image_to_input(image, replace(preprocess, resize=box), **options))
    return _with_mirrored(np.stack(views))


def shift(image: NDArray[Any], preprocess: Preprocess, **options: Any) -> Uint8:
    """Return the image, two copies moved by a pixel along the diagonal, and their mirror images, [6, h, w, c].

    Views of small images, whose pixels a crop would lose; edges are reflected (Jordan 2024, arXiv:2404.00498, section
    3.5, which weights the images that are not moved twice).
    """
    whole = image_to_input(image, preprocess, **options)
    height, width = whole.shape[:2]
    padded = np.pad(whole, ((1, 1), (1, 1), (0, 0)), mode="reflect" if min(height, width) > 1 else "edge")
    return _with_mirrored(np.stack([padded[i : i + height, i : i + width] for i in (1, 0, 2)]))


class Views(NamedTuple):
    """A kind of test-time augmentation."""

    function: Callable[..., Uint8]
    """Maps an image and a Preprocess to uint8 [num_views, h, w, c]."""
    num_views: int
    """Number of views per image."""
    mirrors: bool
    """True if some views are mirror images."""


VIEWS: dict[str, Views] = {
    "flip": Views(flip, 2, True),
    "five-crop": Views(five_crop, 5, False),
    "ten-crop": Views(ten_crop, 10, True),
    "multi-scale": Views(multi_scale, 8, True),
    "shift": Views(shift, 6, True),
}


def check_views(name: str, preprocess: Preprocess) -> None:
    """Check the name of a test-time augmentation.

    Raises:
        ValueError: for an unknown name, and for mirror images of drawings, such as digits.
    """
    if name not in VIEWS:
        raise ValueError(f"test-time augmentation {name!r} is unknown; choose from {', '.join(VIEWS)}")
    if VIEWS[name].mirrors and preprocess.polarity is not None:
        raise ValueError(
            f"test-time augmentation {name!r} mirrors images, which changes the meaning of digits and letters; "
            "use 'five-crop'"
        )


def images_to_views(images: Any, preprocess: Preprocess, name: str) -> Uint8:
    """Return the views of each image, uint8 [N, V, h, w, c].

    Args:
        images: uint8 [N, H, W, C], or a list of images, as in `images_to_input`.
        preprocess: of the model.
        name: a key of VIEWS.
    """
    views = VIEWS[name]
    rows = np.empty((len(images), views.num_views, *preprocess.input_shape), np.uint8)
    for row, image in zip(rows, images, strict=True):
        row[...] = views.function(image, preprocess)
    return rows


def at_size(preprocess: Preprocess, size: int) -> Preprocess:
    """Return the preprocessing for an input of `size` x `size` pixels, with its box scaled in proportion.

    Objects look larger in random crops than in centre crops, so a network is often better at a somewhat larger size
    than it was trained at (Touvron et al. 2019, arXiv:1906.06423).

    Raises:
        ValueError: for a size that no input can have.
    """
    if not is_side(size):
        raise ValueError(f"image size {one_line(size, 40)}: must be a whole number of pixels up to {MAX_SIDE:,}")
    box = tuple(max(1, round(b * size / side)) for b, side in zip(preprocess.resize, preprocess.size, strict=True))
    return replace(preprocess, size=(size, size), resize=cast(tuple[int, int], box))


def _with_mirrored(views: Uint8) -> Uint8:
    return np.concatenate([views, views[:, :, ::-1]])
