"""Import a weight file of another project: the card and variables of a checkpoint, checked in both directions."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo import models
from zoo.addresses import require_local
from zoo.checkpoint import FORMAT, Card, card_from_json
from zoo.data.dataset import placeholder_names, require_distinct_names
from zoo.data.imagenet import class_names
from zoo.data.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from zoo.download import HashMismatchError, check_digest
from zoo.pretrained.convert import convert
from zoo.pretrained.names import find
from zoo.pretrained.readers import Tensors, read_tensors
from zoo.pretrained.recognise import HEAD, SOURCES, Match, best_match, loaded_leaf, match_aux_heads, recognise
from zoo.pretrained.registry import CIFAR10, WEIGHTS, Weights
from zoo.text import escape, one_line
from zoo.trees import flatten

#: With so many numbered folders, sorting them as text (torchvision: 0, 1, 10, 2, …) differs from counting.
AMBIGUOUS_CLASS_COUNT = 11


class Imported(NamedTuple):
    """An imported weight file.

    Attributes:
        card: card of the checkpoint.
        variables: {"params": …, "batch_stats": …}, NumPy arrays.
        notes: assumptions and changes, one line each.
    """

    card: Card
    variables: dict
    notes: tuple[str, ...]


def import_file(
    file: str | Path,
    target: str | None = None,
    fields: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    *,
    preprocess: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> Imported:
    """Import a weight file of another project.

    Args:
        file: a file of safetensors, PyTorch or Keras; for sharded weights the index, a shard or their folder.
        target: a name in WEIGHTS, whose hash the file must have, or the name of a model. Without it the model is
            recognised from the tensors.
        fields: fields of the model to change. The number of classes is read from the file.
        classes: class names in the order of the outputs; by default those in the file.
        preprocess: fields of `Preprocess` to change, such as {"mean": (0, 0, 0), "std": (1, 1, 1)}.
        weights: name of the set of weights, if the file holds several, such as "state_dict_ema".

    Raises:
        FileNotFoundError: if there is no such file.
        HashMismatchError: if the file is not the one that its name or `target` says.
        ValueError: if the file is damaged or does not match; everything that does not match is listed.
    """
    require_local(file)
    file, fields = Path(file), dict(fields or {})
    options_given = bool(fields or classes or preprocess or weights)
    if target is not None and ":" in target:
        row = find(target)
        if not isinstance(row, Weights):
            raise ValueError(f"{target}: is a path; give the name of published weights or of a model")
        if options_given:
            raise ValueError(
                f"{target}: published weights have fixed fields, classes and preprocessing; name the model alone "
                f"({row.model}) to change them"
            )
        return import_published(file, row)
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such weight file")
    published = {row.file.rpartition("/")[2]: row for row in WEIGHTS.values() if row.digest}
    known = published.get(file.name)
    notes: tuple[str, ...] = ()
    if known and target in (None, known.model) and not options_given:
        try:
            return import_published(file, known)
        except HashMismatchError:
            if target is None:
                raise
            notes = (f"the file has the name of {known.name}, but another content",)
    tensors = read_tensors(file, weights)
    tensors = dataclasses.replace(tensors, notes=(*notes, *tensors.notes))
    try:
        return _import_own(file, tensors, target, fields, classes, dict(preprocess or {}))
    except ValueError as error:
        message = one_line(f"{tensors.problem}; {error}" if tensors.problem else error, 2000)
        name = escape(str(file))
        raise type(error)(message) if message.startswith(name) else ValueError(f"{name}: {message}") from None


def import_published(file: Path, row: Weights, downloaded: bool = False) -> Imported:
    """Import a file as a row of WEIGHTS.

    Args:
        file: the file.
        row: the row.
        downloaded: True if it was just downloaded and verified.

    Raises:
        HashMismatchError: if it is another file.
        ValueError: if it is damaged.
    """
    options = [f"{name}={value}" for name, value in row.fields.items()]
    try:
        sha256 = check_digest(file, row.digest)
    except HashMismatchError as error:
        raise HashMismatchError(
            f"{file}: is not the file of {row.name}: {error}; if it has weights of your own for that network, give the "
            f"model instead: --as {' --set '.join((row.model, *options))}"
        ) from None
    tensors = read_tensors(file)
    notes = tensors.notes
    if not row.digest and not downloaded:
        notes = (*notes, f"only the hub knows the hash of {row.name}, so the file was not verified")
    model = models.create(row.model, **row.fields)
    arrays = tensors.arrays
    if arrays and all(key.startswith("module.") for key in arrays):  # saved from DataParallel
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    if getattr(model, "aux_heads", False):  # timm does not say which files have them
        changes: list[str] = []
        key_map = SOURCES[row.source].key_map(model, models.abstract_variables(model))
        arrays = dict(arrays)
        model, _ = match_aux_heads(row.source, model, key_map, arrays, frozenset(), changes)
        notes = (*notes, *changes)
    variables = _convert(file, model, row.source, arrays, row.preprocess)
    card = dataclasses.replace(card_of(row, sha256), fields=models.card_fields(row.model, model))
    if notes:
        card = dataclasses.replace(card, source="; ".join((card.source, *notes)))
    return Imported(card, variables, notes)


def card_of(row: Weights, sha256: str = "") -> Card:
    """Return the card of a row of WEIGHTS.

    Args:
        row: the row.
        sha256: hash of the file that was read, or "".
    """
    top1, top5 = row.accuracy
    split = "test split" if row.data == "CIFAR-10" else "validation split"
    metrics: dict[str, Any] = {}
    if top1 is not None:
        metrics["published"] = {"data": f"{row.data}, {split}, single crop", "accuracy": top1 / 100}
    if top5 is not None:
        metrics["published"]["top5"] = top5 / 100
    model = models.create(row.model, **row.fields)
    return Card(
        model=row.model, fields=models.card_fields(row.model, model), classes=row.classes,
        preprocess=row.preprocess, metrics=metrics, licence=row.licence, versions=_versions(),
        source=f"{row.name}, {row.file}" + (f", sha256 {sha256}" if sha256 else ""),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    from zoo.training.run import versions

    return versions()


# --- files of the user ------------------------------------------------------------------------------------------


def _import_own(
    file: Path, tensors: Tensors, name: str | None, fields: dict[str, Any], classes: Sequence[str] | None,
    changes: dict[str, Any],
) -> Imported:  # fmt: skip
    """Import a file that is not published; errors need not name the file."""
    notes = list(tensors.notes)
    stated = _stated_card(tensors)
    if name is None and stated:
        name, fields = stated.model, {**stated.fields, **fields}
        notes.append(f"the model is that of the file's card: {name}")
    if name is None:
        architecture, similar = recognise(tensors)
        if architecture is None:
            if not similar:
                first = ", ".join(list(tensors.arrays)[:3])
                raise ValueError(
                    f"its tensors are those of no model here (first: {first}); `zoo list` lists the models"
                )
            raise ValueError(
                f"no model has exactly its tensors; most similar: {similar}; name the model and its fields: --as MODEL "
                "--set FIELD=VALUE"
            )
        name, fields = architecture.name, {**architecture.fields, **fields}
        notes.append(f"recognised {' '.join([name, *(f'{k}={v}' for k, v in architecture.fields.items())])}")
    match = best_match(models.create(name, **fields), tensors, frozenset(fields))
    _require_match(match, tensors, name)
    model = match.model
    notes += [f"the tensors have the names of {match.source}", *match.notes]
    preprocess = _preprocess(name, model, match, tensors, stated, changes, notes)
    class_names_ = _classes(match.source, model.num_classes or 0, tensors, stated, classes, notes)
    variables = _convert(file, model, match.source, match.arrays, preprocess)
    digests = ", ".join(check_digest(part, "") for part in tensors.files)
    model_fields = models.card_fields(name, model)
    calibration = None
    if stated and (stated.model, stated.preprocess) == (name, preprocess):
        # It was fitted to the exported network on these pixels; the fields in the file are JSON, which has no tuples.
        calibration = stated.calibration if json.loads(json.dumps(model_fields)) == stated.fields else None
    card = Card(
        model=name, fields=model_fields, classes=class_names_, preprocess=preprocess,
        licence=stated.licence if stated else "", versions=_versions(),
        calibration=calibration,
        source=f"{file.name}, sha256 {digests}; {'; '.join(notes)}",
    )  # fmt: skip
    return Imported(card, variables, tuple(notes))


def _stated_card(tensors: Tensors) -> Card | None:
    """Return the card in a file that this project exported, checked as that of a checkpoint is; None without one.

    Raises:
        ValueError: naming the field that is wrong.
    """
    stated = tensors.metadata.card
    if not stated:
        return None
    optional: dict[str, Any] = {
        "recipe": None,
        "data": None,
        "metrics": {},
        "versions": {},
        "licence": "",
        "source": "",
        "command": "",
    }
    return card_from_json({"format": FORMAT, **optional, **stated, "leaves": []}, "its card", len(tensors.arrays))


def _require_match(match: Match, tensors: Tensors, name: str) -> None:
    """Raise ValueError if the file is of another model, has no head, or has layers that the model does not have."""
    if match.coverage < 0.5:
        architecture, similar = recognise(tensors)
        names = architecture.name if architecture else similar
        hint = f"they are those of {names}" if names else f"its first are {', '.join(list(tensors.arrays)[:3])}"
        raise ValueError(
            f"is not a file of {name}: it has {100 * match.coverage:.0f} % of the tensors of {match.source}'s network; "
            f"{hint}"
        )
    if match.problem:
        raise ValueError(f"{match.problem}; to import the network without its head, add --set num_classes=none")
    if match.headless:
        raise ValueError(
            f"has no head: {', '.join(_head_keys(match))} are missing; to import the network without one, for features "
            "and fine-tuning, add --set num_classes=none"
        )


def _head_keys(match: Match) -> list[str]:
    return [str(entry) for path, (entry, _) in match.key_map.items() if path.startswith(HEAD)]


def _convert(file: Path, model: Any, source: str, arrays: Mapping[str, np.ndarray], preprocess: Preprocess) -> dict:
    """Convert arrays to variables; the error is one line that names the file."""
    abstract = models.abstract_variables(model, preprocess.input_shape)
    module = SOURCES[source]
    try:
        return convert(module.key_map(model, abstract), arrays, abstract, module.IGNORED)
    except ValueError as error:
        first, *lines = str(error).splitlines()
        problems = "; ".join(line.strip() for line in lines).replace(":; ", ": ")
        raise ValueError(f"{file}: {first}{': ' if lines else ''}{problems}") from None


def _channels(model: Any, match: Match) -> int:
    """Return the number of image channels that the first convolution in the file reads."""
    leaves = flatten(models.abstract_variables(model))
    first = [path for path, leaf in leaves.items() if leaf.ndim == 4 and leaf.shape[2] == model.input_shape[2]]
    kernels = [loaded_leaf(match.key_map, path, match.arrays) for path in first]
    return 1 if any(kernel is not None and kernel.shape[2] == 1 for kernel in kernels) else 3


def _preprocess(
    name: str, model: Any, match: Match, tensors: Tensors, stated_card: Card | None, changes: dict[str, Any],
    notes: list[str],
) -> Preprocess:  # fmt: skip
    """Return the preprocessing: of the file's card or the published weights, with what the file and the user state."""
    metadata = tensors.metadata
    if stated_card:
        base = stated_card.preprocess
        notes.append("class names and preprocessing are those of the file's card")
    else:
        base, assumption = _assumed_preprocess(match.source, name, model, _channels(model, match))
        for problem, needed in metadata.preprocess_problems.items():
            if not set(needed) <= set(changes):
                raise ValueError(problem)
        stated = {**metadata.preprocess, **match.preprocess}
        notes += metadata.preprocess_notes
        given = {"mean", "std"} & set(changes)  # those of the file may be out of range
        base = _changed(base, {key: value for key, value in stated.items() if key not in given})
        if not {"size", "resize", "mean", "std"} <= {*stated, *changes}:
            notes.append(f"{assumption}; change it with --mean, --std, --size, --resize")
    preprocess = _changed(base, changes)
    if preprocess != base:
        shown = ", ".join(f"{field} {getattr(preprocess, field)}" for field in changes)
        notes.append(f"preprocessing as given: {shown}")
    return preprocess


def _changed(base: Preprocess, changes: Mapping[str, Any]) -> Preprocess:
    """Return a preprocessing with changed fields; without `resize` its ratio to `size` stays."""
    values = dict(changes)
    if "size" in values and "resize" not in values:
        values["resize"] = tuple(
            round(side * before / old) for side, before, old in zip(values["size"], base.resize, base.size, strict=True)
        )
    if values.get("channels", base.channels) != base.channels and "BGR" in (values.get("channels"), base.channels):
        for field in ("mean", "std"):  # per channel, in the order of the channels
            if field not in values and len(getattr(base, field)) == 3:
                values[field] = getattr(base, field)[::-1]
    count = len(values.get("channels", base.channels))
    for field in ("mean", "std"):
        numbers = tuple(values.get(field, ()))
        if len(numbers) in (1, 3) and all(number == numbers[0] for number in numbers):  # the same for every channel
            values[field] = numbers[:1] * count
    return dataclasses.replace(base, **values)


def _assumed_preprocess(source: str, name: str, model: Any, channels: int) -> tuple[Preprocess, str]:
    """Return that of the source's published weights for this model, else the model's size and ImageNet's statistics."""
    for row in WEIGHTS.values():
        if row.source == source and row.model == name and channels == row.preprocess.num_channels:
            return row.preprocess, f"the preprocessing is assumed to be that of {row.name}"
    height, width, _ = model.input_shape
    resize = (height * 8 // 7, width * 8 // 7) if height >= 96 else (height, width)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    preprocess = Preprocess(
        size=(height, width), resize=resize, channels="RGB" if channels == 3 else "L", mean=mean, std=std
    )
    return preprocess, f"the preprocessing is assumed: {height}x{width}, mean {mean}, std {std}"


def _classes(
    source: str, count: int, tensors: Tensors, stated_card: Card | None, given: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    """Return the class names: given by the user, stated in the file, or assumed."""
    if given is not None:
        if len(given) != count:
            raise ValueError(f"{len(given)} class names for {count} outputs")
        return tuple(given)
    metadata = tensors.metadata
    if stated_card and len(stated_card.classes) == count:
        return stated_card.classes
    for entry, names in metadata.classes.items():
        if len(names) == count:
            require_distinct_names(names, entry)
            notes.append(
                f"the class names are those under {entry!r}: {', '.join(names[:3])}{', …' if count > 3 else ''}"
            )
            return names
    for entry, names in metadata.classes.items():
        notes.append(f"{entry!r} has {len(names)} class names for {count} outputs; not used")
    if count == 1000 and source != "akamaster":
        notes.append("the 1,000 classes are assumed to be ImageNet's")
        return class_names()
    if count == 10 and source == "akamaster":
        notes.append("the 10 classes are assumed to be CIFAR-10's")
        return CIFAR10
    if count:
        note = "the file does not name its classes; name them with --classes FILE (one per line) or the training folder"
        if count >= AMBIGUOUS_CLASS_COUNT:
            note += "; numbered folders are ambiguous: torchvision sorts them as text (0, 1, 10, 11, 2, …)"
        notes.append(note)
    return placeholder_names(count)
