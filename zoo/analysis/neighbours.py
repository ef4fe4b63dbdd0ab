"""Nearest training images: the images of a data set whose features are most like those of a new image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.analysis.features import HEAD_INPUT, Features, compute_features, digest_of, feature_step, load_features
from zoo.data.dataset import Dataset, limited
from zoo.data.images.measure import as_trained
from zoo.data.images.preprocess import images_to_input
from zoo.data.splits import record_name
from zoo.inference.predict import Checkpoint

SPLIT = "train"
COUNT = 6  # images that are shown
MAX_IMAGES = 50_000  # of which features are computed; more are read from a file of `zoo features`


class Neighbour(NamedTuple):
    """A training image.

    Attributes:
        name: its file, or its number.
        label: name of its class.
        similarity: cosine of its features and those of the new image.
        pixels: its network input, uint8 [H, W, C].
    """

    name: str
    label: str
    similarity: float
    pixels: np.ndarray


class Neighbours:
    """The training images of a checkpoint, by their features.

    Args:
        checkpoint: the network.
        dataset: the data, as `limited` to the images that `rows` has.
        rows: features of its train split, float32 [N, D].
        at: their endpoint.
        pool: reduction of endpoints of shape [H, W, C].
    """

    def __init__(
        self, checkpoint: Checkpoint, dataset: Dataset, rows: np.ndarray, at: str = HEAD_INPUT, pool: str = "mean"
    ):
        self.checkpoint, self.names = checkpoint, dataset.class_names
        self.split = as_trained(dataset, checkpoint.card.preprocess).splits[SPLIT]
        self.rows = _unit(rows)
        self.step = feature_step(checkpoint.model, checkpoint.card.preprocess, at, pool)
        self.about = f"{len(rows):,} training images of {dataset.name}"

    def nearest(self, pixels: np.ndarray, count: int = COUNT) -> list[Neighbour]:
        """Return the training images nearest to a network input, uint8 [H, W, C], most similar first."""
        features = _unit(np.asarray(self.step(self.checkpoint.variables, pixels[None])))[0]
        similarity = self.rows @ features
        order = np.argsort(-similarity, kind="stable")[:count]
        images = images_to_input(list(self.split.read(order)), self.checkpoint.card.preprocess)
        return [
            Neighbour(record_name(self.split, i), self.names[self.split.labels[i]], float(similarity[i]), image)
            for i, image in zip(order.tolist(), images, strict=True)
        ]


def neighbours_in(checkpoint: Checkpoint, dataset: Dataset, on_batch: Callable[[int], Any] | None = None) -> Neighbours:
    """Compute the features of a data set's training images, of at most MAX_IMAGES, evenly spaced.

    Raises:
        ValueError: if it has no train split.
    """
    _require_train(dataset)
    dataset = limited(dataset, MAX_IMAGES)
    card = checkpoint.card
    arrays = compute_features(
        checkpoint.model, checkpoint.variables, card.preprocess, as_trained(dataset, card.preprocess),
        splits=[SPLIT], on_batch=on_batch,
    )  # fmt: skip
    return Neighbours(checkpoint, dataset, arrays[SPLIT][0])


def read_neighbours(checkpoint: Checkpoint, file: str | Path, open_data: Callable[[Features], Dataset]) -> Neighbours:
    """Read the features of training images from a file of `zoo features`.

    Args:
        checkpoint: the network that computed them.
        file: the .npz file.
        open_data: opens the data that they were computed from.

    Raises:
        ValueError: if the file belongs to another network or other data, or has no train split.
    """
    features = load_features(file)
    origin = features.origin
    if origin is None or origin.digest != digest_of(checkpoint):
        raise ValueError(f"{file}: its features are those of another network; write it again with `zoo features`")
    if SPLIT not in features.splits:
        raise ValueError(f"{file}: has no features of the train split; it has {', '.join(features.splits)}")
    dataset = open_data(features)
    _require_train(dataset)
    dataset = limited(dataset, origin.limit) if origin.limit else dataset
    rows, labels = features.splits[SPLIT]
    names = features.class_names
    split = dataset.splits[SPLIT]
    if tuple(dataset.class_names) != names or not np.array_equal(np.asarray(split.labels), labels):
        raise ValueError(f"{file}: was made from other images than {dataset.name}; give these with --data")
    return Neighbours(checkpoint, dataset, rows, origin.at, origin.pool)


def _require_train(dataset: Dataset) -> None:
    if SPLIT not in dataset.splits:
        raise ValueError(f"{dataset.name}: has no train split; it has {', '.join(dataset.splits)}")


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1; rows of zeros and rows that are not finite become zeros."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(lengths > 0, lengths, 1)
    return np.where(np.isfinite(unit), unit, 0).astype(np.float32)
