"""Memory of devices: what a compiled function requires and what is available."""

import math
from typing import Any

import jax

from zoo.distributed import environments, mesh
from zoo.distributed.mesh import Parallelism
from zoo.host_memory import available_memory, release_freed_memory


class OutOfMemoryError(ValueError):
    """Raised before a computation that needs more memory than the devices have."""


def required_bytes(step: Any) -> int | None:
    """Return the bytes per device that a compiled step needs beside the state; None if the backend does not say."""
    memory = step.memory_analysis()
    if memory is None:
        return None
    new_output = memory.output_size_in_bytes - memory.alias_size_in_bytes  # outputs that do not overwrite the state
    return memory.temp_size_in_bytes + max(new_output, 0) + memory.generated_code_size_in_bytes


def available_bytes(parallelism: Parallelism | None = None) -> int | None:
    """Return the bytes available on the fullest of this process's devices; None if unknown.

    CPU devices share the memory of the machine or container evenly among the devices of all processes on it.

    Args:
        parallelism: the devices to consider; None for all.
    """
    used = set(mesh.devices_of(parallelism)) if parallelism else set(jax.devices())
    devices = [device for device in jax.local_devices() if device in used]
    if devices[0].platform == "cpu":
        release_freed_memory()
        available = available_memory()
        return None if available is None else available // (len(devices) * environments.processes_on_this_host())
    statistics = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in device for device in statistics):
        return None
    return min(device["bytes_limit"] - device.get("bytes_in_use", 0) for device in statistics)


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all leaves of a tree of arrays or of their shapes and dtypes.

    Of a leaf that is split among devices, only the part of one device counts.
    """

    def size(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        return math.prod(sharding.shard_shape(leaf.shape)) if sharding is not None else leaf.size

    return sum(size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def format_bytes(*sizes: float) -> list[str]:
    """Format numbers of bytes: all in GiB if the first one has 10 GiB or more, else in MiB."""
    unit, name = (2**30, "GiB") if sizes[0] >= 10 * 2**30 else (2**20, "MiB")
    return [f"{size / unit:,.1f} {name}" for size in sizes]
