"""Batches of images that stay on the devices are those of the host, to the bit."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import make_plan, random_images, train

from zoo.data.sources import from_arrays
from zoo.distributed import resident
from zoo.distributed.mesh import SINGLE_DEVICE, parse_parallelism
from zoo.training import loop
from zoo.training.display import Display
from zoo.training.plan import Plan
from zoo.training.recipe import Recipe
from zoo.training.run import Progress

RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.1, optimizer="sgd", seed=3)


def dataset():
    return from_arrays(random_images(30, 8, 8, classes=3), validation=random_images(9, 8, 8, classes=3), name="made")


@pytest.mark.parametrize("mesh", ["data=1", "data=4", "data=2,model=2"])
@pytest.mark.parametrize("changes", [{}, {"augment_repeats": 2}, {"progressive": (6, 8)}])
def test_batches_are_those_of_the_host(mesh, changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    plan = make_plan("resnet20", dataset(), recipe, parallelism=parse_parallelism(mesh=mesh))
    on_devices = dataclasses.replace(plan, device_data="on")
    for start in {0, 3, plan.segments[-1].start}:
        ours, hosts = on_devices.batches(start), plan.batches(start)
        assert ours.gi_code is resident.resident_batches.__code__ is not hosts.gi_code
        for _ in range(5):
            batch, expected = next(ours), next(hosts)
            assert batch.keys() == expected.keys() and isinstance(batch["image"], jax.Array)
            for name, value in expected.items():
                assert batch[name].dtype == value.dtype and batch[name].sharding == value.sharding
                np.testing.assert_array_equal(batch[name], value)


@pytest.mark.slow
def test_training_gives_the_same_bits(tmp_path):
    """With mixup, on two devices: nothing but the transfer differs."""
    recipe = dataclasses.replace(RECIPE, augment=("mixup(alpha=0.2)",))
    runs = [
        train("mlp", dataset(), recipe, fields={"widths": (4,), "image_size": 8}, workdir=tmp_path / when, quiet=True,
              parallelism=parse_parallelism(mesh="data=2"), device_data=when)
        for when in resident.CHOICES
    ]  # fmt: skip
    for run in runs[1:]:
        jax.tree.map(np.testing.assert_array_equal, run.variables, runs[0].variables)
        assert run.history == runs[0].history


def test_images_stay_on_a_device_if_they_and_the_step_fit(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(resident, "available_bytes", lambda parallelism: 8000)
    assert resident.fits_on_devices(1000, 7000, SINGLE_DEVICE)
    assert not resident.fits_on_devices(1001, 0, SINGLE_DEVICE)
    assert not resident.fits_on_devices(1000, 7001, SINGLE_DEVICE)
    monkeypatch.setattr(resident, "available_bytes", lambda parallelism: None)
    assert not resident.fits_on_devices(1, 0, SINGLE_DEVICE)


def test_a_larger_step_is_compiled_before_images_are_kept_beside_it(monkeypatch):
    """While none are on the devices; those of the next step are kept if they fit beside it."""
    recipe = dataclasses.replace(RECIPE, progressive=(6, 8))
    plan = dataclasses.replace(make_plan("resnet20", dataset(), recipe), device_data="on")
    kept, step_bytes, batches, size = [], [], Plan.batches, len(plan.dataset.splits["train"])

    def compile_step(trainer, segment):
        kept.append([a.shape for a in jax.live_arrays() if a.dtype == np.uint8 and a.shape[:1] == (size,)])
        trainer.step_bytes = 10 * len(kept)
        metrics = dict.fromkeys(("loss", "objective", "update", "top1", "examples"), 1)
        return lambda state, batch: (state, metrics)

    def validate(trainer):
        trainer.progress.stopped = "done" * (trainer.progress.step == plan.total_steps)

    monkeypatch.setattr(loop.Trainer, "compile", compile_step)
    monkeypatch.setattr(loop.Trainer, "validate", validate)
    monkeypatch.setattr(loop.Trainer, "save_if_due", lambda *arguments: None)
    monkeypatch.setattr(Plan, "batches", lambda *arguments: step_bytes.append(arguments[-1]) or batches(*arguments))
    display = Display(plan.total_steps, plan.batch_size, recipe.epochs, quiet=True)
    loop.Trainer(plan, display, None, None, {}, Progress()).run(60, 0, None)
    assert kept == [[], []] and step_bytes == [10, 20]


def test_what_cannot_stay_on_the_devices_is_named():
    with pytest.raises(ValueError, match="--device-data on: pmap takes its batches from the host"):
        make_plan("resnet20", dataset(), RECIPE, parallelism=parse_parallelism("pmap", "data=2"), device_data="on")
    with pytest.raises(ValueError, match="--device-data always: choose from auto, on, off"):
        make_plan("resnet20", dataset(), RECIPE, device_data="always")
