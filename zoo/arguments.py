"""Checks of a call of a public function: the names and number of its arguments, their types and their order."""

import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from zoo.suggest import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

#: Annotated type -> what is accepted for it. Arrays and other collections of names serve as sequences.
_ACCEPTED: dict[Any, tuple[type, ...]] = {
    int: (int, np.integer), float: (numbers.Real,), bool: (bool, np.bool_), Path: (os.PathLike,), Sequence: (Iterable,),
    tuple: (tuple, list),
}  # fmt: skip

#: Arguments whose types say less than their meaning -> what they take.
_MEANINGS = {"data": "a name, folder, Dataset or tuple (images, labels)"}

#: Arguments with the same range in all functions -> the lowest and highest value. Of seeds, that of scikit-learn's.
_RANGES = {"seed": (0, 2**32 - 1), "workers": (0, math.inf)}

#: Names of arguments in other libraries -> those here. The first one that the function has is suggested.
_OTHER_NAMES = {
    "layer": ("at", "stage"), "endpoint": ("at", "stage"), "model": ("checkpoint", "init", "card"),
    "weights": ("checkpoint", "init", "spec"), "checkpoint": ("init", "source", "card"), "pretrained": ("init",),
    "dataset": ("data", "spec"), "folder": ("data", "spec"), "path": ("spec", "output"), "filename": ("output", "path"),
    "subset": ("split", "splits"), "label": ("target",), "class_name": ("target",), "images": ("data", "image"),
    "x": ("data", "train"), "y": ("data", "train"), "labels": ("data", "train"), "targets": ("data", "train"),
    "k": ("top", "folds"), "topk": ("top",), "n_splits": ("folds",), "verbose": ("quiet",), "num_workers": ("workers",),
    "rng": ("key", "seed"), "names": ("class_names", "classes"), "val": ("validation",),
}  # fmt: skip


def check_types(*unchecked: str) -> Callable[[F], F]:
    """Make a function refuse a wrong call in one line that names the function, the argument and what is right.

    Names and number of arguments are a TypeError, as in every Python function; types and order are a ValueError. Only
    the outermost type is compared: the elements of a sequence are the function's to check. The function gets NumPy's
    scalars as Python's, which JSON can store.

    Args:
        *unchecked: arguments whose types the function itself checks.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        name = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")

        @cache
        def annotations() -> dict[str, tuple[Any, ...]]:
            named = [parameter for parameter in _named_parameters(signature) if parameter not in unchecked]
            hints = typing.get_type_hints(function) if named else {}
            return {parameter: _members(hints[parameter]) for parameter in named if parameter in hints}

        @cache
        def choices() -> dict[str, tuple[str, ...]]:
            hints = typing.get_type_hints(function) if annotations() else {}
            return {
                key: typing.get_args(hints[key]) for key in annotations() if typing.get_origin(hints[key]) is Literal
            }

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            args = tuple(map(_plain, args))
            kwargs = {key: _plain(value) for key, value in kwargs.items()}
            _require_pair(name, signature, args)
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                raise TypeError(describe_call_error(name, signature, args, kwargs)) from None
            for argument, value in given.items():
                members = annotations().get(argument, (Any,))
                if not _fits(argument, value, members):
                    kind, takes = type(value).__name__, _MEANINGS.get(argument) or _describe(members)
                    hint = _suggest_place(name, signature, given, argument, annotations())
                    raise ValueError(f"{name}: {argument} has type {kind}; it takes {takes}{hint}")
                lowest, highest = _RANGES.get(argument, (-math.inf, math.inf))
                is_number = argument in _RANGES and argument in annotations() and value is not None
                if is_number and not lowest <= value <= highest:
                    limits = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
                    raise ValueError(f"{name}: {argument}={value!r} must be {limits}")
                if argument in choices() and value not in choices()[argument]:
                    hint = did_you_mean(value, choices()[argument]) or f"choose from {', '.join(choices()[argument])}"
                    raise ValueError(f"{name}: {argument}={value!r}; {hint}")
            return function(*args, **kwargs)

        return typing.cast(F, checked)

    return decorate


def check_fields(cls: type[T]) -> type[T]:
    """Make a dataclass refuse names that are not its fields in one line, as `check_types` does."""
    construct: Any = cls.__init__
    unchecked = _named_parameters(inspect.signature(construct))
    setattr(cls, "__init__", check_types(*unchecked)(construct))  # noqa: B010 (mypy refuses an assignment)
    return cls


def describe_call_error(name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the error of a call that does not match a signature, on one line: what is wrong, and what is right.

    Args:
        name: of the function, without the package; "Class.method" for a method.
        signature: of the function.
        args, kwargs: of the call.
    """
    parameters = signature.parameters
    names = _named_parameters(signature)
    ordered = [each for each in names if parameters[each].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    args = args[len(parameters) - len(_without_self(parameters)) :]
    required = _required(signature)
    missing = [each for each in required if each not in (*kwargs, *ordered[: len(args)])]
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    unknown = [each for each in kwargs if each not in names]
    if unknown and (not takes_any or (missing and suggest_argument(unknown[0], missing))):
        hint = suggest_argument(unknown[0], missing if takes_any else names) or f"it takes {', '.join(names)}"
        return f"{name}: unknown argument {unknown[0]}; {hint}"
    if len(args) > len(ordered):
        others = [f"{each}=…" for each in names if each not in ordered] or ["NAME=…"] * takes_any
        rest = f"; name the others: {', '.join(others[:3])}{', …' if len(others) > 3 else ''}" if others else ""
        count = f"{len(ordered)} argument{'' if len(ordered) == 1 else 's'}"
        return f"{name}: takes {count} by position ({', '.join(ordered)}), not {len(args)}{rest}"
    for each in ordered[: len(args)]:
        if each in kwargs:
            return f"{name}: {each} is given twice, by position and by name; write {_call(name, required)}"
    listed = " and ".join(filter(None, [", ".join(missing[:-1]), *missing[-1:]]))
    return f"{name}: missing argument{'s' if len(missing) > 1 else ''} {listed}; write {_call(name, required)}"


def suggest_argument(word: str, names: Iterable[str]) -> str:
    """Return "did you mean X?" for a misspelt argument, or the name of one in another library; "" if none fits."""
    names = list(names)
    known = [each for each in _OTHER_NAMES.get(word.lower(), ()) if each in names]
    if known == ["data"] or known == ["train"]:
        pair = "" if word.lower() in ("dataset", "folder") else ", which takes a tuple (images, labels)"
        return f"did you mean {known[0]}{pair or '?'}"
    return f"did you mean {known[0]}?" if known else did_you_mean(word, names, cutoff=0.6)


def _named_parameters(signature: inspect.Signature) -> list[str]:
    """Return the names of the parameters but `self`, `*args` and `**kwargs`."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, each in _without_self(signature.parameters).items() if each.kind not in kinds]


def _required(signature: inspect.Signature) -> list[str]:
    """Return the names of the parameters without a default."""
    return [name for name in _named_parameters(signature) if signature.parameters[name].default is signature.empty]


def _without_self(parameters: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    return {name: each for name, each in parameters.items() if name != "self"}


def _call(name: str, arguments: Sequence[str]) -> str:
    """Return a call as a user writes it: zoo.save(path, …), Recipe(…), checkpoint.predict(…)."""
    owner, dot, method = name.partition(".")
    written = f"{owner.lower()}.{method}" if dot else name if name[0].isupper() else f"zoo.{name}"
    return f"{written}({', '.join(arguments)})"


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy, such as an element of an array, as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _require_pair(name: str, signature: inspect.Signature, args: Sequence[Any]) -> None:
    """Raise ValueError if images and labels are two arguments where the data are one."""
    names = list(signature.parameters)
    place = next((names.index(each) for each in ("data", "train") if each in names), None)
    if place is None:
        return
    for pair in (args[place : place + 2], args[max(place - 1, 0) : place + 1]):
        if len(pair) == 2 and all(map(_is_array, pair)):
            call = _call(name, [*names[:place], "(images, labels)"])
            raise ValueError(f"{name}: images and labels are one argument, a tuple: {call}")


def _is_array(value: Any) -> bool:
    """Return True for an array, or a list of images or labels; one of two elements may be a pair (images, labels)."""
    return (
        hasattr(value, "__array__")
        or hasattr(value, "__array_interface__")
        or (isinstance(value, list) and len(value) != 2)
    )


def _suggest_place(
    name: str, signature: inspect.Signature, given: Mapping[str, Any], wrong: str, annotations: Mapping[str, Any]
) -> str:
    """Return "; the order is …" if two arguments were exchanged, "; did you mean …?" if another one takes the value."""
    value, required = given[wrong], _required(signature)
    for other, accepted in annotations.items():
        exchanged = other in given and _fits(other, value, accepted) and _fits(wrong, given[other], annotations[wrong])
        if exchanged and other in required and wrong in required:
            return f"; the order is {_call(name, required)}"
    for other, accepted in annotations.items():
        if other not in given and type(value) in accepted and type(value).__module__ != "builtins":
            return f"; did you mean {other}=…?"
    return ""


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, without the types of their elements; for Literal the types of its values."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(dict.fromkeys(member for part in typing.get_args(hint) for member in _members(part)))
    if origin is Literal:
        return tuple(dict.fromkeys(type(value) for value in typing.get_args(hint)))
    return (origin or hint,)


def _describe(members: Sequence[Any]) -> str:
    """Return "str, Path or None"."""
    names = ["None" if member is type(None) else getattr(member, "__name__", str(member)) for member in members]
    names = [name.rpartition(".")[2] for name in names]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _fits(argument: str, value: Any, members: Iterable[Any]) -> bool:
    """Return True if a value has one of these types."""
    if argument in _MEANINGS and isinstance(value, list):  # of images, or a pair (images, labels)?
        return False
    return any(_is_a(value, member) for member in members)


def _is_a(value: Any, member: Any) -> bool:
    if member is Any or not isinstance(member, type):
        return True
    if isinstance(value, bool) and member in (int, float):
        return False
    if member is Sequence and isinstance(value, (str, bytes)):  # a string is rarely meant as a list of its letters
        return False
    return isinstance(value, _ACCEPTED.get(member, (member,)))
