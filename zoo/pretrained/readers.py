"""Read weight files of other projects as plain arrays: safetensors, PyTorch's formats and Keras's.

Nothing in a file is executed, and no framework is needed. Every error is one line that names the file.
"""

import json
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.files import ZIP_ERRORS, read_text, require_regular
from zoo.pretrained.file_kinds import file_kind, folder_kind
from zoo.pretrained.metadata import Metadata, read_metadata
from zoo.pretrained.torch_files import ZIP_MAGIC, NotTorchFileError, read_torch
from zoo.pretrained.unpickle import Name, Opaque, UnsafePickleError, describe
from zoo.suggest import did_you_mean
from zoo.text import escape, first_few, one_line

#: Keys under which training scripts save the state dict, in order of preference.
WRAPPERS = (
    "state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "params", "weights",
    "backbone", "student", "ema",
)  # fmt: skip
#: Parts of a checkpoint that hold tensors but no weights.
NOT_WEIGHTS = re.compile(r"(?i)optim|sched|scaler|loops|callbacks|hyper_parameters|rng|sampler|criterion|loss")
#: Keys and prefixes of averaged weights.
AVERAGED = re.compile(r"(?i)(^|[._])(ema|averaged?|swa|shadow|teacher)([._]|$)")
#: Functions by which PyTorch and NumPy build the tensors that are not read: sparse, quantised, of 8 bits, of NumPy.
OTHER_TENSOR = re.compile(r"torch\._utils\._rebuild_\w+|torch\.\w+Storage|numpy\.(_?core\.)?multiarray\._reconstruct")
MAX_INDEX = 2**28  # bytes of an index of shards
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
KERAS_MEMBER = "model.weights.h5"
#: Weight files of which a folder is read, in order of preference.
FOLDER_PATTERNS = ("*.safetensors.index.json", "*.bin.index.json", "*.safetensors", "pytorch_model.bin")
#: One file of several: model-00001-of-00003.safetensors.
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin|\.pth?)")


@dataclass(frozen=True)
class Tensors:
    """The content of a weight file.

    Attributes:
        arrays: arrays by key, in the order of the file.
        notes: how the weights were selected, one line each.
        naming: "torch", "keras" or "zoo": the convention of the keys.
        metadata: class names and preprocessing that the file states.
        files: the files that were read: one, or all shards.
        problem: what could not be read among the weights, for an error; "" if everything was read.
    """

    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    naming: str = "torch"
    metadata: Metadata = field(default_factory=Metadata)
    files: tuple[Path, ...] = ()
    problem: str = ""


def read_tensors(path: str | Path, weights: str | None = None) -> Tensors:
    """Read the arrays of a weight file; its format is detected from its content.

    Safetensors, PyTorch's zip and legacy formats (state dicts, training checkpoints, pickled modules), Keras's .h5,
    .weights.h5 and .keras (which need h5py), and sharded files (the index, any shard, or their folder) are read.

    Args:
        path: the file.
        weights: name of the set of weights to read if the file holds several, such as "state_dict_ema".

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafePickleError: if a pickle asks for more than data.
        ValueError: if the file is damaged, cut off or not a weight file, or has no such set of weights.
    """
    path = Path(path)
    name = escape(str(path))
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such weight file")
    if not path.is_dir():
        require_regular(path)
    try:
        shards = _shards(path)
        tensors = _read_shards(path, shards, weights) if shards else _read(path, weights)
        return tensors if tensors.files else replace(tensors, files=(path,))
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name}: {one_line(error)}") from None
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    except (OverflowError, RecursionError, MemoryError) as error:  # sizes and nesting that no real file has
        raise ValueError(f"{name}: is damaged, or too large for this machine ({type(error).__name__})") from None


def _read(path: Path, weights: str | None) -> Tensors:
    with path.open("rb") as stream:
        start = stream.read(16)
    if not start:
        raise ValueError("is an empty file")
    if start[:8] == HDF5_MAGIC or path.suffix == ".keras" or _is_keras_archive(path):
        from zoo.pretrained.keras_files import read_keras

        if weights is not None:
            raise ValueError(f"--weights {weights}: Keras's files hold a single set of weights")
        arrays, metadata = read_keras(path)
        return Tensors(arrays, (), "keras", metadata)
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and len(start) == 16):
        kind = "" if start[8:9] == b"{" else file_kind(path)
        if kind:
            raise ValueError(f"is {kind}")
        arrays, about = _read_safetensors(path)
        return _select(arrays, weights, read_metadata(about))
    if start[:1] != b"\x80" and start[:4] != ZIP_MAGIC and (kind := file_kind(path)):
        raise ValueError(f"is {kind}")
    try:
        tree = read_torch(path)
    except NotTorchFileError:
        kind = file_kind(path) or "not a file of PyTorch, and not of safetensors or Keras either"
        raise ValueError(f"is {kind}") from None
    return _select(tree, weights, read_metadata(tree))


def _is_keras_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return KERAS_MEMBER in archive.namelist()
    except (*ZIP_ERRORS, ValueError):
        return False


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return (arrays, metadata)."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    with path.open("rb") as stream:
        (header,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
    if header > path.stat().st_size:
        raise ValueError("is cut off or not a safetensors file")
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
        return load_file(path), about
    except AttributeError as error:  # safetensors asks NumPy for types of 4 and 8 bits that it does not have
        raise ValueError(f"holds numbers of type {error.name}, which NumPy does not have; save them as BF16") from None
    except (SafetensorError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"is cut off or not a safetensors file ({' '.join(str(error).split())})") from None


def holds_weights(path: Path) -> bool:
    """Return True for a folder that `read_tensors` may read: with an index of shards, or a weight file."""
    return path.is_dir() and any(any(path.glob(pattern)) for pattern in FOLDER_PATTERNS)


# --- shards -----------------------------------------------------------------------------------------------------


def _shards(path: Path) -> list[Path]:
    """Return the files of a sharded set of weights, given its index, one of its files or its folder; else []."""
    if path.is_dir():
        for pattern in FOLDER_PATTERNS:
            if files := sorted(path.glob(pattern)):
                break
        else:
            raise ValueError(f"is {folder_kind(path)}")
        complete = {SHARD.sub(r"\1\3", file.name) for file in files}
        if len(complete) > 1:
            raise ValueError(f"is a folder with several weight files: {', '.join(sorted(complete))}; name one of them")
        return _shards(files[0]) or [files[0]]
    if path.name.endswith(".index.json"):
        return _shards_of_index(path)
    if match := SHARD.fullmatch(path.name):
        stem, count, suffix = match[1], int(match[2]), match[3]
        index = path.with_name(f"{stem}{suffix}.index.json")
        if index.exists():
            return _shards_of_index(index)
        return [path.with_name(f"{stem}-{i:05d}-of-{count:05d}{suffix}") for i in range(1, count + 1)]
    return []


def _shards_of_index(index: Path) -> list[Path]:
    """Return the shards that an index file names, all in its folder."""
    try:
        names = sorted(set(json.loads(read_text(index, MAX_INDEX))["weight_map"].values()))
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("is not an index of weight files (no weight_map of file names)") from None
    return [index.with_name(name) for name in names]


def _read_shards(path: Path, shards: list[Path], weights: str | None) -> Tensors:
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise ValueError(f"the weights are in {len(shards)} files, of which {', '.join(absent[:3])} is missing here")
    if len(shards) == 1:
        return replace(_read(shards[0], weights), files=tuple(shards))
    arrays: dict[str, np.ndarray] = {}
    metadata, problem = Metadata(), ""
    for shard in shards:
        part = _read(shard, None)
        if repeated := sorted(set(part.arrays) & set(arrays)):
            raise ValueError(f"{repeated[0]} is in several of its files")
        arrays |= part.arrays
        problem = problem or part.problem
        metadata = metadata if metadata.classes else part.metadata
    selected = _select(arrays, weights, metadata)
    notes = (f"read {len(shards)} files", *selected.notes)
    return replace(selected, notes=notes, files=tuple(shards), problem=problem)


# --- selection of a set of weights ------------------------------------------------------------------------------


def _select(tree: Any, name: str | None, metadata: Metadata) -> Tensors:
    """Select one set of weights from the content of a file."""
    if not isinstance(tree, Mapping):
        if isinstance(tree, (Opaque, Name)):
            raise UnsafePickleError(_unreadable(tree))
        kind = "single tensor" if isinstance(tree, np.ndarray) else type(tree).__name__
        raise ValueError(f"holds a {kind}, not a state dict")
    sets = _weight_sets(tree)
    if not sets:
        opaque = next((value for value in tree.values() if isinstance(value, (Opaque, Name))), None)
        if opaque is not None:
            raise UnsafePickleError(_unreadable(opaque))
        nested = [value for value in tree.values() if isinstance(value, Mapping)]
        if problem := next(filter(None, map(_other_tensors, nested)), ""):
            raise ValueError(problem)
        raise ValueError(
            f"holds no tensors by name; it has {', '.join(str(key)[:80] for key in list(tree)[:8]) or 'nothing'}"
        )
    if name is not None:
        container = _at(tree, name) if name in sets and name else tree
        return replace(_select_by_name(sets, name, metadata), problem=_other_tensors(container))
    chosen = _default_set(sets)
    notes = []
    if chosen:
        others = [str(key)[:80] for key in tree if key != chosen.partition(".")[0] and key not in sets]
        beside = f"; not read: {', '.join(others[:5])}{', …' if len(others) > 5 else ''}" if others else ""
        notes.append(f"the weights are those under {chosen!r}{beside}")
    if others := [key for key in sets if key not in (chosen, "")]:
        notes.append(f"the file also holds {', '.join(map(repr, others[:5]))}; select with --weights {others[0]}")
    arrays = sets[chosen]
    container = tree if not chosen else _at(tree, chosen)
    not_arrays = [str(key)[:80] for key, value in container.items() if not isinstance(value, (np.ndarray, Mapping))]
    if not_arrays:
        notes.append(f"not tensors, not read: {', '.join(not_arrays[:5])}")
    return Tensors(arrays, tuple(notes), _naming(arrays), metadata, problem=_other_tensors(container))


def _other_tensors(container: Mapping) -> str:
    """Return a line that names the tensors in a mapping that are of a kind that is not read; "" without any."""
    others = {
        str(key)[:80]: value.name
        for key, value in container.items()
        if isinstance(value, Opaque) and OTHER_TENSOR.fullmatch(value.name)
    }
    if not others:
        return ""
    shown = first_few([f"{key} ({kind})" for key, kind in others.items()])
    return f"tensors of kinds that are not read: {shown}; save dense ones of float32, float16 or bfloat16 with PyTorch"


def _unreadable(value: Opaque | Name) -> str:
    return (
        f"its pickle wants to import {describe(value)}, which is not weights; if it is a file of your own, save "
        "model.state_dict() instead"
    )


def _naming(arrays: Mapping[str, np.ndarray]) -> str:
    own = all(key.startswith(("params/", "batch_stats/")) for key in arrays)
    return "zoo" if own else "torch"


def _at(tree: Mapping, path: str) -> Mapping:
    for part in path.split("."):
        tree = tree[part]
    return tree


def _weight_sets(tree: Mapping) -> dict[str, dict[str, np.ndarray]]:
    """Return the mappings of arrays in a file by their path ("state_dict", "" for the file itself).

    Mappings with less than half as many arrays as the largest one, such as statistics, are not weights.
    """
    sets: dict[str, dict[str, np.ndarray]] = {}
    waiting: list[tuple[str, Mapping, int]] = [("", tree, 0)]
    visited: set[int] = set()
    while waiting:
        path, node, depth = waiting.pop(0)
        if id(node) in visited or depth > 3:
            continue
        visited.add(id(node))
        arrays = {key: value for key, value in node.items() if isinstance(key, str) and isinstance(value, np.ndarray)}
        if arrays:
            sets[path] = arrays
        for key, value in node.items():
            if isinstance(value, Mapping) and isinstance(key, str) and "." not in key and not NOT_WEIGHTS.search(key):
                waiting.append((f"{path}.{key}" if path else key, value, depth + 1))
    largest = max(map(len, sets.values()), default=0)
    return {path: arrays for path, arrays in sets.items() if 2 * len(arrays) >= largest}


def _default_set(sets: Mapping[str, Mapping]) -> str:
    """Return the path of the weights to read by default; averaged weights only if there are no others."""
    plain = [path for path in sets if not AVERAGED.search(path)] or list(sets)
    if len(plain) == 1:
        return plain[0]
    ranked = [path for wrapper in WRAPPERS for path in plain if path.partition(".")[0] == wrapper]
    if ranked:
        return ranked[0]
    raise ValueError(f"holds several sets of weights; select one with --weights: {', '.join(filter(None, plain))}")


def _select_by_name(sets: dict[str, dict[str, np.ndarray]], name: str, metadata: Metadata) -> Tensors:
    """Select the set of weights at a path, or the tensors with a prefix ("model_ema" of "model_ema.conv1.weight")."""
    if name in sets:
        return Tensors(sets[name], (f"the weights are those under {name!r}",), _naming(sets[name]), metadata)
    for arrays in sets.values():
        prefix = f"{name.rstrip('.')}."
        if inside := {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}:
            return Tensors(inside, (f"the weights are those that begin with {prefix!r}",), "torch", metadata)
    prefixes = {key.partition(".")[0] for arrays in sets.values() for key in arrays if "." in key}
    known = [*filter(None, sets), *sorted(prefixes)]
    hint = did_you_mean(name, known) or f"it has {', '.join(known[:8]) or 'a single set without a name'}"
    raise ValueError(f"has no weights called {name!r}; {hint}")
