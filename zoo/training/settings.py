"""Settings from a command line: text values for fields of the recipe or the model."""

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from zoo import models
from zoo.suggest import did_you_mean
from zoo.training.recipe import Recipe, parse_field

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
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(current, tuple) and not isinstance(value, tuple):
        value = (value,)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if current is not None and value is not None and type(value) is not type(current):
        raise ValueError(f"{option} {text!r} is not of type {type(current).__name__}; try {current!r}")
    return value
