"""The hardware that a figure was measured on, and its clock."""

import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor on Linux, or ""."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def processor() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> str:
    """Return the widest vector instructions of an x86 processor on Linux: "AVX-512", "AVX2", or "" if unknown.

    Virtual machines may have the same processor's name with and without AVX-512, which changes every figure.
    """
    flags = _cpuinfo("flags").split()
    return "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""


def machine() -> dict[str, Any]:
    """Return the entry "machine" of a result."""
    return {
        "processor": processor(), "cores": os.cpu_count(), "instructions": instructions(),
        "system": platform.platform(),
    }  # fmt: skip


def label(machine: dict[str, Any]) -> str:
    """Return a machine as tables show it: processor, cores and, where they were recorded, vector instructions."""
    return ", ".join(filter(None, [machine["processor"], f"{machine['cores']} cores", machine.get("instructions")]))


def labels(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the labels of the machines in the entries "machine" of `rows`, the last used first."""
    used: dict[str, str] = {}
    for row in rows:
        used[label(row["machine"])] = max(used.get(label(row["machine"]), ""), row.get("when", ""))
    return sorted(used, key=lambda on: used[on], reverse=True)


def hardware() -> str:
    """Return the label of this machine."""
    return label(machine())


def least_seconds(function: Callable[[], Any], seconds: float, least: float = float("inf")) -> float:
    """Call a function for about so many seconds, at least once; return the least time of a call.

    On one processor it is the time of the process, which other work beside it lengthens least.
    """
    on_one = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
    clock = time.process_time if on_one else time.perf_counter
    end = time.perf_counter() + seconds
    while True:
        start = clock()
        function()
        least = min(least, clock() - start)
        if time.perf_counter() > end:
            return least
