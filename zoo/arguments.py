"""Checks of the arguments of public functions against their annotations."""

import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

#: Annotated type -> what is accepted for it. Arrays and other collections of names serve as sequences.
_ACCEPTED: dict[Any, tuple[type, ...]] = {
    int: (int, np.integer), float: (numbers.Real,), bool: (bool, np.bool_), Path: (os.PathLike,), Sequence: (Iterable,),
    tuple: (tuple, list),
}  # fmt: skip


def check_types(*unchecked: str) -> Callable[[F], F]:
    """Make a function raise ValueError for an argument whose type its annotation excludes.

    Only the outermost type is compared: the elements of a sequence are the function's to check.

    Args:
        *unchecked: arguments that the function itself checks.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @cache
        def annotations() -> dict[str, tuple[Any, ...]]:
            hints = typing.get_type_hints(function)
            named = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            return {name: _members(hints[name]) for name in named if name in hints and name not in unchecked}

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # Python's own error names the function
            for name, value in given.items():
                members = annotations().get(name, (Any,))
                if not any(_is_a(value, member) for member in members):
                    kind, takes = type(value).__name__, _describe(members)
                    raise ValueError(f"{function.__name__}: {name} has type {kind}; it takes {takes}")
            return function(*args, **kwargs)

        return typing.cast(F, checked)

    return decorate


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, without the types of their elements; for Literal the types of its values."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(dict.fromkeys(member for part in typing.get_args(hint) for member in _members(part)))
    if origin is typing.Literal:
        return tuple(dict.fromkeys(type(value) for value in typing.get_args(hint)))
    return (origin or hint,)


def _describe(members: Sequence[Any]) -> str:
    """Return "str, Path or None"."""
    names = ["None" if member is type(None) else getattr(member, "__name__", str(member)) for member in members]
    names = [name.rpartition(".")[2] for name in names]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _is_a(value: Any, member: Any) -> bool:
    if member is Any or not isinstance(member, type):
        return True
    if isinstance(value, bool) and member in (int, float):
        return False
    if member is Sequence and isinstance(value, (str, bytes)):  # a string is rarely meant as a list of its letters
        return False
    return isinstance(value, _ACCEPTED.get(member, (member,)))
