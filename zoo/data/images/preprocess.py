"""Preprocessing: from the pixels of an image of any size to the model's input.

`Preprocess` describes it completely and is stored in the checkpoint's card, so that training, evaluation and prediction
agree. Pixels stay uint8 on the host; `normalise` converts them to floats on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.arguments import check_fields
from zoo.data.images.colour import Uint8, composite, luma
from zoo.data.images.geometry import RESIZE_MODES, pad_to_shape, resize_geometry
from zoo.data.images.polarity import POLARITIES, background_level, match_polarity, needs_adaptation
from zoo.data.images.resample import INTERPOLATIONS, resize_and_crop, resize_images

if TYPE_CHECKING:
    import jax  # importing it takes a second, which `zoo --help` need not spend

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CHANNELS = ("L", "RGB", "BGR")

#: Largest side of an input in pixels, and smallest standard deviation; what lies beyond is a mistake or an attack.
MAX_SIDE = 16_384
MIN_STD = 1e-6
MAX_WHITE = 2.0**128  # over the largest float32


def is_side(value: Any) -> bool:
    """Return True for a number of pixels that the side of an input can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


#: Height and width of an image that holds the two coordinates of a point (see `zoo.data.sources.points`).
POINT_SHAPE = (1, 2)


@check_fields
@dataclass(frozen=True)
class Preprocess:
    """Description of the path from an image to the model's input.

    An image is resized to the box `resize` according to `resize_mode`, then cropped centrally or padded with `fill` to
    `size`. `dataclasses.asdict` gives JSON, from which `Preprocess(**fields)` restores it.

    Example:
        torchvision's "resize to 256, centre crop 224"::

            Preprocess(size=(224, 224), resize=(256, 256), resize_mode="crop")

    Attributes:
        size: (height, width) of the model's input, in pixels.
        resize: (height, width) of the box, in pixels.
        resize_mode: treatment of the aspect ratio: "crop" (the image covers the box and is cropped centrally), "pad"
            (the image fits inside the box and the rest is filled) or "squash" (both sides are matched).
        interpolation: "nearest", "bilinear", "bicubic", "lanczos" or "box"; antialiased when shrinking, as in Pillow.
        channels: number and order of channels: "L" (grey), "RGB" or "BGR".
        polarity: "light-on-dark" or "dark-on-light" for drawings; None for photographs, which have no background.
            Images that are clearly of the other polarity are inverted.
        ink_extent: larger side of the ink as a share of the image's side, the median over the training data (0.7143 in
            MNIST: 20 of 28 pixels). It is set only for clean drawings, to whose levels and extent other images are
            adapted (see `match_polarity`). None for others, such as grey scans with a dark border.
        white: value of white in 16-bit, 32-bit and float images of the training data, such as 4095; 1 if they were
            arrays or images of two values. None for images of 8 bits and floats in 0..1.
        mean: per channel, of pixel values in [0, 1].
        std: per channel, of pixel values in [0, 1].

    Raises:
        ValueError: naming the first field with an invalid value.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    resize_mode: str = "crop"
    interpolation: str = "bilinear"
    channels: str = "RGB"
    polarity: str | None = None
    ink_extent: float | None = None
    white: float | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for field in ("size", "resize"):
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(is_side, value)):
                raise ValueError(
                    f"preprocess: {field} must be (height, width) in whole pixels up to {MAX_SIDE:,}, not {value!r:.80}"
                )
            object.__setattr__(self, field, tuple(value))  # a list, if read from JSON
        for field, choices in {
            "resize_mode": RESIZE_MODES,
            "interpolation": INTERPOLATIONS,
            "channels": CHANNELS,
            "polarity": POLARITIES,
        }.items():
            value = getattr(self, field)
            if not (value is None or isinstance(value, str)) or value not in choices:
                raise ValueError(f"preprocess: {field} must be one of {choices}, not {getattr(self, field)!r}")
        for field in ("mean", "std"):
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)) or not all(map(_is_finite, value)):
                raise ValueError(f"preprocess: {field} must be finite numbers, one per channel, not {value!r:.80}")
            numbers = tuple(float(number) for number in value)
            if len(numbers) != self.num_channels:
                raise ValueError(
                    f"preprocess: {field} needs {self.num_channels} numbers for channels {self.channels!r}, "
                    f"not {len(numbers)}"
                )
            object.__setattr__(self, field, numbers)
        if not all(number >= MIN_STD for number in self.std):
            raise ValueError(f"preprocess: std must be at least {MIN_STD:g}, not {self.std}")
        if self.ink_extent is not None and not (_is_finite(self.ink_extent) and 0 < self.ink_extent <= 1):
            raise ValueError(f"preprocess: ink_extent must be in (0, 1], not {self.ink_extent!r:.80}")
        if self.white is not None and not (type(self.white) in (int, float) and 1 <= self.white <= MAX_WHITE):
            raise ValueError(f"preprocess: white must be in [1, {MAX_WHITE:g}], not {self.white!r:.80}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return (*self.size, self.num_channels)

    @property
    def num_channels(self) -> int:
        """Number of channels: 1 or 3."""
        return len(self.channels)

    @property
    def ink(self) -> float | None:
        """The former name of `ink_extent`."""
        return self.ink_extent

    @property
    def fill(self) -> tuple[int, ...]:
        """Background colour in 0..255, per channel: black or white by polarity, without polarity the mean colour."""
        if self.polarity is not None:
            return (background_level(self.polarity),) * self.num_channels
        return tuple(min(255, max(0, round(255 * mean))) for mean in self.mean)


def convert_channels(images: Uint8, channels: str) -> Uint8:
    """Convert the channels of images.

    Args:
        images: uint8 [..., C] with C = 1 (grey), 3 (RGB) or 4 (RGBA, laid over white or black; see `composite`).
        channels: "L", "RGB" or "BGR".

    Returns:
        uint8 [..., 1 or 3]. Grey images keep their single channel; `pad_to_shape` repeats it.

    Raises:
        ValueError: for another number of channels.
    """
    count = images.shape[-1]
    if count == 1:
        return images
    if count == 4:
        flat = images.reshape(-1, *images.shape[-3:])
        images = np.stack([composite(image) for image in flat]).reshape(*images.shape[:-1], 3)
    elif count != 3:
        raise ValueError(f"images must have 1 (grey), 3 (RGB) or 4 (RGBA) channels, not {count} (shape {images.shape})")
    if channels == "L":
        return luma(images)
    return images[..., ::-1] if channels == "BGR" else images


def _with_channel_axis(image: NDArray[Any], dims: int) -> Uint8:
    """Check an array of `dims` dimensions, or one less without channels, and return it with a channel axis."""
    if image.dtype != np.uint8:
        raise ValueError(f"images must be uint8 in 0..255, not {image.dtype}")
    if image.ndim == dims - 1:
        image = image[..., None]
    if image.ndim != dims or 0 in image.shape[-3:]:
        shape = "[height, width, channels]" if dims == 3 else "[number, height, width, channels]"
        raise ValueError(f"images must have the shape {shape}, not {image.shape}")
    return image


def image_to_input(image: NDArray[Any], preprocess: Preprocess) -> Uint8:
    """Bring an image of any size to the model's input, in training, evaluation and prediction alike.

    If the model was trained on drawings (`preprocess.polarity`), an image from elsewhere, such as a photograph of ink
    on paper for a model of light digits on black, is adapted to them; see `match_polarity`.

    Args:
        image: uint8 [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA).
        preprocess: how.

    Returns:
        uint8 [*preprocess.input_shape].

    Raises:
        ValueError: for another dtype or shape.
    """
    image = _with_channel_axis(np.asarray(image), 3)
    _require_points(image.shape[:2], preprocess)
    return _to_input(convert_channels(image, preprocess.channels), preprocess)


def _require_points(size: tuple[int, ...], preprocess: Preprocess) -> None:
    if preprocess.size == POINT_SHAPE and size != POINT_SHAPE:
        height, width = size
        raise ValueError(
            f"the model takes points, as images of 1x2 pixels that hold the coordinates, not {height}x{width} pixels"
        )


def _to_input(image: Uint8, preprocess: Preprocess) -> Uint8:
    """Bring an image whose channels are converted to the model's input."""
    if preprocess.polarity is not None:
        image = match_polarity(image, preprocess.polarity, preprocess.ink_extent)
    scaled, cropped = _geometry(image, preprocess)
    image = resize_and_crop(image, scaled, cropped, preprocess.interpolation)
    return np.ascontiguousarray(pad_to_shape(image, preprocess.input_shape, preprocess.fill))


def images_to_input(images: NDArray[Any] | Sequence[NDArray[Any]], preprocess: Preprocess) -> Uint8:
    """Bring many images to the model's input; same bits as `image_to_input` for each, but faster for a stack.

    Args:
        images: uint8 [N, H, W, C] or [N, H, W] with C as in `image_to_input`, or a list of images of different sizes.
        preprocess: how.

    Returns:
        uint8 [N, *preprocess.input_shape]; `images` itself if they are already the model's input.

    Raises:
        ValueError: for another dtype or shape.
    """
    if not isinstance(images, np.ndarray):
        inputs = np.empty((len(images), *preprocess.input_shape), np.uint8)
        for row, image in zip(inputs, images, strict=True):
            row[...] = image_to_input(image, preprocess)
        return inputs
    images = _with_channel_axis(images, 4)
    _require_points(images.shape[1:3], preprocess)
    images = convert_channels(images, preprocess.channels)
    scaled, cropped = _geometry(images, preprocess)
    inputs = resize_images(images, scaled, preprocess.interpolation, cropped)
    inputs = pad_to_shape(inputs, preprocess.input_shape, preprocess.fill)
    if preprocess.polarity is not None:
        rows = np.flatnonzero(needs_adaptation(images, preprocess.polarity, preprocess.ink_extent))
        if len(rows):
            inputs = inputs.copy()
            for number in rows.tolist():
                inputs[number] = _to_input(images[number], preprocess)
    return inputs


def _geometry(images: Uint8, preprocess: Preprocess) -> tuple[tuple[int, int], tuple[int, int]]:
    source = (images.shape[-3], images.shape[-2])
    return resize_geometry(source, preprocess.resize, preprocess.resize_mode, preprocess.size)


def normalise(images: Any, preprocess: Preprocess, dtype: Any = None) -> jax.Array:
    """Compute (images / 255 - mean) / std on the device.

    Args:
        images: [..., C] in 0..255, uint8 or floating (an augmented batch).
        preprocess: its mean and std are used.
        dtype: of the result, float32 by default. The arithmetic is float32.

    Returns:
        [..., C] of `dtype`.
    """
    import jax.numpy as jnp

    mean, std = (np.asarray(v, np.float32) for v in (preprocess.mean, preprocess.std))
    pixels = jnp.asarray(images)
    shape = (1,) * (pixels.ndim - 1) + (-1,)  # explicit, so that it works with jax_numpy_rank_promotion="raise"
    scaled = pixels.astype(jnp.float32) / np.float32(255)
    return ((scaled - mean.reshape(shape)) / std.reshape(shape)).astype(jnp.float32 if dtype is None else dtype)
