"""The hardware that a figure was measured on."""

import os
import platform
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
