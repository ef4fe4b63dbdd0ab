"""The checkpoint format: a folder that describes itself.

`card.json` holds what the checkpoint is (model, classes, preprocessing, recipe, metrics and a table of its leaves with
their sha256), `arrays/` the parameters and batch statistics (Orbax), `manifest.json` the size and sha256 of every file.
Together they suffice to rebuild the model and classify an image. `README.md` tells people what the card says.

Nothing in a file is ever executed: JSON and arrays only. The manifest is checked before anything is parsed, and the
hashes of the leaves after, because Orbax does not notice a flipped bit in array data.
"""

import dataclasses
import errno
import hashlib
import logging
import math
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.addresses import is_address, parse_address
from zoo.arguments import check_fields
from zoo.checkpoint.calibration import Calibration
from zoo.checkpoint.manifest import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    README,
    CorruptCheckpointError,
    check_manifest,
    manifest_problems,
    read_json,
    require_readable,
    write_json,
    write_manifest,
)
from zoo.checkpoint.model_card import model_card
from zoo.checkpoint.remote import BEST, CARD, NO_BEST, RUN_CONFIG, absolute_if_unnamed, local_folder, storing
from zoo.checkpoint.schema import check_card, to_plain_json
from zoo.data.dataset import require_distinct_names
from zoo.data.images.preprocess import Preprocess
from zoo.files import backup_of, finish_replacement, follow_link, remove_folder, replace_folder, writing_folder
from zoo.host_memory import available_memory
from zoo.text import escape, one_line, one_line_errors
from zoo.trees import flatten, unflatten

#: Orbax's saves and loads are not thread-safe: calls from several threads wait for each other without end.
_ORBAX = threading.Lock()

#: In Orbax's metadata: the types of arrays and of an empty dict, and that of an entry's key.
_READ_TYPES = ("np.ndarray", "jax.Array", "Dict")
_DICT_KEY = 2

#: Values that a chunk of a smaller array may have.
MAX_SPARE_CHUNK = 2**20

MAX_MESSAGE = 100_000  # characters of an error that lists leaves

#: Fields that cards written before them lack; they have defaults.
OPTIONAL_FIELDS = {"white", "calibration"}

#: Field names of format 1 that format 2 renamed, by part of the card.
RENAMED_SINCE_FORMAT_1 = {
    "preprocess": {"fit": "resize_mode", "ink": "ink_extent"},
    "recipe": {
        "second_moment": "b2",
        "final_rate": "final_lr_fraction",
        "decay_all": "decay_bias_and_norm",
    },
}


@check_fields
@dataclass(frozen=True)
class Card:
    """The metadata of a checkpoint.

    Attributes:
        model: name in MODELS.
        fields: the fields of the model that define its function; with `model` they rebuild the network.
        classes: one name per output; empty for a network without a head.
        preprocess: how an image becomes the network's input.
        recipe: the training recipe as a dict, or None for weights from elsewhere.
        data: name, limit and notes of the training data.
        metrics: results on the validation and test splits, and the step they belong to.
        versions: versions of the packages that decide the numbers.
        licence: licence of the weights.
        source: origin of the weights.
        command: the command line that made the checkpoint.
        leaves: path, shape, dtype and sha256 of every leaf, sorted by path.
        format: version of the checkpoint format.
        calibration: temperature of the probabilities, and threshold for images unlike those of training; None if they
            were not fitted.
    """

    model: str
    fields: dict[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    source: str = ""
    command: str = ""
    leaves: tuple[dict[str, Any], ...] = ()
    format: int = FORMAT
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        if self.calibration is None:  # the card of a network without it has the bytes that it always had
            del values["calibration"]
        return values


def upgrade_names(part: str, fields: Any) -> Any:
    """Return the fields of a format 1 "preprocess" or "recipe" under their names in format 2."""
    if not isinstance(fields, Mapping):
        return fields
    renamed = RENAMED_SINCE_FORMAT_1[part]
    return {renamed.get(name, name): value for name, value in fields.items()}


def card_from_json(data: Any, where: str, num_leaves: int | None = None) -> Card:
    """Build a card from parsed JSON of format 1 or 2. NaN and infinity in its records become None.

    Args:
        data: the parsed JSON.
        where: the file, for errors.
        num_leaves: number of leaves, for a card without their table.

    Raises:
        ValueError: naming `where`, for another format version, unknown fields or a field of another type or range.
    """
    if not isinstance(data, dict) or type(data.get("format")) is not int:
        raise ValueError(f"{where}: is not a checkpoint card (no format version)")
    version = data["format"]
    require_readable(version, where)
    if version == 1:
        data = {**data, **{part: upgrade_names(part, data.get(part)) for part in RENAMED_SINCE_FORMAT_1}}
    for kind, part in ((Card, data), (Preprocess, data.get("preprocess"))):
        names = {f.name for f in dataclasses.fields(kind)}
        unmatched = ["preprocess"]
        if isinstance(part, dict):
            unmatched = sorted((set(part) ^ names) - (names & OPTIONAL_FIELDS))
        if unmatched:
            listed = one_line(", ".join(unmatched), 200)
            raise ValueError(f"{where}: missing or unknown fields for format {version}: {listed}")
    check_card(data, where, num_leaves)
    data = to_plain_json(data, where)
    try:
        preprocess = Preprocess(**data["preprocess"])
    except ValueError as error:
        raise ValueError(f"{where}: {one_line(error)}") from None
    values = {**data, "classes": tuple(data["classes"]), "leaves": tuple(data["leaves"]), "format": FORMAT}
    if data.get("calibration") is not None:
        values["calibration"] = Calibration(**data["calibration"])
    return Card(**{**values, "preprocess": preprocess})


# --- reading and writing ---------------------------------------------------------------------------------------------


def save_checkpoint(path: str | Path, card: Card, variables: Mapping, allow_nonfinite: bool = False) -> Card:
    """Write a checkpoint folder, replacing an existing checkpoint in a single rename.

    With several processes the primary one writes; the others, if they call this, only compute the card.

    Args:
        path: the folder to write, or its address in an object store.
        card: its metadata; the table of leaves is filled in.
        variables: nested dict {"params": …, "batch_stats": …} of arrays.
        allow_nonfinite: accept leaves that hold NaN or infinity.

    Returns:
        The card with its leaves.

    Raises:
        ValueError: if `path` exists and is not a checkpoint, two classes have the same name, a leaf is not finite, or
            the card holds what cannot be written as JSON.
    """
    import jax

    if is_address(path) and is_primary():
        with storing(parse_address(path)) as folder:
            return save_checkpoint(folder, card, variables, allow_nonfinite)
    require_distinct_names(card.classes, str(path))
    variables = jax.tree.map(np.asarray, dict(variables))
    if not allow_nonfinite:
        require_finite(variables, str(path))
    card = dataclasses.replace(card, leaves=tuple(leaf_table(variables)))
    body = to_plain_json(card.to_json(), str(path))
    check_card(body, str(path))
    if not is_primary():
        return card
    path = follow_link(absolute_if_unnamed(path))
    _path_of_arrays(path)  # raises before anything is written
    temporary = path.with_name(f".{path.name}.tmp")
    finish_replacement(path)
    if path.exists() and not (path / MANIFEST).exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path}: exists and is not a checkpoint; choose another name")
    remove_folder(temporary)
    with writing_folder(temporary, path):
        temporary.mkdir(parents=True)
        write_card(temporary, body)
        write_arrays(temporary / ARRAYS, variables)
        write_manifest(temporary)
    replace_folder(temporary, path)
    return card


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint that follow from its card, in plain JSON: the card itself, and README.md."""
    write_json(folder / CARD, card)
    (folder / README).write_text(model_card(card), encoding="utf-8")


def load_checkpoint(path: str | Path, check: bool = True, allow_nonfinite: bool = False) -> tuple[Card, dict]:
    """Read a checkpoint folder of format 1 or 2.

    Args:
        path: the folder, or its address in an object store.
        check: verify the manifest and the hash of every leaf.
        allow_nonfinite: accept leaves that hold NaN or infinity.

    Returns:
        (card, variables as NumPy arrays).

    Raises:
        FileNotFoundError: if there is no checkpoint at `path`.
        CorruptCheckpointError: naming every file or leaf that differs from what was written.
        ValueError: for a format version that is not readable, a card with missing, unknown or invalid fields, or a leaf
            that is not finite.
    """
    with one_line_errors(MAX_MESSAGE), local_folder(path) as folder:
        return _load_stable(folder, check, allow_nonfinite)


def _load_stable(path: Path, check: bool, allow_nonfinite: bool) -> tuple[Card, dict]:
    """Load a checkpoint that a training may be replacing at the same time."""
    for _ in range(5):
        folder = _locate(path)
        inode = folder.stat().st_ino
        try:
            card, variables = _load_checkpoint(folder, check)
            break
        except (CorruptCheckpointError, FileNotFoundError):
            # A running training may have replaced the checkpoint while it was read: try again.
            if _locate(path).stat().st_ino == inode:
                raise
    else:
        raise CorruptCheckpointError(f"{path}: keeps changing; wait for the training that writes it")
    if not allow_nonfinite:
        require_finite(variables, str(path))
    return card, variables


def read_card(path: str | Path) -> Card:
    """Read the card alone, without the arrays. Every file is checked against the manifest.

    Raises:
        FileNotFoundError, CorruptCheckpointError, ValueError: as `load_checkpoint`.
    """
    with one_line_errors(MAX_MESSAGE), local_folder(path) as folder:
        folder = _locate(folder)
        _require_checkpoint(folder, str(path))
        check_manifest(folder)
        return card_from_json(read_json(folder / CARD), str(folder / CARD))


def verify_checkpoint(path: str | Path, allow_nonfinite: bool = False) -> list[str]:
    """Check every file and leaf of a checkpoint against its hashes.

    Args:
        path: the folder, or an address, whose objects are all read.
        allow_nonfinite: accept leaves that hold NaN or infinity.

    Returns:
        A line for each file or leaf that differs from what was written; empty if all are intact.

    Raises:
        FileNotFoundError: if there is no checkpoint at `path`.
    """
    lines: list[str] = []
    try:
        if is_address(path):
            with local_folder(path, fresh=True) as copy:  # raises for what is damaged in the store
                return verify_checkpoint(copy, allow_nonfinite)
        folder = _locate(absolute_if_unnamed(path))
        lines = manifest_problems(folder) if (folder / MANIFEST).exists() else []
        if any(line.startswith(CARD) for line in lines):
            return lines  # a damaged card says nothing reliable about the leaves
        card, variables = _load_checkpoint(folder, check=not (folder / MANIFEST).exists())
    except ValueError as error:
        return [*lines, one_line(error, MAX_MESSAGE).removeprefix(f"{path}: ")]
    nonfinite = [] if allow_nonfinite else nonfinite_leaves(variables)
    return lines + compare_leaves(card.leaves, leaf_table(variables)) + nonfinite


def _load_checkpoint(path: Path, check: bool) -> tuple[Card, dict]:
    _require_checkpoint(path, str(path))
    if check:
        check_manifest(path)
    card = card_from_json(read_json(path / CARD), str(path / CARD))
    variables = {"params": {}, "batch_stats": {}, **read_arrays(path / ARRAYS, card.leaves)}
    if check and (lines := compare_leaves(card.leaves, leaf_table(variables))):
        raise CorruptCheckpointError(f"{path}: arrays do not match the card: {'; '.join(lines)}")
    return card, variables


def best_of_run(path: Path) -> Path:
    """Return the best checkpoint of the folder of a run; `path` itself if it is anything else.

    Raises:
        ValueError: for a run without a best checkpoint.
    """
    if not (path / RUN_CONFIG).is_file() or (path / MANIFEST).exists() or (path / CARD).exists():
        return path
    best = path / BEST
    if not best.is_dir() and not backup_of(best).is_dir():
        raise ValueError(f"{path}: {NO_BEST}")
    return best


def _require_checkpoint(folder: Path, path: str) -> None:
    if (folder / MANIFEST).exists() or (folder / CARD).exists():
        return
    inside_run = folder.parent / BEST if (folder.parent / RUN_CONFIG).is_file() else folder
    near = next((place for place in (folder / BEST, folder / "fold1", inside_run) if place.is_dir()), folder)
    hint = f"; did you mean {near}?" if near != folder else ""
    raise FileNotFoundError(f"{path}: is not a checkpoint (no {CARD}){hint}")


def _locate(path: Path) -> Path:
    """Return the folder of a checkpoint, or of the best one of a run.

    It has another name for a moment while it is replaced.
    """
    path = best_of_run(path)
    for folder in (path, backup_of(path), path):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{path}: no such checkpoint folder")


# --- leaves ----------------------------------------------------------------------------------------------------------


def leaf_table(variables: Mapping) -> list[dict[str, Any]]:
    """Return a row per leaf, sorted by path: path, shape, dtype, sha256 of its C-order little-endian bytes."""
    rows = []
    for path, leaf in sorted(flatten(variables).items()):
        array = np.asarray(leaf)
        raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest = hashlib.sha256(raw.tobytes()).hexdigest()
        rows.append({"path": path, "shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest})
    return rows


def nonfinite_leaves(variables: Mapping) -> list[str]:
    """Return a line for every leaf that holds NaN or infinity."""
    lines = []
    for path, leaf in sorted(flatten(variables).items()):
        bad = np.asarray(leaf).size - int(np.isfinite(np.asarray(leaf, np.float32)).sum())
        if bad:
            lines.append(f"{path} holds {bad:,} values that are NaN or infinite")
    return lines


def require_finite(variables: Mapping, where: str) -> None:
    """Raise ValueError, naming `where` and the leaves, if a leaf holds NaN or infinity."""
    if lines := nonfinite_leaves(variables):
        more = f"; and {len(lines) - 3} more leaves" if len(lines) > 3 else ""
        raise ValueError(
            f"{where}: {'; '.join(lines[:3])}{more}; such a network predicts nothing (verify, eval, predict, features, "
            "export and import read it with --allow-nonfinite, Python with allow_nonfinite=True)"
        )


def compare_leaves(expected: Iterable[Mapping[str, Any]], actual: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for every leaf that is missing from, unexpected in or different in `actual`."""
    old, new = ({row["path"]: row for row in rows} for rows in (expected, actual))
    lines = [f"{path} is missing" for path in sorted(set(old) - set(new))]
    lines += [f"{path} is not in the card" for path in sorted(set(new) - set(old))]
    for path in sorted(set(old) & set(new)):
        if old[path] != new[path]:
            changed = [key for key in ("shape", "dtype", "sha256") if old[path].get(key) != new[path].get(key)]
            lines.append(f"{path} has a different {' and '.join(changed)}")
    return lines


# --- arrays ----------------------------------------------------------------------------------------------------------


#: File by which Orbax marks what it wrote to the end; its content does not matter.
ORBAX_MARK = "commit_success.txt"


def write_arrays(path: Path, tree: Mapping) -> None:
    """Write a nested dict of arrays with Orbax, in this process alone.

    Raises:
        OSError: naming the folder, if it cannot be written. What was written of it is deleted.
    """
    from orbax.checkpoint import v1

    folder = _path_of_arrays(path)
    required_bytes = sum(np.asarray(leaf).nbytes for leaf in flatten(dict(tree)).values())
    # Checked first, because TensorStore prints tracebacks from its threads when a disk is full.
    if shutil.disk_usage(path.parent).free < required_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
    try:
        with _ORBAX, _quiet_logs(), _single_process_context(), _unchecked_folder():
            v1.save(folder, dict(tree))
        if (folder / ORBAX_MARK).exists():  # it holds the path, which others need not know
            (folder / ORBAX_MARK).write_text("Checkpoint commit was successful\n")
    except Exception as error:  # Orbax and TensorStore raise many types
        for leftover in path.parent.glob(f"{path.name}*"):
            remove_folder(leftover)
        text = str(error)
        full = "No space left" in text or getattr(error, "errno", None) == errno.ENOSPC
        reason = os.strerror(errno.ENOSPC) if full else (text.splitlines() or [type(error).__name__])[0][:200]
        raise OSError(errno.ENOSPC if full else errno.EIO, reason, str(path.parent)) from None


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Silence the loggers that print a traceback for each array that cannot be written; the error itself is raised."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "orbax")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _unchecked_folder() -> Iterator[None]:
    """Skip a check of Orbax that all processes write to the same folder, if there are several.

    It asks the devices of all processes, also where the context names this process alone. The others would not answer,
    and a thread may write a checkpoint while the devices train.
    """
    import jax
    from orbax.checkpoint.experimental.v1._src.saving import execution

    name = "_check_directory_consistency"
    check = getattr(execution, name, None)
    if check is None or jax.process_count() == 1:
        yield
        return
    setattr(execution, name, lambda directory: None)
    try:
        yield
    finally:
        setattr(execution, name, check)


def _path_of_arrays(path: Path) -> Path:
    """Return the path as TensorStore takes it, which removes ".." without regard to links, or refuses it.

    Raises:
        ValueError: for a path that TensorStore cannot take.
    """
    real = path.resolve()
    text = os.fsencode(real).decode(errors="replace")
    if text != str(real) or "\\" in text or any(part.endswith(".__lock") for part in real.parts):
        raise ValueError(
            f"{escape(str(path))}: arrays cannot be in a folder of this name (TensorStore); choose another"
        )
    return real


def read_arrays(path: Path, leaves: Iterable[Mapping[str, Any]] | None = None) -> dict:
    """Read a nested dict of NumPy arrays that `write_arrays` wrote.

    TensorStore alone reads what Orbax writes: importing Orbax would take a quarter of the time of `zoo predict`, and
    for damaged metadata it prints tracebacks from its threads.

    Args:
        path: the folder.
        leaves: rows with path, shape and dtype, as in a card. Arrays of other shapes are not read: a file of a few
            bytes can claim any number of zeros.

    Raises:
        CorruptCheckpointError: if the folder cannot be read, or holds other arrays than `leaves`.
        ValueError: if the arrays do not fit into the available memory, or for a path that TensorStore cannot take.
    """
    folder = _path_of_arrays(path)
    try:
        arrays = _open_leaves(folder / "state")
        claimed = {name: _claim(array) for name, array in arrays.items()}
    except Exception as error:  # TensorStore raises many types for files that it did not write
        raise CorruptCheckpointError(f"{path}: the arrays cannot be read ({type(error).__name__})") from None
    _require_claims(path, claimed, leaves)
    try:
        reads = {name: array.read() for name, array in arrays.items()}
        return unflatten({name: read.result() for name, read in reads.items()})
    except Exception as error:
        raise CorruptCheckpointError(f"{path}: the arrays cannot be read ({type(error).__name__})") from None


class _Claim(NamedTuple):
    """Shape and type of an array, and elements of its largest chunk, by its metadata."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _open_leaves(folder: Path) -> dict[str, Any]:
    """Open the arrays that Orbax wrote, by path: of Zarr 2 or 3, each in files of its own or all in OCDBT.

    Raises:
        Exception: of many types, for another layout.
    """
    import tensorstore

    metadata = read_json(folder / "_METADATA")
    paths = []
    for leaf in metadata["tree_metadata"].values():
        kind, keys = leaf["value_metadata"]["value_type"], leaf["key_metadata"]
        if kind not in _READ_TYPES or any(key["key_type"] != _DICT_KEY for key in keys):
            raise ValueError(f"{kind} is not an array in nested dicts")
        if kind != "Dict":
            paths.append([key["key"] for key in keys])
    files: dict[str, Any] = {"driver": "file", "path": f"{folder}{os.sep}"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": files} if metadata["use_ocdbt"] else files).result()
    driver = "zarr3" if metadata["use_zarr3"] else "zarr"
    opened = [
        tensorstore.open({"driver": driver}, kvstore=store / f"{'.'.join(keys)}/", open=True, read=True)
        for keys in paths
    ]
    return {"/".join(keys): array.result() for keys, array in zip(paths, opened, strict=True)}


def _claim(array: Any) -> _Claim:
    chunks = (array.chunk_layout.read_chunk.shape, array.chunk_layout.write_chunk.shape)
    return _Claim(tuple(array.shape), array.dtype.numpy_dtype, max(math.prod(shape or ()) for shape in chunks))


def _require_claims(path: Path, claimed: Mapping[str, _Claim], leaves: Iterable[Mapping[str, Any]] | None) -> None:
    """Raise unless the arrays of a folder have the paths, shapes and types in `leaves`, and fit into memory."""
    if leaves is not None:
        found = [{"path": name, "shape": list(c.shape), "dtype": str(c.dtype)} for name, c in sorted(claimed.items())]
        expected = [{key: row[key] for key in ("path", "shape", "dtype")} for row in leaves]
        if lines := compare_leaves(expected, found):
            raise CorruptCheckpointError(f"{path}: arrays do not match the card: {'; '.join(lines)}")
    for name, claim in claimed.items():
        if claim.chunk > max(claim.size, MAX_SPARE_CHUNK):  # it would be unpacked whole
            raise CorruptCheckpointError(f"{path}: {name} has {claim.size:,} values in chunks of {claim.chunk:,}")
    needed, available = sum(claim.size * claim.dtype.itemsize for claim in claimed.values()), available_memory()
    if available is not None and needed > available:
        amounts = " and ".join(f"{size / 2**30:,.1f} GiB" for size in (needed, available))
        raise ValueError(f"{path}: its arrays take more than the available memory ({amounts})")


def is_primary() -> bool:
    """Return True in the process that writes checkpoints."""
    import jax

    return jax.process_index() == 0


def _single_process_context() -> AbstractContextManager:
    """Return an Orbax context in which this process reads or writes without waiting for the others."""
    import jax
    from orbax.checkpoint import v1

    if jax.process_count() == 1:
        return nullcontext()
    own = jax.process_index()
    context = v1.Context()
    context.multiprocessing.primary_host = own
    context.multiprocessing.active_processes = {own}
    context.multiprocessing.barrier_sync_key_prefix = f"process{own}"
    return context
