"""The learning-rate range test (Smith 2017, arXiv:1506.01186): train briefly while the learning rate grows.

The rate grows exponentially from step to step, and the loss of every batch is recorded until it diverges. A good peak
learning rate is one at which the loss falls fast, some way below the rate at which it diverges. Nothing is written into
the run's folder.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zoo.training.loop import compile_segment
from zoo.training.plan import Plan
from zoo.training.request import Say
from zoo.training.timeline import Segment

START, STOP, STEPS = 1e-7, 10.0, 100
SMOOTHING = 0.98  # decay per step of the average of the losses
DIVERGED = 4.0  # a smoothed loss of this many times the lowest one ends the test
SKIPPED_START, SKIPPED_END = 0.1, 5  # share at the start, and points at the end, that suggestions leave out
NOISE = 0.1  # share of its whole fall that the loss falls before the steepest fall is looked for
MIN_POINTS = 15


class RangeTest(NamedTuple):
    """The result of a learning-rate range test of N steps.

    Attributes:
        rates: learning rates, float64 [N].
        losses: losses of the batches, float64 [N].
        smoothed: their exponential moving average, without bias towards 0, float64 [N].
        suggestions: rule -> learning rate: "valley", "steepest" and "minimum".
        trained: the part of the network that was trained.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestions: dict[str, float]
    trained: str

    @property
    def rate(self) -> float:
        """The suggested learning rate, by the rule "valley"."""
        return self.suggestions["valley"]


def find_learning_rate(
    plan: Plan,
    say: Say = lambda line: None,
    *,
    start: float = START,
    stop: float = STOP,
    steps: int = STEPS,
    workers: int | None = None,
    on_step: Callable[[int], Any] | None = None,
) -> RangeTest:
    """Run a learning-rate range test on the longest segment of a plan, on a throw-away state.

    Args:
        plan: the run; its schedule and learning rate are replaced, everything else is as in training.
        say: called with each line of progress.
        start: first learning rate.
        stop: last learning rate.
        steps: number of steps.
        workers: threads that read data which is not kept in memory.
        on_step: called with the number of steps done.

    Raises:
        ValueError: for a range or number of steps that is not possible, or if the loss diverges at once.
    """
    if not 0 < start < stop < math.inf:
        raise ValueError(f"the learning rates must grow: {start:g} to {stop:g}; try {START:g} to {STOP:g}")
    if steps < MIN_POINTS:
        raise ValueError(f"{steps} steps are too few for a range test; try {STEPS}")
    segment = max(plan.segments, key=lambda segment: segment.stop - segment.start)
    plan = with_growing_rate(plan, start, (stop / start) ** (1 / (steps - 1)))
    state = plan.shard_state(plan.reset_optimizer(plan.first_state(), segment))
    step = compile_segment(plan, segment, state, say)
    rates, losses = [], []
    average, lowest = 0.0, math.inf
    smoothed = []
    batches = plan.batches(segment.start, workers)
    try:
        for number in range(steps):
            state, metrics = step(state, next(batches))
            loss = float(jax.device_get(metrics["loss"]))
            if not math.isfinite(loss) or not math.isfinite(float(metrics["update"])):
                break
            rates.append(start * (stop / start) ** (number / (steps - 1)))
            losses.append(loss)
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            smoothed.append(average / (1 - SMOOTHING ** (number + 1)))
            lowest = min(lowest, smoothed[-1])
            if on_step:
                on_step(number + 1)
            if smoothed[-1] > DIVERGED * lowest:
                break
    finally:
        batches.close()
    if len(rates) < MIN_POINTS:
        raise ValueError(f"the loss diverges within {len(rates)} steps, at {start:g}; lower the first learning rate")
    grid, average_losses = np.array(rates), np.array(smoothed)
    suggestions = suggest_rates(grid, average_losses)
    return RangeTest(grid, np.array(losses), average_losses, suggestions, describe_trained(plan, segment))


def with_growing_rate(plan: Plan, start: float, factor: float) -> Plan:
    """Return the plan with a learning rate that begins at `start` and is multiplied by `factor` after every step."""
    recipe = plan.recipe
    recipe = dataclasses.replace(
        recipe, schedule="exponential", learning_rate=start, decay_factor=factor, warmup_epochs=0.0,
        decay_every_epochs=1 / plan.steps_per_epoch, head_lr=recipe.head_lr * start / recipe.learning_rate,
    )  # fmt: skip
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, recipe=recipe), precompiled=None)


def describe_trained(plan: Plan, segment: Segment) -> str:
    """Return the part of the network that a segment trains."""
    return "the whole network" if not segment.frozen else f"all but {len(segment.frozen):,} frozen arrays"


def suggest_rates(rates: np.ndarray, smoothed: np.ndarray) -> dict[str, float]:
    """Suggest learning rates by rules like fastai's, without the first tenth of the points and the last five.

    At first the average of the losses is over few batches, and at tiny learning rates it creeps down for many steps.
    Valley and steepest fall therefore begin only once the loss has fallen for good by a tenth of its whole fall, from
    its median in the first quarter of the points to its lowest value.

    Args:
        rates: learning rates, increasing [N].
        smoothed: smoothed losses [N].

    Returns:
        "valley": the middle of the longest run of falling losses, which may leave out single points; "steepest": the
        rate at which the loss falls fastest before its lowest value; "minimum": a tenth of the rate with the lowest
        loss.
    """
    first, last = int(SKIPPED_START * len(rates)), max(len(rates) - SKIPPED_END, 2)
    if last - first >= 2:
        rates, smoothed = rates[first:last], smoothed[first:last]
    lowest = int(smoothed.argmin())
    # Beyond the lowest loss the network has diverged; its loss may then fall faster than it ever did in training.
    slopes = (np.diff(smoothed) / np.diff(np.log(rates)))[: max(lowest, 1)]
    top = np.median(smoothed[: max(len(smoothed) // 4, 1)])
    above = np.flatnonzero(smoothed[: len(slopes)] >= top - NOISE * (top - smoothed[lowest]))
    fall = above[-1] if len(above) else 0
    begin, end = longest_valley(smoothed[fall:])
    return {
        "valley": float(rates[fall + begin + (end - begin) // 2]),
        "steepest": float(rates[fall + int(slopes[fall:].argmin())]),
        "minimum": float(rates[lowest] / 10),
    }


def longest_valley(losses: Sequence[float] | np.ndarray) -> tuple[int, int]:
    """Return the first and last index of the longest strictly decreasing subsequence; of several, the first to end."""
    length = [1] * len(losses)
    begin = list(range(len(losses)))
    for i in range(len(losses)):
        for j in range(i):
            if losses[i] < losses[j] and length[j] + 1 > length[i]:
                length[i], begin[i] = length[j] + 1, begin[j]
    end = int(np.argmax(length))
    return begin[end], end
