"""Training with several processes: how they find each other and what the primary process does for all.

Every process runs the same loop on its own devices and its own rows of each batch. Only the primary process writes into
the run's folder, except through Orbax, which all processes call together and which requires a shared folder. What the
primary process reads there it broadcasts. With a single process every function here is a plain call without collectives
or copies.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

#: Steps between comparisons of flags across processes, at most: a comparison waits for the device.
COMPARE_EVERY = 8
#: Seconds between comparisons at which slow steps are compared more often, down to every step.
COMPARE_SECONDS = 1.0


def detect_launcher(environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of the launcher that started several processes, if JAX can detect the cluster; else "".

    An allocation alone is not enough: a program started inside one by hand runs as a single process.
    """
    if _read_count(environment, "SLURM_STEP_NUM_TASKS") > 1:
        return "Slurm"
    if _read_count(environment, "OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_MCA_orte_hnp_uri" in environment:
        return "Open MPI"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment) and find_spec("kubernetes"):
        return "Kubernetes"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return "a TPU pod slice"
    return ""


def processes_on_this_host(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many of the processes run on this machine according to the launcher; 1 if it does not say."""
    for name in ("ZOO_LOCAL_PROCESSES", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        if counts := re.findall(r"(?:^|,)(\d+)", environment.get(name, "")):  # Slurm: "4(x2),3"
            return max(map(int, counts))
    return 1


def _read_count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 1


def initialize(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Connect to the other processes before any computation; does nothing for a single process.

    Args:
        coordinator: HOST:PORT of process 0, together with `processes` and `process`; "auto" lets JAX detect all three,
            as on Cloud TPU; "none" runs a single process; "" follows `detect_launcher`.
        processes: number of processes.
        process: index of this process, from 0.

    Raises:
        ValueError: if the arguments are inconsistent or the coordinator cannot be reached.
    """
    explicit = coordinator not in ("", "auto", "none")
    if explicit != (processes is not None and process is not None) or (processes is None) != (process is None):
        raise ValueError("--coordinator HOST:PORT, --processes and --process belong together: give all three or none")
    arguments: dict[str, Any]
    if explicit:
        assert processes is not None and process is not None
        if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"--coordinator {coordinator}: write it as HOST:PORT")
        if not 0 <= process < processes:
            raise ValueError(f"--process {process}: must be between 0 and {processes - 1}")
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    elif coordinator == "auto" or (not coordinator and detect_launcher()):
        arguments = {}
    else:
        return
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        source = coordinator if explicit else f"detected by JAX ({detect_launcher() or 'no launcher'})"
        raise ValueError(f"cannot connect to the other processes, {source}: {' '.join(str(error).split())}") from None


def is_multiprocess() -> bool:
    """Return True if this is one of several processes."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Return True in the process that writes logs, checkpoints and figures, and prints."""
    return jax.process_index() == 0


def gather_to_host(tree: Any) -> Any:
    """Return a pytree with every array whole, as NumPy arrays, in every process."""
    if not is_multiprocess():
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def gather(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        # Leaf by leaf: gathering all at once would need the memory on every device that sharding saves.
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gather, tree)


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


def _broadcast(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
