"""How many steps may be under way at once."""

import jax
import numpy as np
import pytest
from helpers import train

from zoo.data.sources import from_arrays
from zoo.training import loop, memory
from zoo.training import plan as planning
from zoo.training.recipe import Recipe


@pytest.mark.parametrize(
    ("platform", "size", "expected"),
    [
        ("cpu", memory.MAX_CONCURRENT_STEP_BYTES + 1, 1),
        ("cpu", memory.MAX_CONCURRENT_STEP_BYTES, 2),
        ("cpu", None, 2),
        ("gpu", memory.MAX_CONCURRENT_STEP_BYTES + 1, 3),
    ],
)
def test_steps_at_once(monkeypatch, platform, size, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(memory, "required_bytes", lambda step: size)
    assert memory.max_in_flight(None) == expected


@pytest.mark.parametrize(
    ("max_in_flight", "expected"),
    [
        (1, ["step 0", "settled 1", "step 1", "settled 2", "step 2", "settled 3", "step 3"]),
        (2, ["step 0", "step 1", "settled 1", "step 2", "settled 2", "step 3"]),
        (3, ["step 0", "step 1", "step 2", "settled 1", "step 3"]),
    ],
)
def test_training_waits_for_earlier_steps(tmp_path, monkeypatch, max_in_flight, expected):
    events: list[str] = []
    compile_step, settle = planning.Plan.compile_step, loop.Trainer.process_metrics

    def compiled(*args):
        step = compile_step(*args)

        def recorded(state, batch):
            events.append(f"step {int(state.step)}")
            return step(state, batch)

        return recorded

    def settled(self, step, metrics):
        events.append(f"settled {step}")
        settle(self, step, metrics)

    monkeypatch.setattr(planning.Plan, "compile_step", compiled)
    monkeypatch.setattr(memory, "required_bytes", lambda step: None)
    monkeypatch.setattr(memory, "max_in_flight", lambda step: max_in_flight)
    monkeypatch.setattr(loop.Trainer, "process_metrics", settled)
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8)).astype(np.uint8)
    data = from_arrays((images, np.arange(80) % 2), name="made")
    fields = {"widths": (4,), "image_size": 8}
    train("mlp", data, Recipe(epochs=1, batch_size=8), fields=fields, workdir=tmp_path / "run", quiet=True)
    assert events[: len(expected)] == expected


def test_a_large_step_waits_a_little_longer(monkeypatch):
    trainer = loop.Trainer.__new__(loop.Trainer)
    pauses: list[float] = []
    monkeypatch.setattr(loop.time, "sleep", pauses.append)
    monkeypatch.setattr(loop.Trainer, "process_metrics", lambda self, step, metrics: None)
    for trainer.max_in_flight, trainer.in_flight, expected in (
        (1, [], 0),
        (1, [(1, {})], 1),
        (2, [(1, {}), (2, {})], 0),
    ):
        trainer.wait_for_slot()
        assert len(trainer.in_flight) < trainer.max_in_flight
        assert len(pauses) == expected
        pauses.clear()
