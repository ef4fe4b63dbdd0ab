"""Advice for a data set: the model that suits it, pretrained weights, class weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import Dataset
from zoo.data.sources.points import holds_points
from zoo.data.splits import image_sizes
from zoo.text import counted

SMALL = 64  # pixels; larger images suit the models for photographs
FEW_PHOTOS, FEW_SMALL = 1000, 50  # training images per class; ImageNet has 1,300, with fewer it pays to fine-tune
UNBALANCED = 3  # times as many images of the largest class as of the smallest one
SAMPLE = 100  # images read to tell grey ones from coloured ones

Kind = Literal["photographs", "colour", "grey", "points"]

# Weights to start from
PRETRAINED: dict[Kind, str] = {
    "photographs": "torchvision:resnet18",
    "colour": "resnet20-cifar10",
    "grey": "lenet5-mnist",
}
#: Weights to start from that the package holds, for kinds of images whose best ones are downloaded
SHIPPED: dict[Kind, str] = {"photographs": "resnet20-cifar10"}
# Models to train from scratch
MODELS: dict[Kind, str] = {"photographs": "resnet18", "colour": "resnet20", "grey": "lenet5", "points": "mlp"}


def known_sizes(dataset: Dataset) -> NDArray[np.int32]:
    """Return (height, width) of all images whose size is known without decoding them, int32 [N, 2]."""
    sizes = [image_sizes(split) for split in dataset.splits.values()]
    return np.concatenate([np.zeros((0, 2), np.int32), *(part for part in sizes if part is not None)])


def median_side(dataset: Dataset) -> float:
    """Return the median of the images' shorter sides in pixels; 2 * SMALL if no size is known."""
    sizes = known_sizes(dataset)
    return float(np.median(sizes.min(axis=1))) if len(sizes) else 2.0 * SMALL


def kind_of_images(dataset: Dataset) -> Kind:
    """Return "points", "photographs" for images of more than SMALL pixels, else "colour" or "grey" by a sample."""
    if holds_points(dataset):
        return "points"
    if median_side(dataset) > SMALL:
        return "photographs"
    split = dataset.splits.get("train") or next(iter(dataset.splits.values()))
    count = min(SAMPLE, len(split))
    images = split.read(np.arange(count) * len(split) // count)
    return "grey" if all(image.shape[-1] == 1 for image in images) else "colour"


def describe_few_images(dataset: Dataset) -> str:
    """Return a line if there are too few training images to train from scratch, with the option to add; else ""."""
    if "train" not in dataset.splits:
        return ""
    count, kind = len(dataset.splits["train"]), kind_of_images(dataset)
    if kind == "points" or count >= dataset.num_classes * (FEW_PHOTOS if kind == "photographs" else FEW_SMALL):
        return ""
    return (
        f"Only {counted(count, 'training image')} of {dataset.num_classes} classes: few to train from scratch. "
        f"Fine-tune with --init {PRETRAINED[kind]}, without --model{describe_shipped(kind)}."
    )


def describe_shipped(kind: Kind) -> str:
    """Return what to type in place of weights that are downloaded, in brackets, or "" if they are not."""
    return f" (a download; without network: --init {SHIPPED[kind]})" if kind in SHIPPED else ""


def describe_imbalance(dataset: Dataset) -> str:
    """Return a line if some classes have many more training images than others, with the option to add; else ""."""
    if "train" not in dataset.splits:
        return ""
    counts = np.bincount(dataset.splits["train"].labels, minlength=dataset.num_classes)
    present = np.flatnonzero(counts)
    if not len(present):
        return ""
    least, most = present[counts[present].argmin()], counts.argmax()
    if counts[most] < UNBALANCED * counts[least]:
        return ""
    return (
        f"Classes are unbalanced: {counts[most]:,} training images of {dataset.class_names[most]}, {counts[least]:,} "
        f"of {dataset.class_names[least]}. Add --set class_weights=balanced."
    )
