"""Test-time augmentation: several views of one image, whose probabilities are averaged.

Pure functions of an image. All of them begin with what the model sees anyway, `fit_image`, at a size of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.decode import Uint8
from zoo.data.images.preprocess import Preprocess, fit_image

MARGIN = 256 / 224  # the side that images are scaled to, for the side that is cut out of them
SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)


def flip(image: NDArray[Any], preprocess: Preprocess, **how: Any) -> Uint8:
    """The image and its mirror image, [2, h, w, c] (Krizhevsky et al. 2012, section 4.1, have them among their ten)."""
    return _mirrored(fit_image(image, preprocess, **how)[None])


def five_crop(image: NDArray[Any], preprocess: Preprocess, **how: Any) -> Uint8:
    """Four corners and the centre, [5, h, w, c] (Krizhevsky et al. 2012, section 4.1).

    They are cut out of the box that the preprocessing scales to; where that is no larger than what is cut out, out of
    one as much larger as the paper's 256 is than its 224.
    """
    height, width = preprocess.size
    box = tuple(max(b, round(side * MARGIN)) for b, side in zip(preprocess.resize, preprocess.size, strict=True))
    whole = fit_image(image, _of_size(preprocess, box), **how)
    down, right = box[0] - height, box[1] - width
    corners = ((0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2)))
    return np.stack([whole[top : top + height, left : left + width] for top, left in corners])


def ten_crop(image: NDArray[Any], preprocess: Preprocess, **how: Any) -> Uint8:
    """`five_crop` and its mirror images, [10, h, w, c]: what the AlexNet paper averages."""
    return _mirrored(five_crop(image, preprocess, **how))


def multi_scale(image: NDArray[Any], preprocess: Preprocess, **how: Any) -> Uint8:
    """The centre at four scales, and mirrored, [8, h, w, c].

    The scales are those of Szegedy et al. 2014 (arXiv:1409.4842, section 7): 256, 288, 320 and 352 pixels for a network
    that sees 224; the paper cuts 18 squares out of each, of which this is the middle one.
    """
    views = []
    for scale in SCALES:
        box = cast(tuple[int, int], tuple(round(side * scale) for side in preprocess.size))
        views.append(fit_image(image, replace(preprocess, resize=box), **how))
    return _mirrored(np.stack(views))


# name -> what it makes of an image, how many views that are, and whether some are mirrored
VIEWS: dict[str, tuple[Callable[..., Uint8], int, bool]] = {
    "flip": (flip, 2, True),
    "five-crop": (five_crop, 5, False),
    "ten-crop": (ten_crop, 10, True),
    "multi-scale": (multi_scale, 8, True),
}


def check_views(name: str, preprocess: Preprocess) -> None:
    """ValueError for a name that is not in VIEWS, or views that make no sense of drawings."""
    if name not in VIEWS:
        raise ValueError(f"test-time augmentation {name!r}: choose from {', '.join(VIEWS)}")
    if VIEWS[name][2] and preprocess.polarity is not None:
        raise ValueError(f"test-time augmentation {name!r} mirrors images, and a mirrored sign is another sign")


def fit_views(images: Any, preprocess: Preprocess, name: str) -> Uint8:
    """Views of each image: uint8 [N, V, h, w, c] of what `fit_images` takes."""
    make, count, _ = VIEWS[name]
    out = np.empty((len(images), count, *preprocess.size, preprocess.num_channels), np.uint8)
    for row, image in zip(out, images, strict=True):
        row[...] = make(image, preprocess)
    return out


def at_size(preprocess: Preprocess, size: int) -> Preprocess:
    """The same preprocessing for a model that sees `size` x `size` pixels; the margin round that keeps its proportion.

    Touvron et al. 2019 (arXiv:1906.06423): objects look larger in random crops than in centre crops, so that a network
    is often better at a somewhat larger size than it was trained at.
    """
    box = tuple(max(1, round(b * size / side)) for b, side in zip(preprocess.resize, preprocess.size, strict=True))
    return replace(preprocess, size=(size, size), resize=cast(tuple[int, int], box))


def _of_size(preprocess: Preprocess, size: tuple[int, ...]) -> Preprocess:
    both = cast(tuple[int, int], size)
    return replace(preprocess, size=both, resize=both)


def _mirrored(views: Uint8) -> Uint8:
    return np.concatenate([views, views[:, :, ::-1]])
