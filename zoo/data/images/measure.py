"""Measuring the preprocessing for training from scratch on a data set."""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from zoo.data.dataset import Dataset
from zoo.data.images.colour import Uint8, luma
from zoo.data.images.polarity import (
    background_level,
    leaves_unchanged,
    measure_ink_extent,
    measure_polarity,
    note_polarity,
)
from zoo.data.images.preprocess import Preprocess, images_to_input
from zoo.data.images.sampling import sample_images
from zoo.data.splits import white_level, with_white

MIN_SIDE = 0.75  # share of the input's side from which smaller images keep their pixels

MOMENT_BYTES = 2**26  # of the images whose levels are counted at a time


def preprocess_for(dataset: Dataset, image_size: tuple[int, int], channels: str | None = None) -> Preprocess:
    """Choose and measure the preprocessing for training from scratch, on the train split.

    Images with at least three quarters of `image_size` keep their pixels and are padded, as LeCun et al. 1998 do with
    28x28 digits in 32x32; others are resized. Grey images with a common background get a polarity and are padded with
    the background; clean drawings also get the extent of their ink.

    Args:
        dataset: data with a train split, of which a sample is read (see `sample_images`).
        image_size: (height, width) of the model's input, in pixels.
        channels: "L" or "RGB" for a model that requires it; by default as in the data.

    Raises:
        ValueError: if there is no train split.
    """
    if "train" not in dataset.splits:
        raise ValueError(f"{dataset.name}: has no train split, which is needed to measure the preprocessing")
    images = sample_images(dataset.splits["train"], image_size)
    grey = all(image.shape[-1] == 1 for image in images)
    polarity, ink_extent = measure_drawings(images)
    sizes = {(image.shape[0], image.shape[1]) for image in images}
    box = image_size
    if len(sizes) == 1:
        (source,) = sizes
        if all(MIN_SIDE * target <= side <= target for side, target in zip(source, image_size, strict=True)):
            box = source
    channels = channels or ("L" if grey else "RGB")
    mode = "pad" if polarity else "crop"
    unscaled = Preprocess(
        size=image_size,
        resize=box,
        resize_mode=mode,
        channels=channels,
        polarity=polarity,
        mean=(0.0,) * len(channels),
        std=(1.0,) * len(channels),
    )
    measured = _measure_moments(images, unscaled)
    return replace(measured, ink_extent=ink_extent, white=measure_white(dataset, images))


def _measure_moments(images: Uint8 | list[Uint8], preprocess: Preprocess) -> Preprocess:
    """Return the preprocessing with the mean and standard deviation of these images."""
    # Without polarity the fill is the mean colour, so padding must not enter the mean.
    height, width = (min(sides) for sides in zip(preprocess.size, preprocess.resize, strict=True))
    unpadded = preprocess if preprocess.polarity else replace(preprocess, size=(height, width))
    rows = max(MOMENT_BYTES // math.prod(unpadded.input_shape), 1)
    inputs = (images_to_input(images[start : start + rows], unpadded) for start in range(0, len(images), rows))
    mean, std = _channel_moments(inputs, preprocess.num_channels)
    return replace(preprocess, mean=mean, std=std)


def with_normalisation(preprocess: Preprocess, normalisation: str, dataset: Dataset | None = None) -> Preprocess:
    """Return the preprocessing with another mean and standard deviation.

    Args:
        preprocess: the preprocessing.
        normalisation: "standardise" (mean and standard deviation of the data), "centre" (the mean is subtracted from
            pixel values in 0..255, which are not divided), "symmetric" (0..255 becomes -1..1), or "" for no change.
        dataset: data with a train split to measure on; None if mean and standard deviation are already those of it.
    """
    channels = preprocess.num_channels
    if normalisation == "symmetric":
        return replace(preprocess, mean=(0.5,) * channels, std=(0.5,) * channels)
    if normalisation and dataset is not None:
        preprocess = _measure_moments(sample_images(dataset.splits["train"], preprocess.size), preprocess)
    return replace(preprocess, std=(1 / 255,) * channels) if normalisation == "centre" else preprocess


def measure_drawings(images: Uint8 | list[Uint8]) -> tuple[str | None, float | None]:
    """Return polarity and extent of the ink of training images, for `Preprocess`.

    Images of the training data must stay as they are: the polarity is None if some would be inverted, and the extent is
    None if the levels or the frame of some would change, as with grey scans whose background is not black.
    """
    polarity = measure_polarity(images)
    if polarity is None or not leaves_unchanged(images, polarity, None):
        return None, None
    extent = measure_ink_extent(images, background_level(polarity))
    return polarity, extent if extent is not None and leaves_unchanged(images, polarity, extent) else None


def measure_white(dataset: Dataset, images: Uint8 | list[Uint8]) -> float | None:
    """Return the value of white of the train split, or 1 if a sample of its images is black and white."""
    white = white_level(dataset.splits["train"])
    if white is None and all(bool(((image == 0) | (image == 255)).all()) for image in images):
        return 1.0
    return white


def as_trained(dataset: Dataset, preprocess: Preprocess) -> Dataset:
    """Return a data set as a model with this preprocessing reads it in prediction.

    16-bit, 32-bit and float images are scaled by the value of white in the model's training data. A note says if
    drawings have another polarity.

    Raises:
        ValueError: if the images are arrays that were scaled by another value of white.
    """
    splits = {name: with_white(split, preprocess.white) for name, split in dataset.splits.items()}
    for name, split in splits.items():
        white = white_level(split)
        if white not in {None, preprocess.white, *((255, 65535) if preprocess.white is None else ())}:
            trained = "0 and 1" if preprocess.white == 1 else f"0..{preprocess.white or 255:g}"
            given = "0 and 1" if white == 1 else f"0..{white:g}"
            raise ValueError(
                f"{dataset.name}: {name} images have values in {given}, but the model was trained on {trained}; "
                "scale the images to uint8"
            )
    return note_polarity(replace(dataset, splits=splits), preprocess.polarity)


def adapt_preprocess(preprocess: Preprocess, dataset: Dataset) -> Preprocess:
    """Return the preprocessing of a checkpoint for fine-tuning it on a data set.

    Drawings of the other polarity are inverted, as in prediction. Images that are no drawings are left as they are.
    """
    images = sample_images(dataset.splits["train"], preprocess.size)
    preprocess = replace(preprocess, white=measure_white(dataset, images))
    if preprocess.polarity is None:
        return preprocess
    grey = [image if image.shape[-1] == 1 else luma(image[..., :3]) for image in images]
    if measure_polarity(grey) not in (None, preprocess.polarity):
        grey = [255 - image for image in grey]
    polarity, ink_extent = measure_drawings(grey)
    return replace(preprocess, polarity=polarity, ink_extent=ink_extent)


def _channel_moments(parts: Iterable[Uint8], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 [N, H, W, C], in [0, 1], from exact level counts."""
    totals = np.zeros((channels, 256), np.int64)
    for images in parts:
        for channel in range(channels):
            totals[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
    level = np.arange(256) / 255.0
    means, stds = [], []
    for counts in totals:
        mean = float((counts * level).sum() / counts.sum())
        std = math.sqrt(float((counts * (level - mean) ** 2).sum() / counts.sum()))
        means.append(round(mean, 4))
        stds.append(round(std, 4) or 1.0)  # a constant channel is not scaled
    return tuple(means), tuple(stds)
