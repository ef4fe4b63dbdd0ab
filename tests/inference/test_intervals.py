"""Intervals of accuracies, against SciPy's."""

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from zoo.inference.intervals import accuracy_interval, format_accuracy, wilson_interval

COUNTS = sorted({1, 2, 3, 5, 7, 10, 29, 30, 31, 97, 100, 359, 1000, 10_000, 50_000, 1_281_167})


@pytest.mark.parametrize("examples", COUNTS)
def test_the_interval_is_that_of_scipy(examples):
    rng = np.random.default_rng(examples)
    drawn = rng.integers(0, examples, 10, endpoint=True).tolist()
    for correct in sorted({0, 1, examples // 2, examples - 1, examples, *drawn}):
        expected = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
        low, high = wilson_interval(correct, examples)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= low <= correct / examples <= high <= 1 and low < high
        assert accuracy_interval(correct / examples, examples) == (low, high)


def test_the_ends_are_exact_and_nonsense_is_refused():
    assert wilson_interval(0, 12)[0] == 0.0 and wilson_interval(12, 12)[1] == 1.0
    for correct, examples in ((0, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match=f"{correct} of {examples}"):
            wilson_interval(correct, examples)


def test_an_accuracy_is_formatted_with_its_interval():
    assert format_accuracy(28 / 30, 30) == "93.33 % (95 % CI 78.7 to 98.2 %, n = 30)"
    text = format_accuracy(1.0, 12_345)
    numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d.,]*\d", text)]
    expected = binomtest(12_345, 12_345).proportion_ci(method="wilson")
    assert numbers == pytest.approx([100, 95, 100 * expected.low, 100, 12_345], abs=0.05)
