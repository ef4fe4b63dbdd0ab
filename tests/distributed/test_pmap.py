"""The parts that pmap needs: batches stacked per device, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_plan, random_images

from zoo.data.sources import from_arrays
from zoo.distributed import pmap
from zoo.distributed.mesh import parse_parallelism
from zoo.training.recipe import Recipe


def test_a_batch_is_stacked_in_the_order_of_its_rows():
    batch = {"image": np.arange(24).reshape(6, 2, 2), "label": np.arange(6)}
    stacked = pmap.stack_per_device(batch, 3)
    assert stacked["image"].shape == (3, 2, 2, 2) and stacked["label"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert np.array_equal(stacked["image"][1, 0], batch["image"][2])
    assert pmap.stacked_shape((6,), 2) == (2, 3) and pmap.stacked_shape((6, 4, 5), 6) == (6, 1, 4, 5)
    abstract = pmap.abstract_batch({"label": ((6,), np.int32)}, 2)
    assert (abstract["label"].shape, abstract["label"].dtype) == ((2, 3), np.int32)


def test_a_compiled_step_averages_over_the_devices_and_donates_the_state():
    def step(state, batch):
        mean = jax.lax.pmean(batch["image"].mean(), pmap.AXIS_NAME)
        return state + mean, {"mean": mean}

    devices = jax.devices()[:2]
    batch = {"image": np.arange(8.0, dtype=np.float32)}
    compiled = pmap.compile_step(step, devices, jnp.float32(1), pmap.abstract_batch({"image": ((8,), np.float32)}, 2))
    state, metrics = compiled(jnp.float32(1), pmap.stack_per_device(batch, 2))
    assert (float(state), float(metrics["mean"])) == (4.5, 3.5)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((16, 2, 8, ()), ("--micro-batch", "--parallel pmap")),
        ((16, 2, "auto", ()), ("--micro-batch", "--parallel pmap")),
        ((10, 2, 0, ("flip", "mixup(alpha=0.2)")), ("mixup(alpha=0.2)", "not 5", "--batch-size 4")),
        ((9, 3, 0, ("cutmix(alpha=1)",)), ("cutmix(alpha=1)", "not 3", "--batch-size 6")),
    ],
)
def test_settings_that_would_differ_per_device_are_refused(arguments, parts):
    with pytest.raises(ValueError, match="--parallel pmap") as caught:
        pmap.require_supported(*arguments)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("arguments", [(16, 2, 0, ()), (12, 2, 0, ("mixup(alpha=0.2)",)), (10, 2, 0, ("flip",))])
def test_other_settings_are_supported(arguments):
    pmap.require_supported(*arguments)


@pytest.mark.parametrize("fields", [{"micro_batch": 8}, {"augment": ("mixup(alpha=0.2)",), "batch_size": 10}])
def test_a_plan_refuses_them(fields):
    data = from_arrays(random_images(40, 8, 8), validation=random_images(12, 8, 8), name="made")
    with pytest.raises(ValueError, match="--parallel pmap"):
        make_plan(
            "mlp", data, Recipe(**{"batch_size": 16, **fields}), parallelism=parse_parallelism("pmap", "data=2"),
            fields={"widths": (4,), "image_size": 8},
        )  # fmt: skip
