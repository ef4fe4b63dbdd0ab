"""The figures and pictures that a report page shows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.analysis.explain import explain_pixels, spatial_stages
from zoo.data.dataset import Dataset, with_classes
from zoo.data.images.measure import as_trained
from zoo.data.images.preprocess import images_to_input
from zoo.data.inspect.survey import survey
from zoo.data.loader import eval_batches
from zoo.data.splits import Split, record_name
from zoo.inference import metrics
from zoo.inference.collect import Collected
from zoo.inference.evaluate import BATCH_SIZE, predict_outputs
from zoo.inference.metrics import Metrics
from zoo.inference.predict import Checkpoint
from zoo.inference.softmax import log_probabilities
from zoo.training import run as runs

MAX_MISTAKES = 12  # mistakes shown with their maps
MAX_PAIRS = 6  # confused pairs
IMAGES_PER_PAIR = 5
MAX_SURVEYED = 100_000  # records whose content is compared for duplicates


@dataclass(frozen=True, eq=False)
class RunFacts:
    """The files of a finished run.

    Attributes:
        folder: its folder.
        config: its configuration.
        history: rows of metrics.jsonl.
        best_step: step of the best checkpoint.
        stopped: the reason why training ended.
        timing: rows of timing.jsonl.
    """

    folder: Path
    config: runs.RunConfig
    history: list[dict[str, Any]]
    best_step: int
    stopped: str
    timing: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong prediction.

    Attributes:
        name: name of the record.
        label: true class.
        prediction: predicted class.
        probability: probability of the prediction.
        true_probability: probability of the true class.
        pixels: the network's input, uint8 [H, W, C].
        maps: Grad-CAM of the predicted and of the true class, [2, H, W]; None for networks without positions.
    """

    name: str
    label: int
    prediction: int
    probability: float
    true_probability: float
    pixels: np.ndarray
    maps: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outputs for every record of a split.

    Attributes:
        split: name of the split.
        result: the metrics.
        scores: probabilities float32 [N, K]; None if the table would be too large.
        labels: true classes, int32 [N].
        predictions: int32 [N].
        confidence: probability of the prediction, float32 [N].
        true_probability: probability of the true class, float32 [N].
        seconds: time that the evaluation took.
    """

    split: str
    result: Metrics
    scores: np.ndarray | None
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    true_probability: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class PageData:
    """Everything that a page shows."""

    title: str
    checkpoint: Checkpoint
    dataset: Dataset
    evaluation: Evaluation
    run: RunFacts | None
    mistakes: list[Mistake]
    stage: str
    pairs: list[tuple[int, int, int, list[np.ndarray]]]
    survey: dict[str, Any] | None


def read_run(folder: Path) -> RunFacts | None:
    """Return the facts of a finished run, or None for a folder that is not one."""
    if not (folder / runs.CONFIG).is_file() or not runs.is_finished(folder):
        return None
    results = runs.read_results(folder)
    return RunFacts(
        folder, runs.read_config(folder), runs.read_history(folder), results["best_step"], results["stopped"],
        runs.read_timing(folder),
    )  # fmt: skip


def evaluate_scores(
    checkpoint: Checkpoint, split: Split, name: str, on_batch: Callable[[int], Any] | None = None
) -> Evaluation:
    """Evaluate a checkpoint on a split, as `zoo eval` does, and keep the probabilities of every record."""
    start = time.monotonic()
    card = checkpoint.card
    collected = Collected(split, card.classes, card.calibration, per_example=True)
    size = min(BATCH_SIZE, 1 << max(len(split) - 1, 0).bit_length())
    for batch in eval_batches(split, card.preprocess, batch_size=size):
        outputs = predict_outputs(checkpoint.model, checkpoint.variables, batch["image"], card.preprocess, size)
        known = outputs.logits[: int(batch["weight"].sum())]
        if bad := int((~np.isfinite(known)).any(axis=1).sum()):
            raise ValueError(
                f"{card.model}: the outputs for {bad} of {len(known)} images are NaN; no page can be written"
            )
        losses = -np.take_along_axis(log_probabilities(outputs.logits), batch["label"][:, None], axis=1)[:, 0]
        logits, label, weight, loss = map(jnp.asarray, (outputs.logits, batch["label"], batch["weight"], losses))
        done = collected.add(metrics.batch_sums(logits, label, weight, loss), outputs)
        if on_batch:
            on_batch(done)
    result = collected.metrics()
    examples = result.per_example
    assert examples is not None  # requested above
    return Evaluation(
        name, result, collected.probabilities(), examples.labels, examples.predictions, examples.probabilities,
        np.exp(-examples.losses), time.monotonic() - start,
    )  # fmt: skip


def collect(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    title: str,
    split: str,
    run: RunFacts | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> PageData:
    """Evaluate a checkpoint and collect what its page shows.

    Args:
        checkpoint: a checkpoint with a head.
        dataset: the data; its classes are matched by name.
        title: title of the page.
        split: name of the split to evaluate.
        run: the run that trained the checkpoint, if known.
        on_batch: called with the number of images evaluated.
    """
    card = checkpoint.card
    dataset = as_trained(with_classes(dataset, card.classes), card.preprocess)
    records = dataset.splits[split]
    evaluation = evaluate_scores(checkpoint, records, split, on_batch)
    stage = list(spatial_stages(checkpoint))[-1:]
    few = sum(len(part) for part in dataset.splits.values()) <= MAX_SURVEYED
    fine_tuned = run is not None and run.config.init is not None
    return PageData(
        title, checkpoint, dataset, evaluation, run, find_mistakes(checkpoint, records, evaluation, stage),
        "".join(stage), find_pairs(checkpoint, records, evaluation),
        survey(dataset, fine_tuned=fine_tuned) if few else None,
    )  # fmt: skip


def find_mistakes(
    checkpoint: Checkpoint, records: Split, evaluation: Evaluation, stage: Sequence[str]
) -> list[Mistake]:
    """Return the wrong predictions of the highest probability, with the maps of both classes."""
    wrong = np.flatnonzero(evaluation.predictions != evaluation.labels)
    wrong = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:MAX_MISTAKES]
    if not len(wrong):
        return []
    pixels = images_to_input(records.read(wrong), checkpoint.card.preprocess)
    maps = None
    if stage:
        padded = np.concatenate([pixels, np.repeat(pixels[:1], MAX_MISTAKES - len(wrong), axis=0)])
        classes = [part[wrong].tolist() for part in (evaluation.predictions, evaluation.labels)]
        maps = np.stack(
            [
                explain_pixels(checkpoint, padded, target=part + part[:1] * (len(padded) - len(part)), stage=stage[0])
                .heatmap[: len(wrong)]
                for part in classes
            ],
            axis=1,
        )  # fmt: skip
    return [
        Mistake(
            record_name(records, int(index)), int(evaluation.labels[index]), int(evaluation.predictions[index]),
            float(evaluation.confidence[index]), float(evaluation.true_probability[index]), pixels[n],
            None if maps is None else maps[n],
        )
        for n, index in enumerate(wrong)
    ]  # fmt: skip


def find_pairs(
    checkpoint: Checkpoint, records: Split, evaluation: Evaluation
) -> list[tuple[int, int, int, list[np.ndarray]]]:
    """Return (true class, predicted class, count, pictures) of the most frequent mistakes."""
    counts = np.asarray(evaluation.result.confusion, np.int64)
    off = counts - np.diag(np.diag(counts))
    pairs = []
    for cell in np.argsort(-off, axis=None, kind="stable")[:MAX_PAIRS]:
        true, predicted = divmod(int(cell), len(off))
        if not off[true, predicted]:
            break
        chosen = np.flatnonzero((evaluation.labels == true) & (evaluation.predictions == predicted))
        chosen = chosen[np.argsort(-evaluation.confidence[chosen], kind="stable")][:IMAGES_PER_PAIR]
        pixels = images_to_input(records.read(chosen), checkpoint.card.preprocess)
        pairs.append((true, predicted, int(off[true, predicted]), list(pixels)))
    return pairs


def roc_curve(scores: np.ndarray, positive: np.ndarray, points: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Return (false, true) positive rates for falling thresholds, at most `points` of them.

    Args:
        scores: float [N].
        positive: bool [N], with both values.
        points: maximum number of points.
    """
    true, false = _cumulative(scores, positive)
    return _thin(false / false[-1], true / true[-1], points)


def precision_recall_curve(
    scores: np.ndarray, positive: np.ndarray, points: int = 120
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (recall, precision) for falling thresholds, and the average precision: the area under the steps."""
    true, false = _cumulative(scores, positive)
    true, false = true[1:], false[1:]
    recall, precision = true / true[-1], true / (true + false)
    average = float((np.diff(recall, prepend=0.0) * precision).sum())
    return (*_thin(recall, precision, points), average)


def _cumulative(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of positives and negatives above each different threshold, from none to all."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # one point for all equal scores
    true = np.cumsum(positive[order])[last]
    return np.concatenate([[0], true]), np.concatenate([[0], last + 1 - true])


def _thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the ends and points that are evenly spaced along the curve."""
    if len(x) <= points:
        return x, y
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)).clip(0, len(x) - 1))
    return x[kept], y[kept]
