"""Suspects of a data set: images whose label is probably wrong, and near-duplicates across splits.

Labels are judged by out-of-fold probabilities of a linear probe on a checkpoint's features, so that no image is judged
by a classifier that was trained on its label. Which of them are suspects is decided by confident learning (Northcutt et
al. 2021, arXiv:1911.00068): an image is one if the probability of another class reaches that class's mean probability
among the images that bear its label.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.analysis.features import Features, features
from zoo.data.dataset import Dataset
from zoo.data.inspect.grid import CUT_MIDDLE, GREEN, GREY, RED, Cell, Line, draw_grid
from zoo.data.splits import record_label
from zoo.inference.examples import write_csv
from zoo.inference.predict import Checkpoint

FOLDS = 5
STRENGTH = 0.1  # C of the probe per 1,000 examples: strong enough a penalty that single wrong labels are not learnt
MARGIN = 0.7  # minimum probability of the suggestion above that of the label
SIMILARITY = 0.97  # correlation of two thumbnails from which on images are near-duplicates
FEATURE_SIMILARITY = 0.9  # cosine of two images' features, which near-duplicates have as well
THUMBNAIL = 24  # pixels: side of the thumbnails that are compared
NEIGHBOURS = 3  # nearest images by features whose thumbnails are compared
SHEET_LABELS, SHEET_PAIRS = 60, 40  # pictures on a sheet
COLUMNS = ("kind", "file", "split", "label", "suggestion", "score", "other_file", "other_split")


@dataclass(frozen=True)
class WrongLabel:
    """An image whose label is probably wrong.

    Attributes:
        split: its split.
        index: its index in the split.
        label: its class in the data.
        suggestion: the most probable class.
        score: probability of the suggestion minus that of the label, out of fold.
    """

    split: str
    index: int
    label: int
    suggestion: int
    score: float


@dataclass(frozen=True)
class NearDuplicate:
    """Two similar images in different splits, (split, index) each, and the correlation of their thumbnails."""

    first: tuple[str, int]
    second: tuple[str, int]
    similarity: float


@dataclass(frozen=True)
class Suspects:
    """Suspects of a data set, the most suspicious first.

    Attributes:
        dataset: the data.
        labels: images whose label is probably wrong.
        duplicates: near-duplicates across splits.
        method: the implementation that found wrong labels: "cleanlab" or "own".
    """

    dataset: Dataset
    labels: tuple[WrongLabel, ...]
    duplicates: tuple[NearDuplicate, ...]
    method: str

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield a row of COLUMNS for every suspect."""
        names, splits = self.dataset.class_names, self.dataset.splits
        for wrong in self.labels:
            file = record_label(splits[wrong.split], wrong.index)
            yield "label", file, wrong.split, names[wrong.label], names[wrong.suggestion], wrong.score, "", ""
        for pair in self.duplicates:
            (split, i), (other, k) = pair.first, pair.second
            label = names[int(splits[split].labels[i])]
            other_label = names[int(splits[other].labels[k])]
            file, other_file = record_label(splits[split], i), record_label(splits[other], k)
            yield "duplicate", file, split, label, other_label, pair.similarity, other_file, other

    def write_csv(self, path: str | Path) -> None:
        """Write a CSV file with the columns COLUMNS and a row for every suspect."""
        write_csv(Path(path), COLUMNS, self.rows())

    def draw(self, path: str | Path) -> None:
        """Draw the most suspicious labels and duplicates as PNG."""
        draw_suspects(self, Path(path))


def find_suspects(
    checkpoint: Checkpoint | str | Path,
    dataset: Dataset,
    *,
    seed: int = 0,
    on_batch: Callable[[int], Any] | None = None,
) -> Suspects:
    """Find images whose label is probably wrong, and near-duplicates across splits.

    Args:
        checkpoint: supplies the features; its classes may be others. One that was trained on these labels may have
            learnt the wrong ones by heart and find fewer.
        dataset: the data.
        seed: seed of the folds.
        on_batch: called with the number of images done so far.

    Raises:
        ValueError: if a class has fewer than two images.
    """
    computed = features(checkpoint, dataset, on_batch=on_batch)
    wrong, method = wrong_labels(computed, seed)
    return Suspects(dataset, wrong, near_duplicates(dataset, computed), method)


# --- wrong labels -----------------------------------------------------------------------------------------------------


def wrong_labels(computed: Features, seed: int = 0) -> tuple[tuple[WrongLabel, ...], str]:
    """Return the images whose label is probably wrong, the most suspicious first, and the method.

    Args:
        computed: features of all splits.
        seed: seed of the folds.
    """
    rows = np.concatenate([part for part, _ in computed.splits.values()])
    labels = np.concatenate([part for _, part in computed.splits.values()])
    probabilities = out_of_fold_probabilities(rows, labels, len(computed.class_names), seed)
    issues, method = label_issues(labels, probabilities)
    places = [(name, i) for name, (part, _) in computed.splits.items() for i in range(len(part))]
    suggestions = probabilities.argmax(axis=1)
    margins = probabilities.max(axis=1) - probabilities[np.arange(len(labels)), labels]
    issues = issues[margins[issues] >= MARGIN]
    found = [
        WrongLabel(places[i][0], places[i][1], int(labels[i]), int(suggestions[i]), float(margins[i]))
        for i in issues[np.argsort(-margins[issues], kind="stable")].tolist()
    ]
    return tuple(found), method


def out_of_fold_probabilities(rows: np.ndarray, labels: np.ndarray, classes: int, seed: int = 0) -> np.ndarray:
    """Return the class probabilities of each example by a linear probe that was not trained on it.

    Args:
        rows: features float [N, D].
        labels: int [N].
        classes: K.
        seed: seed of the folds.

    Returns:
        float64 [N, K]; 0 for classes without examples.

    Raises:
        ValueError: if there are fewer than two classes, or a class has one example only.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels, minlength=classes)
    fewest = int(counts[counts > 0].min()) if len(labels) else 0
    if (counts > 0).sum() < 2 or fewest < 2:
        raise ValueError("suspects need at least two classes, with two images or more of each")
    result = np.zeros((len(labels), classes))
    folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for train, held_out in folds.split(rows, labels):
            # C multiplies a sum over examples; scaled like this, the penalty per example is independent of their number
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=1000 * STRENGTH / len(train), max_iter=300))
            probe.fit(rows[train], labels[train])
            result[held_out[:, None], probe.classes_[None]] = probe.predict_proba(rows[held_out])
    return result


def label_issues(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the indices of the examples whose label is probably wrong, and the method: "cleanlab" if it is installed.

    Args:
        labels: int [N].
        probabilities: out-of-fold probabilities [N, K].
    """
    present = np.unique(labels)
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return confident_learning(labels, probabilities), "own"
    position = np.searchsorted(present, labels)  # cleanlab wants every class to have examples
    mask = find_label_issues(position, probabilities[:, present], filter_by="confident_learning", n_jobs=1)
    return np.flatnonzero(mask), "cleanlab"


def confident_learning(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the indices of the off-diagonal examples of the confident joint (Northcutt et al. 2021, section 3.1).

    The threshold of a class is the mean probability that its own examples give it. An example is counted for the most
    probable class among those whose threshold it reaches; it is an issue if that class is not its label.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=classes)
    thresholds = np.divide(own, counts, out=np.full(classes, np.inf), where=counts > 0)
    confident = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    best = confident.argmax(axis=1)
    return np.flatnonzero((confident.max(axis=1) >= 0) & (best != labels))


# --- near-duplicates --------------------------------------------------------------------------------------------------


def near_duplicates(dataset: Dataset, computed: Features) -> tuple[NearDuplicate, ...]:
    """Return pairs of similar images in different splits, the most similar first.

    Candidates are the nearest neighbours by features. They count if their thumbnails are alike as well: grey, shrunk,
    with mean 0 and norm 1, their scalar product, which is a correlation, is at least SIMILARITY.
    """
    from sklearn.neighbors import NearestNeighbors

    unit = {name: _unit(rows) for name, (rows, _) in computed.splits.items()}
    thumbnails = _Thumbnails(dataset)
    names, pairs = list(unit), []
    for n, second in enumerate(names[1:], 1):
        for first in names[:n]:
            count = min(NEIGHBOURS, len(unit[first]))
            index = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(unit[first])
            distances, neighbours = index.kneighbors(unit[second])
            cosines = 1 - distances**2 / 2
            for k, j in zip(*np.nonzero(cosines >= FEATURE_SIMILARITY), strict=True):
                i = int(neighbours[k, j])
                similarity = float(thumbnails.get(first, i) @ thumbnails.get(second, int(k)))
                if similarity >= SIMILARITY:
                    pairs.append(NearDuplicate((first, i), (second, int(k)), similarity))
    return tuple(sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second)))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class _Thumbnails:
    """Thumbnails of the images of a data set, read when they are needed."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.cache: dict[tuple[str, int], np.ndarray] = {}

    def get(self, split: str, index: int) -> np.ndarray:
        """Return the thumbnail of an image as a vector of mean 0 and norm 1; 0 for an image of one colour."""
        if (split, index) not in self.cache:
            from PIL import Image

            (image,) = self.dataset.splits[split].read(np.array([index]))
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("L")
            small = np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32).ravel()
            small = small - small.mean()
            norm = float(np.linalg.norm(small))
            self.cache[split, index] = small / norm if norm > 1 else np.zeros_like(small)
        return self.cache[split, index]


# --- the sheet --------------------------------------------------------------------------------------------------------


def draw_suspects(suspects: Suspects, path: Path) -> None:
    """Draw the most suspicious labels, then the most similar pairs, as PNG."""
    splits, names = suspects.dataset.splits, suspects.dataset.class_names
    labels, pairs = suspects.labels[:SHEET_LABELS], suspects.duplicates[:SHEET_PAIRS]

    def image_of(split: str, index: int) -> Any:
        return splits[split].read(np.array([index]))[0]

    def named(split: str, index: int) -> Line:
        label = names[int(splits[split].labels[index])]
        tail = f" {label if len(label) <= 10 else label[:9] + '…'}"
        return Line(record_label(splits[split], index), tail, GREY, CUT_MIDDLE)

    def cells() -> Iterator[Cell]:
        for wrong in labels:
            lines = [
                Line(f"label: {names[wrong.label]}", colour=RED),
                Line(f"probably {names[wrong.suggestion]}", f" ({wrong.score:+.2f})", GREEN),
                Line(record_label(splits[wrong.split], wrong.index), colour=GREY, cut=CUT_MIDDLE),
            ]
            yield Cell([image_of(wrong.split, wrong.index)], lines)
        for pair in pairs:
            lines = [
                Line(f"{pair.first[0]} and {pair.second[0]}", f" alike ({pair.similarity:.3f})"),
                *(named(*place) for place in (pair.first, pair.second)),
            ]
            yield Cell([image_of(*pair.first), image_of(*pair.second)], lines)

    heading = [
        f"{suspects.dataset.name}: {len(suspects.labels):,} labels that are probably wrong"
        + (f" (the first {len(labels)} are shown)" if len(labels) < len(suspects.labels) else "")
        + f", {len(suspects.duplicates):,} near-duplicates across splits"
        + (f" (the first {len(pairs)} are shown)" if len(pairs) < len(suspects.duplicates) else "")
    ]
    draw_grid(cells(), heading, path)


def describe(suspects: Suspects) -> list[str]:
    """Return lines on what was found."""
    total = sum(map(len, suspects.dataset.splits.values()))
    counts: Mapping[str, int] = {
        name: sum(wrong.split == name for wrong in suspects.labels) for name in suspects.dataset.splits
    }
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    lines = [f"labels that are probably wrong: {len(suspects.labels):,} of {total:,} images ({parts})"]
    lines.append(f"near-duplicates across splits: {len(suspects.duplicates):,} pairs")
    return lines
