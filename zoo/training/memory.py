"""Whether a compiled step fits into the devices' memory, said before the first step; and the micro-batch that does."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from zoo.training import processes


class TooLarge(ValueError):
    """A step needs more memory than there is."""


def needed(step: Any) -> int | None:
    """Bytes that a compiled step takes on each device beside the state that is there already; None if it cannot say."""
    memory = step.memory_analysis()
    if memory is None:
        return None
    new_output = memory.output_size_in_bytes - memory.alias_size_in_bytes  # what is not written over the state
    return memory.temp_size_in_bytes + max(new_output, 0) + memory.generated_code_size_in_bytes


def free() -> int | None:
    """Bytes that are free on the fullest of this process's devices; None where nobody says.

    CPU devices share the machine's memory, or the container's, evenly with those of all processes.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        sizes = [size for size in (_available_to_programs(), _left_in_container()) if size is not None]
        available = min(sizes, default=None)
        return None if available is None else available // (len(devices) * jax.process_count())
    statistics = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in each for each in statistics):
        return None
    return min(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in statistics)


def _available_to_programs(file: str = "/proc/meminfo") -> int | None:
    """What Linux would give without swapping; None elsewhere."""
    try:
        with open(file, encoding="ascii") as lines:
            sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _left_in_container(folder: str = "/sys/fs/cgroup") -> int | None:
    """What the limit of a container (cgroup v2) leaves; None without a limit."""
    try:
        limit, used = (Path(folder, f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # "max" is no limit
        return None


def shortage(step: Any) -> tuple[int, int] | None:
    """(bytes needed, bytes free) where a compiled step does not fit on some process's devices; None where it does."""
    wanted, there = needed(step), free()
    short = wanted is not None and there is not None and wanted > there
    if not any(processes.agree(0, int(short))):
        return None
    return wanted or 0, there or 0


def largest_that_fits(
    sizes: Iterable[int], batch_size: int, short: tuple[int, int], compile_with: Callable[[int], Any]
) -> int | None:
    """The first of `sizes`, falling, with which the step fits; None if none does.

    Each try is a compilation, so it begins where activations, which grow with the micro-batch, would fit on their own,
    and then halves. compile_with: micro-batch -> compiled step.
    """
    most = batch_size * short[1] / max(short[0], 1)
    for size in sorted(sizes, reverse=True):
        if size <= most:
            if _fits(compile_with, size):
                return size
            most = size / 2
    return None


def _fits(compile_with: Callable[[int], Any], size: int) -> bool:
    try:
        return shortage(compile_with(size)) is None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False


def advice(micro_batch: int | None) -> str:
    """What to do, where this is the largest micro-batch that fits."""
    if micro_batch is None:
        return "no micro-batch fits either: take a smaller model or image size, or --mesh fsdp=N over several devices"
    return (
        f"--micro-batch {micro_batch} fits, which accumulates the gradient (batch norm then sees {micro_batch} images "
        "at a time); --micro-batch auto takes it"
    )


def explain(short: tuple[int, int], batch_size: int, advice: str) -> str:
    """The line for a step that does not fit, with what would."""
    wanted, there = (f"{size / 2**30:,.1f} GiB" for size in short)
    return f"a step of {batch_size} images needs {wanted} of memory on each device, and {there} are free; {advice}"
