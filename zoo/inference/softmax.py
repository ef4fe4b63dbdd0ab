"""Softmax with a temperature, on the host in float64."""

import numpy as np


def log_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return log softmax(logits / temperature), float64 [N, K], of logits [N, K]. Rows that are not finite give NaN."""
    rows = np.asarray(logits, np.float64) / temperature
    with np.errstate(invalid="ignore"):
        rows = rows - rows.max(axis=1, keepdims=True)
        return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))
