"""How many steps may have their memory at once."""

from types import SimpleNamespace

import jax
import pytest

from zoo.training.memory import LARGE, paced


class Recorded:
    """Stands for a compiled step, and for the metrics of each: what is dispatched, and what is waited for."""

    def __init__(self, size: int | None):
        self.size, self.events = size, []

    def memory_analysis(self):
        if self.size is None:
            return None
        return SimpleNamespace(
            temp_size_in_bytes=self.size, output_size_in_bytes=8, alias_size_in_bytes=8, generated_code_size_in_bytes=0
        )

    def __call__(self, state, batch):
        self.events.append(f"step {state}")
        ready = SimpleNamespace(block_until_ready=lambda: self.events.append(f"wait {state}"))
        return state + 1, ready


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (LARGE + 1, ["step 0", "wait 0", "step 1", "wait 1", "step 2", "wait 2", "step 3"]),
        (LARGE, ["step 0", "step 1", "wait 0", "step 2", "wait 1", "step 3"]),
        (None, ["step 0", "step 1", "wait 0", "step 2", "wait 1", "step 3"]),
    ],
    ids=["large", "small", "of unknown size"],
)
def test_on_a_cpu_steps_wait_for_earlier_ones(size, expected):
    step, state = Recorded(size), 0
    run = paced(step)
    for _ in range(4):
        state, _ = run(state, None)
    assert state == 4
    assert step.events == expected


def test_elsewhere_steps_wait_for_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    step = Recorded(LARGE + 1)
    assert paced(step) is step
