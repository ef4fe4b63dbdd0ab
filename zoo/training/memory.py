"""Memory of a training step: whether it fits on the devices, and the largest micro-batch that does.

Memory is checked when a step is compiled, before the first of its steps runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from zoo.distributed import processes
from zoo.distributed.device_memory import (
    OutOfMemoryError,
    available_bytes,
    format_bytes,
    required_bytes,
    tree_bytes,
)
from zoo.distributed.mesh import Parallelism

#: Steps that need more than this many bytes per device run one at a time on CPU (100 ms and more on two cores).
MAX_CONCURRENT_STEP_BYTES = 64 * 2**20
#: Seconds after a step's results are ready until XLA has usually freed its temporary memory.
FREE_DELAY = 0.001


def max_in_flight(step: Any) -> int:
    """Return how many dispatched steps may be unfinished at a time.

    XLA:CPU allocates a step's temporary memory when the step is dispatched, however many wait before it, and the
    commands keep that memory (zoo/host_memory.py). So a large step waits for the one before it; for a small one the
    wait would cost time. Figures: docs/performance.md.
    """
    if jax.default_backend() != "cpu":
        return 3
    return 1 if (required_bytes(step) or 0) > MAX_CONCURRENT_STEP_BYTES else 2


@dataclass(frozen=True)
class Shortage:
    """Bytes per device that a step requires and that are available; None where the compiler failed without figures."""

    required: int | None
    available: int | None


def try_compile(compile_step: Callable[[], Any], parallelism: Parallelism) -> tuple[Any, Shortage | None]:
    """Compile a step and check that it fits into memory on every process's devices.

    All processes must call this together; they come to the same result.

    Returns:
        (compiled step, None), or (None, shortage) if it does not fit.
    """
    try:
        step = compile_step()
        required, available = required_bytes(step), available_bytes(parallelism)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        step = required = available = None
    too_large = step is None or (required is not None and available is not None and required > available)
    if not any(processes.all_reduce_max(int(too_large))):
        return step, None
    return None, _largest_shortage(Shortage(required, available))


def _largest_shortage(shortage: Shortage) -> Shortage:
    """Combine the shortages of all processes, in MiB, so that all choose the same micro-batch."""
    if not processes.is_multiprocess():
        return shortage
    mib, unknown = 2**20, 2**31 - 1
    required = 0 if shortage.required is None else shortage.required // mib
    available = unknown if shortage.available is None else shortage.available // mib
    required, negative_available = processes.all_reduce_max(required, -available)
    return Shortage(required * mib or None, None if negative_available == -unknown else -negative_available * mib)


def find_micro_batch(
    compile_with: Callable[[int], Any],
    sizes: Sequence[int],
    current: int,
    shortage: Shortage,
    parallelism: Parallelism,
    say: Callable[[str], None],
) -> tuple[int, Any] | None:
    """Find the largest micro-batch whose step fits into memory.

    Each attempt is a compilation, so sizes whose activations, which grow with the micro-batch, cannot fit are skipped.

    Args:
        compile_with: compiles the step with a micro-batch.
        sizes: candidates, largest first.
        current: the micro-batch that does not fit.
        shortage: what it lacks.
        parallelism: the devices.
        say: prints a line of progress.

    Returns:
        (micro-batch, compiled step), or None if no candidate fits.
    """
    limit = _estimate_fitting_size(current, shortage)
    for size in sizes:
        if size > limit:
            continue
        say(f"   trying micro-batch {size} …")
        step, remaining = try_compile(partial(compile_with, size), parallelism)
        if remaining is None:
            return size, step
        limit = _estimate_fitting_size(size, remaining)
    return None


def _estimate_fitting_size(size: int, shortage: Shortage) -> float:
    """Return the micro-batch that would fit if all memory grew with it; half the current one without figures."""
    if shortage.required and shortage.available is not None:
        return size * shortage.available / shortage.required
    return size / 2


def describe_images(count: int, requested: int) -> str:
    """Return "N images", with the batch size that was requested if the data have fewer images."""
    return f"{count:,} images" + (f" (instead of {requested:,}: there are no more)" if count < requested else "")


def describe_shortage(shortage: Shortage, images: str, advice: str) -> str:
    """Return the error message for a step of these images that does not fit, ending in advice."""
    if shortage.required is None or shortage.available is None:
        return f"a step of {images} needs more memory than a device has; {advice}"
    required, available = format_bytes(shortage.required, shortage.available)
    return f"a step of {images} needs {required} per device, {available} available; {advice}"


def advise(micro_batch: int | None) -> str:
    """Return what to do if `micro_batch` is the largest that fits, None if none does."""
    if micro_batch is None:
        return "no micro-batch fits either; use a smaller model or image size, or --mesh fsdp=N over several devices"
    return (
        f"use --micro-batch {micro_batch}, which fits and accumulates gradients (batch norm then sees {micro_batch} "
        "images at a time), or --micro-batch auto"
    )


def require_room(
    variables: Mapping,
    other_state: Any,
    batch_size: int,
    micro_batch: int,
    image_shape: tuple[int, int, int],
    parallelism: Parallelism,
    requested: int = 0,
) -> None:
    """Check that the state and a batch of images can be allocated, from their shapes alone.

    This is a lower bound, computed before anything is allocated; the compiled step is measured later. All processes
    must call this together.

    Args:
        variables: the shapes and dtypes of the variables, and the shardings of those that are split among devices.
        other_state: those of the rest of the training state.
        batch_size: images per step over all devices.
        micro_batch: images per forward pass.
        image_shape: (height, width, channels) of the largest input.
        parallelism: the devices.
        requested: the batch size that was requested, for the message.

    Raises:
        OutOfMemoryError: naming the bytes and what to lower.
    """
    available = available_bytes(parallelism)
    if available is None:
        return
    local = max(parallelism.devices // jax.process_count(), 1)
    pixels = image_shape[0] * image_shape[1] * image_shape[2]
    # A state that is not split is created whole. A batch exists three times as uint8: in use, transferred, being read.
    state_bytes = tree_bytes((variables, variables["params"], other_state))
    batch_bytes = pixels * (3 * batch_size + 4 * micro_batch) // parallelism.devices
    if jax.default_backend() == "cpu":
        available, batch_bytes = available * local, batch_bytes * local
        state_bytes *= local if parallelism.splits_parameters else 1
    too_large = state_bytes + batch_bytes > available
    if not any(processes.all_reduce_max(int(too_large))):
        return
    lower = "--image-size or use a smaller model" if state_bytes > batch_bytes else "--batch-size or --image-size"
    total, of_state, of_batch, has = format_bytes(state_bytes + batch_bytes, state_bytes, batch_bytes, available)
    images = describe_images(batch_size, requested)
    raise OutOfMemoryError(
        f"training needs at least {total} ({of_state} for parameters, gradients and optimiser, {of_batch} for "
        f"{images} of {'x'.join(map(str, image_shape))}), {has} available; lower {lower}"
    )
