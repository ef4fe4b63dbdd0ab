"""PyTorch's files (.pt, .pth, .th, .bin) without PyTorch, and without running anything that stands in them.

A pickle is a program for a stack machine, and its opcodes REDUCE, BUILD, … call what it names. Here the machine is our
own: it knows dicts, lists, tuples, numbers, strings and the few names of ALLOWED, by exact (module, name), each of
which builds a plain record. Whatever else a file names is refused by that name; nothing is ever imported.

Both formats are read: the zip archive of PyTorch 1.6 and later, and the older stream of pickles.
"""

import io
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SHOWN = 80  # characters of a file's own words in an error


class UnsafePickleError(ValueError):
    """A file asks for something that is not data."""


class Storage(NamedTuple):
    """A run of numbers that lies elsewhere in the file."""

    key: str
    dtype: np.dtype
    numbers: int


class Tensor(NamedTuple):
    """A view of a storage; offset, shape and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(NamedTuple):
    """A (module, name) of ALLOWED, as it lies on the stack."""

    module: str
    name: str


#: torch.FloatStorage and its like: the type of the numbers.
STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("bool"),
}  # fmt: skip


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    good = isinstance(storage, Storage) and all(type(n) is int and n >= 0 for n in numbers)
    if not good or len(shape) != len(strides):
        raise ValueError("a tensor's offset, shape and strides are not whole numbers from 0 on")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict:
    return {_key(key): value for key, value in pairs}


def _size(numbers: Any = ()) -> tuple:
    return tuple(numbers)


#: What training scripts save beside the weights, options, schedules, single numbers: nothing of it is built, or read.
BESIDE = frozenset({
    ("argparse", "Namespace"), ("collections", "Counter"), ("torch", "device"), ("_codecs", "encode"),
    ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
})  # fmt: skip

#: Everything that is built, by the name that a file has for it.
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
_NAMED = {*ALLOWED, *BESIDE, *(("torch", storage) for storage in STORAGES)}


def _key(key: Any) -> Any:
    if not isinstance(key, (str, int, float, bool, bytes, type(None))):
        raise ValueError(f"a {type(key).__name__} is the key of a dict")
    return key


# --- the stack machine ------------------------------------------------------------------------------------------

_MARK = object()
_PUSHED = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _from_flat(values: list[Any]) -> dict:
    if len(values) % 2:
        raise ValueError("its pickle is damaged (a key without a value)")
    return {_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


_SINCE_MARK: dict[str, Callable[[list[Any]], Any]] = {"TUPLE": tuple, "LIST": list, "DICT": _from_flat}


def unpickle(stream: io.BytesIO, persistent: Callable[[Any], Any]) -> Any:
    """The value of one pickle, leaving the stream behind it. `persistent` answers the references to storages.

    Raises UnsafePickleError, naming what is not in ALLOWED, and ValueError for anything that is no such pickle.
    """
    machine = _Machine(persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # strange escapes in strings
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return machine.stack.pop()
                machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from None
    except OverflowError:
        raise ValueError("its pickle is damaged (a size out of range)") from None
    raise ValueError("its pickle has no end")


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, persistent: Callable[[Any], Any]):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent

    def since_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUSHED:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in _SINCE_MARK:
            stack.append(_SINCE_MARK[name](self.since_mark()))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name == "GLOBAL":
            stack.append(_allowed(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            inner, module = stack.pop(), stack.pop()
            stack.append(_allowed(module, inner))
        elif name == "REDUCE" or (name == "NEWOBJ" and _is_beside(stack[-2])):
            arguments, callee = stack.pop(), stack.pop()
            stack.append(_build(callee, arguments))
        elif name == "BUILD":  # the state of an OrderedDict: PyTorch's _metadata
            stack.pop()
            if not isinstance(stack[-1], (dict, Tensor)):
                raise UnsafePickleError("its pickle sets the state of something that is not data")
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif name == "POP":
            stack.pop()
        else:
            raise UnsafePickleError(f"its pickle uses {name}, which weights do not need")

    def _fill(self, name: str) -> None:
        """APPEND and SETITEM, one or all since the mark."""
        if name.endswith("S"):
            values = self.since_mark()
        else:
            count = 1 if name == "APPEND" else 2
            values = self.stack[-count:]
            del self.stack[-count:]
        target = self.stack[-1]
        if name.startswith("APPEND") and isinstance(target, list):
            target.extend(values)
        elif name.startswith("SETITEM") and isinstance(target, dict):
            target.update(_from_flat(values))
        else:
            raise ValueError("its pickle is damaged (no list or dict to fill)")


def _allowed(module: Any, name: Any) -> Name:
    # Tuples of tuples that are shared take exponentially long to hash or to show, so nothing but text gets that far.
    if not type(module) is type(name) is str:
        raise UnsafePickleError(f"its pickle wants to import by {_shown(module)} and {_shown(name)} instead of names")
    if (module, name) not in _NAMED:
        raise UnsafePickleError(
            f"its pickle wants to import {f'{module}.{name}'[:SHOWN]}, which is not weights; if it is a file of your "
            "own training, save model.state_dict() alone"
        )
    return Name(module, name)


def _is_beside(callee: Any) -> bool:
    return isinstance(callee, Name) and callee in BESIDE


def _build(callee: Any, arguments: Any) -> Any:
    if _is_beside(callee):
        return {}
    if not isinstance(callee, Name) or callee not in ALLOWED or not isinstance(arguments, tuple):
        raise UnsafePickleError(f"its pickle calls {_shown(callee)}, which is not data")
    return ALLOWED[callee.module, callee.name](*arguments)


def _shown(value: Any) -> str:
    return ".".join(value) if isinstance(value, Name) else f"a {type(value).__name__}"


def _reference(value: Any) -> tuple[Storage, Any]:
    """("storage", type, key, location, count[, view]) as a Storage and the view."""
    if isinstance(value, tuple) and value[:1] == ("module",):
        raise UnsafePickleError(
            "holds a whole pickled module with its source; save the state dict alone: model.state_dict()"
        )
    if not isinstance(value, tuple) or not 5 <= len(value) <= 6 or value[0] != "storage":
        raise ValueError("its pickle is damaged (a reference to no storage)")
    _, kind, key, _, count, *view = value
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in STORAGES:
        raise UnsafePickleError(f"its pickle has a storage of {_shown(kind)}, which is not read")
    if type(key) is not str or len(key) > SHOWN or type(count) is not int or count < 0:
        raise ValueError("its pickle is damaged (a storage without key or size)")
    return Storage(key, STORAGES[kind.name], count), view[0] if view else None


# --- tensors ----------------------------------------------------------------------------------------------------


def _resolved(value: Any, storages: Mapping[str, np.ndarray], seen: dict[int, dict]) -> Any:
    """`value` with an array in place of each Tensor, in dicts of dicts; `seen`: a dict met twice is made once."""
    if isinstance(value, dict):
        if id(value) not in seen:
            seen[id(value)] = {}  # before what is in it, which may be the dict itself
            seen[id(value)].update((key, _resolved(inner, storages, seen)) for key, inner in value.items())
        return seen[id(value)]
    return _array(value, storages) if isinstance(value, Tensor) else value


def _array(tensor: Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """A view of its storage, checked against the storage's size."""
    (key, dtype, _), offset, shape, strides = tensor
    data = storages[key]
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(data) or count > len(data):
        raise ValueError(f"a tensor of shape {shape} reaches outside of its storage of {len(data)} numbers")
    inside = data[offset:]
    # An axis of one element may have any stride, also one that no address can hold.
    steps = [stride * dtype.itemsize if n > 1 else 0 for n, stride in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(inside, shape, steps, writeable=False)


def _numbers(raw: bytes, storage: Storage, what: str) -> np.ndarray:
    wanted = storage.numbers * storage.dtype.itemsize
    if len(raw) != wanted:
        raise ValueError(f"{what} has {len(raw)} bytes instead of {wanted}")
    return np.frombuffer(raw, storage.dtype) if raw else np.zeros(0, storage.dtype)


def read_torch(path: Path) -> Any:
    """What torch.load(path) gives, arrays in place of tensors. ValueError without the file's name, for the caller."""
    with path.open("rb") as stream:
        start = stream.read(4)
    try:
        tree, storages = _read_zip(path) if start == ZIP_MAGIC else _read_legacy(path.read_bytes())
        return _resolved(tree, storages, {})
    except RecursionError:
        raise ValueError("its pickle is nested too deeply to be weights") from None


def _read_zip(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """archive/data.pkl is the pickle, archive/data/KEY a storage each; stored, never compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError("is a zip archive, but not PyTorch's (no data.pkl)")
            if any(name.endswith("/constants.pkl") for name in members):
                raise UnsafePickleError("is a TorchScript archive, which holds code; save the state dict alone")
            root = pickles[0].removesuffix("data.pkl")
            limit = path.stat().st_size

            def content(name: str) -> bytes:
                info = members.get(root + name)
                if info is None:
                    raise ValueError(f"{name} is missing in it")
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
                    raise ValueError(f"{name} in it is compressed, which PyTorch never does")
                return archive.read(info)

            if f"{root}byteorder" in members and content("byteorder").strip() != b"little":
                raise ValueError("was written on a big-endian machine, which is not read")
            needed: dict[str, Storage] = {}

            def persistent(value: Any) -> Storage:
                storage, _ = _reference(value)
                if needed.setdefault(storage.key, storage) != storage:
                    raise ValueError(f"storage {storage.key} is said to be of two kinds")
                return storage

            tree = unpickle(io.BytesIO(content("data.pkl")), persistent)
            storages = {
                key: _numbers(content(f"data/{key}"), storage, f"data/{key}") for key, storage in needed.items()
            }
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"is cut off or damaged ({error})") from None
    return tree, storages


def _read_legacy(data: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """Pickles of a magic number, a version, the system and the tree; then the storages' keys and the storages."""
    stream = io.BytesIO(data)

    def plain(value: Any) -> Any:
        raise ValueError("is not a file of PyTorch")

    try:
        magic = unpickle(stream, plain)
    except UnsafePickleError:
        raise
    except ValueError:
        raise ValueError("is not a file of PyTorch") from None
    if magic != LEGACY_MAGIC:
        raise ValueError("is not a file of PyTorch")
    version, system = unpickle(stream, plain), unpickle(stream, plain)
    if version != LEGACY_PROTOCOL or not isinstance(system, dict):
        shown = repr(version)[:SHOWN] if type(version) is int else _shown(version)
        raise ValueError(f"has version {shown} of PyTorch's format; {LEGACY_PROTOCOL} is read")
    if system.get("little_endian") is not True:
        raise ValueError("was written on a big-endian machine, which is not read")
    needed: dict[str, Storage] = {}

    def persistent(value: Any) -> Storage:
        storage, view = _reference(value)
        if view is not None:
            raise ValueError("has views of storages, which PyTorch wrote before 0.4; save it anew")
        if needed.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key} is said to be of two kinds")
        return storage

    tree, keys = unpickle(stream, persistent), unpickle(stream, plain)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(needed):
        raise ValueError("is damaged: its storages are not those that its tensors need")
    storages = {}
    for key in keys:
        header = stream.read(8)
        if len(header) < 8 or struct.unpack("<q", header)[0] != needed[key].numbers:
            raise ValueError(f"is cut off or damaged at storage {key}")
        raw = stream.read(needed[key].numbers * needed[key].dtype.itemsize)
        storages[key] = _numbers(raw, needed[key], f"is cut off: storage {key}")
    if stream.read(1):
        raise ValueError("is damaged: there is more behind its last storage")
    return tree, storages
