"""Data: sources open it, preprocess makes it what a model sees, the loader batches it, augment distorts it."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Return `zoo.data.arrays`, the former name of `zoo.data.sources.arrays`."""
    if name == "arrays":
        return import_module("zoo.data.sources.arrays")
    raise AttributeError(f"module 'zoo.data' has no attribute {name!r}")
