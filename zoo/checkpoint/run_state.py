"""The rolling state of a run: every array and number that decides its future, saved as numbered steps.

Each save is a folder `step_N` with `progress.json`, `arrays/` (a file of each process; Orbax in saves of earlier
versions) and a manifest. A save exists only once its folder has its name, which is the last thing that happens.
"""

import errno
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zoo.checkpoint.format import is_primary, read_arrays
from zoo.checkpoint.manifest import (
    ARRAYS,
    CorruptCheckpointError,
    check_manifest,
    read_json,
    write_json,
    write_manifest,
)
from zoo.checkpoint.shards import SUFFIX, open_shards, write_shards
from zoo.files import finish_replacement, remove_folder, replace_folder, writing_folder
from zoo.text import one_line
from zoo.trees import flatten, unflatten

PROGRESS = "progress.json"
#: Saves that are kept: the newest, and the one before it in case the newest is damaged.
KEPT_SAVES = 2
#: Seconds until a file that another process has written must be visible to the primary one.
VISIBLE_SECONDS = 30.0

#: Gives a value to the other processes and returns those of all, in their order: (name of the occasion, JSON value).
Exchange = Callable[[str, Any], list[Any]]


def alone(name: str, value: Any) -> list[Any]:
    """Be the `Exchange` of a single process."""
    return [value]


def save_state(
    folder: str | Path,
    step: int,
    arrays: Any,
    progress: Mapping[str, Any],
    keep: int = KEPT_SAVES,
    exchange: Exchange = alone,
) -> Path:
    """Save the whole state of a run under folder/step_N and delete all but it and the `keep` - 1 saves before it.

    With several processes every process must call this with its parts of the same arrays, and see the same folder. No
    device is used, so a thread may call it while the devices train.

    Args:
        folder: the run's state folder.
        step: number of training steps done.
        arrays: any pytree of NumPy arrays and of the HostArrays that `shards.snapshot` returns.
        progress: everything else that decides the future of the run, as JSON.
        keep: number of saves to keep.
        exchange: how processes tell each other what they have written.

    Returns:
        The folder of the save.

    Raises:
        OSError: in all processes, if one of them cannot write.
    """
    folder = Path(folder)
    path = folder / f"step_{step:09d}"
    temporary = folder / f".{path.name}.tmp"

    def begin() -> None:
        remove_folder(temporary)
        (temporary / ARRAYS).mkdir(parents=True)
        write_json(temporary / PROGRESS, dict(progress), indent=None)  # a row per evaluation: it may be long

    def write() -> dict[str, Any]:
        (temporary / ARRAYS).mkdir(parents=True, exist_ok=True)  # this host may not see yet what another one has made
        files = write_shards(temporary / ARRAYS, _to_plain_dict(arrays))
        return {f"{ARRAYS}/{name}": row for name, row in files.items()}

    def end() -> None:
        known = {name: row for files in written for name, row in files.items()}
        _require_visible(temporary, known)
        write_manifest(temporary, known)
        replace_folder(temporary, path)
        saves = _saves(folder)
        latest = saves.index(path) + 1
        for old in saves[: max(latest - keep, 0)] + saves[latest:]:  # later ones are damaged, and were not used
            remove_folder(old)

    with writing_folder(temporary, path):
        _in_all(begin if is_primary() else None, exchange, path)
        written = _in_all(write, exchange, path)
        _in_all(end if is_primary() else None, exchange, path)
    return path


def _in_all(work: Callable[[], Any] | None, exchange: Exchange, path: Path) -> list[Any]:
    """Do this process's part of a save, wait for the others and return the results of all.

    Raises:
        OSError: naming `path` and the process, if another one has failed.
    """
    result, error = None, None
    try:
        result = work() if work else None
    except Exception as caught:  # raised below, after the others have been told
        error = caught
    answers = exchange(path.name, [result, one_line(error) if error else ""])
    if error:
        raise error
    for process, (_, message) in enumerate(answers):
        if message:
            raise OSError(errno.EIO, f"process {process} has failed: {message}", str(path))
    return [answer for answer, _ in answers]


def _require_visible(folder: Path, files: Mapping[str, Any]) -> None:
    """Raise OSError, naming the folder, if files that other processes have written into it do not appear here."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while missing := [name for name in files if not (folder / name).exists()]:
        if time.monotonic() > deadline:
            reason = f"{missing[0]} of another process is not visible; all processes need the same folder"
            raise OSError(errno.ENOENT, reason, str(folder))
        time.sleep(0.1)


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
    """Read a save, by whatever devices and processes it was written. Each process reads what its devices hold.

    Args:
        path: a folder that `save_state` wrote.
        like: returns a pytree with the structure and shapes of the arrays at a given step. Leaves with a `sharding` are
            read as JAX arrays on its devices, all others as NumPy arrays.

    Returns:
        (arrays with the structure of `like(step)`, progress).

    Raises:
        CorruptCheckpointError: if a file of the arrays cannot be read.
        ValueError: if the arrays have another structure or other shapes.
    """
    from flax import serialization

    progress = read_progress(path)
    template = like(int(path.name.removeprefix("step_")))
    wanted = flatten(_to_plain_dict(template))
    with _open_arrays(path / ARRAYS) as saved:
        if set(saved) != set(wanted) or any(tuple(saved[key].shape) != np.shape(wanted[key]) for key in wanted):
            raise ValueError(f"{path}: was written by another configuration or version; start a new run")
        arrays = unflatten({key: _read(saved[key], leaf) for key, leaf in wanted.items()})
    nested = _restore_empty_nodes(serialization.to_state_dict(template), arrays)
    return serialization.from_state_dict(template, nested), progress


def read_arrays_of(path: Path, part: str = "") -> dict:
    """Read the arrays of a save, or one entry of their tree, as a nested dict of whole NumPy arrays."""
    prefix = f"{part}/" if part else ""
    with _open_arrays(path / ARRAYS) as saved:
        found = {key.removeprefix(prefix): leaf for key, leaf in saved.items() if key.startswith(prefix)}
        return unflatten({key: leaf[(slice(None),) * len(leaf.shape)] for key, leaf in found.items()})


@contextmanager
def _open_arrays(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield leaves with a shape, of which parts can be read by slices, by path."""
    if any(folder.glob(f"*{SUFFIX}")):
        with open_shards(folder) as leaves:
            yield leaves
    else:
        yield flatten(read_arrays(folder))  # written by Orbax, before each process wrote its own parts


def _read(saved: Any, wanted: Any) -> Any:
    """Return a saved leaf on the devices of the sharding that `wanted` has, as a NumPy array if it has none."""
    import jax

    sharding = getattr(wanted, "sharding", None)
    if sharding is None:
        return np.asarray(saved[(slice(None),) * len(saved.shape)])
    return jax.make_array_from_callback(tuple(saved.shape), sharding, saved.__getitem__)


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
    """Convert a pytree to nested dicts of leaves: named tuples and optimiser states too; empty nodes vanish."""
    from flax import serialization

    def prune(node):
        if isinstance(node, Mapping):
            return {str(key): kept for key, value in node.items() if (kept := prune(value)) is not None} or None
        return node

    return prune(serialization.to_state_dict(tree)) or {}


def _restore_empty_nodes(template: Any, arrays: Any) -> Any:
    """Put the empty nodes that `_to_plain_dict` dropped back where the template has them."""
    if isinstance(template, Mapping):
        return {key: _restore_empty_nodes(value, (arrays or {}).get(str(key))) for key, value in template.items()}
    return None if template is None else arrays
