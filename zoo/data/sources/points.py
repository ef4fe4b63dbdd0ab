"""Points in a plane, for teaching: each is an image of 1x2 pixels whose levels are its two coordinates.

What a network learns on them can be drawn: colour each point of the plane by its answer.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import SPLITS, Dataset, Note
from zoo.data.images.preprocess import POINT_SHAPE
from zoo.data.splits import ArraySplit

SEED = 0
COUNTS = {"train": 600, "validation": 200, "test": 400}
XOR_SPREAD = 0.12  # standard deviation about the corners of a square of side 0.5
MOON_SPREAD = 0.1  # standard deviation about half circles of radius 1

Points = tuple[NDArray[np.float64], NDArray[np.int32]]


def _xor_points(rng: np.random.Generator, count: int) -> Points:
    """Return points [N, 2] around four corners; the class is the exclusive or of the corner's two coordinates."""
    corners = rng.integers(0, 2, (count, 2))
    points = 0.25 + 0.5 * corners + rng.normal(0, XOR_SPREAD, (count, 2))
    return points, (corners[:, 0] ^ corners[:, 1]).astype(np.int32)


def _moon_points(rng: np.random.Generator, count: int) -> Points:
    """Return points [N, 2] on two half circles that reach into each other, as scikit-learn's `make_moons`."""
    labels = rng.integers(0, 2, count).astype(np.int32)
    angle = rng.uniform(0, np.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    points = np.where(labels[:, None] == 1, lower, upper) + rng.normal(0, MOON_SPREAD, (count, 2))
    return (points - (0.5, 0.25)) / 4 + 0.5, labels


def _points_dataset(name: str, draw: Callable[[np.random.Generator, int], Points], classes: tuple[str, str]) -> Dataset:
    """Draw a data set of points with a fixed seed. Coordinates 0..1 become the levels 0..255."""
    points, labels = draw(np.random.default_rng(SEED), 2 * sum(COUNTS.values()))
    levels = np.rint(255 * points.clip(0, 1)).astype(np.uint8)
    # No point is drawn twice, so that no split holds points of another one.
    _, first = np.unique(levels, axis=0, return_index=True)
    chosen, splits, start = np.sort(first), {}, 0
    for split in SPLITS:
        part = chosen[start : start + COUNTS[split]]
        splits[split] = ArraySplit(levels[part].reshape(-1, *POINT_SHAPE, 1), labels[part])
        start += COUNTS[split]
    note = Note("source", "points in the unit square; each is an image of 1x2 pixels, its coordinates as levels 0..255")
    return Dataset(name, splits, classes, (note,))


def xor() -> Dataset:
    """Make 1,200 points around the corners of a square; classes are equal and different coordinates."""
    return _points_dataset("xor", _xor_points, ("same", "different"))


def moons() -> Dataset:
    """Make 1,200 points on two half circles that reach into each other."""
    return _points_dataset("moons", _moon_points, ("upper", "lower"))


def holds_points(dataset: Dataset) -> bool:
    """Return True if the images of a data set are points, whose coordinates must not be resized into each other."""
    split = next(iter(dataset.splits.values()))
    return isinstance(split, ArraySplit) and split.images.shape[1:] == (*POINT_SHAPE, 1)
