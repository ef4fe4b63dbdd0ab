"""The user's cache folder: data that can be computed or downloaded again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.files import ZIP_ERRORS, atomic_writer

APP = "jax-model-zoo"


def cache_folder() -> Path:
    """Return the cache folder: $XDG_CACHE_HOME/jax-model-zoo if that is set, else the system's usual place."""
    if root := os.environ.get("XDG_CACHE_HOME"):  # on every system, not only on those of the XDG specification
        return Path(root) / APP
    from platformdirs import user_cache_path

    return user_cache_path(APP, appauthor=False)


def cached(
    key: str, build: Callable[[], dict[str, NDArray[Any]]], cacheable: Callable[[], bool] = lambda: True
) -> dict[str, NDArray[Any]]:
    """Return arrays from the cache, or build and store them. A damaged file is noticed by its checksums and rebuilt.

    Args:
        key: name of the entry, which must change with everything that the arrays depend on.
        build: computes the arrays.
        cacheable: called after `build`; the arrays are stored if it returns True.
    """
    path = cache_folder() / "data" / f"{key}.npz"
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            return {name: file[name] for name in file.files}
    except (*ZIP_ERRORS, ValueError, KeyError, AttributeError):
        pass  # absent or damaged
    arrays = build()
    if not cacheable():
        return arrays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path, durable=False, unique=True) as stream:
            np.savez(stream, **cast(Any, arrays))
    except OSError:  # without a writable cache, only the next start is slower
        pass
    return arrays
