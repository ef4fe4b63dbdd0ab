"""The part of a card that says how far the network's probabilities can be trusted."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.text import is_finite

#: Limits of a temperature, and of the magnitude of an energy.
MIN_TEMPERATURE, MAX_TEMPERATURE, MAX_ENERGY = 0.01, 100.0, 1e9


@dataclass(frozen=True)
class Calibration:
    """Results of `zoo.inference.calibrate.fit_calibration`.

    Attributes:
        temperature: divisor of the logits (Guo et al. 2017, arXiv:1706.04599); 1 if none could be fitted.
        split: the split that it was fitted on; "cross-validation" for a linear probe, whose folds each give the outputs
            for their held-out examples.
        examples: number of examples that it was fitted on.
        loss_before: their mean cross-entropy with temperature 1.
        loss_after: the same with `temperature`.
        ece_before: their expected calibration error with temperature 1.
        ece_after: the same with `temperature`.
        energy_threshold: log-sum-exp of the logits below which an image is unlike those of training (Liu et al. 2020,
            arXiv:2010.03759).
        energy_kept: share of these examples that have at least this energy.
    """

    temperature: float
    split: str
    examples: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float
    energy_threshold: float
    energy_kept: float


def is_calibration(value: Any) -> bool:
    """Return True for the parsed JSON of a Calibration, or None."""
    if value is None:
        return True
    names = {field.name for field in dataclasses.fields(Calibration)}
    if not isinstance(value, Mapping) or set(value) != names or not isinstance(value["split"], str):
        return False
    numbers = [value[name] for name in names - {"split"}]
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
        return False
    return (
        all(map(is_finite, numbers))
        and MIN_TEMPERATURE <= value["temperature"] <= MAX_TEMPERATURE
        and isinstance(value["examples"], int)
        and 0 < value["examples"] < 2**53
        and abs(value["energy_threshold"]) <= MAX_ENERGY
        and len(value["split"]) <= 100
        and all(value[name] >= 0 for name in ("loss_before", "loss_after"))
        and all(0 <= value[name] <= 1 for name in ("ece_before", "ece_after", "energy_kept"))
    )
