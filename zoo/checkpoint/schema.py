"""Checks of parsed JSON from a checkpoint, before any value is used.

A card may come from a stranger: types, ranges, sizes and depth are checked here, so that no other module meets a value
that it does not expect. Hashes prove only that a file is as it was written.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.checkpoint.calibration import is_calibration
from zoo.text import is_finite, one_line

#: Limits of a card. Real ones stay far below: ImageNet-21k has 21,843 classes, ResNet-1202 has 7,000 leaves.
MAX_DEPTH = 32
MAX_TEXT = 10_000
MAX_CLASSES = 1_000_000
MAX_LEAVES = 1_000_000
MAX_FIELD = 2**31 - 1
MAX_VALUES = 2**40

#: Results of a split that are read as numbers.
RESULTS = ("accuracy", "loss", "top5", "examples")

#: Fields of models that count layers. Each layer has a leaf of its own, so a card has at least as many leaves.
LAYER_COUNTS = ("blocks", "depth", "layers", "widths")


def parse_json(raw: bytes, where: str) -> Any:
    """Parse UTF-8 JSON of bounded depth.

    Raises:
        ValueError: naming `where`, if it is not JSON, nested too deeply or holds an integer beyond every float.
    """
    try:
        text = raw.decode("utf-8")
        if _depth(text) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        return json.loads(text, parse_int=_bounded_int)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not valid JSON ({one_line(error, 200)})") from None


def _bounded_int(digits: str) -> int:
    """Parse an integer that a float can hold: larger ones would end every calculation with an OverflowError."""
    number = int(digits)
    if not is_finite(number):
        raise ValueError(f"holds an integer of {len(digits)} digits")
    return number


def _depth(text: str) -> int:
    """Return the depth of nesting of JSON text, without parsing it."""
    depth = deepest = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
        if (token := match[0]) in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in "]}":
            depth -= 1
    return deepest


def to_plain_json(value: Any, where: str) -> Any:
    """Convert metadata to plain JSON values: scalar arrays to numbers, tuples to lists, NaN and infinity to None.

    Raises:
        ValueError: naming `where` and the type, for a value that has no place in JSON.
    """
    if isinstance(value, Mapping):
        return {str(key): to_plain_json(part, where) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain_json(part, where) for part in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if getattr(value, "ndim", None) == 0:
        value = np.asarray(value).item()
    if isinstance(value, (int, float)):
        return value if is_finite(value) else None
    raise ValueError(
        f"{where}: a {type(value).__name__} cannot be written as JSON; use numbers, texts, lists and tables"
    )


def is_integer(value: Any, low: int = 0, high: int = MAX_FIELD) -> bool:
    """Return True for an int, not a bool, in [low, high]."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_text(value: Any) -> bool:
    """Return True for a text of bounded length that UTF-8 can hold."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and _encodes(value)


def _encodes(text: str) -> bool:
    """Return True for text that UTF-8 can hold: JSON can smuggle in half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_field(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 1000 and not any(isinstance(part, list) for part in value) and all(map(_is_field, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool) or is_integer(value, -MAX_FIELD) or is_text(value)


def is_fields(value: Any) -> bool:
    """Return True for the fields of a model: a table of numbers, words, null, and lists of them."""
    return isinstance(value, dict) and all(map(is_text, value)) and all(map(_is_field, value.values()))


def _is_classes(value: Any) -> bool:
    valid = isinstance(value, list) and len(value) <= MAX_CLASSES and all(map(is_text, value))
    return valid and len(set(value)) == len(value)


def _is_leaf(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and set(row) == {"path", "shape", "dtype", "sha256"}
        and is_text(row["path"])
        and isinstance(row["shape"], list)
        and len(row["shape"]) <= MAX_DEPTH
        and all(is_integer(side, 0, MAX_VALUES) for side in row["shape"])
        and math.prod(row["shape"]) <= MAX_VALUES
        and is_text(row["dtype"])
        and isinstance(row["sha256"], str)
        and re.fullmatch("[0-9a-f]{64}", row["sha256"]) is not None
    )


def _is_leaves(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_LEAVES and all(map(_is_leaf, value))


def is_record(value: Any) -> bool:
    """Return True for a table whose keys are texts."""
    return isinstance(value, dict) and all(map(is_text, value))


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value)) and all(map(is_text, value.values()))


def _is_optional_record(value: Any) -> bool:
    return value is None or is_record(value)


def _is_data(value: Any) -> bool:
    return value is None or (is_record(value) and (value.get("source") is None or is_text(value["source"])))


def is_metrics(value: Any) -> bool:
    """Return True for a table in which the results of a split are tables with numbers for RESULTS."""
    if not is_record(value):
        return False
    results = [value[name] for name in ("validation", "test", "published") if value.get(name) is not None]
    return all(is_record(result) and all(_is_number(result.get(key)) for key in RESULTS) for result in results)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, float) or is_integer(value, -MAX_VALUES, MAX_VALUES)


_CARD: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "model": (is_text, "a name"),
    "fields": (is_fields, "a table of numbers, words and lists of them"),
    "classes": (_is_classes, "a list of different names"),
    "preprocess": (is_record, "a table"),
    "recipe": (_is_optional_record, "a table or null"),
    "data": (_is_data, "a table or null, with a text as source"),
    "metrics": (is_metrics, "a table of results, with numbers as accuracy, loss and examples"),
    "versions": (_is_texts, "a table of texts"),
    "licence": (is_text, "a text"),
    "source": (is_text, "a text"),
    "command": (is_text, "a text"),
    "leaves": (_is_leaves, "a table of path, shape, dtype, sha256"),
}


def check_card(card: Mapping[str, Any], where: str, num_leaves: int | None = None) -> None:
    """Check the types, ranges and sizes of a card's fields, and that they agree with each other.

    Args:
        card: the fields of a card.
        where: the file, for errors.
        num_leaves: number of leaves; by default that of the card's table.

    Raises:
        ValueError: naming `where` and the first field that is wrong.
    """
    for name, (is_valid, expected) in _CARD.items():
        if not is_valid(card[name]):
            raise ValueError(f"{where}: {name!r} is not {expected}")
    if not is_calibration(card.get("calibration")):
        raise ValueError(f"{where}: 'calibration' is not a table of a temperature, losses and a threshold in range")
    outputs = card["fields"].get("num_classes", len(card["classes"]))
    if (outputs or 0) != len(card["classes"]):
        raise ValueError(f"{where}: {len(card['classes'])} class names for a model with {outputs or 0} classes")
    num_leaves = len(card["leaves"]) if num_leaves is None else num_leaves
    for name in set(LAYER_COUNTS) & set(card["fields"]):
        value = card["fields"][name]
        counts = value if isinstance(value, list) else [value]
        valid = all(is_integer(count) for count in counts)
        layers = len(counts) if name == "widths" else sum(counts) if valid else 0
        if not valid or layers > max(num_leaves, 1):
            shown = one_line(value, 80)
            raise ValueError(f"{where}: {name}={shown} does not fit the {num_leaves} leaves of the card")


def check_files(files: Any) -> bool:
    """Return True if `files` maps relative paths inside the checkpoint to their "bytes" and "sha256"."""
    return isinstance(files, dict) and all(
        is_text(name)
        and name
        and not name.startswith("/")
        and ".." not in name.split("/")
        and "\\" not in name
        and "\0" not in name
        and isinstance(row, dict)
        and set(row) == {"bytes", "sha256"}
        and is_integer(row["bytes"], 0, 2**63)
        and isinstance(row["sha256"], str)
        for name, row in files.items()
    )
