"""Match the tensors of a weight file to a model: wrapper prefixes, replaced heads, auxiliary heads, architecture."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from zoo import models
from zoo.models import MODELS
from zoo.pretrained import akamaster, keras, own, timm, torchvision
from zoo.pretrained.convert import FieldMismatchError, KeyMap, source_keys
from zoo.pretrained.readers import AVERAGED, Tensors
from zoo.pretrained.registry import WEIGHTS
from zoo.pretrained.residual import RESIDUAL, block_counts, differences, observed_form
from zoo.trees import flatten

#: The key maps by source.
SOURCES: dict[str, ModuleType] = {
    "torchvision": torchvision, "timm": timm, "keras": keras, "akamaster": akamaster, "zoo": own,
}  # fmt: skip
#: The sources that may have written a file, by the naming convention of its keys.
NAMINGS = {"torch": ("torchvision", "timm", "akamaster"), "keras": ("keras",), "zoo": ("zoo",)}

#: Top-level modules of a training wrapper that are not part of the network.
BESIDE_NETWORK = re.compile(
    r"(?i)crit|loss|metric|acc(uracy)?$|auroc|f1|conf_?mat|class_?weight|pos_weight|(^|_)ce($|_)|augment"
)
#: Buffers with the normalisation of the input; not the running averages of a norm.
NORMALISATION = re.compile(r"(?i)^((?:.*[._])?(?:pixel_|img_|image_)?)(?<!running_)(mean|std)$")
#: True for the residual networks among MODELS.
RESIDUAL_NAMES = {name: isinstance(build(), RESIDUAL) for name, build in MODELS.items()}
AUX_LEAF = re.compile(r"(?:params|batch_stats)/aux\d/.*")
HEAD = "params/head/"


@dataclass(frozen=True)
class Match:
    """The tensors of a file matched to a model.

    Attributes:
        source: key of SOURCES.
        model: the model, with the number of classes and the auxiliary heads of the file.
        arrays: arrays under the keys of the source; keys that do not belong to the model are still there.
        key_map: the key map of the model.
        notes: what was removed, renamed or changed, one line each.
        coverage: fraction of the source's keys that the file has.
        preprocess: mean and std that the file has as buffers.
        headless: True if the file has the network without its head.
        problem: why the tensors cannot be this model; "" if nothing speaks against it.
    """

    source: str
    model: Any
    arrays: dict[str, np.ndarray]
    key_map: KeyMap
    notes: tuple[str, ...] = ()
    coverage: float = 0.0
    preprocess: dict[str, tuple[float, ...]] = field(default_factory=dict)
    headless: bool = False
    problem: str = ""


def match_source(source: str, model: Any, tensors: Tensors, explicit: frozenset[str] = frozenset()) -> Match:
    """Match tensors to a model under the names of one source.

    Args:
        source: key of SOURCES.
        model: the model.
        tensors: content of the file.
        explicit: fields of the model that the caller set; they are not changed.

    Raises:
        ValueError: if the source does not have the model in this form.
    """
    notes: list[str] = []
    model, key_map = _source_model(source, model, explicit, notes)
    prefix, copies = find_prefixes(key_map, tensors.arrays) if tensors.naming == "torch" else ("", [])
    arrays = {key: array for key, array in tensors.arrays.items() if key.rpartition(".")[2] != "n_averaged"}
    inside = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    outside = {
        key: array for key, array in arrays.items()
        if not key.startswith(prefix) and not any(copy and key.startswith(copy) for copy in copies)
    }  # fmt: skip
    if prefix:
        notes.append(f"removed the prefix {prefix!r} from the names of the tensors")
    if copies:
        shown = ", ".join(copy.rstrip(".") or "no prefix" for copy in copies[:3])
        notes.append(f"the file also holds the network under {shown}; select with --weights")
        inside = {
            key: array for key, array in inside.items() if not any(f"{prefix}{key}".startswith(copy) for copy in copies)
        }
    if getattr(model, "aux_heads", False) and model.num_classes is not None:
        model, key_map = match_aux_heads(source, model, key_map, inside, explicit, notes)
    wanted = all_keys(key_map)
    for key in [key for key in inside if key not in wanted and BESIDE_NETWORK.search(key.partition(".")[0])]:
        outside[key] = inside.pop(key)
    preprocess = _take_normalisation(inside, outside, wanted, notes)
    features = flatten(models.abstract_variables(model)).get(f"{HEAD}kernel")
    headless, problem = False, ""
    if features is not None and tensors.naming != "zoo":
        headless, problem = _match_head(key_map, inside, outside, wanted, features.shape[0], notes)
    head = loaded_leaf(key_map, f"{HEAD}kernel", inside)
    if head is not None and "num_classes" not in explicit and head.ndim:
        model = model.clone(num_classes=head.shape[-1])
    if model.num_classes is None and "num_classes" in explicit:
        _drop_head(source, model, inside, outside, notes)
    problem = problem or _leftover_problem(outside, None if features is None else features.shape[0], notes)
    body = all_keys({path: entry for path, entry in key_map.items() if not path.startswith(HEAD)})
    # A network that is nothing but a head, such as softmax regression, has no other tensors.
    coverage = len(body & set(inside)) / len(body) if body else float(all_keys(key_map) == set(inside))
    return Match(source, model, inside, key_map, tuple(notes), coverage, preprocess, headless, problem)


def _source_model(source: str, model: Any, explicit: frozenset[str], notes: list[str]) -> tuple[Any, KeyMap]:
    """Return the model and its key map; for Keras with the fields that its network of this kind always has."""
    abstract = models.abstract_variables(model)
    try:
        return model, SOURCES[source].key_map(model, abstract)
    except FieldMismatchError as error:
        changed = {name: value for name, value in error.fields.items() if getattr(model, name) != value}
        if source != "keras" or explicit & set(changed):
            raise
        model = model.clone(**changed)
        notes.append(f"keras's network has {', '.join(f'{name}={value}' for name, value in changed.items())}")
        return model, SOURCES[source].key_map(model, models.abstract_variables(model))


def all_keys(key_map: KeyMap) -> set[str]:
    """Return every source key of a key map."""
    return {key for entry, _ in key_map.values() for key in source_keys(entry)}


def find_prefixes(key_map: KeyMap, arrays: Mapping[str, np.ndarray]) -> tuple[str, list[str]]:
    """Find the prefix that wrappers put before the keys of the network, such as "model.net.".

    It is the prefix under which most keys of the key map are found; among equals, not that of averaged weights.

    Returns:
        (the prefix, the prefixes of further copies of the network, such as an average of its weights).
    """
    wanted = all_keys(key_map)
    counts: Counter[str] = Counter()
    for key in arrays:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    if not counts:
        return "", []
    best = max(counts, key=lambda prefix: (counts[prefix], not AVERAGED.search(prefix), -len(prefix)))
    copies = [prefix for prefix, count in counts.items() if prefix not in ("", best) and 2 * count > counts[best]]
    return best, copies


def match_aux_heads(
    source: str, model: Any, key_map: KeyMap, inside: dict, explicit: frozenset[str], notes: list[str]
) -> tuple[Any, KeyMap]:
    """Leave out the auxiliary heads if the file does not have them, or has them for other classes than the head."""
    aux = all_keys({path: entry for path, entry in key_map.items() if AUX_LEAF.fullmatch(path)})
    present = aux & set(inside)
    head = loaded_leaf(key_map, f"{HEAD}kernel", inside)
    others = [loaded_leaf(key_map, path, inside) for path in key_map if re.fullmatch(r"params/aux\d/head/kernel", path)]
    differs = head is not None and any(o is not None and o.shape[-1] != head.shape[-1] for o in others)
    if (present and not differs) or "aux_heads" in explicit:
        return model, key_map
    for key in [key for key in inside if key in aux]:
        del inside[key]
    reason = "its auxiliary heads have other classes than its head" if present else "the file has no auxiliary heads"
    notes.append(f"{reason}; they matter in training only: --set aux_heads=false")
    model = model.clone(aux_heads=False)
    return model, SOURCES[source].key_map(model, models.abstract_variables(model))


def _match_head(
    key_map: KeyMap, inside: dict, outside: dict, wanted: set[str], features: int, notes: list[str]
) -> tuple[bool, str]:
    """Find a head under another name, as transfer learning leaves it, and rename it.

    Returns:
        (True if the file has no head, why its head cannot be used).
    """
    (kernel_key, transform), (bias_key, _) = key_map[f"{HEAD}kernel"], key_map[f"{HEAD}bias"]
    assert isinstance(kernel_key, str) and isinstance(bias_key, str)
    if kernel_key in inside:
        if bias_key not in inside:
            inside[bias_key] = np.zeros(transform.load(inside[kernel_key]).shape[-1], np.float32)
            notes.append(f"the head has no bias; {bias_key} is set to zero")
        return False, ""
    separator = "/" if "/" in kernel_key else "."
    dense = [
        (group, key)
        for group in (inside, outside)
        for key, array in group.items()
        if key not in wanted and re.search(r"(^|[./])(weight|kernel)$", key) and _is_dense(array)
        and not BESIDE_NETWORK.search(key.split(separator)[0])
    ]  # fmt: skip
    if not dense:
        return True, ""
    shown = ", ".join(f"{key} {group[key].shape}" for group, key in dense[:4])
    if len(dense) > 1:
        return False, f"its head has {len(dense)} dense layers ({shown}); only a head of one layer can be imported"
    ((group, key),) = dense
    kernel, stem = group.pop(key), key.rpartition(separator)[0]
    inputs, outputs = kernel.shape[:2] if separator == "/" else kernel.shape[1::-1]
    if inputs != features:
        return False, f"its head {shown} has {inputs} inputs; the network has {features} features"
    bias = group.pop(f"{stem}{separator}bias", None)
    inside[kernel_key] = _like_source(kernel, transform)
    inside[bias_key] = np.zeros(outputs, np.float32) if bias is None else bias
    notes.append(f"the head is {stem!r}" + ("" if bias is not None else ", which has no bias"))
    parent = stem.rpartition(separator)[0]
    if others := [name for name in outside if parent and name.startswith(f"{parent}{separator}")]:
        return False, f"its head has other layers than {stem}: {', '.join(others[:3])}"
    return False, ""


def _drop_head(source: str, model: Any, inside: dict, outside: dict, notes: list[str]) -> None:
    """Leave out the head of a file, and layers beside the network, for a model that is to have no head."""
    with_head = model.clone(num_classes=10)  # any number; the published LeNet-5 has ten only
    key_map = SOURCES[source].key_map(with_head, models.abstract_variables(with_head))
    body = all_keys(SOURCES[source].key_map(model, models.abstract_variables(model)))
    head = all_keys(key_map) - body
    modules = {key.split("/" if source == "keras" else ".")[0] for key in head}
    dropped = []
    for key in [key for key in inside if key not in body]:
        if key in head or re.split(r"[./]", key)[0] in modules or (source == "keras" and _is_dense(inside[key])):
            dropped.append(key)
            del inside[key]
    for key in [key for key in outside if not BESIDE_NETWORK.search(key.partition(".")[0])]:
        dropped.append(key)
        del outside[key]
    if dropped:
        notes.append(f"the head is left out: {', '.join(dropped[:4])}{', …' if len(dropped) > 4 else ''}")


def _is_dense(array: np.ndarray) -> bool:
    return array.ndim == 2 or (array.ndim == 4 and array.shape[2:] == (1, 1))


def _like_source(kernel: np.ndarray, transform: Any) -> np.ndarray:
    """Return a head's kernel with the number of axes that the key map expects (timm has heads of 1x1 convolutions)."""
    if transform.name == "conv as dense" and kernel.ndim == 2:
        return kernel[:, :, None, None]
    return kernel.reshape(kernel.shape[:2]) if transform.name == "dense" and kernel.ndim == 4 else kernel


def _take_normalisation(inside: dict, outside: dict, wanted: set[str], notes: list[str]) -> dict:
    """Take the buffers `mean` and `std` of a network that normalises its own input; returns them as numbers.

    One without the other, and a second pair with other numbers, are noted and not read.
    """
    values: dict[str, tuple[float, ...]] = {}
    for group in (inside, outside):
        pairs: dict[str, dict[str, str]] = {}  # what precedes "mean" and "std" -> their keys
        for key, array in group.items():
            match = NORMALISATION.fullmatch(key)
            if match and key not in wanted and array.size in (1, 3) and array.dtype.kind == "f":
                pairs.setdefault(match[1], {})[match[2].lower()] = key
        for keys in pairs.values():
            numbers = {name: tuple(float(x) for x in group[key].reshape(-1)) for name, key in keys.items()}
            if set(keys) == {"mean", "std"} and values in ({}, numbers):
                if not values:
                    notes.append(f"the normalisation is that of the buffers {keys['mean']} and {keys['std']}")
                values = numbers
            elif group is inside:  # where it would be taken for a part of the network
                names = " and ".join(keys.values())
                notes.append(f"not read: {names}, which give no normalisation; check it, or give --mean and --std")
            else:
                continue
            for key in keys.values():
                del group[key]
    if values and max(values["std"]) > 2:  # of pixels in 0..255
        return {name: tuple(x / 255 for x in numbers) for name, numbers in values.items()}
    return values


def _leftover_problem(outside: dict, features: int | None, notes: list[str]) -> str:
    """Note the tensors beside the network, such as the weights of a loss; return why they cannot be ignored, or ""."""
    norms = {key.rpartition(".")[0] for key in outside if key.endswith("running_mean")}
    layers = [
        f"{key} {array.shape}" for key, array in outside.items()
        if not BESIDE_NETWORK.search(key.partition(".")[0])
        and (array.ndim >= 2 or key.rpartition(".")[0] in norms or (array.ndim == 1 and array.size == features))
    ]  # fmt: skip
    if layers:
        return f"it has layers beside the network: {', '.join(layers[:3])}"
    if outside:
        more = ", …" if len(outside) > 5 else ""
        notes.append(f"not part of the network, not read: {', '.join(list(outside)[:5])}{more}")
    return ""


def loaded_leaf(key_map: KeyMap, path: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the array of one leaf with its axes as in the model; None if it is missing or made of several tensors."""
    entry, transform = key_map.get(path, ((), None))
    if transform is None or not isinstance(entry, str) or entry not in arrays:
        return None
    try:
        return transform.load(arrays[entry])
    except ValueError:
        return None


def best_match(model: Any, tensors: Tensors, explicit: frozenset[str] = frozenset()) -> Match:
    """Return the match under the source of whose keys the file has most.

    Raises:
        ValueError: if no source has the model in this form.
    """
    matches, reasons = [], []
    for source in NAMINGS[tensors.naming]:
        try:
            matches.append(match_source(source, model, tensors, explicit))
        except ValueError as error:
            reasons.append(str(error))
    if not matches:
        raise ValueError(f"no key map can read it as this model: {'; '.join(reasons)}")
    return max(matches, key=lambda match: match.coverage)


# --- architecture -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A model that has exactly the tensors of a file."""

    name: str
    fields: dict[str, Any]
    match: Match


def recognise(tensors: Tensors) -> tuple[Architecture | None, str]:
    """Find the model that has exactly the tensors of a file, apart from the head.

    Returns:
        (the architecture, or None; the names of the most similar models, "" if there are none).
    """
    similar: list[tuple[float, str]] = []
    for name, fields in _candidates(tensors):
        model = models.create(name, **fields)
        for source in NAMINGS[tensors.naming]:
            if type(model) not in SOURCES[source].MAPS:
                continue
            try:
                match = match_source(source, model, tensors, frozenset(fields))
            except ValueError:
                continue
            if match.coverage == 1 and _same_shapes(match, strict=not match.problem):
                return Architecture(name, fields, match), ""
            if match.coverage > 0.5:
                similar.append((match.coverage, name))
    names = dict.fromkeys(name for _, name in sorted(similar, key=lambda pair: -pair[0]))
    return None, ", ".join(list(names)[:3])


#: Models of another form that are tried as well, to name similar ones; tracing a model takes a second.
SIMILAR_CANDIDATES = 4


def _candidates(tensors: Tensors) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, fields) of the models that the tensors may be, without tracing any of them.

    Residual networks come in the order of likeness; most of those that differ in form are left out.
    """
    blocks, form = block_counts(tensors.arrays), observed_form(tensors.arrays)
    rows = [(weights.model, weights.fields) for weights in WEIGHTS.values() if weights.source == "keras"]
    if tensors.naming != "keras":
        rows = [(name, {}) for name in MODELS if not name.endswith("_small")]
        rows += [(weights.model, weights.fields) for weights in WEIGHTS.values() if weights.source != "keras"]
        if blocks:
            rows += [(name, {**fields, "blocks": blocks}) for name, fields in rows]
    sources = NAMINGS[tensors.naming]
    seen, ordered = set(), []
    for name, fields in rows:
        is_residual = RESIDUAL_NAMES[name]
        if is_residual != bool(blocks):
            continue
        model = models.create(name, **fields).clone(num_classes=1)
        if model in seen or not any(type(model) in SOURCES[source].MAPS for source in sources):
            continue
        seen.add(model)
        if is_residual and tuple(model.blocks) != blocks:
            continue
        fields = {key: value for key, value in fields.items() if key != "num_classes"}
        ordered.append((differences(model, form) if form else 0, name, fields))
    ordered.sort(key=lambda row: row[0])
    like = [row for row in ordered if row[0] == 0]
    for _, name, fields in like + ordered[len(like) :][:SIMILAR_CANDIDATES]:
        yield name, fields


def _same_shapes(match: Match, strict: bool = True) -> bool:
    """Return True if every leaf but those of the heads and the image channels has the shape of the model's."""
    if strict and set(match.arrays) - all_keys(match.key_map) - _ignored(match):
        return False
    for path, leaf in flatten(models.abstract_variables(match.model.clone(num_classes=None))).items():
        entry, transform = match.key_map[path]
        keys = source_keys(entry)
        if not keys:
            continue
        # Without their values: strides of 0 cost no memory.
        blank = [np.broadcast_to(np.float32(0), np.shape(match.arrays[key])) for key in keys]
        try:
            shape = transform.load(*blank).shape
        except ValueError:
            return False
        is_input = leaf.ndim == 4 and leaf.shape[2] == match.model.input_shape[2] and len(shape) == 4
        if shape != leaf.shape and not (is_input and (*shape[:2], shape[3]) == (*leaf.shape[:2], leaf.shape[3])):
            return False
    return True


def _ignored(match: Match) -> set[str]:
    patterns = SOURCES[match.source].IGNORED
    return {key for key in match.arrays if any(re.fullmatch(pattern, key) for pattern in patterns)}
