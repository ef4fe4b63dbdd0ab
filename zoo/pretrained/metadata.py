"""Read the class names and the preprocessing that a weight file states beside its tensors."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Names of entries that hold class names or their order, without case, "_" and "-". The most explicit ones first.
CLASS_KEYS = (
    "classtoidx", "classtoindex", "class2idx", "class2index", "class2id", "labeltoidx", "labeltoindex", "label2idx",
    "label2index", "label2id", "idxtoclass", "indextoclass", "idx2class", "index2class", "id2class", "idxtolabel",
    "indextolabel", "idx2label", "index2label", "id2label", "classes", "classnames", "classlist", "labels",
    "labelnames", "names", "categories", "targetnames",
)  # fmt: skip
#: Entries that are searched for them: options and hyper-parameters of a training.
OPTION_KEYS = ("hyper_parameters", "hparams", "args", "config", "cfg", "meta", "metadata", "info", "opt", "options")


@dataclass(frozen=True)
class Metadata:
    """Facts that a weight file states beside its tensors.

    Attributes:
        classes: class names in the order of the outputs, by the entry that they were read from.
        preprocess: fields of `Preprocess` that the file states.
        preprocess_notes: how they were read, one line each.
        preprocess_problems: what the file states in a way that is not understood, one line each, with the fields of
            `Preprocess` that must be given then.
        card: the card of an exported checkpoint, as JSON; empty for files of other projects.
    """

    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    preprocess_notes: tuple[str, ...] = ()
    preprocess_problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)


def read_metadata(tree: Any) -> Metadata:
    """Return what the content of a PyTorch file, or the metadata of a safetensors file, states."""
    if not isinstance(tree, Mapping):
        return Metadata()
    parsed = {key: _parsed(value) for key, value in tree.items() if isinstance(key, str)}
    card = parsed.get("card")
    if isinstance(card, Mapping) and {"model", "fields", "classes", "preprocess"} <= set(card):
        return Metadata(card=dict(card))
    found: dict[str, tuple[str, ...]] = {}
    options = [(key, parsed[key]) for key in OPTION_KEYS if isinstance(parsed.get(key), Mapping)]
    for prefix, node in [("", parsed), *((f"{key}.", value) for key, value in options)]:
        entries = {re.sub("[_-]", "", key).lower(): key for key in node if isinstance(key, str)}
        for normalised in CLASS_KEYS:
            key = entries.get(normalised)
            names = class_order(_parsed(node[key])) if key is not None else ()
            if names:
                found[f"{prefix}{key}"] = names
    return Metadata(classes=found)


def _parsed(value: Any) -> Any:
    """Return the value of a JSON text; anything else unchanged."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def class_order(value: Any) -> tuple[str, ...]:
    """Return class names in the order of the outputs; () if the value is no list of distinct names.

    Args:
        value: a list of names, a mapping from names to indices, or a mapping from indices to names.
    """
    if isinstance(value, Mapping):
        pairs = list(value.items())
        if all(type(index) is int for _, index in pairs) and all(isinstance(name, (str, int)) for name, _ in pairs):
            pairs = [(index, name) for name, index in pairs]
        try:
            names = {int(index): name for index, name in pairs}
        except (TypeError, ValueError):
            return ()
        if sorted(names) != list(range(len(pairs))):
            return ()
        value = [names[index] for index in range(len(names))]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return ()
    if not value or any(not isinstance(name, (str, int)) or isinstance(name, bool) for name in value):
        return ()
    texts = tuple(str(name).strip() for name in value)
    return texts if len(set(texts)) == len(texts) and all(texts) else ()
