"""What the C library does with memory that is freed, kept for the next step or given back, and how much there is."""

import ctypes
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

#: Bytes of the largest blocks that are kept, and their largest share of the available memory. As many blocks of a size
#: are kept as were in use at a time: one or two in training (`max_in_flight` in zoo/training/memory.py), two in
#: evaluation. Occasionally three: an aligned block does not fit into its old place once bytes beside it are used.
KEPT, SHARE = 2**30, 1 / 16
#: What glibc before 2.35 allows at most.
KEPT_BY_OLD_GLIBC = 32 * 2**20


def keep_freed_memory() -> bool:
    """Where steps will run on a CPU, tell the C library to keep freed blocks up to KEPT; whether it understood.

    Otherwise they go back to the system, a step allocates its activations anew, and the system clears every page that
    it hands out: a fifth of the time of ResNet-20's step. It concerns the whole process, so it is for programs to call,
    and not for libraries; and before NumPy and JAX are imported: the threads that these start allocate in arenas of
    their own from then on, which can hold nothing of that size. All threads then share one arena, and wait for each
    other a little; tried on two cores. With plugins for other devices than CPUs nothing happens, unless JAX_PLATFORMS
    is cpu, nor where the C library is not glibc.
    """
    if _may_use_accelerator():
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    available = available_memory()
    largest = KEPT if available is None else min(KEPT, int(available * SHARE))
    # This must come first: were it refused after any other, it would be left at its smallest.
    kept = any(mallopt(mmap_threshold, min(size, largest)) for size in (KEPT, KEPT_BY_OLD_GLIBC))
    return bool(kept and mallopt(trim_threshold, -1) and mallopt(arena_max, 1))  # -1: never


def _may_use_accelerator() -> bool:
    """Whether JAX, not imported yet, may find something else than CPUs: what it is told, or there are plugins for."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return asked.split(",")[0] != "cpu"
    return any(find_spec(name) for name in ("jax_plugins", "libtpu"))


def give_back_freed_memory() -> None:
    """Return to the system what `keep_freed_memory` keeps and nobody uses now, so that it counts as free."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int | None:
    """Bytes that the machine, or the container, would give to programs; None where nobody says."""
    sizes = [size for size in (_available_to_programs(), _left_in_container()) if size is not None]
    return min(sizes, default=None)


def _available_to_programs(file: str = "/proc/meminfo") -> int | None:
    """What Linux would give without swapping; None elsewhere."""
    try:
        with open(file, encoding="ascii") as lines:
            sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _left_in_container(folder: str = "/sys/fs/cgroup") -> int | None:
    """What the limit of a container (cgroup v2) leaves, with the files it keeps to read again; None without a limit."""
    try:
        limit, used, statistics = (
            Path(folder, f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
        kept = dict(line.split() for line in statistics.splitlines())["inactive_file"]
        return int(limit) - int(used) + int(kept)
    except (OSError, ValueError, KeyError):  # "max" is no limit
        return None
