"""Memory of a step: what it requires, what is available, which micro-batch fits, how many steps run at a time."""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import make_plan, random_images, train

from zoo.data.sources import from_arrays
from zoo.distributed import device_memory, processes
from zoo.distributed.mesh import SINGLE_DEVICE, Parallelism, parse_parallelism
from zoo.training import loop, memory
from zoo.training import plan as planning
from zoo.training.memory import Shortage
from zoo.training.recipe import Recipe

MIB, GIB = 2**20, 2**30


def step_with(temporary=0, output=0, alias=0, code=0):
    analysis = SimpleNamespace(
        temp_size_in_bytes=temporary, output_size_in_bytes=output, alias_size_in_bytes=alias,
        generated_code_size_in_bytes=code,
    )  # fmt: skip
    return SimpleNamespace(memory_analysis=lambda: analysis)


# --- required and available -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "required"),
    [
        ({"temporary": 100}, 100),
        ({"temporary": 100, "code": 7}, 107),
        ({"temporary": 100, "output": 50, "alias": 40}, 110),  # the other outputs overwrite the donated state
        ({"temporary": 100, "output": 40, "alias": 50}, 100),
    ],
)
def test_required_bytes(sizes, required):
    assert memory.required_bytes(step_with(**sizes)) == required


def test_required_bytes_are_unknown_without_an_analysis():
    assert memory.required_bytes(SimpleNamespace(memory_analysis=lambda: None)) is None


def test_required_bytes_of_a_compiled_function():
    step = jax.jit(lambda x: x + 1).lower(np.ones((256, 256), np.float32)).compile()
    assert 256 * 256 * 4 <= memory.required_bytes(step) < 3 * 256 * 256 * 4


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
    """Evenly among the devices in use, and among the processes on the machine."""
    monkeypatch.setattr(device_memory, "available_memory", lambda: 2400)
    monkeypatch.setattr(device_memory, "release_freed_memory", lambda: None)
    assert memory.available_bytes(SINGLE_DEVICE) == 2400
    assert memory.available_bytes(Parallelism("jit", (("data", 4),))) == 600
    assert memory.available_bytes() == 300
    monkeypatch.setenv("ZOO_LOCAL_PROCESSES", "3")
    assert memory.available_bytes(SINGLE_DEVICE) == 800
    monkeypatch.setattr(device_memory, "available_memory", lambda: None)
    assert memory.available_bytes(SINGLE_DEVICE) is None


@pytest.mark.parametrize(
    ("statistics", "available"),
    [
        ([{"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 100, "bytes_in_use": 45}], 55),
        ([{"bytes_limit": 100}], 100),
        ([{"bytes_limit": 100}, None], None),
    ],
)
def test_the_fullest_accelerator_counts(monkeypatch, statistics, available):
    class Gpu:
        platform = "gpu"

        def __init__(self, statistics):
            self.memory_stats = lambda: statistics

    devices = [Gpu(values) for values in statistics]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory.available_bytes() == available


# --- does it fit? -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("required", "available", "fits"),
    [(100, 100, True), (101, 100, False), (None, 100, True), (100, None, True), (0, 0, True)],
)
def test_a_step_fits_if_it_requires_no_more_than_is_available(monkeypatch, required, available, fits):
    monkeypatch.setattr(memory, "required_bytes", lambda step: required)
    monkeypatch.setattr(memory, "available_bytes", lambda parallelism: available)
    result = memory.try_compile(lambda: "step", SINGLE_DEVICE)
    assert result == (("step", None) if fits else (None, Shortage(required, available)))


def test_a_compiler_that_runs_out_of_memory_is_a_shortage():
    def compile_step(message):
        raise jax.errors.JaxRuntimeError(message)

    result = memory.try_compile(lambda: compile_step("RESOURCE_EXHAUSTED: out of memory"), SINGLE_DEVICE)
    assert result == (None, Shortage(None, None))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        memory.try_compile(lambda: compile_step("INTERNAL: broken"), SINGLE_DEVICE)


def search(monkeypatch, need, available, sizes=(32, 16, 8, 4, 2, 1), shortage=None, current=64):
    """Return (result, micro-batches that were compiled) for steps that need `need(micro-batch)` bytes."""
    compiled, lines = [], []
    monkeypatch.setattr(memory, "required_bytes", lambda size: None if need is None else need(size))
    monkeypatch.setattr(memory, "available_bytes", lambda parallelism: available)

    def compile_with(size):
        compiled.append(size)
        if need is None and size > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
        return size

    shortage = shortage or Shortage(need(current), available)
    result = memory.find_micro_batch(compile_with, sizes, current, shortage, SINGLE_DEVICE, lines.append)
    assert [int(line.split()[-2]) for line in lines] == compiled
    return result, compiled


def test_the_largest_micro_batch_that_fits_is_found_with_few_compilations(monkeypatch):
    """Sizes that could not fit even if all memory were activations are skipped."""
    assert search(monkeypatch, lambda size: 100 * size, 1700) == ((16, 16), [16])
    assert search(monkeypatch, lambda size: 100 * size, 1600) == ((16, 16), [16])
    assert search(monkeypatch, lambda size: 100 * size, 1599) == ((8, 8), [8])
    assert search(monkeypatch, lambda size: 1000 + 100 * size, 2000) == ((8, 8), [16, 8])
    assert search(monkeypatch, lambda size: 1000 + 100 * size, 1050) == (None, [8, 4, 2, 1])


def test_without_figures_half_the_size_is_tried(monkeypatch):
    assert search(monkeypatch, None, None, shortage=Shortage(None, None)) == ((4, 4), [32, 16, 8, 4])
    sizes = (48, 30, 20, 10, 2)
    assert search(monkeypatch, None, None, sizes, Shortage(None, None)) == ((2, 2), [30, 10, 2])


def test_several_processes_choose_by_the_largest_shortage(monkeypatch):
    """In MiB: the most that any requires and the least that any has."""
    flags = []

    def all_reduce_max(*values):
        flags.append(values)
        if len(values) == 1:
            return (1,)  # too large for another process
        return tuple(max(pair) for pair in zip(values, (700, -300), strict=True))

    monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
    monkeypatch.setattr(processes, "all_reduce_max", all_reduce_max)
    monkeypatch.setattr(memory, "required_bytes", lambda step: 500 * MIB)
    monkeypatch.setattr(memory, "available_bytes", lambda parallelism: 600 * MIB)
    assert memory.try_compile(lambda: "step", SINGLE_DEVICE) == (None, Shortage(700 * MIB, 300 * MIB))
    assert flags == [(0,), (500, -600)]
    monkeypatch.setattr(processes, "all_reduce_max", lambda *values: values if len(values) > 1 else (1,))
    monkeypatch.setattr(memory, "available_bytes", lambda parallelism: None)
    assert memory.try_compile(lambda: "step", SINGLE_DEVICE) == (None, Shortage(500 * MIB, None))


@pytest.mark.parametrize(
    ("shortage", "parts"),
    [
        (Shortage(600 * MIB, 100 * MIB), ("64 images", "600.0 MiB per device", "100.0 MiB available")),
        (Shortage(10 * GIB - 1, 1 * GIB), ("10,240.0 MiB", "1,024.0 MiB available")),
        (Shortage(10 * GIB, 1 * GIB), ("10.0 GiB", "1.0 GiB available")),
        (Shortage(None, None), ("64 images", "more memory than a device has")),
    ],
)
def test_a_shortage_is_described_with_advice(shortage, parts):
    text = memory.describe_shortage(shortage, memory.describe_images(64, 64), "do this")
    assert all(part in text for part in parts) and text.endswith("; do this")


def test_advice():
    assert memory.describe_images(63, 4096) == "63 images (instead of 4,096: there are no more)"  # what was typed, too
    assert "--micro-batch 8" in memory.advise(8) and "--micro-batch auto" in memory.advise(8)
    assert "--mesh fsdp=N" in memory.advise(None) and "--micro-batch" not in memory.advise(None)


# --- steps in flight --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "size", "expected"),
    [
        ("cpu", 64 * MIB + 1, 1),
        ("cpu", 64 * MIB, 2),
        ("cpu", None, 2),
        ("gpu", 64 * MIB + 1, 3),
    ],
)
def test_steps_in_flight(monkeypatch, platform, size, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(memory, "required_bytes", lambda step: size)
    assert memory.max_in_flight(None) == expected


@pytest.mark.parametrize(
    ("max_in_flight", "expected"),
    [
        (1, ["step 0", "metrics 1", "pause", "step 1", "metrics 2", "pause", "step 2", "metrics 3", "pause", "step 3"]),
        (2, ["step 0", "step 1", "metrics 1", "step 2", "metrics 2", "step 3"]),
        (3, ["step 0", "step 1", "step 2", "metrics 1", "step 3"]),
    ],
)
def test_a_step_waits_for_earlier_ones(tmp_path, monkeypatch, max_in_flight, expected):
    """A step that must run alone also waits until the memory of the one before is freed."""
    events: list[str] = []
    compile_step, process_metrics, sleep = planning.Plan.compile_step, loop.Trainer.process_metrics, loop.time.sleep

    def compile_and_record(*arguments):
        step = compile_step(*arguments)

        def record(state, batch):
            events.append(f"step {int(state.step)}")
            return step(state, batch)

        return record

    def process_and_record(trainer, step, metrics):
        events.append(f"metrics {step}")
        process_metrics(trainer, step, metrics)

    def sleep_and_record(seconds):
        if events and threading.current_thread() is threading.main_thread() and seconds == memory.FREE_DELAY:
            events.append("pause")
        sleep(seconds)

    monkeypatch.setattr(planning.Plan, "compile_step", compile_and_record)
    monkeypatch.setattr(memory, "required_bytes", lambda step: None)
    monkeypatch.setattr(memory, "max_in_flight", lambda step: max_in_flight)
    monkeypatch.setattr(loop.Trainer, "process_metrics", process_and_record)
    monkeypatch.setattr(loop.time, "sleep", sleep_and_record)
    data = from_arrays(random_images(80, 8, 8, classes=2), name="made")
    fields = {"widths": (4,), "image_size": 8}
    train("mlp", data, Recipe(epochs=1, batch_size=8), fields=fields, workdir=tmp_path / "run", quiet=True)
    assert events[: len(expected)] == expected


def test_a_state_that_only_fits_split_is_not_refused(monkeypatch):
    """Of 17 MB with momentum and gradients, over eight devices with 3 MB each."""
    data = from_arrays(random_images(60, 8, 8), name="made")
    recipe = Recipe(epochs=1, batch_size=16, optimizer="momentum")
    fields = {"widths": (1024, 1024), "image_size": 8}
    monkeypatch.setattr(memory, "available_bytes", lambda parallelism: 3 * 10**6)
    monkeypatch.setattr(planning, "require_memory", lambda *arguments, **options: None)  # of the evaluation
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")  # whose devices do not share their memory
    make_plan("mlp", data, recipe, fields=fields, parallelism=parse_parallelism(mesh="fsdp=8"))
    with pytest.raises(memory.OutOfMemoryError, match="training needs at least"):
        make_plan("mlp", data, recipe, fields=fields, parallelism=parse_parallelism(mesh="data=8"))
