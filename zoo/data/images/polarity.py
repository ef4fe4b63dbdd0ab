"""Drawings of the other polarity: ink on paper for a model of light digits on black, and the other way round."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zoo.data.dataset import Dataset, Labels, Pixels, Split
from zoo.data.images.decode import luma
from zoo.data.images.preprocess import measured_polarity, sample_images

SAMPLE = 1_000  # records that are looked at; of photographs a tenth
COVERED = (64, 64)  # what large images are shrunk to cover: enough to tell the ground from the ink


@dataclass(frozen=True, eq=False)
class InvertedSplit:
    """A split with black for white."""

    split: Split

    @property
    def labels(self) -> Labels:
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def read(self, indices: Any) -> Pixels | list[Pixels]:
        images = self.split.read(indices)
        return 255 - images if isinstance(images, np.ndarray) else [255 - image for image in images]


def match_polarity(dataset: Dataset, polarity: str | None) -> Dataset:
    """The data set as a checkpoint of this polarity needs it: inverted, with a note, where its drawings have the other.

    What decides is the background that over 90 % of the images of its first split share; of photographs, which have
    none, and for a model without polarity nothing changes.
    """
    split = next(iter(dataset.splits.values()))
    if polarity is None or not len(split):
        return dataset
    sampled = sample_images(split, COVERED, SAMPLE)
    images = [image if image.shape[-1] == 1 else luma(image[..., :3]) for image in sampled]
    found = measured_polarity(images)
    if found is None or found == polarity:
        return dataset
    note = f"images are {found} and the model was trained on {polarity}: they are inverted"
    inverted = {name: InvertedSplit(split) for name, split in dataset.splits.items()}
    return replace(dataset, splits=inverted, notes=(*dataset.notes, note))
