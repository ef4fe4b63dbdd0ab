"""The timeline of a training run: consecutive segments, each trained with one compiled step.

A segment ends where the frozen parameters change (fine-tuning) or the image size does (progressive resizing).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from zoo.data.augment.host_crop import Augmentation
from zoo.data.images.preprocess import Preprocess


class Span(NamedTuple):
    """A value that holds for the steps from `start` to `stop` - 1."""

    start: int
    stop: int
    value: Any


@dataclass(frozen=True)
class Segment:
    """The steps from `start` to `stop` - 1.

    Attributes:
        start: first step.
        stop: the step after the last.
        frozen: paths of the variables that keep their values ("stem/conv/kernel", "stem/norm/mean").
        preprocess: how training images become the network's input.
        augmentation: the augmentation, divided between host and device.
        fresh_optimizer: True if the optimiser state and the learning rate schedule start anew with this segment.
    """

    start: int
    stop: int
    frozen: frozenset[str]
    preprocess: Preprocess
    augmentation: Augmentation
    fresh_optimizer: bool = False


def build_timeline(
    frozen: Sequence[Span], inputs: Sequence[Span], place: Callable[[Preprocess], Augmentation]
) -> tuple[Segment, ...]:
    """Combine the spans of frozen paths with those of image sizes.

    Args:
        frozen: spans of sets of frozen paths, covering all steps. The optimiser starts anew with each.
        inputs: spans of Preprocess, covering the same steps.
        place: divides the augmentation between host and device for a Preprocess.
    """
    edges = sorted({span.start for span in (*frozen, *inputs)} | {frozen[-1].stop})
    restarts = {span.start for span in frozen}
    segments = []
    for start, stop in pairwise(edges):
        preprocess = _value_at(inputs, start)
        segments.append(
            Segment(start, stop, _value_at(frozen, start), preprocess, place(preprocess), start in restarts)
        )
    return tuple(segments)


def _value_at(spans: Sequence[Span], step: int) -> Any:
    return next(span.value for span in spans if span.start <= step < span.stop)


def segment_at(segments: Sequence[Segment], step: int) -> Segment:
    """Return the segment of the step that follows `step` completed steps; after the last step, the last segment."""
    return next((segment for segment in segments if step < segment.stop), segments[-1])


def optimizer_span(segments: Sequence[Segment], segment: Segment) -> tuple[int, int]:
    """Return (start, stop) of the steps over which the optimiser of `segment` runs its schedule."""
    start = max(other.start for other in segments if other.fresh_optimizer and other.start <= segment.start)
    later = [other.start for other in segments if other.fresh_optimizer and other.start > segment.start]
    return start, min(later, default=segments[-1].stop)
