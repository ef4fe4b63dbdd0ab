"""Unpickle plain data without executing anything that a file asks for.

A pickle is a program for a stack machine: its opcodes REDUCE, BUILD, … call whatever the file names. The machine here
never imports a name. It knows dicts, lists, tuples, numbers and strings, and the few functions of ALLOWED, by exact
(module, name), each of which builds a plain record. Every other object becomes an `Opaque` record of its name and
state, so that options, schedules and metrics beside the weights do not stand in the way. Names that only an attack
uses (UNSAFE_MODULES, UNSAFE_BUILTINS) are refused wherever they occur.
"""

import io
import pickletools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_SHOWN = 80  # characters of a file's own text in an error


class UnsafePickleError(ValueError):
    """A pickle asks for something that is not data."""


class Storage(NamedTuple):
    """A run of numbers stored elsewhere in the file."""

    key: str
    dtype: np.dtype
    length: int


class Tensor(NamedTuple):
    """A view of a storage; offset, shape and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(NamedTuple):
    """A (module, name) that a pickle refers to."""

    module: str
    name: str


class Opaque:
    """An object of a class that is not imported.

    Attributes:
        name: "module.name" of the class or function.
        state: its state (`__dict__`), if the pickle sets one.
        entries: its entries, if it is a kind of dict.
    """

    __slots__ = ("entries", "name", "state")

    def __init__(self, name: str):
        self.name = name
        self.state: Any = None
        self.entries: dict[Any, Any] = {}


#: dtype by the name of a storage class in module torch.
STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("bool"), "ComplexFloatStorage": np.dtype("<c8"), "ComplexDoubleStorage": np.dtype("<c16"),
}  # fmt: skip


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    if isinstance(storage, Opaque):
        return storage
    numbers = (offset, *shape, *strides)
    valid = isinstance(storage, Storage) and all(type(n) is int and n >= 0 for n in numbers)
    if not valid or len(shape) != len(strides):
        raise ValueError("a tensor's offset, shape and strides are not non-negative integers")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict:
    return {_key(key): value for key, value in pairs}


def _size(numbers: Any = ()) -> tuple:
    return tuple(numbers)


#: The functions and classes that are built, by the name that a file has for them.
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}

#: Modules that no training script has a reason to save a reference to.
UNSAFE_MODULES = frozenset({
    "_pickle", "_posixsubprocess", "asyncio", "bdb", "cProfile", "code", "codeop", "commands", "ctypes", "dill",
    "ensurepip", "importlib", "marshal", "multiprocessing", "nt", "os", "pdb", "pickle", "pip", "posix", "profile",
    "pty", "requests", "runpy", "shutil", "signal", "smtplib", "socket", "subprocess", "sys", "tempfile", "threading",
    "timeit", "urllib", "webbrowser",
})  # fmt: skip
UNSAFE_BUILTINS = frozenset({
    "__import__", "apply", "breakpoint", "compile", "eval", "exec", "execfile", "file", "globals", "input", "locals",
    "open", "setattr", "vars",
})  # fmt: skip

_SIMPLE = (str, int, float, bool, bytes, type(None))


def _key(key: Any) -> Any:
    # Tuples of shared tuples take exponentially long to hash, so only flat ones are keys. Opaque hashes by identity.
    if isinstance(key, tuple) and all(isinstance(part, _SIMPLE) for part in key):
        return key
    if not isinstance(key, (*_SIMPLE, Opaque)):
        raise ValueError(f"its pickle is damaged (a {type(key).__name__} is the key of a dict)")
    return key


_MARK = object()
_PUSHED = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# A set is read as a list: its elements need not be hashed.
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _pairs(values: list[Any]) -> dict:
    if len(values) % 2:
        raise ValueError("its pickle is damaged (a key without a value)")
    return {_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


_SINCE_MARK: dict[str, Callable[[list[Any]], Any]] = {"TUPLE": tuple, "LIST": list, "DICT": _pairs, "FROZENSET": tuple}


def unpickle(stream: io.BytesIO, persistent: Callable[[Any], Any]) -> Any:
    """Read one pickle and leave the stream behind it.

    Args:
        stream: the stream to read.
        persistent: function that resolves references to storages.

    Returns:
        Dicts, lists, tuples, numbers and strings, with `Tensor` and `Opaque` records in them.

    Raises:
        UnsafePickleError: naming what the pickle asks for.
        ValueError: if the stream is not a valid pickle.
    """
    machine = _Machine(persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in strings
            for opcode, argument, _ in _opcodes(stream):
                if opcode.name == "STOP":
                    return machine.stack.pop()
                machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from None
    except OverflowError:
        raise ValueError("its pickle is damaged (a size out of range)") from None
    raise ValueError("its pickle is cut off")


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    """Yield the opcodes of a pickle; ValueError if they cannot be parsed."""
    try:
        yield from pickletools.genops(stream)
    except UnicodeError:
        raise
    except ValueError as error:
        raise ValueError(f"its pickle is cut off or damaged ({error})") from None


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, persistent: Callable[[Any], Any]):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
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
            stack.append(_SINCE_MARK[name](self.pop_to_mark()))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"):
            self._fill(name)
        elif name == "GLOBAL":
            stack.append(_checked_name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            inner, module = stack.pop(), stack.pop()
            stack.append(_checked_name(module, inner))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                stack.pop()  # keyword arguments
            arguments, callee = stack.pop(), stack.pop()
            stack.append(_build(callee, arguments))
        elif name == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, Opaque):
                target.state = state
            elif not isinstance(target, (dict, Tensor)):  # of a dict it is PyTorch's _metadata, which is not needed
                raise UnsafePickleError("its pickle sets the state of something that is not data")
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif name == "POP":
            stack.pop()
        else:
            raise UnsafePickleError(f"its pickle uses the opcode {name}, which weights do not need")

    def _fill(self, name: str) -> None:
        """Add one or, if the name ends in S, all values since the mark to a container."""
        if name.endswith("S"):
            values = self.pop_to_mark()
        else:
            count = 1 if name == "APPEND" else 2
            values = self.stack[-count:]
            del self.stack[-count:]
        target = self.stack[-1]
        if name.startswith("SETITEM"):
            if not isinstance(target, (dict, Opaque)):
                raise ValueError("its pickle is damaged (no dict to fill)")
            (target.entries if isinstance(target, Opaque) else target).update(_pairs(values))
        elif isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise ValueError("its pickle is damaged (no list to fill)")


def _checked_name(module: Any, name: Any) -> Name:
    """Return a name that a pickle refers to, unless only an attack would use it."""
    # Tuples of shared tuples take exponentially long to hash or to show, so only text gets that far.
    if not type(module) is type(name) is str:
        raise UnsafePickleError(f"its pickle wants to import by {describe(module)} and {describe(name)}")
    parts = {module.partition(".")[0], *module.split("."), *name.split(".")[:-1]}
    is_builtin = module in ("builtins", "__builtin__") and name.partition(".")[0] in UNSAFE_BUILTINS
    if parts & UNSAFE_MODULES or is_builtin:
        raise UnsafePickleError(f"its pickle wants to import {f'{module}.{name}'[:MAX_SHOWN]}, as malicious files do")
    return Name(module, name)


def _build(callee: Any, arguments: Any) -> Any:
    if isinstance(callee, Opaque):
        return Opaque(callee.name)
    if not isinstance(callee, Name) or not isinstance(arguments, tuple):
        raise UnsafePickleError(f"its pickle calls {describe(callee)}, which is not data")
    if callee in ALLOWED:
        return ALLOWED[callee.module, callee.name](*arguments)
    return Opaque(describe(callee))


def describe(value: Any) -> str:
    """Return a short description of a value for an error message, without showing its content."""
    if isinstance(value, Name):
        return ".".join(value)[:MAX_SHOWN]
    return value.name if isinstance(value, Opaque) else f"a {type(value).__name__}"
