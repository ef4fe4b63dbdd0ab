"""Segments of a training run: their edges, and the steps over which an optimiser runs."""

import pytest

from zoo.data.augment.host_crop import Augmentation
from zoo.data.images.preprocess import Preprocess
from zoo.training.timeline import Segment, Span, build_timeline, optimizer_span, segment_at

SMALL, LARGE = Preprocess((8, 8), (8, 8)), Preprocess((16, 16), (16, 16))
BODY, STEM, NONE = frozenset({"body"}), frozenset({"stem"}), frozenset()


def place(preprocess):
    return Augmentation(None, (f"size {preprocess.size[0]}",))


def segment(start, stop, frozen, preprocess, fresh):
    return Segment(start, stop, frozen, preprocess, place(preprocess), fresh)


@pytest.mark.parametrize(
    ("frozen", "inputs", "expected"),
    [
        ([Span(0, 9, NONE)], [Span(0, 9, SMALL)], [segment(0, 9, NONE, SMALL, True)]),
        ([Span(0, 1, NONE)], [Span(0, 1, SMALL)], [segment(0, 1, NONE, SMALL, True)]),
        (
            [Span(0, 4, BODY), Span(4, 9, NONE)],
            [Span(0, 9, SMALL)],
            [segment(0, 4, BODY, SMALL, True), segment(4, 9, NONE, SMALL, True)],
        ),
        (
            [Span(0, 9, STEM)],
            [Span(0, 4, SMALL), Span(4, 9, LARGE)],
            [segment(0, 4, STEM, SMALL, True), segment(4, 9, STEM, LARGE, False)],
        ),
        (
            [Span(0, 3, BODY), Span(3, 9, NONE)],
            [Span(0, 6, SMALL), Span(6, 9, LARGE)],
            [segment(0, 3, BODY, SMALL, True), segment(3, 6, NONE, SMALL, True), segment(6, 9, NONE, LARGE, False)],
        ),
        (
            [Span(0, 5, BODY), Span(5, 9, NONE)],
            [Span(0, 5, SMALL), Span(5, 9, LARGE)],
            [segment(0, 5, BODY, SMALL, True), segment(5, 9, NONE, LARGE, True)],
        ),
    ],
    ids=["one", "one step", "frozen", "sizes", "both", "both at the same step"],
)
def test_spans_are_combined_into_segments(frozen, inputs, expected):
    assert build_timeline(frozen, inputs, place) == tuple(expected)


TIMELINE = build_timeline(
    [Span(0, 3, BODY), Span(3, 9, NONE)], [Span(0, 2, SMALL), Span(2, 6, LARGE), Span(6, 9, SMALL)], place
)


def test_each_step_belongs_to_one_segment():
    """After the last step it is the last segment that a resumed run continues with."""
    starts = [segment_at(TIMELINE, step).start for step in range(10)]
    assert starts == [0, 0, 2, 3, 3, 3, 6, 6, 6, 6]


def test_an_optimizer_runs_until_the_next_fresh_one():
    assert [(s.start, optimizer_span(TIMELINE, s)) for s in TIMELINE] == [
        (0, (0, 3)), (2, (0, 3)), (3, (3, 9)), (6, (3, 9)),
    ]  # fmt: skip
