"""Read PyTorch's files (.pt, .pth, .ckpt, .bin) without PyTorch and without executing anything in them.

Both formats are read: the zip archive of PyTorch 1.6 and later, and the older stream of pickles. A pickled module
(`torch.save(model)`) is read as its state dict; its class is not imported. See zoo/pretrained/unpickle.py.
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.files import ZIP_ERRORS
from zoo.pretrained.unpickle import (
    MAX_SHOWN,
    STORAGES,
    Name,
    Opaque,
    Storage,
    Tensor,
    UnsafePickleError,
    describe,
    unpickle,
)

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_MODULES = 100_000  # of a pickled network; a real one has thousands at most


class NotTorchFileError(ValueError):
    """A file is not PyTorch's."""


def read_torch(path: Path) -> Any:
    """Read what torch.save wrote.

    Args:
        path: the file.

    Returns:
        What torch.load returns, with arrays in place of tensors, state dicts in place of modules, and dicts of their
        state or `Opaque` records in place of other objects.

    Raises:
        UnsafePickleError: naming what the file asks for.
        NotTorchFileError: if the file is not PyTorch's.
        ValueError: if the file is damaged. The message does not name the file.
    """
    with path.open("rb") as stream:
        start = stream.read(4)
    try:
        tree, storages = _read_zip(path) if start == ZIP_MAGIC else _read_legacy(path.read_bytes())
        return _resolve(tree, storages, {})
    except RecursionError:
        raise ValueError("its pickle is nested too deeply to be weights") from None


def _reference(value: Any) -> tuple[Any, Any]:
    """Return (storage, view) of a persistent id ("storage", type, key, location, count[, view])."""
    if isinstance(value, tuple) and value[:1] == ("module",) and len(value) == 4:
        return value[1], None  # a class with its source code, which is not needed
    if not isinstance(value, tuple) or not 5 <= len(value) <= 6 or value[0] != "storage":
        raise ValueError("its pickle is damaged (a reference to no storage)")
    _, kind, key, _, count, *view = value
    if not isinstance(kind, Name):
        raise UnsafePickleError(f"its pickle has a storage of {describe(kind)}")
    if kind.module != "torch" or kind.name not in STORAGES:
        return Opaque(describe(kind)), None
    if type(key) is not str or len(key) > MAX_SHOWN or type(count) is not int or count < 0:
        raise ValueError("its pickle is damaged (a storage without key or size)")
    return Storage(key, STORAGES[kind.name], count), view[0] if view else None


class _StorageTable:
    """The storages that the tensors of a file refer to."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}

    def add(self, value: Any, views: bool = True) -> Any:
        storage, view = _reference(value)
        if view is not None and not views:
            raise ValueError("has views of storages, which PyTorch wrote before 0.4; save it with a newer version")
        if isinstance(storage, Storage) and self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"is damaged: storage {storage.key} has two sizes or types")
        return storage


# --- tensors ----------------------------------------------------------------------------------------------------


def _resolve(value: Any, storages: Mapping[str, np.ndarray], resolved: dict[int, Any]) -> Any:
    """Return a value with arrays in place of tensors and dicts in place of objects; `resolved` holds shared ones."""
    if isinstance(value, Tensor):
        return _array(value, storages)
    if not isinstance(value, (dict, Opaque)):
        return value
    if id(value) in resolved:
        return resolved[id(value)]
    if isinstance(value, dict):
        entries = value
    elif _is_module(value):
        entries = _module_tensors(value)
    else:
        entries = value.entries or (value.state if isinstance(value.state, dict) else {})
        if not entries:
            return value
    target: dict[Any, Any] = {}
    resolved[id(value)] = target  # registered before its entries, which may contain it
    target.update((key, _resolve(entry, storages, resolved)) for key, entry in entries.items())
    return target


def _is_module(value: Any) -> bool:
    parts = ("_modules", "_parameters", "_buffers")
    return (
        isinstance(value, Opaque)
        and isinstance(value.state, dict)
        and all(isinstance(value.state.get(part), dict) for part in parts)
    )


def _module_tensors(module: Opaque) -> dict[str, Any]:
    """Return the state dict of a pickled torch.nn.Module."""
    tensors: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    visited = 0
    while waiting:
        prefix, node = waiting.pop()
        visited += 1
        if visited > MAX_MODULES:
            raise ValueError("its modules are nested too deeply to be weights")
        own = {**node.state["_parameters"], **node.state["_buffers"]}
        tensors.update((f"{prefix}{name}", value) for name, value in own.items() if isinstance(value, Tensor))
        children = [(f"{prefix}{name}.", child) for name, child in node.state["_modules"].items() if _is_module(child)]
        waiting += reversed(children)
    return tensors


def _array(tensor: Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a view of a storage, checked against the size of the storage."""
    (key, dtype, _), offset, shape, strides = tensor
    data = storages[key]
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(data) or count > len(data):
        raise ValueError(f"a tensor of shape {shape} reaches outside of its storage of {len(data)} numbers")
    # An axis of length 1 may have any stride, even one too large for an address.
    steps = [stride * dtype.itemsize if n > 1 else 0 for n, stride in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(data[offset:], shape, steps, writeable=False)


def _numbers(raw: bytes, storage: Storage, name: str) -> np.ndarray:
    expected = storage.length * storage.dtype.itemsize
    if len(raw) != expected:
        raise ValueError(f"{name} has {len(raw)} bytes instead of {expected}")
    return np.frombuffer(raw, storage.dtype) if raw else np.zeros(0, storage.dtype)


# --- the two formats --------------------------------------------------------------------------------------------


def _read_zip(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Read archive/data.pkl, the pickle, and archive/data/KEY, one storage each; stored without compression."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise NotTorchFileError("is a zip archive, but not PyTorch's (no data.pkl)")
            if any(name.endswith("/constants.pkl") for name in members):
                raise UnsafePickleError("is a TorchScript archive, which holds code; save model.state_dict() instead")
            root = pickles[0].removesuffix("data.pkl")
            size = path.stat().st_size

            def content(name: str) -> bytes:
                info = members.get(root + name)
                if info is None:
                    raise ValueError(f"is damaged: {name} is missing in it")
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                    raise ValueError(f"is damaged: {name} in it is compressed, which PyTorch never does")
                return archive.read(info)

            if f"{root}byteorder" in members and content("byteorder").strip() != b"little":
                raise ValueError("was written on a big-endian machine, which is not supported")
            table = _StorageTable()
            tree = unpickle(io.BytesIO(content("data.pkl")), table.add)
            storages = {
                key: _numbers(content(f"data/{key}"), storage, f"data/{key}") for key, storage in table.storages.items()
            }
    except ZIP_ERRORS as error:
        raise ValueError(f"is cut off or damaged ({error})") from None
    return tree, storages


def _read_legacy(data: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """Read pickles of a magic number, a version, the system and the tree; then the storages' keys and the storages."""
    stream = io.BytesIO(data)

    def no_reference(value: Any) -> Any:
        raise NotTorchFileError("is not a file of PyTorch")

    try:
        magic = unpickle(stream, no_reference)
    except UnsafePickleError:
        raise
    except ValueError:
        raise NotTorchFileError("is not a file of PyTorch") from None
    if magic != LEGACY_MAGIC:
        if isinstance(magic, (dict, Opaque)) and stream.tell() == len(data):
            raise ValueError("was written by pickle.dump; write it with torch.save(model.state_dict(), …)")
        raise NotTorchFileError("is not a file of PyTorch")
    version, system = unpickle(stream, no_reference), unpickle(stream, no_reference)
    if version != LEGACY_PROTOCOL or not isinstance(system, dict):
        shown = repr(version)[:MAX_SHOWN] if type(version) is int else describe(version)
        raise ValueError(f"has version {shown} of PyTorch's format instead of {LEGACY_PROTOCOL}")
    if system.get("little_endian") is not True:
        raise ValueError("was written on a big-endian machine, which is not supported")
    table = _StorageTable()
    tree = unpickle(stream, lambda value: table.add(value, views=False))
    keys = unpickle(stream, no_reference)
    storages_needed = table.storages
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages_needed):
        raise ValueError("is damaged: its storages are not those of its tensors")
    storages = {}
    for key in keys:
        header = stream.read(8)
        if len(header) < 8 or struct.unpack("<q", header)[0] != storages_needed[key].length:
            raise ValueError(f"is cut off or damaged at storage {key}")
        raw = stream.read(storages_needed[key].length * storages_needed[key].dtype.itemsize)
        storages[key] = _numbers(raw, storages_needed[key], f"is cut off: storage {key}")
    if stream.read(1):
        raise ValueError("is damaged: there is more data after its last storage")
    return tree, storages
