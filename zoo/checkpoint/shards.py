"""The arrays of a saved state: each process writes the parts that it holds into one file, and hashes them as it does.

The files are safetensors. A part is named by the path of its leaf, "state/variables/params/stem/conv/kernel", followed
by its bounds and the whole size along every axis if it is not the whole leaf: "…/kernel@0:64/64,128:256/512". Parts are
read again by the bounds that the reader needs, so the devices that read may be others than those that wrote.
"""

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.checkpoint.manifest import CorruptCheckpointError
from zoo.text import one_line
from zoo.trees import flatten

SUFFIX = ".safetensors"

#: Bytes that are hashed and written at a time.
_CHUNK = 2**24
#: Names of types in safetensors.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip

#: (start, stop) along every axis.
Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class HostArray:
    """The parts of an array that one process holds, on the host.

    Attributes:
        shape: shape of the whole array.
        sharding: its sharding on the devices.
        parts: the parts by their bounds.
        owned: bounds of the parts that this process saves; another one saves the others.
    """

    shape: tuple[int, ...]
    sharding: Any
    parts: Mapping[Bounds, np.ndarray]
    owned: frozenset[Bounds]

    def whole(self) -> np.ndarray | None:
        """Return the whole array; None if other processes hold parts of it."""
        if sum(part.size for part in self.parts.values()) < math.prod(self.shape):
            return None
        array = np.empty(self.shape, next(iter(self.parts.values())).dtype)
        for bounds, part in self.parts.items():
            array[_slices(bounds)] = part
        return array

    def on_devices(self) -> Any:
        """Return the array on the devices, with its sharding."""
        import jax

        def part(index: Any) -> np.ndarray:
            return self.parts[_bounds(index, self.shape)]

        return jax.make_array_from_callback(self.shape, self.sharding, part)


#: NumPy arrays that may be overwritten, by position of the leaf and bounds of the part.
Buffers = dict[tuple[int, Bounds], np.ndarray]


def reserve(tree: Any) -> Buffers:
    """Return buffers for `snapshot(tree, owned_only=True)`, not touched yet; none for what does not lie on a CPU."""
    import jax

    selected = [_select(leaf, owned_only=True) or {} for leaf in jax.tree.leaves(tree)]
    return {
        (position, bounds): np.empty(data.shape, data.dtype)
        for position, chosen in enumerate(selected) for bounds, data in chosen.items() if _is_on_cpu(data)
    }  # fmt: skip


def snapshot(tree: Any, owned_only: bool = False, buffers: Buffers | None = None) -> Any:
    """Copy a pytree of arrays to the host, so that a training step may overwrite those on the devices.

    Args:
        tree: a pytree of JAX or NumPy arrays.
        owned_only: leave out what another process saves.
        buffers: from a CPU, copy into these, which are filled in: memory that is new to a process takes several times
            longer to write to than to copy into. None for new arrays.

    Returns:
        The pytree with NumPy arrays, or, for arrays that are split among devices, the HostArrays of this process.
    """
    import jax

    selected = [_select(leaf, owned_only) for leaf in jax.tree.leaves(tree)]
    for chosen in selected:  # all transfers are under way before the first one is waited for
        for data in chosen.values() if isinstance(chosen, dict) else ():
            data.copy_to_host_async()
    chosen_leaves = enumerate(selected)
    buffers = {} if buffers is None else buffers
    old = dict(buffers)
    buffers.clear()

    def copy(leaf: Any) -> Any:
        position, chosen = next(chosen_leaves)
        if chosen is None:
            return np.asarray(leaf)
        parts = {}
        for bounds, data in chosen.items():
            array = parts[bounds] = np.asarray(data, order="C")
            if _is_on_cpu(data):  # NumPy only looks at the memory of the device
                buffer = old.get((position, bounds))
                if buffer is None or (buffer.shape, buffer.dtype) != (array.shape, array.dtype):
                    buffer = np.empty(array.shape, array.dtype)
                np.copyto(buffer, array)
                parts[bounds] = buffers[position, bounds] = buffer
        if leaf.is_fully_replicated and parts:
            return next(iter(parts.values()))
        return HostArray(tuple(leaf.shape), leaf.sharding, parts, _owned(leaf))

    return jax.tree.map(copy, tree)


def _is_on_cpu(data: Any) -> bool:
    return next(iter(data.devices())).platform == "cpu"


def on_devices(tree: Any) -> Any:
    """Return a pytree that `snapshot` returned with its HostArrays on the devices again. NumPy arrays stay."""
    import jax

    return jax.tree.map(lambda leaf: leaf.on_devices() if isinstance(leaf, HostArray) else leaf, tree)


def _select(leaf: Any, owned_only: bool) -> dict[Bounds, Any] | None:
    """Return the distinct parts of a JAX array in this process, by bounds; None for an array that is on the host."""
    import jax

    if not isinstance(leaf, jax.Array):
        return None
    owned = _owned(leaf)
    parts: dict[Bounds, Any] = {}
    for shard in leaf.addressable_shards:
        bounds = _bounds(shard.index, leaf.shape)
        if bounds not in parts and (bounds in owned or not owned_only):
            parts[bounds] = shard.data
    return parts


def _owned(leaf: Any) -> frozenset[Bounds]:
    """Return the bounds of the parts that this process saves: those whose first copy it holds."""
    shards = leaf.addressable_shards
    return frozenset(_bounds(shard.index, leaf.shape) for shard in shards if shard.replica_id == 0)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _slices(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounds)


# --- files -----------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, tree: Mapping) -> dict[str, dict[str, Any]]:
    """Write the parts of arrays that this process owns into a file of its own in `folder`, and flush it to disk.

    Args:
        folder: an existing folder.
        tree: nested dict of HostArrays and NumPy arrays; the primary process owns the NumPy arrays.

    Returns:
        The size and sha256 of the file by its name; {} if this process owns nothing.
    """
    import jax

    process = jax.process_index()
    parts: dict[str, np.ndarray] = {}
    for path, leaf in flatten(tree).items():
        if isinstance(leaf, HostArray):
            parts |= {_part_name(path, bounds, leaf.shape): leaf.parts[bounds] for bounds in leaf.owned}
        elif process == 0:
            parts[path] = np.asarray(leaf)
    if not parts:
        return {}
    file = folder / f"process_{process:05d}{SUFFIX}"
    return {file.name: _write_file(file, dict(sorted(parts.items())))}


def _write_file(file: Path, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write a safetensors file and return its size and sha256, computed on the way."""
    header, end = {}, 0
    for name, part in parts.items():
        begin, end = end, end + part.nbytes
        header[name] = {"dtype": _DTYPES[part.dtype.name], "shape": list(part.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with open(file, "wb") as stream:
        for chunk in _chunks(struct.pack("<Q", len(text)) + text, parts):
            digest.update(chunk)
            size += stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _chunks(start: bytes, parts: Mapping[str, np.ndarray]) -> Iterator[Any]:
    yield start
    for part in parts.values():
        little_endian = part.astype(part.dtype.newbyteorder("<"), copy=False)
        raw: Any = np.ascontiguousarray(little_endian).reshape(-1).view(np.uint8)
        for begin in range(0, len(raw), _CHUNK):
            yield memoryview(raw[begin : begin + _CHUNK])


def _part_name(path: str, bounds: Bounds, shape: tuple[int, ...]) -> str:
    if all((0, size) == along for along, size in zip(bounds, shape, strict=True)):
        return path
    axes = (f"{start}:{stop}/{size}" for (start, stop), size in zip(bounds, shape, strict=True))
    return f"{path}@{','.join(axes)}"


@dataclass
class SavedLeaf:
    """A leaf of a save, of which any part can be read.

    Attributes:
        shape: shape of the whole leaf.
        parts: the open file that holds each part and the part's name in it, by bounds.
    """

    shape: tuple[int, ...]
    parts: dict[Bounds, tuple[Any, str]] = field(default_factory=dict)

    def is_complete(self) -> bool:
        """Return True if the parts have as many elements as the whole."""
        size = sum(math.prod(stop - start for start, stop in bounds) for bounds in self.parts)
        return size == math.prod(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part, given by a slice for every axis."""
        wanted = _bounds(index, self.shape)
        if wanted in self.parts:
            file, name = self.parts[wanted]
            return file.get_tensor(name)
        pieces = []
        for bounds, (file, name) in self.parts.items():
            common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, wanted, strict=True))
            if all(start < stop for start, stop in common):
                piece = file.get_slice(name)[_slices(_relative(common, bounds))]
                pieces.append((_slices(_relative(common, wanted)), piece))
        array = np.empty([stop - start for start, stop in wanted], pieces[0][1].dtype)
        for place, piece in pieces:
            array[place] = piece
        return array


def _relative(bounds: Bounds, origin: Bounds) -> Bounds:
    return tuple((start - zero, stop - zero) for (start, stop), (zero, _) in zip(bounds, origin, strict=True))


@contextmanager
def open_shards(folder: Path) -> Iterator[dict[str, SavedLeaf]]:
    """Open the files that `write_shards` wrote in all processes, and yield their leaves by path.

    Raises:
        CorruptCheckpointError: naming a file that cannot be read, or a leaf of which parts are missing.
    """
    from contextlib import ExitStack

    from safetensors import SafetensorError, safe_open

    leaves: dict[str, SavedLeaf] = {}
    with ExitStack() as stack:
        for file in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                opened = stack.enter_context(safe_open(file, "np"))
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise CorruptCheckpointError(f"{file}: cannot be read ({one_line(error, 200)})") from None
            for name, shape in shapes.items():
                path, bounds, whole = _parse_name(name, shape)
                leaf = leaves.setdefault(path, SavedLeaf(whole))
                if leaf.shape != whole:
                    raise CorruptCheckpointError(f"{file}: {one_line(name, 200)} is part of another array")
                leaf.parts[bounds] = opened, name
        for path, leaf in leaves.items():
            if not leaf.is_complete():
                raise CorruptCheckpointError(f"{folder}: parts of {one_line(path, 200)} are missing")
        yield leaves


def _parse_name(name: str, shape: tuple[int, ...]) -> tuple[str, Bounds, tuple[int, ...]]:
    """Return the path of a part's leaf, the part's bounds and the shape of the whole leaf."""
    found = re.fullmatch(r"(.+)@(\d+:\d+/\d+(?:,\d+:\d+/\d+)*)", name)
    if found is None:
        return name, tuple((0, size) for size in shape), shape
    numbers = [tuple(map(int, re.split("[:/]", along))) for along in found[2].split(",")]
    bounds, whole = tuple((start, stop) for start, stop, _ in numbers), tuple(size for *_, size in numbers)
    if tuple(stop - start for start, stop in bounds) != shape or any(stop > size for _, stop, size in numbers):
        return name, tuple((0, size) for size in shape), shape  # no leaf has such a path: the reader refuses it
    return found[1], bounds, whole
