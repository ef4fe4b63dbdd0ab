"""What can be made again: kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


def cache_folder() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME or the system's usual place, then "jax-model-zoo"."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "jax-model-zoo"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "jax-model-zoo"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "jax-model-zoo"


def cached(
    key: str, build: Callable[[], dict[str, NDArray[Any]]], lasting: Callable[[], bool] = lambda: True
) -> dict[str, NDArray[Any]]:
    """Arrays from the cache, or made and put there. The checksums of the zip format reveal a damaged file.

    Args:
        key: names them; it changes with whatever they are made from.
        build: makes them.
        lasting: asked after `build`: whether what it made may be kept.
    """
    path = cache_folder() / "data" / f"{key}.npz"
    try:
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            return {name: file[name] for name in file.files}
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, AttributeError):
        pass  # absent or damaged: made anew
    arrays = build()
    if not lasting():
        return arrays
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            np.savez(out, **cast(Any, arrays))
        os.replace(temporary, path)
    except OSError:  # a read-only home or a full disk costs the next start time, and nothing else
        with contextlib.suppress(OSError):
            temporary.unlink()
    return arrays
