"""Settings from a command line: text values for fields of the recipe or the model."""

import ast
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import flax.linen as nn

from zoo import models
from zoo.suggest import did_you_mean
from zoo.text import is_finite
from zoo.training.recipe import Recipe, choices_of, parse_field

P = ParamSpec("P")
T = TypeVar("T")

RECIPE_FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))


class Setting(NamedTuple):
    """A field and its value as text.

    Attributes:
        option: the option as the user wrote it, for error messages: "--learning-rate", "--set dropout".
        name: "field", "recipe.field" or "model.field".
        text: the value.
    """

    option: str
    name: str
    text: str


def parse_assignment(text: str) -> Setting:
    """Parse the "field=value" of `--set`."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set {text}: write it as field=value")
    return Setting(f"--set {name.strip()}", name.strip(), value)


def apply_settings(settings: Sequence[Setting], model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse settings into (fields of the recipe, fields of the model).

    Args:
        settings: later ones override earlier ones.
        model: the model whose fields they may change.

    Raises:
        ValueError: for an unknown field or a value of the wrong type.
    """
    recipe_fields: dict[str, Any] = {}
    model_fields: dict[str, Any] = {}
    known = models.defining_fields(model)
    for setting in settings:
        owner, field = _find_owner(setting, known)
        if owner == "model":
            model_fields[field] = parse_model_field(setting.option, setting.text, known[field])
        elif field == "micro_batch" and setting.text == "auto":
            recipe_fields[field] = "auto"
        else:
            recipe_fields[field] = parse_field(field, setting.text, setting.option)
    return recipe_fields, model_fields


def in_terms_of_options(message: str, settings: Sequence[Setting]) -> str:
    """Return a message about fields of the recipe with the options that set them: "--learning-rate -1: must be …"."""
    for setting in settings:
        field = setting.name.removeprefix("recipe.")
        if field not in RECIPE_FIELDS:
            continue
        option = f"{setting.option}={setting.text}" if setting.option.startswith("--set") else ""
        option = option or f"{setting.option} {setting.text}"
        plain = option.replace("\\", r"\\")  # in a replacement a backslash is doubled
        message, count = re.subn(rf"^recipe field {field}=.*?: ", f"{plain}: ", message)
        if not count:
            message = re.sub(rf"(?<![\w.=]){field}=[^\s;,)]+", plain, message)
    return message


#: Arguments of zoo.fit and zoo.cross_validate that are options of `zoo train` as well, beside the fields of the recipe.
_ARGUMENTS = (
    "model", "data", "recipe", "init", "workdir", "data_dir", "limit", "parallel", "mesh", "device_data", "workers",
    "log", "folds", "group",
)  # fmt: skip
#: Words for options that are other functions, or arguments, in Python.
_PHRASES = {
    "Add --folds 5 to": "Use zoo.cross_validate to", "add --folds, or": "use zoo.cross_validate, or",
    "repeat the command without --folds": "use zoo.fit", "without --quick": "with zoo.fit",
    "another option or --workdir": "another argument or workdir",
}  # fmt: skip
_CHOICES = ("jit", "pmap", "auto", "on", "off", "none")
#: Commands, which stay as they are, and options with the word after them.
_OPTION = re.compile(r"`[^`]*`|\bzoo [a-z-]+ [^;,)]*|(?<![\w./-])--([a-z][a-z-]*)(?:[ =]('[^']*'|[^\s;,()]+))?")


def in_terms_of_arguments(message: str) -> str:
    """Return a message with arguments of zoo.fit for options of `zoo train`: "micro_batch=8" for "--micro-batch 8"."""

    def argument(match: re.Match[str]) -> str:
        name, value = (match[1] or "").replace("-", "_"), match[2] or ""
        if name == "set" and value:
            name, _, value = value.partition("=")
            end = value[len(value.rstrip(".:")) :]
            return f"{name}{f'={_literal(value.removesuffix(end))}' if value else ''}{end}"
        if name not in (*_ARGUMENTS, *RECIPE_FIELDS):
            return match[0]
        end = value[len(value.rstrip(".:")) :]
        value = value.removesuffix(end)
        separator = match[0][2 + len(match[1])] if match[2] else ""
        choices = {*_CHOICES, *models.MODELS, *(choices_of(name) if name in RECIPE_FIELDS else ())} - {""}
        is_value = separator == "=" or value in choices or (not match.start() and ":" in end)
        if is_value or re.search(r"[\d'/=…]|^[A-Z_]+$", value):
            return f"{name}={_literal(value)}{end}"
        return f"{name}{separator}{value}{end}"

    for words, others in _PHRASES.items():
        message = message.replace(words, others)
    return _OPTION.sub(argument, message)


def _literal(value: str) -> str:
    """Return a value of a command line as Python writes it; placeholders such as FOLDER stay as they are."""
    if re.fullmatch(r"-?[\d.]+(e-?\d+)?|'.*'|[A-Z_]+|True|False|…", value):
        return value
    return {"true": "True", "false": "False"}.get(value, f'"{value}"')


def say_arguments(quiet: bool = False) -> Callable[[str], None]:
    """Return a function that prints lines in terms of arguments; with `quiet` it prints nothing."""
    return lambda line: None if quiet else print(in_terms_of_arguments(line), flush=True)


def naming_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function such that its errors name arguments of Python in place of options of the command line."""

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return function(*arguments, **options)
        except Exception as error:  # raised itself: types differ in arguments
            error.args = tuple(in_terms_of_arguments(part) if isinstance(part, str) else part for part in error.args)
            raise

    return call


def _find_owner(setting: Setting, model_fields: Mapping[str, Any]) -> tuple[str, str]:
    """Return ("recipe" | "model", field) of a setting."""
    if setting.name == "image_size":  # the recipe's size also sets the model's
        return "recipe", setting.name
    owners: dict[str, Sequence[str]] = {"recipe": RECIPE_FIELDS, "model": list(model_fields)}
    prefix, dot, field = setting.name.partition(".")
    if not dot:
        prefix, field = next((owner for owner, names in owners.items() if setting.name in names), ""), setting.name
    if field not in owners.get(prefix, ()):
        names = [*RECIPE_FIELDS, *model_fields]
        hint = did_you_mean(field, names) or f"fields: {', '.join(names)}"
        raise ValueError(f"{setting.option}: no such field of the recipe or the model; {hint}")
    return prefix, field


def parse_model_field(option: str, text: str, current: Any) -> Any:
    """Parse the value of a model's field; its type is that of the current value.

    Raises:
        ValueError: naming `option`, for a value of another type.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all of what literal_eval raises
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(current, tuple) and not isinstance(value, tuple):
        value = (value,)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool) and is_finite(value):
        value = float(value)
    if current is not None and value is not None and type(value) is not type(current):
        raise ValueError(f"{option} {text!r} is not of type {type(current).__name__}; try {current!r}")
    return value
