"""Training batches on the devices: transferred one ahead, or gathered from images that stay there."""

import math
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import Dataset
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.data.loader import (
    CACHE_BYTES,
    eval_batches,
    prefetch_to_device,
    preprocessed,
    preprocessed_bytes,
    train_batches,
    train_indices,
)
from zoo.data.splits import Split, subset
from zoo.distributed import mesh
from zoo.distributed.mesh import Parallelism
from zoo.distributed.resident import CHOICES, fits_on_devices, resident_batches
from zoo.training.recipe import Recipe
from zoo.training.timeline import Segment

#: Pixels in the sample from which a first layer is initialised.
SAMPLE_PIXELS = 2**20


def train_batches_on_devices(
    split: Split,
    segment: Segment,
    recipe: Recipe,
    batch_size: int,
    parallelism: Parallelism,
    device_data: str = "auto",
    step: int = 0,
    workers: int | None = None,
    step_bytes: int = 0,
) -> Generator[Any]:
    """Yield training batches on the devices, in the image size of a segment. What they hold depends on the step alone.

    Args:
        split: the training images.
        segment: decides size and crops.
        recipe: decides order and copies.
        batch_size: images per step over all devices.
        parallelism: the devices.
        device_data: when the images stay on the devices, one of CHOICES.
        step: number of completed steps.
        workers: threads that read data which is not kept in memory.
        step_bytes: bytes per device that steps need beside the state.
    """
    shard, repeats, seed = mesh.process_shard(parallelism), recipe.augment_repeats, recipe.seed
    if device_data == "on" or (device_data == "auto" and _fits(split, segment, parallelism, step_bytes)):
        images = preprocessed(split, segment.preprocess, workers)
        if images is not None:
            indices = train_indices(len(split), batch_size, seed, step, shard, repeats)
            return resident_batches(images, np.asarray(split.labels, np.int32), indices, parallelism)
    batches = train_batches(
        split, segment.preprocess, batch_size=batch_size, seed=seed, start_step=step, shard=shard,
        crop=segment.augmentation.host_crop, repeats=repeats, workers=workers,
    )  # fmt: skip
    if parallelism.is_single_device:
        return prefetch_to_device(batches)
    return prefetch_to_device(batches, partial(mesh.shard_batch, parallelism))


def sample_images(split: Split, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return images that are evenly spread over a split, normalised: [N, H, W, C], of SAMPLE_PIXELS pixels in all."""
    count = min(len(split), max(SAMPLE_PIXELS // math.prod(preprocess.size), 1))
    mask = np.zeros(len(split), np.bool_)
    mask[np.linspace(0, len(split) - 1, count).round().astype(np.int64)] = True
    batch = next(eval_batches(subset(split, mask), preprocess, batch_size=count, workers=0))
    return np.asarray(normalise(batch["image"], preprocess))


def require_device_data(
    device_data: str, dataset: Dataset, segments: Sequence[Segment], parallelism: Parallelism
) -> None:
    """Raise ValueError if the images must stay on the devices and cannot, or if the choice is unknown."""
    if device_data not in CHOICES:
        raise ValueError(f"--device-data {device_data}: choose from {', '.join(CHOICES)}")
    if device_data != "on":
        return
    if parallelism.is_pmap:
        raise ValueError("--device-data on: pmap takes its batches from the host; leave one of the two out")
    if not all(_can_stay(dataset.splits["train"], segment, parallelism) for segment in segments):
        raise ValueError(f"--device-data on: {dataset.name} is too large, or cropped as it is decoded; leave it out")


def _can_stay(split: Split, segment: Segment, parallelism: Parallelism) -> bool:
    """Return True if the preprocessed images are kept in the host's memory, so that they can be transferred at once."""
    if parallelism.is_pmap or segment.augmentation.host_crop:
        return False
    return preprocessed_bytes(split, segment.preprocess) <= CACHE_BYTES


def _fits(split: Split, segment: Segment, parallelism: Parallelism, step_bytes: int) -> bool:
    size = preprocessed_bytes(split, segment.preprocess)
    return _can_stay(split, segment, parallelism) and fits_on_devices(size, step_bytes, parallelism)
