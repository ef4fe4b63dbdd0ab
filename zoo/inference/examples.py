"""Predictions of single examples: which images a network gets wrong, and how wrong."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.files import atomic_writer
from zoo.inference.softmax import log_probabilities
from zoo.text import csv_cell

COLUMNS = ("file", "truth", "prediction", "probability", "loss", "split")


class ExampleResult(NamedTuple):
    """The prediction for one example.

    Attributes:
        file: name of the example in its split: its file, or its number where examples have no names.
        truth: its class.
        prediction: the most probable class; "" if the network's outputs are not finite.
        probability: probability of the prediction.
        loss: cross-entropy, in nats.
        split: the split that it is from.
    """

    file: str
    truth: str
    prediction: str
    probability: float
    loss: float
    split: str

    @property
    def is_correct(self) -> bool:
        return self.truth == self.prediction


@dataclass(frozen=True, eq=False)
class Examples(Sequence[ExampleResult]):
    """The predictions for the N examples of a split, as arrays; `examples[i]` is an ExampleResult.

    Attributes:
        files: names of the examples.
        splits: name of each example's split.
        labels: true classes, int32 [N].
        predictions: most probable classes, int32 [N]; -1 where the network's outputs are not finite.
        probabilities: probability of the prediction, float32 [N].
        losses: cross-entropy of each example, float32 [N].
        class_names: one name per class.
    """

    files: tuple[str, ...]
    splits: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    class_names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        prediction = int(self.predictions[i])
        return ExampleResult(
            self.files[i], self.class_names[self.labels[i]], self.class_names[prediction] if prediction >= 0 else "",
            float(self.probabilities[i]), float(self.losses[i]), self.splits[i],
        )  # fmt: skip

    def mistakes(self) -> np.ndarray:
        """Return the indices of the wrong predictions, int64 [M], those with the highest loss first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        losses = np.where(np.isfinite(self.losses), self.losses, np.inf)
        return wrong[np.argsort(-losses[wrong], kind="stable")]

    def write_csv(self, path: str | Path) -> None:
        """Write a CSV file with the columns COLUMNS and a row for every example, in the order of the split."""
        write_csv(Path(path), COLUMNS, self)


def classify_logits(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the prediction int32 [N], its probability and the cross-entropy, float32 [N], of each row of logits.

    Args:
        logits: float [N, K].
        labels: true classes, int [N].
        temperature: divisor of the logits.

    Returns:
        Predictions, probabilities and losses; a row that is not finite has prediction -1.
    """
    finite = np.isfinite(logits).all(axis=1)
    logs, every = log_probabilities(logits, temperature), np.arange(len(logits))
    predictions = np.where(finite, np.argmax(logits, axis=1), -1).astype(np.int32)
    probabilities = np.where(finite, np.exp(logs[every, predictions]), np.nan).astype(np.float32)
    return predictions, probabilities, (-logs[every, labels]).astype(np.float32)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file (UTF-8) in one rename. Text that a spreadsheet would take for a formula is escaped."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        writer.writerow([csv_cell(cell) for cell in row])
    with atomic_writer(path) as stream:
        stream.write(text.getvalue().encode("utf-8", "backslashreplace"))
