"""The hardware that a figure was measured on, and its clock."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware() -> str:
    """Return processor and number of cores, as tables show them."""
    return f"{processor()}, {os.cpu_count()} cores"


def machine() -> dict[str, Any]:
    return {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}


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
