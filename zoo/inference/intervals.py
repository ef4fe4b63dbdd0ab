"""Confidence intervals of accuracies."""

import math

NORMAL_QUANTILE = 1.959963984540054  # of 0.975, for two-sided intervals of 95 %


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """Compute the 95 % score interval of a share (Wilson 1927, "Probable inference, the law of succession").

    Unlike the interval of the normal approximation, it stays inside 0..1 and is not empty when every example is right.

    Args:
        correct: number of examples that are right.
        examples: number of examples, at least 1.

    Returns:
        (low, high), both in 0..1.

    Raises:
        ValueError: without examples, or unless 0 <= correct <= examples.
    """
    if examples < 1 or not 0 <= correct <= examples:
        raise ValueError(f"{correct} of {examples} examples is not a share")
    share, z2 = correct / examples, NORMAL_QUANTILE**2
    scale = 1 + z2 / examples
    centre = (share + z2 / (2 * examples)) / scale
    margin = NORMAL_QUANTILE / scale * math.sqrt(share * (1 - share) / examples + z2 / (4 * examples**2))
    low = 0.0 if correct == 0 else max(0.0, centre - margin)
    return low, 1.0 if correct == examples else min(1.0, centre + margin)


def accuracy_interval(accuracy: float, examples: int) -> tuple[float, float]:
    """Return the `wilson_interval` of an accuracy in 0..1 over this number of examples."""
    return wilson_interval(round(accuracy * examples), examples)


def format_accuracy(accuracy: float, examples: int) -> str:
    """Format an accuracy with its interval: "93.33 % (95 % CI 78.7 to 98.2 %, n = 30)"."""
    return f"{100 * accuracy:.2f} % ({format_interval(accuracy, examples)}, n = {examples:,})"


def format_interval(accuracy: float, examples: int) -> str:
    """Format the interval of an accuracy: "95 % CI 78.7 to 98.2 %"."""
    low, high = accuracy_interval(accuracy, examples)
    return f"95 % CI {100 * low:.1f} to {100 * high:.1f} %"
