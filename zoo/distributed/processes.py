"""Training with several processes: how they find each other and what the primary process does for all.

Every process runs the same loop on its own devices and its own rows of each batch. Only the primary process writes into
the run's folder, except that each process writes its own part of a saved state, for which they need a shared folder.
What the primary process reads there it broadcasts. With a single process every function here is a plain call without
collectives or copies.
"""

import errno
import itertools
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo.distributed import watch
from zoo.distributed.environments import ALONE, BY_JAX, BY_MPI, Group, detect, local_devices, require_address
from zoo.text import one_line

#: Steps between comparisons of flags across processes, at most: a comparison waits for the device.
COMPARE_EVERY = 8
#: Seconds between comparisons at which slow steps are compared more often, down to every step.
COMPARE_SECONDS = 1.0
#: Seconds without a sign of life after which JAX gives a process up and ends the others.
HEARTBEAT_SECONDS = 60
#: Seconds until the others must have come to an exchange; a process that is lost ends all long before.
EXCHANGE_SECONDS = 24 * 3600
#: Seconds until a file that the primary process has written must be visible to the others.
VISIBLE_SECONDS = 30.0

_exchanges = itertools.count()


def initialize(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Connect to the other processes before any computation; does nothing for a single process.

    Args:
        coordinator: HOST:PORT of process 0, together with `processes` and `process`; "auto" lets JAX detect all three
            where `environments.detect` recognises nothing; "none" runs a single process; "" follows
            `environments.detect`.
        processes: number of processes.
        process: index of this process, from 0.

    Raises:
        ValueError: if the arguments or the variables of the environment are inconsistent, if this is one of several
            processes that cannot join the others, or if the coordinator cannot be reached.
    """
    explicit = coordinator not in ("", "auto", "none")
    if explicit != (processes is not None and process is not None) or (processes is None) != (process is None):
        raise ValueError("--coordinator HOST:PORT, --processes and --process belong together: give all three or none")
    if explicit:
        assert processes is not None and process is not None
        require_address(coordinator, "--coordinator")
        if not 0 <= process < processes:
            raise ValueError(f"--process {process}: must be between 0 and {processes - 1}")
        _connect(coordinator, processes, process, coordinator)
        return
    if "none" in (coordinator, os.environ.get("ZOO_COORDINATOR")) or jax.distributed.is_initialized():
        return  # the variable overrides --coordinator auto too
    group = detect()
    if group is None or group.is_single:
        if coordinator == "auto":
            _connect(BY_JAX, None, None, "detected by JAX (no launcher)")
        return
    address, count, index = group.coordinator, group.tasks, group.index
    if not address and not (coordinator == "auto" and group.started):
        raise ValueError(describe_unjoined(group))
    if address == BY_MPI:
        address, count, index = _coordinator_by_mpi()
    _connect(address or BY_JAX, count, index, str(group))


def describe_unjoined(group: Group) -> str:
    """Return a line that says how to join a group which this process was not told to join."""
    return f"{group}, but this process would train alone: {group.advice}; or {ALONE}"


def require_joined() -> None:
    """Raise ValueError if this is one of several processes that has not joined the others.

    For programs that train without the command line, which joins them itself. ZOO_COORDINATOR=none allows it.
    """
    if jax.distributed.is_initialized():
        return
    group = detect()
    if group is not None and not group.is_single:
        advice = (
            "call zoo.distributed.processes.initialize() before any computation" if group.coordinator else group.advice
        )
        raise ValueError(
            f"{group}, but this process would train alone: {advice}; or set ZOO_COORDINATOR=none in the environment"
        )


def _connect(address: str, count: int | None, index: int | None, source: str) -> None:
    arguments: dict[str, Any] = {}
    if address != BY_JAX:
        arguments = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
        if (devices := local_devices()) is not None:
            arguments["local_device_ids"] = devices
    if index == 0 and address != BY_JAX:
        _require_free_port(address)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"cannot connect to the other processes, {source}: {one_line(error)}") from None
    watch.register_host()
    watch.require_same_versions(watch.hosts())


def _require_free_port(address: str) -> None:
    """Raise ValueError if something listens where process 0 is about to: two jobs would share a coordinator's port."""
    port = int(address.rpartition(":")[2])
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # what else is wrong, JAX reports itself
                return
            raise ValueError(
                f"port {port} of this host, process 0's, is in use; set JAX_COORDINATOR_PORT to another one"
            ) from None


def _coordinator_by_mpi() -> tuple[str, int, int]:
    """Return (HOST:PORT of process 0, number of processes, index), which the processes tell each other through MPI."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    address = ""
    if world.Get_rank() == 0:
        with socket.socket() as listener:
            listener.bind(("", 0))
            address = f"{socket.gethostname()}:{listener.getsockname()[1]}"
    found = world.bcast(address, root=0), world.Get_size(), world.Get_rank()
    MPI.Finalize()  # mpirun takes a process that ends without it for a crash
    return found


def is_multiprocess() -> bool:
    """Return True if this is one of several processes."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Return True in the process that writes logs, checkpoints and figures, and prints."""
    return jax.process_index() == 0


def wait_for_others(name: str) -> None:
    """Wait until all processes have come to this point."""
    if is_multiprocess():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def reached_preemption(step: int) -> bool:
    """Return True at the step after which all processes are to save, since one of them is about to be preempted.

    JAX learns of it from a notice that this program does not catch itself. All processes must call this for each step.
    """
    if not is_multiprocess():
        return False
    from jax._src import distributed
    from jax.experimental import multihost_utils

    if distributed.global_state.preemption_sync_manager is None:
        return False
    return multihost_utils.reached_preemption_sync_point(step)


def gather_to_host(tree: Any) -> Any:
    """Return a pytree with every array whole, as NumPy arrays, in every process."""
    return jax.tree.map(_gather, tree)


def gather_to_primary(tree: Any) -> Any:
    """Return a pytree with every array whole, as NumPy arrays, in the primary process; with None in the others."""

    def gather(leaf):
        whole = _gather(leaf)
        return whole if is_primary() else None

    return jax.tree.map(gather, tree)


def _gather(leaf: Any) -> np.ndarray:
    """Return an array whole. Gathering all at once would need the memory on every device that sharding saves."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def all_reduce_max(*flags: int) -> tuple[int, ...]:
    """Return the maximum of each flag over all processes."""
    if not is_multiprocess():
        return flags
    from jax.experimental import multihost_utils

    return tuple(int(flag) for flag in multihost_utils.process_allgather(np.array(flags, np.int32)).max(0))


class PeriodicMax:
    """The maximum of flags over all processes, compared at steps on which the processes agree.

    The interval follows from the slowest process's time per step, which is compared with the flags: COMPARE_EVERY steps
    if they are fast, fewer if those would take more than COMPARE_SECONDS, so that a signal to one process is noticed
    soon by all. It affects no result.
    """

    def __init__(self) -> None:
        self.next_step = 0
        self.last_step: int | None = None
        self.last_time = 0.0

    def __call__(self, step: int, *flags: int) -> tuple[int, ...]:
        """Return the maxima at a step of comparison, and zeros between; all processes must call it for every step."""
        if not is_multiprocess():
            return flags
        if step < self.next_step:
            return (0,) * len(flags)
        now, interval = time.monotonic(), 1  # the first steps, which take unusually long, say nothing about the others
        elapsed = 0 if self.last_step is None else round(1000 * (now - self.last_time) / (step - self.last_step))
        *maxima, milliseconds = all_reduce_max(*flags, min(elapsed, 2**31 - 1))
        if self.last_step is not None:
            interval = max(1, min(COMPARE_EVERY, int(1000 * COMPARE_SECONDS) // max(milliseconds, 1)))
        self.last_step, self.last_time, self.next_step = step, time.monotonic(), step + interval
        return tuple(maxima)


def run_on_primary(function: Callable[[], Any]) -> Any:
    """Call `function` in the primary process and return its result, through JSON, in all processes.

    Raises:
        ValueError: in the other processes, if `function` raises; the primary process raises the original error.
    """
    if not is_multiprocess():
        return function()
    error: Exception | None = None
    message: dict[str, Any] = {}
    if is_primary():
        try:
            message = {"data": function()}
        except Exception as caught:  # raised below, after the others have been told
            error, message = caught, {"error": " ".join(str(caught).split())}
    raw = np.frombuffer(json.dumps(message).encode(), np.uint8)
    size = int(_broadcast(np.array(len(raw), np.int32)))
    message = json.loads(_broadcast(raw if is_primary() else np.zeros(size, np.uint8)).tobytes())
    if "error" in message:
        raise error or ValueError(message["error"])
    return message["data"]


def require_visible(file: Path, advice: str) -> None:
    """Raise ValueError in all processes unless each of them sees a file that the primary one has written.

    Args:
        file: the file.
        advice: end of the message.
    """
    if not is_multiprocess():
        return
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (blind,) = all_reduce_max(0 if file.exists() else jax.process_index())
    if blind:
        raise ValueError(f"process {blind} does not see {file}, which process 0 has written: {advice}")


def exchange(name: str, value: Any) -> list[Any]:
    """Give a JSON value to the other processes and return those of all, in their order.

    The values pass through JAX's coordinator and not through the devices, so that a thread may call this while the
    devices train. All processes must call it equally often.

    Args:
        name: the occasion, on which the processes must agree.
        value: this process's value.

    Raises:
        RuntimeError: if another process is at another occasion.
    """
    if not is_multiprocess():
        return [value]
    client, own, number = watch.coordinator(), jax.process_index(), next(_exchanges)
    client.key_value_set(f"zoo-exchange/{own}/{number}", json.dumps([name, value]))
    answers = []
    for index in range(jax.process_count()):
        text = client.blocking_key_value_get(f"zoo-exchange/{index}/{number}", 1000 * EXCHANGE_SECONDS)
        occasion, answer = json.loads(text)
        if occasion != name:
            raise RuntimeError(f"process {index} is at {occasion}, this one at {name}")
        answers.append(answer)
    if number:  # all have answered this one, so they have read the one before
        client.key_value_delete(f"zoo-exchange/{own}/{number - 1}")
    return answers


def _broadcast(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
