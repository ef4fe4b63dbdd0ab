"""Every public function refuses an argument of another type than its annotation names, in one line that names it."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import zoo
from zoo.analysis.features import Features
from zoo.analysis.probe import ProbeResult
from zoo.arguments import check_types

FUNCTIONS = [
    "attach_head", "create", "cross_validate", "evaluate", "explain", "features", "fit", "fit_head", "from_arrays",
    "init", "load", "open_dataset", "preprocess", "probe", "report", "save",
]  # fmt: skip
#: Arguments for which any value is right, or whose truth is all that matters.
ANY = {
    ("explain", "image"), ("explain", "target"), ("preprocess", "image"), ("fit", "quiet"), ("cross_validate", "quiet"),
    ("preprocess", "normalised"), ("init", "shardings"),
}  # fmt: skip


class Strange:
    """A value of a type that no argument takes."""


def required(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p for p in inspect.signature(function).parameters.values() if p.kind not in kinds]


CASES = [
    (name, parameter.name)
    for name in FUNCTIONS
    for parameter in required(getattr(zoo, name))
    if (name, parameter.name) not in ANY
]


def test_all_public_functions_are_listed():
    functions = {name for name in zoo.__all__ if inspect.isfunction(getattr(zoo, name))}
    assert functions == set(FUNCTIONS)


@cache
def loaded() -> zoo.Checkpoint:
    return zoo.load("lenet5-mnist")


def good_arguments(name: str, tmp_path: Path) -> dict[str, Any]:
    checkpoint = loaded()
    model = checkpoint.model
    images, labels = np.zeros((8, 28, 28), np.uint8), ["a", "b"] * 4
    rows = np.zeros((8, 3), np.float32), np.arange(8, dtype=np.int32) % 2
    features = Features({"train": rows, "test": rows}, ("a", "b"))
    probed = ProbeResult(**dict.fromkeys(ProbeResult._fields))
    return {
        "attach_head": {"checkpoint": checkpoint, "probed": probed}, "create": {},
        "cross_validate": {"model": "lenet5"},
        "evaluate": {"checkpoint": checkpoint, "data": "digits"},
        "explain": {"checkpoint": checkpoint, "image": images[0]},
        "features": {"checkpoint": checkpoint, "data": "digits"}, "fit": {"model": "lenet5", "data": "digits"},
        "fit_head": {"data": "digits"}, "from_arrays": {"train": (images, labels)}, "init": {"model": model, "key": 0},
        "load": {"spec": "lenet5-mnist"}, "open_dataset": {"spec": "digits"},
        "preprocess": {"image": images[0], "card": checkpoint}, "probe": {"features": features},
        "report": {"source": checkpoint, "data": "digits"},
        "save": {
            "path": tmp_path / "saved", "model": model, "variables": {}, "classes": list("abcdefghij"),
            "preprocess": checkpoint.card.preprocess,
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize("name, argument", CASES, ids=[f"{name}-{argument}" for name, argument in CASES])
def test_an_argument_of_a_wrong_type_is_named(name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(zoo, name)
    given = good_arguments(name, tmp_path) | {argument: Strange()}
    missing = [p.name for p in required(function) if p.default is p.empty and p.name not in given]
    with pytest.raises(ValueError) as caught:
        function(**given, **dict.fromkeys(missing))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert argument in message or "Strange" in message, message
    assert not list(tmp_path.iterdir())


@check_types("free")
def example(
    text: str | None, path: Path, count: int = 0, rate: float = 0.0, on: bool = False, names: Sequence[str] = (),
    kind: Literal["a", "b"] = "a", act: Callable[[int], int] | None = None, free: int = 0, other: Any = None,
    pair: tuple[int, int] = (1, 2), **rest: int,
) -> str:  # fmt: skip
    return "called"


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": np.int64(3)}, {"rate": 1}, {"rate": np.float32(0.5)}, {"on": np.bool_(True)}, {"names": ["a"]},
        {"pair": [1, 2]}, {"act": abs}, {"free": "x"}, {"other": Strange()}, {"more": "x"}, {"text": "a"},
    ],
)  # fmt: skip
def test_accepted(arguments):
    assert example(**({"text": None, "path": Path()} | arguments)) == "called"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": 5}, "example: text has type int; it takes str or None"),
        ({"path": "x"}, "example: path has type str; it takes Path"),
        ({"count": True}, "example: count has type bool; it takes int"),
        ({"count": 1.0}, "example: count has type float; it takes int"),
        ({"rate": "1"}, "example: rate has type str; it takes float"),
        ({"on": 1}, "example: on has type int; it takes bool"),
        ({"names": "test"}, "example: names has type str; it takes Sequence"),
        ({"kind": 5}, "example: kind has type int; it takes str"),
        ({"act": 5}, "example: act has type int; it takes Callable or None"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError) as caught:
        example(**({"text": None, "path": Path()} | arguments))
    assert str(caught.value) == message


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match=r"example\(\) missing 1 required positional argument: 'path'"):
        example("a")
