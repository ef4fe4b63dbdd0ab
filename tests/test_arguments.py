"""Every public function refuses a wrong call in one line: arguments of another type, unknown, missing or exchanged."""

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


@check_types()
def given(data: str, second: Any = None, **rest: Any) -> list[Any]:
    return [data, second, *rest.values()]


def test_numpy_scalars_arrive_as_those_of_python():
    values = given(np.str_("digits"), np.str_("test"), count=np.int64(3), rate=np.float32(0.5), on=np.bool_(True))
    assert values == ["digits", "test", 3, 0.5, True]
    assert [type(value) for value in values] == [str, str, int, float, bool]
    assert zoo.create("lenet5", num_classes=np.int64(3)) == zoo.create("lenet5", num_classes=3)
    assert type(zoo.Recipe(epochs=np.int64(3)).epochs) in (int, float)


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


@pytest.mark.parametrize(
    "arguments, part",
    [
        ({"kind": "aa"}, "kind='aa'; did you mean a?"), ({"kind": "zzz"}, "kind='zzz'; choose from a, b"),
        ({"seed": -1}, "seed=-1 must be from 0"), ({"seed": 2**32}, "seed=4294967296 must be from 0"),
        ({"workers": -1}, "workers=-1 must be at least 0"),
    ],
)  # fmt: skip
def test_values_with_the_same_limits_everywhere(arguments, part):
    @check_types()
    def limited(kind: Literal["a", "b"] = "a", seed: int = 0, workers: int | None = None) -> None:
        pass

    limited("b", 2**32 - 1, 0)
    with pytest.raises(ValueError, match=part) as caught:
        limited(**arguments)
    assert str(caught.value).startswith("limited") or ".limited: " in str(caught.value)


def takes_any_name(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not takes_any_name(getattr(zoo, name))])
def test_an_unknown_argument_is_named_with_one_like_it(name):
    for parameter in required(getattr(zoo, name)):
        with pytest.raises(TypeError) as caught:
            getattr(zoo, name)(**{f"{parameter.name}_": None})
        assert str(caught.value).startswith(
            f"{name}: unknown argument {parameter.name}_; did you mean {parameter.name}"
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_missing_arguments_are_named_with_the_call(name):
    names = [p.name for p in required(getattr(zoo, name)) if p.default is p.empty]
    if names:
        with pytest.raises(TypeError) as caught:
            getattr(zoo, name)()
        assert str(caught.value).endswith(f"; write zoo.{name}({', '.join(names)})")
        assert all(each in str(caught.value).partition(";")[0] for each in names)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: example("a"), "example: missing argument path; write zoo.example(text, path)"),
        (lambda: example("a", text="b"),
         "example: text is given twice, by position and by name; write zoo.example(text, path)"),
        (lambda: example(txt="a"), "example: unknown argument txt; did you mean text?"),
        (lambda: zoo.evaluate("a", "b", "test", "c"),
         "evaluate: takes 3 arguments by position (checkpoint, data, split), not 4; name the others: data_dir=…, "
         "limit=…, batch_size=…, …"),
        (lambda: zoo.features("a", "b", layer="stage1"), "features: unknown argument layer; did you mean at?"),
        (lambda: zoo.Recipe(epoch=3), "Recipe: unknown argument epoch; did you mean epochs?"),
        (lambda: loaded().predict(k=3), "Checkpoint.predict: unknown argument k; did you mean top?"),
        (lambda: loaded().predict(), "Checkpoint.predict: missing argument images; write checkpoint.predict(images)"),
    ],
)  # fmt: skip
def test_names_and_number_of_arguments(call, message):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == message


IMAGES, LABELS = np.zeros((8, 28, 28), np.uint8), np.arange(8)
DATA = {name: {"data", "train"}.intersection(inspect.signature(getattr(zoo, name)).parameters) for name in FUNCTIONS}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if DATA[name]])
def test_images_and_labels_are_one_argument(name):
    before = [each.name for each in required(getattr(zoo, name))]
    before = before[: before.index("data" if "data" in before else "train")]
    for images, labels in ((IMAGES, LABELS), (list(IMAGES), LABELS.tolist())):
        with pytest.raises(ValueError, match=rf"zoo\.{name}\({', '.join([*before, ''])}\(images, labels\)\)"):
            getattr(zoo, name)(*(None for _ in before), images, labels)
    if before:
        with pytest.raises(ValueError, match=r"\(images, labels\)\)"):
            getattr(zoo, name)(IMAGES, LABELS)


def test_a_member_that_a_checkpoint_lacks_is_answered():
    for name, part in (
        ("evaluate", r"zoo\.evaluate\("),
        ("variable", "did you mean variables"),
        ("zzz", "it has model"),
    ):
        with pytest.raises(AttributeError, match=part):
            getattr(loaded(), name)
    assert not hasattr(loaded(), "__array__")


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: zoo.features(loaded(), "digits", splits=[]), "splits is empty"),
        (lambda: zoo.explain(loaded(), []), "empty list"),
        (lambda: zoo.explain(loaded(), IMAGES[0], target=7.5), "target 7.5"),
        (lambda: zoo.report(loaded(), (IMAGES, LABELS), "page.pdf"), "must end in .html"),
        (lambda: zoo.init(loaded().model, 2**70), "init: key="),
        (lambda: zoo.init(loaded().model, np.zeros(5)), "jax.random.key(0)"),
        (lambda: zoo.fit("lenet5", "digits", image_size=(32, 32)), "image_size=(32, 32)"),
        (lambda: zoo.load("lenet5"), "is a model without weights"),
        (lambda: zoo.load("lenet5-mnist", nonfinite=True), "leave out nonfinite"),
        (lambda: loaded().predict(""), "names no image file"),
        (lambda: loaded().predict("."), "is a folder"),
        (lambda: zoo.evaluate(loaded(), (IMAGES, np.eye(3)[LABELS % 3])), "one-hot rows of 3 for 10 classes"),
        (lambda: zoo.evaluate(loaded(), (IMAGES, ["cat"] * 8)), "0, 1, 2, 3, 4 and 5 more"),
        (lambda: zoo.fit("lenet5", (IMAGES, None)), "not None"),
        (lambda: zoo.fit("lenet5", ([IMAGES[0], IMAGES[0, :4]], [0, 1])), "shapes (28, 28), (4, 28)"),
        (lambda: zoo.fit("lenet5", "digits", lr=1, epoch=1), "epoch (did you mean epochs?), lr (did you mean learn"),
        (lambda: zoo.fit("lenet5", (IMAGES, (label for label in LABELS))), "not a generator"),
        (lambda: zoo.fit("lenet5", (["a.png"] * 8, LABELS)), "give a folder or a table"),
        (lambda: zoo.fit("lenet5", (IMAGES, LABELS, IMAGES, LABELS)), "zoo.from_arrays("),
        (lambda: zoo.fit("lenet5", ((IMAGES, LABELS), (IMAGES[:4], LABELS[:4]))), "zoo.from_arrays("),
    ],
)  # fmt: skip
def test_wrong_values_are_answered_in_one_line(call, part):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    assert part in str(caught.value) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: zoo.evaluate("digits", "lenet5-mnist"), "zoo.evaluate('lenet5-mnist', 'digits')"),
        (lambda: zoo.evaluate("digits", loaded()), "zoo.evaluate(checkpoint, data)"),
        (lambda: zoo.evaluate((IMAGES, LABELS), loaded()), "zoo.evaluate(checkpoint, data)"),
        (lambda: zoo.features("digits", "lenet5-mnist"), "zoo.features('lenet5-mnist', 'digits')"),
        (lambda: zoo.report("digits", "lenet5-mnist"), "zoo.report('lenet5-mnist', 'digits')"),
        (lambda: zoo.explain("a.png", "lenet5-mnist"), "zoo.explain('lenet5-mnist', 'a.png')"),
        (lambda: zoo.explain(IMAGES[0], loaded()), "zoo.explain(checkpoint, image)"),
        (lambda: zoo.preprocess(loaded(), IMAGES[0]), "zoo.preprocess(image, card)"),
        (lambda: zoo.fit("digits", "lenet5"), "zoo.fit('lenet5', 'digits')"),
        (lambda: zoo.fit((IMAGES, LABELS), "lenet5"), "zoo.fit('lenet5', (images, labels))"),
        (lambda: zoo.fit("digits"), "zoo.fit('lenet5', 'digits')"),
        (lambda: zoo.fit(loaded(), "digits"), "zoo.fit(init=checkpoint, data='digits')"),
        (lambda: zoo.fit("lenet5-mnist", "digits"), "zoo.fit(init='lenet5-mnist', data='digits')"),
        (lambda: zoo.fit("lenet5", "lenet5-mnist"), "zoo.fit(init='lenet5-mnist', data=…)"),
        (lambda: zoo.fit("lenet5", "digits", "lenet5-mnist"), "zoo.fit(init='lenet5-mnist', data='digits')"),
        (lambda: zoo.fit("lenet5", loaded()), "init="),
        (lambda: zoo.fit("lenet5", "digits", loaded()), "init="),
        (lambda: zoo.fit(loaded().model, "digits"), "zoo.fit('lenet5', 'digits')"),
        (lambda: zoo.fit_head("lenet5-mnist"), "init='lenet5-mnist'"),
        (lambda: zoo.fit_head(loaded()), "init="),
    ],
)  # fmt: skip
def test_an_argument_in_the_place_of_another_is_answered_with_the_call(call, part):
    with pytest.raises(ValueError) as caught:
        call()
    assert part in str(caught.value) and "\n" not in str(caught.value), caught.value
