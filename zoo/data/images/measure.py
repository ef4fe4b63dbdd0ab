"""Measuring the preprocessing for training from scratch on a data set."""

import math

import numpy as np

from zoo.data.dataset import Dataset
from zoo.data.images.decode import Uint8
from zoo.data.images.polarity import background_level, measure_ink_extent, measure_polarity
from zoo.data.images.preprocess import Preprocess, images_to_input
from zoo.data.images.sampling import sample_images

MIN_SIDE = 0.75  # share of the input's side from which smaller images keep their pixels


def preprocess_for(dataset: Dataset, image_size: tuple[int, int], channels: str | None = None) -> Preprocess:
    """Choose and measure the preprocessing for training from scratch, on the train split.

    Images with at least three quarters of `image_size` keep their pixels and are padded, as LeCun et al. 1998 do with
    28x28 digits in 32x32; others are resized. Grey images with a common background get a polarity and are padded with
    the background.

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
    polarity = measure_polarity(images)
    sizes = {(image.shape[0], image.shape[1]) for image in images}
    box = image_size
    if len(sizes) == 1:
        (source,) = sizes
        if all(MIN_SIDE * target <= side <= target for side, target in zip(source, image_size, strict=True)):
            box = source
    channels = channels or ("L" if grey else "RGB")
    mode = "pad" if polarity else "crop"
    # Without polarity the fill is the mean colour, so padding must not enter the mean.
    unscaled = Preprocess(
        size=image_size if polarity else box,
        resize=box,
        resize_mode=mode,
        channels=channels,
        polarity=polarity,
        mean=(0.0,) * len(channels),
        std=(1.0,) * len(channels),
    )
    mean, std = _channel_moments(images_to_input(images, unscaled))
    return Preprocess(
        size=image_size,
        resize=box,
        resize_mode=mode,
        channels=channels,
        polarity=polarity,
        ink_extent=None if polarity is None else measure_ink_extent(images, background_level(polarity)),
        mean=mean,
        std=std,
    )


def _channel_moments(images: Uint8) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 [N, H, W, C], in [0, 1], from exact level counts."""
    level = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = float((counts * level).sum() / counts.sum())
        std = math.sqrt(float((counts * (level - mean) ** 2).sum() / counts.sum()))
        means.append(round(mean, 4))
        stds.append(round(std, 4) or 1.0)  # a constant channel is not scaled
    return tuple(means), tuple(stds)
