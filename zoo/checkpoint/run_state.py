"""The rolling state of a run: every array and number that decides its future, saved as numbered steps.

Each save is a folder `step_N` with `progress.json`, `arrays/` (Orbax) and a manifest. A save exists only once its
folder has its name, which is the last thing that happens.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.checkpoint.format import is_primary, read_arrays, write_arrays
from zoo.checkpoint.manifest import (
    ARRAYS,
    CorruptCheckpointError,
    check_manifest,
    read_json,
    write_json,
    write_manifest,
)
from zoo.files import finish_replacement, remove_folder, replace_folder, writing_folder
from zoo.trees import flatten

PROGRESS = "progress.json"
#: Saves that are kept: the newest, and the one before it in case the newest is damaged.
KEPT_SAVES = 2


def save_state(folder: str | Path, step: int, arrays: Any, progress: Mapping[str, Any], keep: int = KEPT_SAVES) -> Path:
    """Save the whole state of a run under folder/step_N and delete all but the newest `keep` saves.

    With several processes every process must call this with the same full arrays and see the same folder.

    Args:
        folder: the run's state folder.
        step: number of training steps done.
        arrays: any pytree of arrays.
        progress: everything else that decides the future of the run, as JSON.
        keep: number of saves to keep.

    Returns:
        The folder of the save.
    """
    folder = Path(folder)
    path = folder / f"step_{step:09d}"
    temporary = folder / f".{path.name}.tmp"
    if is_primary():
        remove_folder(temporary)
    with writing_folder(temporary, path):
        if is_primary():
            temporary.mkdir(parents=True)
            write_json(temporary / PROGRESS, dict(progress), indent=None)  # a row per evaluation: it may be long
        write_arrays(temporary / ARRAYS, _to_plain_dict(arrays))
        if is_primary():
            write_manifest(temporary)
    if is_primary():
        replace_folder(temporary, path)
        for old in _saves(folder)[:-keep]:
            remove_folder(old)
    return path


def latest_intact_save(folder: str | Path, warn: Callable[[str], Any] = print) -> Path | None:
    """Return the newest save whose files match their manifest, or None. Deletes what an interrupted save left behind.

    A damaged save is reported through `warn` and the one before it is used: training from there gives the same bits.
    """
    folder = Path(folder)
    for leftover in folder.glob(".step_*.tmp"):
        remove_folder(leftover)
    for leftover in folder.glob(".step_*.old"):
        finish_replacement(folder / leftover.name[1 : -len(".old")])
        remove_folder(leftover)
    saves = _saves(folder)
    for i, path in reversed(list(enumerate(saves))):
        try:
            check_manifest(path)
            for old in saves[: max(i + 1 - KEPT_SAVES, 0)]:  # a kill within `save_state` leaves one too many
                remove_folder(old)
            return path
        except CorruptCheckpointError as error:
            warn(f"{error}; {'using the save before it' if i else 'starting from step 0'}")
    return None


def read_state(path: Path, like: Callable[[int], Any]) -> tuple[Any, dict[str, Any]]:
    """Read a save.

    With several processes all must call this: Orbax numbers its calls per process, and the numbers must agree at the
    next save.

    Args:
        path: a folder that `save_state` wrote.
        like: returns a pytree with the structure of the arrays at a given step.

    Returns:
        (arrays with the structure of `like(step)`, progress).

    Raises:
        ValueError: if the arrays have another structure or other shapes.
    """
    from flax import serialization

    progress = read_progress(path)
    arrays = read_arrays(path / ARRAYS)
    template = like(int(path.name.removeprefix("step_")))
    have, want = flatten(arrays), flatten(_to_plain_dict(template))
    if set(have) != set(want) or any(np.shape(have[key]) != np.shape(want[key]) for key in want):
        raise ValueError(f"{path}: was written by another configuration or version; start a new run")
    nested = _restore_empty_nodes(serialization.to_state_dict(template), arrays)
    return serialization.from_state_dict(template, nested), progress


def read_progress(path: Path) -> dict[str, Any]:
    """Read the part of a save that is not arrays."""
    return read_json(path / PROGRESS)


def latest_save(folder: str | Path) -> Path | None:
    """Return the newest save without checking it, or None."""
    saves = _saves(Path(folder))
    return saves[-1] if saves else None


def _saves(folder: Path) -> list[Path]:
    saves = (path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name))
    return sorted(saves, key=lambda path: int(path.name.removeprefix("step_")))


def _to_plain_dict(tree: Any) -> dict:
    """Convert a pytree to nested dicts of arrays: named tuples and optimiser states too; empty nodes vanish."""
    from flax import serialization

    def prune(node):
        if isinstance(node, Mapping):
            return {str(key): kept for key, value in node.items() if (kept := prune(value)) is not None} or None
        return None if node is None else np.asarray(node)

    return prune(serialization.to_state_dict(tree)) or {}


def _restore_empty_nodes(template: Any, arrays: Any) -> Any:
    """Put the empty nodes that `_to_plain_dict` dropped back where the template has them."""
    if isinstance(template, Mapping):
        return {key: _restore_empty_nodes(value, (arrays or {}).get(str(key))) for key, value in template.items()}
    return None if template is None else arrays
