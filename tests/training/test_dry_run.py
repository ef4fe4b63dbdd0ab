"""A dry run prints memory and time of the largest step and writes nothing."""

from types import SimpleNamespace

import numpy as np
from helpers import make_plan, random_images

from zoo.data.images.preprocess import Preprocess
from zoo.data.sources import from_arrays
from zoo.distributed.mesh import SINGLE_DEVICE, Parallelism
from zoo.training import dry_run
from zoo.training.recipe import Recipe

MIB = 2**20


class Step:
    """A compiled step whose calls take given times.

    Attributes:
        sizes: argument, temporary and code bytes, or None for a backend that does not say.
    """

    def __init__(self, clock, durations, sizes):
        self.clock, self.durations, self.sizes = clock, list(durations), sizes

    def memory_analysis(self):
        if self.sizes is None:
            return None
        names = ("argument_size_in_bytes", "temp_size_in_bytes", "generated_code_size_in_bytes")
        return SimpleNamespace(**dict(zip(names, self.sizes, strict=True)))

    def __call__(self, state, batch):
        self.clock[0] += self.durations.pop(0)
        return state, {"loss": np.zeros(())}


def fake_plan(step, *, sides=(8,), parallelism=SINGLE_DEVICE):
    segments = [SimpleNamespace(preprocess=Preprocess((side, side), (side, side))) for side in sides]
    first_batches = []
    return SimpleNamespace(
        segments=segments, largest_step=lambda: (segments[-1], "state"), precompiled=(segments[-1], step),
        parallelism=parallelism, total_steps=500, batch_size=32, first_batches=first_batches,
        batches=lambda start, workers: first_batches.append(start) or iter(range(100)),
    )  # fmt: skip


def report_of(monkeypatch, durations=(0.1, 0.5, 0.25, 0.75), sizes=(30 * MIB, 1100 * MIB, MIB), **options):
    clock, lines = [0.0], []
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: clock[0])
    step = Step(clock, durations, sizes)
    plan = fake_plan(step, **options)
    dry_run.dry_run(plan, lines.append)
    assert not step.durations and plan.first_batches == [499]  # a batch of the last, largest segment
    return lines


def test_memory_and_time_of_a_step(monkeypatch):
    """The fastest of three steps after a warm-up step."""
    assert report_of(monkeypatch) == [
        "Memory per step: 1,131 MiB (1,100 MiB of activations)",
        "Time per step: 250 ms (128 images/s); training takes about 2m05s",
        "Dry run: nothing was trained or written",
    ]


def test_memory_is_per_device(monkeypatch):
    lines = report_of(monkeypatch, parallelism=Parallelism("jit", (("data", 2),)))
    assert lines[0].startswith("Memory per step per device: 1,131 MiB")


def test_the_time_of_growing_images_is_an_upper_bound(monkeypatch):
    assert "training takes at most 2m05s" in report_of(monkeypatch, sides=(8, 16))[1]
    assert "training takes about 2m05s" in report_of(monkeypatch, sides=(8, 8))[1]


def test_a_backend_without_memory_analysis(monkeypatch):
    assert [line.split()[0] for line in report_of(monkeypatch, sizes=None)] == ["Time", "Dry"]


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = random_images(40, 8, 8)
    data = from_arrays((images, labels), validation=(images, labels), name="made")
    plan = make_plan("mlp", data, Recipe(batch_size=8), fields={"widths": (4,), "image_size": 8})
    lines: list[str] = []
    dry_run.dry_run(plan, lines.append)
    assert any(line.startswith("Compiling") for line in lines) and lines[-1].startswith("Dry run")
    assert not list(tmp_path.iterdir())
    assert [line for line in lines if "Time per step" in line and "about" in line]


def test_a_step_that_was_compiled_for_another_segment_is_compiled_anew(monkeypatch):
    clock = [0.0]
    plan = fake_plan(Step(clock, (1,) * 4, None), sides=(8, 16))
    plan.precompiled = (plan.segments[0], None)
    compiled = []

    def compile_segment(plan, segment, state, say):
        compiled.append(segment)
        return Step(clock, (1.0, 1.0, 1.0, 1.0), None)

    monkeypatch.setattr(dry_run, "compile_segment", compile_segment)
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: clock[0])
    dry_run.dry_run(plan, lambda line: None)
    assert compiled == [plan.segments[1]]
