"""Whether a run's steps fit into the devices' memory, said before the first of them; and the micro-batch that does."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from zoo import checkpoint
from zoo.data.images.preprocess import Preprocess
from zoo.distributed import mesh, processes
from zoo.distributed.mesh import Parallelism
from zoo.freed_memory import available_memory, give_back_freed_memory
from zoo.training import run as runs
from zoo.training.finetune import Phase
from zoo.training.plan import Plan, compile_step
from zoo.training.step import TrainState, reset_optimizer

#: Bytes on each device from which on a step on a CPU waits for the one before: 100 ms and more on two cores.
LARGE = 64 * 2**20
#: Seconds. XLA says that a step's results are there shortly before it frees what the step took, and this much later it
#: has, most of the time.
FREED_WITHIN = 0.001


class OutOfMemoryError(ValueError):
    """A step needs more memory than there is."""


def required_bytes(step: Any) -> int | None:
    """Bytes that a compiled step takes on each device beside the state that is there already; None if it cannot say."""
    memory = step.memory_analysis()
    if memory is None:
        return None
    new_output = memory.output_size_in_bytes - memory.alias_size_in_bytes  # what is not written over the state
    return memory.temp_size_in_bytes + max(new_output, 0) + memory.generated_code_size_in_bytes


def max_in_flight(step: Any) -> int:
    """How many steps, compiled as this one is, may be dispatched before the host waits for the first of them.

    XLA:CPU takes a step's temporary memory when the step is dispatched, however many wait before it, and the commands
    keep it from then on (zoo/freed_memory.py): ResNet-20 trained in 1.1 GB instead of 0.5, ResNet-50 in 3.6 instead of
    1.4 to 2.8. So a large step has to wait for the one before, and FREED_WITHIN longer; a small one would feel that.
    """
    if jax.default_backend() != "cpu":
        return 3
    return 1 if (required_bytes(step) or 0) > LARGE else 2


def available_bytes(parallelism: Parallelism | None = None) -> int | None:
    """Return the bytes available on the fullest of this process's devices; None if unknown.

    CPU devices share the machine's memory, or the container's, evenly with those of all processes on it.
    """
    used = set(mesh.devices_of(parallelism)) if parallelism else set(jax.devices())
    devices = [device for device in jax.local_devices() if device in used]
    if devices[0].platform == "cpu":
        give_back_freed_memory()
        available = available_memory()
        return None if available is None else available // (len(devices) * processes.on_this_host())
    statistics = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in each for each in statistics):
        return None
    return min(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in statistics)


@dataclass(frozen=True)
class Shortage:
    """Bytes that a step needs on each device, and that are free; None where the compiler refused without a figure."""

    required: int | None
    available: int | None


def try_compile(compile_step: Callable[[], Any], parallelism: Parallelism) -> tuple[Any, Shortage | None]:
    """(compiled step, None), or (None, what it lacks) where it does not fit on some process's devices.

    All processes call this together and come to the same, whichever of them it does not fit on.
    """
    try:
        step = compile_step()
        wanted, there = required_bytes(step), available_bytes(parallelism)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        step = wanted = there = None
    short = step is None or (wanted is not None and there is not None and wanted > there)
    if not any(processes.all_reduce_max(0, int(short))):
        return step, None
    return None, _of_all(Shortage(wanted, there))


def _of_all(short: Shortage) -> Shortage:
    """The most that is needed and the least that is free among all processes, in MiB, so that all decide alike."""
    if not processes.is_multiprocess():
        return short
    mib, unknown = 2**20, 2**31 - 1
    wanted = 0 if short.required is None else short.required // mib
    there = unknown if short.available is None else short.available // mib
    wanted, minus_there = processes.all_reduce_max(0, wanted, -there)
    return Shortage(wanted * mib or None, None if minus_there == -unknown else -minus_there * mib)


def micro_batch_that_fits(
    job: Plan, phase: Phase, seen: Preprocess, state: TrainState, short: Shortage, say: Callable
) -> int | None:
    """The largest micro-batch below the present one with which a step of the phase fits into memory; None if none does.

    Each try is a compilation, so sizes are left out with which activations, which grow with the micro-batch, would not
    fit on their own.
    """
    now, least = job.recipe.micro_batch or job.batch_size, job.parallelism.devices
    most = _that_would_fit(now, short)
    for size in reversed(range(least, now, least)):
        if size <= most and job.recipe.batch_size % size == 0:
            say(f"   trying a micro-batch of {size} …")
            lacking = try_compile(partial(compile_step, with_size(job, size), phase, seen, state), job.parallelism)[1]
            if lacking is None:
                return size
            most = _that_would_fit(size, lacking)
    return None


def _that_would_fit(size: int, short: Shortage) -> float:
    """The micro-batch that would fit if all of what this one needs grew with it; half of it where nobody knows."""
    if short.required and short.available is not None:
        return size * short.available / short.required
    return size / 2


def advice(micro_batch: int | None) -> str:
    """What to do, where this is the largest micro-batch that fits."""
    if micro_batch is None:
        return "no micro-batch fits either: take a smaller model or image size, or --mesh fsdp=N over several devices"
    return (
        f"--micro-batch {micro_batch} fits, which accumulates the gradient (batch norm then sees {micro_batch} images "
        "at a time); --micro-batch auto takes it"
    )


def explain(short: Shortage, batch_size: int, what_to_do: str) -> str:
    """The line for a step that does not fit, with what would."""
    if short.required is None or short.available is None:
        return f"a step of {batch_size} images needs more memory than a device has; {what_to_do}"
    unit, name = (2**30, "GiB") if short.required >= 10 * 2**30 else (2**20, "MiB")
    wanted, there = (f"{size / unit:,.1f} {name}" for size in (short.required, short.available))
    return f"a step of {batch_size} images needs {wanted} of memory on each device, and {there} are free; {what_to_do}"


def with_micro_batch(job: Plan, folder: Path, say: Callable) -> Plan:
    """The plan with the micro-batch that the run in `folder` was begun with; of a new one, with the largest that fits.

    A run that has committed nothing, for want of memory perhaps, counts as new. OutOfMemoryError where none fits.
    """
    if job.parallelism.how == "pmap":
        raise ValueError(mesh.NO_MICRO_BATCH)

    def recorded() -> int | None:
        if not (folder / runs.CONFIG).exists():
            return None
        runs.require_same_run(folder, job.config, [runs.MICRO_BATCH])
        begun = runs.read_config(folder).recipe.micro_batch
        return begun if begun or checkpoint.latest_save(folder / runs.STATE) else None

    size = processes.run_on_primary(recorded)
    if size is None:
        job = with_micro_batch_that_fits(job, say)
        size = job.recipe.micro_batch
    mesh.check_batch(job.parallelism, job.batch_size, size)
    say(f"micro-batch: {size}, gradients are accumulated" if size else "micro-batch: none, the whole batch fits")
    return with_size(job, size)


def with_micro_batch_that_fits(job: Plan, say: Callable) -> Plan:
    """Return the plan with the largest micro-batch that fits into memory. Raises OutOfMemoryError if none does."""
    say("compiling the training step to see what memory it needs …")
    phase, state, seen = largest_step(job)
    short = try_compile(partial(compile_step, job, phase, seen, state), job.parallelism)[1]
    if short is None:
        return job
    fitting = micro_batch_that_fits(job, phase, seen, state, short, say)
    if fitting is None:
        raise OutOfMemoryError(explain(short, job.batch_size, advice(None)))
    return with_size(job, fitting)


def with_size(job: Plan, micro_batch: int) -> Plan:
    recipe = dataclasses.replace(job.recipe, micro_batch=micro_batch)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, recipe=recipe))


def largest_step(job: Plan) -> tuple[Phase, TrainState, Preprocess]:
    """Phase, a throw-away state and size of the last steps: at first parts may be frozen, or images small."""
    phase = job.phases[-1]
    state = job.placed(reset_optimizer(job.first_state(), job.optimizer(phase), phase.frozen))
    return phase, state, job.seen(job.total_steps)


def compile_that_fits(job: Plan, phase: Phase, seen: Preprocess, state: TrainState, say: Callable) -> Any:
    """The compiled step. OutOfMemoryError, with what to do, where it does not fit into the devices' memory."""
    size = " for {}x{} pixels".format(*seen.size) if len(job.stretches) > 1 else ""
    say(f"compiling the training step of {job.config.model}{size} …")
    began = time.monotonic()
    step, short = try_compile(partial(compile_step, job, phase, seen, state), job.parallelism)
    say(f"compiled in {time.monotonic() - began:.1f} s")
    if short is None:
        return step
    if job.parallelism.how == "pmap":
        what_to_do = "without --parallel pmap, --micro-batch auto takes the largest that fits"
    else:
        say("memory does not suffice; looking for the micro-batch that fits …")
        what_to_do = advice(micro_batch_that_fits(job, phase, seen, state, short, say))
    raise OutOfMemoryError(explain(short, job.batch_size, what_to_do))


class Precompiled(NamedTuple):
    """A step that was compiled before its time."""

    phase: Phase
    seen: Preprocess
    step: Any


def last_step_of_a_new_run(job: Plan, folder: Path, say: Callable) -> Precompiled | None:
    """The step of a new run's last phase where it is not the first one: whether it fits is said before the first step.

    None of a run that has begun, and where nobody knows how much memory there is. OutOfMemoryError.
    """
    later = job.phases[-1] is not job.phases[0] or len(job.stretches) > 1
    if not later or available_bytes(job.parallelism) is None:
        return None
    if not processes.run_on_primary(lambda: checkpoint.latest_save(folder / runs.STATE) is None):
        return None
    phase, state, seen = largest_step(job)
    say("the last phase first, to know that the memory suffices to the end")
    return Precompiled(phase, seen, compile_that_fits(job, phase, seen, state, say))
