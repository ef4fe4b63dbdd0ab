"""Host memory: allocator settings for steps on a CPU, and the number of available bytes.

Measurements and reasons are in docs/performance.md, "Freed memory on a CPU".
"""

import ctypes
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

#: Size in bytes of the largest block that is retained when freed.
MAX_RETAINED_BYTES = 2**30
#: Size of the largest retained block as a fraction of the available memory.
MAX_RETAINED_FRACTION = 1 / 16
#: Largest threshold in bytes that glibc before 2.35 accepts.
OLD_GLIBC_MAX_BYTES = 32 * 2**20

#: Options of mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def retain_freed_memory() -> bool:
    """Tell glibc to retain freed blocks for reuse instead of returning them to the system, if steps will run on a CPU.

    Nothing changes if JAX may find another device than CPUs, or if the C library is not glibc. The setting affects the
    whole process, so programs call this, not libraries. Call it before NumPy and JAX are imported: their threads would
    otherwise allocate in arenas of their own, which do not retain blocks of that size.

    Returns:
        True if the setting was applied.
    """
    if _may_use_accelerator():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    available = available_memory()
    largest = (
        MAX_RETAINED_BYTES if available is None else min(MAX_RETAINED_BYTES, int(available * MAX_RETAINED_FRACTION))
    )
    # This option comes first: if it is refused after another one was set, it stays at its minimum.
    accepted = any(mallopt(M_MMAP_THRESHOLD, min(size, largest)) for size in (MAX_RETAINED_BYTES, OLD_GLIBC_MAX_BYTES))
    return bool(accepted and mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_ARENA_MAX, 1))  # -1: never trim


def _may_use_accelerator() -> bool:
    """Return True if JAX, which is not imported yet, may find another device than CPUs."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(find_spec(name) for name in ("jax_plugins", "libtpu"))


def release_freed_memory() -> None:
    """Return the unused memory that `retain_freed_memory` retains to the system, so that it counts as available."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int | None:
    """Return the bytes that the machine or the container can still give to programs; None if unknown."""
    sizes = [size for size in (_available_on_machine(), _available_in_container()) if size is not None]
    return min(sizes, default=None)


def _available_on_machine(file: str = "/proc/meminfo") -> int | None:
    """Return the bytes that Linux can give without swapping; None on other systems."""
    try:
        with open(file, encoding="ascii") as lines:
            sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _available_in_container(folder: str = "/sys/fs/cgroup") -> int | None:
    """Return the bytes left below the limit of a container (cgroup v2), with its reclaimable file cache; or None."""
    try:
        limit, used, statistics = (
            Path(folder, f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
        file_cache = dict(line.split() for line in statistics.splitlines())["inactive_file"]
        return int(limit) - int(used) + int(file_cache)
    except (OSError, ValueError, KeyError):  # "max": no limit
        return None
