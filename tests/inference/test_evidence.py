"""Remarks on results: few examples, and no better than chance."""

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from zoo.inference.evidence import describe_chance, describe_evidence
from zoo.inference.metrics import summarise


def result(confusion):
    """Return the metrics of a confusion matrix."""
    counts = np.array(confusion)
    sums = {
        "loss": 1.0, "weight": counts.sum(), "top1": np.trace(counts), "top5": counts.sum(), "confusion": counts,
        "invalid": np.zeros(len(counts), int),
    }  # fmt: skip
    return summarise(sums, [f"class-{k}" for k in range(len(counts))])


def test_few_examples_are_named_with_the_width_of_the_interval():
    metrics = result([[10, 1], [0, 12]])
    (line,) = describe_evidence(metrics, "Add --folds 5.", "Check.")
    expected = binomtest(22, 23).proportion_ci(method="wilson")
    assert line.startswith("Only 23 test images") and line.endswith("Add --folds 5.")
    width = int(re.search(r"(\d+) percentage points", line)[1])
    assert width == pytest.approx(100 * (expected.high - expected.low), abs=0.5)
    assert describe_evidence(result([[15, 0], [0, 15]]), "", "") == []  # 30 are enough
    assert describe_evidence(result([[1, 0], [0, 0]]), "", "")[0].startswith("Only 1 test image:")


@pytest.mark.parametrize(
    ("confusion", "verdict"),
    [
        ([[0, 50], [0, 50]], "No better"),  # always the second class
        ([[10, 90], [5, 95]], "Not clearly better"),
        ([[60, 40], [45, 55]], ""),  # 57.5 %, interval from 50.56 %
        ([[60, 40], [47, 53]], "Not clearly better"),  # 56.5 %, interval from 49.57 %
        ([[95, 5], [3, 2]], "No better"),  # 92 % where one answer gives 95 %
        ([[40, 10], [10, 40]], ""),
        ([[100, 0], [100, 0]], "No better"),
        ([[30, 0, 0], [0, 30, 0], [0, 0, 30]], ""),
        ([[7, 3, 0], [0, 0, 0], [0, 0, 0]], ""),  # one class only: chance has no meaning
        ([[2, 0], [0, 1]], "Not clearly better"),  # all of three right, which one answer may be too
        ([[10, 30, 40], [10, 40, 30], [20, 30, 30]], "No better"),
    ],
)  # fmt: skip
def test_chance_is_the_share_of_the_most_frequent_class(confusion, verdict):
    metrics, counts = result(confusion), np.array(confusion)
    share = counts.sum(1).max() / counts.sum()
    line = describe_chance(metrics)
    assert line.startswith(verdict) and bool(line) == bool(verdict)
    if np.count_nonzero(counts.sum(1)) > 1:
        low = binomtest(int(np.trace(counts)), int(counts.sum())).proportion_ci(method="wilson").low
        assert (low <= share) == bool(verdict)
    if line:
        assert f"class-{counts.sum(1).argmax()}" in line and f"{100 * share:.2f} %" in line
        assert describe_evidence(metrics, "", "Check the labels.")[-1] == f"{line} Check the labels."
