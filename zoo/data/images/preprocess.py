"""From an image as it lies in a file to the pixels a model sees.

`Preprocess` says everything about that path and goes into the checkpoint's card, so that training, evaluation and
prediction cannot disagree. Pixels stay uint8 on the host; `normalise` turns them into floats on the device.

Resizing is Pillow's (resample.py): `fit_image` of one image and `fit_images` of a stack give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.images.decode import Uint8, composite, luma
from zoo.data.images.decode import read_image as read_image
from zoo.data.images.resample import INTERPOLATIONS, resize, resize_each, resize_stack
from zoo.data.threads import run_all

if TYPE_CHECKING:
    import jax

    from zoo.data.dataset import Dataset, Split

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESIZE_MODES = ("crop", "pad", "squash")
CHANNELS = ("L", "RGB", "BGR")
POLARITIES = (None, "light-on-dark", "dark-on-light")

SMALL = 64 * 64  # pixels x channels up to which resizing is faster for a whole stack than image by image
SAMPLE = 10_000  # records of the train split that preprocess_for looks at


@dataclass(frozen=True)
class Preprocess:
    """What a model sees of an image. `dataclasses.asdict` of it is JSON, and `Preprocess(**that)` is it again.

    An image is first brought to the box `resize` as `resize_mode` says, then cut centrally or padded with `fill` to `size`.
    torchvision's "resize to 256, centre crop 224" is `size=(224, 224), resize=(256, 256), resize_mode="crop"`.

    Attributes:
        size: (height, width) the model sees, in pixels.
        resize: (height, width) of the box.
        resize_mode: what happens to the aspect ratio: "crop" (the image covers the box, what hangs over is cut off centrally),
            "pad" (the image lies inside the box, the rest is filled) or "squash" (both sides are matched).
        interpolation: "nearest", "bilinear", "bicubic", "lanczos" or "box"; antialiased when shrinking, as in Pillow.
        channels: "L", "RGB" or "BGR": number and order.
        polarity: "light-on-dark", "dark-on-light", or None for photographs, which have no background.
        ink_extent: with a polarity, the share of the image's side that what is drawn spans in the training data (its larger
            side; the median): 20 of 28 pixels in MNIST. None: not known.
        mean, std: of pixel values in [0, 1], one per channel.

    Raises:
        ValueError: a field has a value outside of the above.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    resize_mode: str = "crop"
    interpolation: str = "bilinear"
    channels: str = "RGB"
    polarity: str | None = None
    ink_extent: float | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for field in ("size", "resize"):
            value = tuple(getattr(self, field))  # a list, when it comes from JSON
            if len(value) != 2 or any(not isinstance(v, int) or v < 1 for v in value):
                raise ValueError(f"preprocess: {field} is (height, width) in whole pixels, not {getattr(self, field)}")
            object.__setattr__(self, field, value)
        for field, known in {
            "resize_mode": RESIZE_MODES,
            "interpolation": INTERPOLATIONS,
            "channels": CHANNELS,
            "polarity": POLARITIES,
        }.items():
            if getattr(self, field) not in known:
                raise ValueError(f"preprocess: {field} is one of {known}, not {getattr(self, field)!r}")
        for field in ("mean", "std"):
            numbers = tuple(float(v) for v in getattr(self, field))
            if len(numbers) != self.num_channels:
                raise ValueError(
                    f"preprocess: {field} has {len(numbers)} numbers for {self.num_channels} channels ({self.channels})"
                )
            object.__setattr__(self, field, numbers)
        if not all(math.isfinite(v) and v > 0 for v in self.std):
            raise ValueError(f"preprocess: std must be positive, not {self.std}")

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    @property
    def fill(self) -> tuple[int, ...]:
        """The background in 0..255, per channel: black or white by polarity, without one the mean colour."""
        if self.polarity is not None:
            return (_background(self.polarity),) * self.num_channels
        return tuple(min(255, max(0, round(255 * m))) for m in self.mean)


def _background(polarity: str) -> int:
    return 0 if polarity == "light-on-dark" else 255


# --- pixels of arrays -------------------------------------------------------------------------------------------------


def with_channels(images: Uint8, channels: str) -> Uint8:
    """[..., C] with C = 1, 3 (RGB) or 4 (RGBA) brought to `channels`; grey stays one channel here, see `finish`."""
    count = images.shape[-1]
    if count == 1:
        return images
    if count == 4:
        flat = images.reshape(-1, *images.shape[-3:])
        images = np.stack([composite(image) for image in flat]).reshape(*images.shape[:-1], 3)
    elif count != 3:
        raise ValueError(f"images have 1 (grey), 3 (RGB) or 4 (RGBA) channels, not {count} (shape {images.shape})")
    if channels == "L":
        return luma(images)
    return images[..., ::-1] if channels == "BGR" else images


def _as_stack(image: NDArray[Any], dims: int) -> Uint8:
    """Check uint8 and give it a channel axis: [..., H, W] or [..., H, W, C] with `dims` dimensions in the end."""
    if image.dtype != np.uint8:
        raise ValueError(f"images are uint8 in 0..255 here, not {image.dtype}")
    if image.ndim == dims - 1:
        image = image[..., None]
    if image.ndim != dims or 0 in image.shape[-3:]:
        shape = "[height, width, channels]" if dims == 3 else "[number, height, width, channels]"
        raise ValueError(f"images have the shape {shape}, not {image.shape}")
    return image


def resize_geometry(height: int, width: int, preprocess: Preprocess) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) after resizing, and of the centre that is then kept of it."""
    box_h, box_w = preprocess.resize
    scaled = (box_h, box_w)
    taller = height * box_w >= width * box_h  # than the box
    if preprocess.resize_mode == "crop":  # the longer side is rounded down, as torchvision does
        outer_h, outer_w = max(box_h, box_w * height // width), max(box_w, box_h * width // height)
        scaled = (outer_h, box_w) if taller else (box_h, outer_w)
    elif preprocess.resize_mode == "pad":
        inner_h, inner_w = max(1, round(box_w * height / width)), max(1, round(box_h * width / height))
        scaled = (box_h, inner_w) if taller else (inner_h, box_w)
    kept = tuple(min(sides) for sides in zip(scaled, preprocess.resize, preprocess.size, strict=True))
    return scaled, cast(tuple[int, int], kept)


def _centre(images: Uint8, kept: tuple[int, int]) -> Uint8:
    """Cut the centre out of [..., H, W, C]. Odd rests are halved as torchvision does."""
    if images.shape[-3:-1] == kept:
        return images
    top, left = (round((images.shape[axis] - side) / 2) for axis, side in ((-3, kept[0]), (-2, kept[1])))
    return images[..., top : top + kept[0], left : left + kept[1], :]


def finish(images: Uint8, preprocess: Preprocess) -> Uint8:
    """Pad [..., H, W, C] to the size and repeat grey over the channels."""
    (height, width), channels = preprocess.size, preprocess.num_channels
    have_h, have_w, have_c = images.shape[-3:]
    if (have_h, have_w, have_c) == (height, width, channels):
        return images
    top, left = (height - have_h) // 2, (width - have_w) // 2
    out = np.empty((*images.shape[:-3], height, width, channels), np.uint8)
    if (have_h, have_w) != (height, width):
        out[...] = np.asarray(preprocess.fill, np.uint8)
    out[..., top : top + have_h, left : left + have_w, :] = images
    return out


def fit_image(image: NDArray[Any], preprocess: Preprocess, *, match_polarity: bool = False) -> Uint8:
    """Bring one image of any size to what the model sees.

    Args:
        image: uint8 [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA).
        match_polarity: for images from elsewhere than the training data, such as a photograph of ink on paper given to
            a model of light digits on black: where `preprocess.polarity` is set, invert and stretch the image so that
            ground and ink lie where the model expects them, and cut or pad it so that the ink spans what it spans in
            the training data. See `to_polarity` and `to_frame`.

    Returns:
        uint8 [h, w, c] with (h, w) = preprocess.size.

    Raises:
        ValueError: not uint8, or not of such a shape.
    """
    image = with_channels(_as_stack(np.asarray(image), 3), preprocess.channels)
    if match_polarity and preprocess.polarity is not None:
        image = to_polarity(image, preprocess.polarity)
        if preprocess.ink_extent is not None:
            image = to_frame(image, preprocess.ink_extent, _background(preprocess.polarity))
    scaled, kept = resize_geometry(image.shape[0], image.shape[1], preprocess)
    image = resize(image, scaled, preprocess.interpolation)
    return np.ascontiguousarray(finish(_centre(image, kept), preprocess))


def fit_images(images: NDArray[Any] | Sequence[NDArray[Any]], preprocess: Preprocess) -> Uint8:
    """`fit_image` of many: the same bits, without Python per image where all are of one size.

    Args:
        images: uint8 [N, H, W, C] or [N, H, W], C as in `fit_image`; or a list of images of differing sizes.

    Returns:
        uint8 [N, h, w, c]; `images` itself where nothing has to be done.

    Raises:
        ValueError: not uint8, or not of such a shape.
    """
    if not isinstance(images, np.ndarray):
        out = np.empty((len(images), *preprocess.size, preprocess.num_channels), np.uint8)
        for row, image in zip(out, images, strict=True):
            row[...] = fit_image(image, preprocess)
        return out
    images = with_channels(_as_stack(images, 4), preprocess.channels)
    scaled, kept = resize_geometry(images.shape[1], images.shape[2], preprocess)
    if images.shape[1:3] != scaled:
        largest = max(images.shape[1] * images.shape[2], scaled[0] * scaled[1]) * images.shape[3]
        resize_all = resize_stack if largest <= SMALL else resize_each
        images = resize_all(images, scaled, preprocess.interpolation)
    return finish(_centre(images, kept), preprocess)


# --- polarity ---------------------------------------------------------------------------------------------------------


def _border(images: Uint8, ring: int = 1) -> Uint8:
    """The outermost `ring` pixels of [..., H, W, C], as [..., pixels]."""
    height, width = images.shape[-3:-1]
    mask = np.ones((height, width), bool)
    mask[ring : height - ring, ring : width - ring] = False
    return images[..., mask, :].reshape(*images.shape[:-3], -1)


def to_polarity(image: Uint8, polarity: str) -> Uint8:
    """Turn ink on some ground into what the model knows, e.g. grey pencil on beige paper into white on black.

    The ground is the median of the border; the ink is what lies farthest from it. If the ink lies on the wrong side,
    the image is inverted. If the ground is then still more than 8 levels off black (or white), levels are mapped
    linearly so that the ground, with its noise, becomes black (white) and the ink's extreme the opposite.

    Args:
        image: uint8 [H, W, C].
        polarity: "light-on-dark" or "dark-on-light".

    Returns:
        uint8 [H, W, C]; `image` itself where it already matches.
    """
    if polarity == "dark-on-light":
        return 255 - to_polarity(255 - image, "light-on-dark")
    grey = image if image.shape[-1] == 1 else luma(image)
    border = _border(grey, max(1, min(grey.shape[:2]) // 20))
    ground = float(np.median(border))
    low, high = float(grey.min()), float(grey.max())
    if ground - low > high - ground:  # ink is darker than its ground
        image, border = 255 - image, 255 - border
        ground, high = 255.0 - ground, 255.0 - low
    if ground <= 8:
        return image
    noise = min(3.0 * float(np.median(np.abs(border - ground))), (high - ground) / 4)
    # An empty sheet has no ink: its own faint texture must not be stretched into some.
    reach = max(high - ground - noise, 32.0)
    levels = np.rint(np.clip((np.arange(256) - (ground + noise)) * (255.0 / reach), 0, 255)).astype(np.uint8)
    return cast(Uint8, levels[image])


# --- for the device, and for a data set -------------------------------------------------------------------------------


INK = 64  # levels from the ground on that count as ink
TOLERANCE = 0.75  # a drawing whose share is at least this part of the usual one stays as it is


def _ink_box(image: Uint8, ground: int) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of what is drawn, the ends exclusive; None for an empty sheet."""
    drawn = np.any(np.abs(image.astype(np.int16) - ground) > INK, axis=2)
    rows, columns = np.flatnonzero(np.any(drawn, axis=1)), np.flatnonzero(np.any(drawn, axis=0))
    if not len(rows):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def to_frame(image: Uint8, ink: float, ground: int) -> Uint8:
    """Cut and pad a drawing [H, W, C] on `ground` to a square in which it spans the share `ink`, in the middle.

    People leave margins; data sets of digits have been cut to the digit. A drawing that spans nearly what it should
    stays as it is.
    """
    box = _ink_box(image, ground)
    if box is None:
        return image
    top, bottom, left, right = box
    span = max(bottom - top, right - left)
    if span >= TOLERANCE * ink * max(image.shape[:2]):
        return image
    side = max(round(span / ink), span)
    framed = np.full((side, side, image.shape[2]), ground, np.uint8)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    framed[y : y + bottom - top, x : x + right - left] = image[top:bottom, left:right]
    return framed


def _measured_ink(images: Uint8 | list[Uint8], ground: int) -> float | None:
    """The median over images of the share of their side that the ink spans."""
    shares = []
    for image in images[:: max(1, len(images) // 1000)]:
        box = _ink_box(image, ground)
        if box is not None:
            shares.append(max(box[1] - box[0], box[3] - box[2]) / max(image.shape[:2]))
    return round(float(np.median(shares)), 4) if shares else None


def normalise(images: Any, preprocess: Preprocess, dtype: Any = None) -> jax.Array:
    """(images / 255 - mean) / std, on the device.

    Args:
        images: [..., C] in 0..255, uint8 or floating (an augmented batch).
        dtype: of the result, float32 unless given; the sums are done in float32 at least.

    Returns:
        [..., C] of `dtype`.
    """
    import jax.numpy as jnp

    mean, std = (np.asarray(v, np.float32) for v in (preprocess.mean, preprocess.std))
    pixels = jnp.asarray(images)
    shape = (1,) * (pixels.ndim - 1) + (-1,)  # spelled out, for those who forbid implicit rank promotion
    scaled = pixels.astype(jnp.float32) / np.float32(255)
    return ((scaled - mean.reshape(shape)) / std.reshape(shape)).astype(jnp.float32 if dtype is None else dtype)


def sample_images(split: Split, image_size: tuple[int, int], limit: int = SAMPLE) -> Uint8 | list[Uint8]:
    """Up to `limit` images of a split, evenly spaced: what is measured on. Of photographs a tenth of that is plenty.

    Images larger than `image_size` are shrunk until they just cover it, so that many fit in memory; they are then what
    a "crop" to that size makes of them.
    """
    first = split.read(np.arange(min(1, len(split))))
    sizes = getattr(split, "sizes", None)  # of a split of files
    area = first[0].size if sizes is None else float(np.median(sizes.prod(axis=1)))
    if isinstance(first, np.ndarray) or area <= SMALL:
        count = min(limit, len(split))
        return split.read(np.arange(count) * len(split) // count)
    count = min(limit // 10, len(split))
    records = np.arange(count) * len(split) // count
    cover = Preprocess(image_size, image_size)
    kept: list[Any] = [None] * count

    def some(start: int) -> None:
        for i in range(start, min(start + 8, count)):
            (image,) = split.read(records[i : i + 1])
            scaled, _ = resize_geometry(image.shape[0], image.shape[1], cover)
            kept[i] = image if scaled[0] >= image.shape[0] else resize(image, scaled, cover.interpolation)

    run_all([partial(some, start) for start in range(0, count, 8)], None, "measuring images")
    return kept


def measured_polarity(images: Uint8 | list[Uint8]) -> str | None:
    """The polarity that over 90 % of grey images share by the median of their borders, else None."""
    if any(image.shape[-1] != 1 for image in images):
        return None
    if isinstance(images, np.ndarray):
        ground = np.median(_border(images), axis=1)
    else:
        ground = np.array([np.median(_border(image)) for image in images])
    if (ground < 64).mean() > 0.9:
        return "light-on-dark"
    return "dark-on-light" if (ground > 191).mean() > 0.9 else None


def _moments(images: Uint8) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 [N, H, W, C], in [0, 1], from exact counts of each level."""
    level = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = float((counts * level).sum() / counts.sum())
        std = math.sqrt(float((counts * (level - mean) ** 2).sum() / counts.sum()))
        means.append(round(mean, 4))
        stds.append(round(std, 4) or 1.0)  # a constant channel has nothing to scale
    return tuple(means), tuple(stds)


def preprocess_for(dataset: Dataset, image_size: tuple[int, int], channels: str | None = None) -> Preprocess:
    """The preprocessing for training from scratch, measured on the train split (see `sample_images`).

    Images slightly smaller than `image_size` keep their pixels and are padded, as LeCun et al. 1998 put 28x28 digits
    into 32x32; others are resized. Grey data with a common background have a polarity and are padded with it.

    Args:
        dataset: with a train split.
        image_size: (height, width) that the model sees.
        channels: "L" or "RGB" for a model that takes nothing else; by default what the data has.

    Raises:
        ValueError: no train split.
    """
    if "train" not in dataset.splits:
        raise ValueError(f"{dataset.name} has no train split to measure a preprocessing on")
    images = sample_images(dataset.splits["train"], image_size)
    grey = all(image.shape[-1] == 1 for image in images)
    polarity = measured_polarity(images)
    sizes = {(image.shape[0], image.shape[1]) for image in images}
    box = image_size
    if len(sizes) == 1:
        own = next(iter(sizes))
        if all(0.75 * want <= have <= want for have, want in zip(own, image_size, strict=True)):
            box = own
    channels = channels or ("L" if grey else "RGB")
    blank = (0.0,) * len(channels)
    plan = Preprocess(
        size=image_size if polarity else box,  # without polarity the mean is the filling, and must not count it
        resize=box,
        resize_mode="pad" if polarity else "crop",
        channels=channels,
        polarity=polarity,
        mean=blank,
        std=tuple(1.0 for _ in blank),
    )
    mean, std = _moments(fit_images(images, plan))
    return Preprocess(
        size=image_size,
        resize=box,
        resize_mode=plan.resize_mode,
        channels=plan.channels,
        polarity=polarity,
        ink_extent=None if polarity is None else _measured_ink(images, _background(polarity)),
        mean=mean,
        std=std,
    )
