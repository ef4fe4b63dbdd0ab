"""A network's outputs for the examples of a split, collected batch by batch, and the metrics that follow from them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.checkpoint.calibration import Calibration
from zoo.data.splits import Split, record_label
from zoo.inference import metrics
from zoo.inference.calibrate import fit_calibration, temperature_of
from zoo.inference.examples import Examples, classify_logits
from zoo.inference.softmax import log_probabilities

Answers = tuple[np.ndarray, np.ndarray, np.ndarray]  # predictions, probabilities and losses of a batch


class Collected:
    """Outputs for the examples of a split.

    Attributes:
        split: the split.
        class_names: K names.
        calibration: divides the logits by its temperature; None for a temperature of 1.
        per_example: True if the metrics get the prediction for each example.
    """

    def __init__(
        self,
        split: Split,
        class_names: Sequence[str],
        calibration: Calibration | None = None,
        per_example: bool = False,
        keep_logits: bool = False,
    ):
        self.split, self.class_names = split, tuple(class_names)
        self.calibration, self.per_example = calibration, per_example
        self.labels = np.asarray(split.labels, np.int32)
        self.keeps_scores = len(split) * len(self.class_names) <= metrics.SCORE_LIMIT
        self.keeps_logits = self.keeps_scores and (keep_logits or temperature_of(calibration) != 1)
        self.total: Any = None
        self.done = 0
        self.scores: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []
        self.energy: list[np.ndarray] = []
        self.answers: list[Answers] = []

    def add(self, sums: metrics.Sums, outputs: Any) -> int:
        """Add the sums and `evaluate.Outputs` of the next batch, and return the number of examples so far."""
        self.total = metrics.add(self.total, sums)
        count = min(len(outputs.energy), len(self.split) - self.done)
        labels = self.labels[self.done : self.done + count]
        temperature = temperature_of(self.calibration)
        self.energy.append(np.asarray(outputs.energy)[:count])
        if self.keeps_scores:
            self.scores.append(np.asarray(outputs.probabilities)[:count])
        if self.keeps_logits:
            self.logits.append(np.asarray(outputs.logits)[:count])
        elif self.per_example or temperature != 1:
            self.answers.append(classify_logits(np.asarray(outputs.logits)[:count], labels, temperature))
        self.done += count
        return self.done

    def fit_calibration(self, split: str) -> tuple[Calibration | None, str]:
        """Fit a calibration on the outputs, and use it; returns it with a reason if it is None or its temperature 1."""
        if not self.keeps_logits:
            return None, f"{len(self.split):,} x {len(self.class_names):,} scores are too many"
        fitted = fit_calibration(np.concatenate(self.logits), np.concatenate(self.energy), self.labels, split)
        self.calibration = fitted[0]
        return fitted

    def probabilities(self) -> np.ndarray | None:
        """Return the calibrated probabilities float32 [N, K]; None if their table would be too large."""
        if not self.keeps_scores:
            return None
        temperature = temperature_of(self.calibration)
        if temperature == 1:
            return np.concatenate(self.scores)
        return np.concatenate([np.exp(log_probabilities(part, temperature)) for part in self.logits], dtype=np.float32)

    def metrics(self) -> metrics.Metrics:
        """Return the metrics over the split."""
        temperature = temperature_of(self.calibration)
        scores = np.concatenate(self.scores) if self.keeps_scores else None
        result = metrics.summarise(self.total, self.class_names, scores, None if scores is None else self.labels)
        answers = self.answers
        if self.keeps_logits and (self.per_example or temperature != 1):
            starts = np.cumsum([0, *map(len, self.logits)])
            answers = [
                classify_logits(part, self.labels[start : start + len(part)], temperature)
                for part, start in zip(self.logits, starts, strict=False)
            ]
        if temperature != 1:
            losses = np.concatenate([part[2] for part in answers])
            result = metrics.calibrated(result, losses, self.probabilities(), self.labels)
        if self.calibration is not None:
            unlike = float(np.mean(np.concatenate(self.energy) < self.calibration.energy_threshold))
            result = dataclasses.replace(result, unlike_training=unlike)
        if self.per_example:
            result = dataclasses.replace(result, per_example=self._examples(answers))
        return result

    def _examples(self, answers: Sequence[Answers]) -> Examples:
        predictions, probabilities, losses = (np.concatenate(part) for part in zip(*answers, strict=True))
        files = tuple(record_label(self.split, i) for i in range(len(self.split)))
        return Examples(
            files, ("",) * len(files), self.labels, predictions, probabilities, losses, self.class_names
        )  # fmt: skip
