"""What the C library does with memory that is freed: kept for the next step, or given back to the system."""

import ctypes
import os
from contextlib import suppress
from importlib.util import find_spec

#: Bytes. Larger blocks go back at once: of those that are kept there come to be several, small ones lying between them.
KEPT = 256 * 2**20


def keep_freed_memory() -> bool:
    """Where steps will run on a CPU, tell the C library to keep what is freed; whether it was told and understood.

    Otherwise it goes back to the system, a step allocates its activations anew, and the system clears every page that
    it hands out: a fifth of the time of ResNet-20's step. It concerns the whole process, so it is for programs to call,
    and not for libraries; and before NumPy and JAX are imported: the threads that these start allocate in arenas of
    their own from then on, which can hold nothing of that size. glibc only; elsewhere nothing happens.
    """
    if _may_use_accelerator():
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, KEPT) and mallopt(arena_max, 1))


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
