"""`zoo devices`: list the devices and show which of them training would use. Also the options that select devices."""

import argparse
import os
from typing import Any

from zoo.commands import count


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select devices and processes, which several commands share."""
    add = parser.add_argument
    add("--parallel", metavar="NAME", default="jit", help="Method: jit (default) or pmap.")
    add(
        "--mesh",
        metavar="AXES",
        default="",
        help="Axes such as data=4,model=2 or fsdp=8 (default: $ZOO_MESH, or data=all devices).",
    )
    add("--coordinator", metavar="HOST:PORT", default="", help="Address of process 0, auto or none (default: detect).")
    add("--processes", metavar="N", type=count, help="Number of processes.")
    add("--process", metavar="I", type=count, help="Index of this process, from 0.")


def parallelism_of(options: argparse.Namespace) -> Any:
    """Connect to the other processes, if any, and return the Parallelism that the options describe."""
    from zoo.distributed import mesh, processes

    processes.initialize(options.coordinator, options.processes, options.process)
    return mesh.parse_parallelism(options.parallel, options.mesh)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_options(parser)


def run(options: argparse.Namespace) -> None:
    parallelism = parallelism_of(options)
    import jax

    from zoo.distributed import mesh, processes
    from zoo.training import memory

    if not processes.is_primary():
        return
    print(f"group: {describe_group(options)}")
    used = set(mesh.devices_of(parallelism))
    for device in jax.devices():
        process = f"process {device.process_index}  " if processes.is_multiprocess() else ""
        size = _device_memory(device) if device.process_index == jax.process_index() else ""
        print(f"{'*' if device in used else ' '} {process}{device.platform}:{device.id}  {device.device_kind}{size}")
    if jax.default_backend() == "cpu" and (available := memory.available_bytes()) is not None:
        print(f"  {available / 2**30:.1f} GiB of memory available per device; {os.cpu_count()} cores on this machine")
    number = "one device" if parallelism.devices == 1 else f"{parallelism.devices} devices"
    multiple = (
        "any batch size" if parallelism.devices == 1 else f"batch sizes must be multiples of {parallelism.devices}"
    )
    print(f"training would use {number} (*): {parallelism}; {multiple}")


def describe_group(options: argparse.Namespace) -> str:
    """Return how many processes there are, what started them and which variables showed it."""
    import jax

    from zoo.distributed import environments

    joined = f"joined {jax.process_count()} processes" if jax.process_count() > 1 else "a single process"
    if options.coordinator == "none" or os.environ.get("ZOO_COORDINATOR") == "none":
        return f"{joined} (--coordinator none)"
    if options.coordinator not in ("", "auto"):
        return f"{joined} (--coordinator {options.coordinator})"
    group = environments.detect()
    return f"{joined}; recognised: {group}" if group else f"{joined}; no launcher recognised"


def _device_memory(device: Any) -> str:
    """Return the size and use of an accelerator's memory as text; "" for CPU devices, which do not report it."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" not in statistics:
        return ""
    return f"  {statistics['bytes_limit'] / 2**30:.1f} GiB, {statistics.get('bytes_in_use', 0) / 2**30:.1f} GiB in use"
