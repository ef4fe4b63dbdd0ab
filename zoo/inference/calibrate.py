"""Calibration: a temperature for the logits, and a threshold for images unlike those of training.

Both are fitted on the validation split, those of a linear probe on examples held out in cross-validation. Division by a
temperature never changes the order of the classes.
"""

import dataclasses
from typing import Any

import numpy as np

from zoo.checkpoint.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, is_calibration
from zoo.inference.metrics import calibration_error
from zoo.inference.softmax import log_probabilities

#: Minimum number of examples to fit on.
MIN_EXAMPLES = 20
#: Minimum number of wrong predictions. Without any, the best temperature is 0. Subsets of CIFAR-10 with fewer than 5
#: give temperatures that are worse than 1 on other images; from 10 on they are as good or better.
MIN_MISTAKES = 10
#: Logits that the fit reads; of larger splits, evenly spaced examples.
MAX_LOGITS = 20_000_000
#: Share of the images that the threshold is fitted on that are not unlike those of training.
KEPT = 0.95


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that minimises the cross-entropy of softmax(logits / temperature).

    The cross-entropy is convex in 1 / temperature, so its derivative has one zero, which is bracketed and refined by
    Brent's method.

    Args:
        logits: float [N, K], finite.
        labels: true classes, int [N].

    Raises:
        ValueError: if there is no such temperature in the allowed range: nearly all predictions are right by a wide
            margin, or the logits say nothing about the classes.
    """
    from scipy.optimize import brentq

    rows = np.asarray(logits, np.float64)
    true = rows[np.arange(len(rows)), labels].mean()

    def slope(log_inverse: float) -> float:
        """Return the derivative of the cross-entropy with respect to the inverse temperature."""
        return float((np.exp(log_probabilities(rows, np.exp(-log_inverse))) * rows).sum(axis=1).mean() - true)

    low, high = -np.log(MAX_TEMPERATURE), -np.log(MIN_TEMPERATURE)
    if slope(low) >= 0:
        raise ValueError("the logits say too little about the classes")
    if slope(high) <= 0:
        raise ValueError("nearly all predictions are right by a wide margin")
    return float(np.exp(-brentq(slope, low, high, xtol=1e-6)))


def fit_calibration(logits: np.ndarray, energy: np.ndarray, labels: np.ndarray, split: str) -> tuple[Any, str]:
    """Fit temperature and energy threshold on the outputs for a split.

    Args:
        logits: float [N, K].
        energy: float [N], as in `evaluate.Outputs`.
        labels: true classes, int [N].
        split: name of the split, or "cross-validation" if each image was held out of the training of its outputs.

    Returns:
        (Calibration, reason why its temperature is 1 or ""), or (None, reason).
    """
    finite = np.isfinite(logits).all(axis=1)
    rows, labels = np.asarray(logits)[finite], np.asarray(labels)[finite]
    if len(rows) < MIN_EXAMPLES:
        return None, f"only {len(rows)} {split} images; {MIN_EXAMPLES} are needed"
    threshold = float(np.quantile(np.asarray(energy, np.float64)[finite], 1 - KEPT))
    mistakes = int((rows.argmax(axis=1) != labels).sum())
    temperature, reason = 1.0, ""
    if mistakes < MIN_MISTAKES:
        reason = f"only {mistakes} of {len(rows):,} {split} images are wrong; {MIN_MISTAKES} are needed"
    else:
        step = max(1, -(-rows.size // MAX_LOGITS))
        try:
            temperature = fit_temperature(rows[::step], labels[::step])
        except ValueError as error:
            reason = str(error)
    loss_before, ece_before = loss_and_error(rows, labels)
    loss_after, ece_after = loss_and_error(rows, labels, temperature) if not reason else (loss_before, ece_before)
    calibration = Calibration(
        temperature, split, len(rows), loss_before, loss_after, ece_before, ece_after, threshold, KEPT
    )
    if not is_calibration(dataclasses.asdict(calibration)):  # such as the outputs of a network that nearly diverged
        return None, f"the outputs for the {split} images are too large"
    return calibration, reason


def loss_and_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> tuple[float, float]:
    """Return mean cross-entropy and expected calibration error of softmax(logits / temperature)."""
    logs = log_probabilities(logits, temperature)
    return float(-logs[np.arange(len(logs)), labels].mean()), calibration_error(np.exp(logs), labels)


def temperature_of(calibration: Calibration | None) -> float:
    """Return the temperature of a card's calibration, 1 without one."""
    return 1.0 if calibration is None else calibration.temperature


def is_unlike(energy: float, calibration: Calibration | None) -> bool | None:
    """Return True if an image of this energy is unlike those of training; None if the card has no threshold."""
    return None if calibration is None else bool(energy < calibration.energy_threshold)
