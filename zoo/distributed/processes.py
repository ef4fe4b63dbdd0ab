"""Several processes that train together: how they find each other, and what the first of them does for all.

Every process runs the same loop on its own devices and its own rows of each batch. Only the first writes into the run's
folder, but for Orbax, which all call together and which wants to see the folder from everywhere; what the first reads
there it sends to the others. With one process each function here is the plain thing: no collective, no copy.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

#: Flags that one process cannot act on alone are compared every so many steps: a comparison waits for the device.
AGREE_EVERY = 8


def launcher(environment: Mapping[str, str] = os.environ) -> str:
    """What started several processes, of those that JAX can ask who the others are; "" where nothing did.

    Being inside an allocation is not enough: a program started there by hand is alone.
    """
    if _number(environment, "SLURM_STEP_NUM_TASKS") > 1:
        return "Slurm"
    if _number(environment, "OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_MCA_orte_hnp_uri" in environment:
        return "Open MPI"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment) and find_spec("kubernetes"):
        return "Kubernetes"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return "a TPU pod slice"
    return ""


def on_this_host(environment: Mapping[str, str] = os.environ) -> int:
    """How many of the processes run on this machine, as what started them says; 1 where nobody does."""
    for name in ("ZOO_LOCAL_PROCESSES", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        if counts := re.findall(r"(?:^|,)(\d+)", environment.get(name, "")):  # Slurm: "4(x2),3"
            return max(map(int, counts))
    return 1


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 1


def join(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Meet the other processes, before anything is computed. Alone, where nobody says that there are others.

    coordinator: HOST:PORT of process 0, with `processes` and `process` (0, 1, …); "auto": JAX finds all three out, as
    on Cloud TPU; "none": alone in any case; "": as `launcher` finds. ValueError for what does not fit together, or
    where the others cannot be reached.
    """
    given = coordinator not in ("", "auto", "none")
    if given != (processes is not None and process is not None) or (processes is None) != (process is None):
        raise ValueError("--coordinator HOST:PORT, --processes and --process belong together: give all three or none")
    if given:
        assert processes is not None and process is not None
        if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"--coordinator {coordinator}: write it as HOST:PORT")
        if not 0 <= process < processes:
            raise ValueError(f"--process {process}: of {processes} processes the last is {processes - 1}")
        arguments: dict[str, Any] = {
            "coordinator_address": coordinator, "num_processes": processes, "process_id": process,
            "cluster_detection_method": "deactivate",
        }  # fmt: skip
    elif coordinator == "auto" or (not coordinator and launcher()):
        arguments = {}
    else:
        return
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        found = launcher() or "no launcher"
        where = coordinator if given else f"as JAX detects them ({found})"
        raise ValueError(f"cannot join the other processes, {where}: {' '.join(str(error).split())}") from None


def is_multiprocess() -> bool:
    return jax.process_count() > 1


def is_primary() -> bool:
    """Whether this process writes logs, checkpoints and pictures, and speaks."""
    return jax.process_index() == 0


def gather_to_host(tree: Any) -> Any:
    """The whole of every array of a tree as NumPy arrays, in every process."""
    if not is_multiprocess():
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        # Leaf by leaf: all at once would need, on every device, the memory that splitting them saves.
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


def all_reduce_max(step: int, *flags: int) -> tuple[int, ...]:
    """The highest value of each flag over all processes, every AGREE_EVERY steps; zeros in between."""
    if not is_multiprocess():
        return flags
    if step % AGREE_EVERY:
        return (0,) * len(flags)
    from jax.experimental import multihost_utils

    return tuple(int(flag) for flag in multihost_utils.process_allgather(np.array(flags, np.int32)).max(0))


def run_on_primary(function: Callable[[], Any]) -> Any:
    """What `function` returns in the first process, as JSON, in all of them, once it is done.

    It is called there alone; what it raises is a ValueError in the others, so that nobody waits for nothing.
    """
    if not is_multiprocess():
        return function()
    error: Exception | None = None
    told: dict[str, Any] = {}
    if is_primary():
        try:
            told = {"data": function()}
        except Exception as caught:  # raised below, after the others have been told
            error, told = caught, {"error": " ".join(str(caught).split())}
    raw = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(_broadcast(np.array(len(raw), np.int32)))
    told = json.loads(_broadcast(raw if is_primary() else np.zeros(size, np.uint8)).tobytes())
    if "error" in told:
        raise error or ValueError(told["error"])
    return told["data"]


def _broadcast(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
