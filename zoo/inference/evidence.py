"""Remarks on what a result shows: too few examples, no better than chance, measured on images that were trained on."""

from pathlib import Path

import numpy as np

from zoo.checkpoint import Card
from zoo.data.content_sketch import TRAINED_ON, ContentSketch, describe_shared
from zoo.data.dataset import Dataset
from zoo.data.splits import Split
from zoo.inference.metrics import Metrics

FEW_EXAMPLES = 30  # below this number, the interval of an accuracy of 90 % is more than 20 points wide


def describe_evidence(result: Metrics, folds_advice: str, chance_advice: str) -> list[str]:
    """Return a line if there are few examples, and one if the accuracy is no better than chance.

    Args:
        result: metrics of a test split.
        folds_advice: a sentence on testing with more images.
        chance_advice: a sentence on what to check if the accuracy is no better than chance.
    """
    low, high = result.accuracy_interval
    lines = []
    if result.examples < FEW_EXAMPLES:
        images = "image" if result.examples == 1 else "images"
        lines.append(
            f"Only {result.examples} test {images}: the 95 % interval of the accuracy is {100 * (high - low):.0f} "
            f"percentage points wide. {folds_advice}"
        )
    if chance := describe_chance(result):
        lines.append(f"{chance} {chance_advice}")
    return lines


def describe_chance(result: Metrics) -> str:
    """Return a sentence if always predicting the most frequent class may be as accurate, "" otherwise.

    Chance has no meaning where all examples are of one class.
    """
    support = np.array([row.support for row in result.per_class])
    if np.count_nonzero(support) < 2:
        return ""
    share, name = support.max() / support.sum(), result.per_class[int(support.argmax())].name
    if result.accuracy_interval[0] > share:
        return ""
    verdict = "Not clearly better" if result.accuracy > share else "No better"
    return f"{verdict} than chance: the answer {name!r} for every image is right for {100 * share:.2f} % of them."


def describe_trained_on(card: Card, dataset: Dataset, split: str, records: Split) -> str:
    """Return a sentence if a checkpoint was trained on images on which it is evaluated, "" otherwise.

    Args:
        card: of the checkpoint. Without a sketch of its training images, the name of a data set that is not a file
            decides.
        dataset: the data.
        split: name of the split that is evaluated, or "all".
        records: its images.
    """
    data = card.data or {}
    if (sketch := ContentSketch.from_json(data.get(TRAINED_ON))) is not None:
        return describe_shared(sketch, records, "were trained on")
    source = data.get("source")
    is_named = isinstance(source, str) and source not in ("", "arrays") and not Path(source).expanduser().exists()
    if not is_named or source != dataset.name or split not in ("train", "all") or "train" not in dataset.splits:
        return ""
    part = "All" if split == "train" else f"About {100 * len(dataset.splits['train']) / len(records):.0f} %"
    return f"{part} of these images were trained on, so the accuracy does not show how the model does on new images."
