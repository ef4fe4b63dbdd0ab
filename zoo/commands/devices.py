"""`zoo devices`: what there is to compute with, and what a training would use; and the options that choose."""

import argparse
import os
from typing import Any

from zoo.commands import count


def add_device_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--parallel", metavar="HOW", default="jit", help="jit (default) or pmap")
    add("--mesh", metavar="AXES", default="", help="data=4,model=2 or fsdp=8 (default: $ZOO_MESH, or data=all devices)")
    add("--coordinator", metavar="HOST:PORT", default="", help="of process 0; auto, none (default: as found)")
    add("--processes", metavar="N", type=count, help="how many there are")
    add("--process", metavar="I", type=count, help="which one this is, from 0 on")


def parallelism_of(options: argparse.Namespace) -> Any:
    """Meet the other processes, where there are any; the Parallelism that the options describe."""
    from zoo.distributed import mesh, processes

    environment = os.environ  # as `zoo launch` sets it
    if options.coordinator or "ZOO_COORDINATOR" not in environment:
        processes.initialize(options.coordinator, options.processes, options.process)
    else:
        numbers = (int(environment[name]) for name in ("ZOO_PROCESSES", "ZOO_PROCESS"))
        processes.initialize(environment["ZOO_COORDINATOR"], *numbers)
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
    if processes.is_multiprocess():
        where = processes.detect_launcher()
        print(f"{jax.process_count()} processes" + (f", started by {where}" if where else ""))
    used = set(mesh.devices_of(parallelism))
    for device in jax.devices():
        host = f"process {device.process_index}  " if processes.is_multiprocess() else ""
        size = _memory(device) if device.process_index == jax.process_index() else ""
        print(f"{'*' if device in used else ' '} {host}{device.platform}:{device.id}  {device.device_kind}{size}")
    if jax.default_backend() == "cpu" and (free := memory.available_bytes()) is not None:
        print(f"  memory: {free / 2**30:.1f} GiB free for each, {os.cpu_count()} cores for all on this machine")
    some = "one device" if parallelism.devices == 1 else f"{parallelism.devices} devices"
    print(f"training would use {some} (*): {parallelism}; a batch must be a multiple of {parallelism.devices}")


def _memory(device: Any) -> str:
    """What an accelerator says of its memory; CPU devices say nothing."""
    told = device.memory_stats() or {}
    if "bytes_limit" not in told:
        return ""
    return f"  {told['bytes_limit'] / 2**30:.1f} GiB, {told.get('bytes_in_use', 0) / 2**30:.1f} in use"
