"""Weights by name: whatever `zoo.load`, `--init` and the commands are given, as (card, variables).

A folder is one of our checkpoints; a bare name is one that the project ships; "torchvision:resnet50" and the other
names of WEIGHTS are fetched, converted once and kept in the user's cache as a checkpoint; a weight file needs the model
that it is for, unless it is the file of a known set. Nothing is ever dropped or made up on the way.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from zoo import checkpoint, models
from zoo.cache import cache_folder
from zoo.checkpoint import Card, CorruptCheckpointError
from zoo.data.imagenet import class_names
from zoo.data.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from zoo.pretrained import akamaster, keras, timm, torchvision
from zoo.pretrained.convert import KeyMap, convert
from zoo.pretrained.download import HashMismatchError, check_digest, fetch
from zoo.pretrained.readers import Tensors, read_tensors
from zoo.pretrained.registry import CIFAR10, DEFAULTS, WEIGHTS, Weights
from zoo.trees import flatten

_PACKAGE = Path(__file__).resolve().parents[1]

#: The key maps, by the first word of a name; and which of them may have written a file without saying so.
SOURCES: dict[str, ModuleType] = {"torchvision": torchvision, "timm": timm, "keras": keras, "akamaster": akamaster}
NAMINGS = {"torch": ("torchvision", "timm", "akamaster"), "keras": ("keras",)}
#: What wrappers (DataParallel, torch.compile, training modules) put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.")
AVERAGED = "n_averaged"  # how many states torch.optim.swa_utils took the mean of; beside the network's own names


class Imported(NamedTuple):
    """A weight file as a checkpoint to be, and what was decided on the way, a line each."""

    card: Card
    variables: dict
    notes: tuple[str, ...]


# --- names ------------------------------------------------------------------------------------------------------


def shipped_folder() -> Path:
    """Where the project's own checkpoints are: beside the package in a copy of the repository, else inside of it."""
    inside = _PACKAGE / "_checkpoints"
    return inside if inside.is_dir() else _PACKAGE.parent / "checkpoints"


def shipped() -> list[str]:
    """The names of the checkpoints that the project ships, sorted."""
    return sorted(card.parent.name for card in shipped_folder().glob(f"*/{checkpoint.CARD}"))


def find(spec: str | Path) -> Path | Weights:
    """What a name means: a path (of a checkpoint's folder or of a weight file), or a set of WEIGHTS.

    A path that exists comes first. Raises FileNotFoundError with the nearest names.
    """
    path = Path(spec).expanduser()
    if path.exists() or isinstance(spec, Path):
        return path
    if spec in shipped():
        return shipped_folder() / spec
    if (name := DEFAULTS.get(spec, spec)) in WEIGHTS:
        return WEIGHTS[name]
    source, colon, network = spec.partition(":")
    known: list[str] = [*shipped(), *DEFAULTS, *WEIGHTS]
    if colon and source in SOURCES:
        known = [name for name in (*DEFAULTS, *WEIGHTS) if name.startswith(f"{source}:")]
        if tags := [name for name in WEIGHTS if name.startswith(f"{source}:{network.partition('.')[0]}.")]:
            known = tags  # the network is right, the tag is not
        what = f"{source} has no weights of that name here"
    elif os.sep in spec or spec.startswith("."):
        raise FileNotFoundError(f"{spec}: there is no such checkpoint folder or weight file")
    else:
        what = "there is no such checkpoint folder or weight file, and none is shipped or known by that name"
    begun = [name for name in known if name.startswith(spec)]
    near = (begun or difflib.get_close_matches(spec, known, n=3, cutoff=0.5))[:3] if spec else []
    hint = f"did you mean {' or '.join(near)}?" if near else "`zoo list --weights` shows them all"
    raise FileNotFoundError(f"{spec}: {what}; {hint}")


def cached_folder(weights: Weights) -> Path:
    """Where a set is kept once it is converted: another place for another format or another row of the table."""
    row = hashlib.sha256(repr(weights).encode()).hexdigest()[:8]
    return cache_folder() / "weights" / f"{weights.name.replace(':', '-')}-{checkpoint.FORMAT}-{row}"


def folder_of(spec: str | Path) -> Path:
    """The folder of a checkpoint that is on this machine. FileNotFoundError for one that is not, or not yet."""
    found = find(spec)
    if isinstance(found, Weights):
        if not cached_folder(found).exists():
            raise FileNotFoundError(f"{found.name}: was not fetched yet; zoo.load or any command that uses it does")
        return cached_folder(found)
    if found.is_file():
        raise ValueError(f"{found}: is a file; a checkpoint is a folder (zoo import makes one of a weight file)")
    return found


def find_set(card: Card) -> Weights | None:
    """The known set that a card is of, if it is of one."""
    return WEIGHTS.get(card.source.partition(",")[0])


def open_weights(
    spec: str | Path,
    model: str | None = None,
    fields: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> tuple[Card, dict]:
    """(card, variables as NumPy arrays) of whatever names weights.

    Args:
        spec: the folder of a checkpoint, the name of a shipped one, a name of WEIGHTS, or a weight file.
        model: for a file of no known set, the model of MODELS that it is for.
        fields: fields of that model to change.
        allow_nonfinite: accept variables that hold NaN or infinity.

    Raises:
        FileNotFoundError: there is nothing of that name; the nearest ones are said.
        ConnectionError: it cannot be fetched; what to bring by hand is said.
        ValueError: it is damaged, or does not fit the model.
    """
    found = find(spec)
    if isinstance(found, Path) and found.is_file():
        imported = import_file(found, model, fields)
        return imported.card, imported.variables
    if model or fields:
        raise ValueError(f"{spec}: says itself what model it is; model and fields are for weight files alone")
    if isinstance(found, Path):
        return checkpoint.load_checkpoint(found, allow_nonfinite=allow_nonfinite)
    folder = cached_folder(found)
    with _locked(folder):
        if folder.exists():
            try:
                return checkpoint.load_checkpoint(folder)
            except (CorruptCheckpointError, FileNotFoundError):
                shutil.rmtree(folder)  # it can be made again
        file = fetch(found, folder.parent)
        try:
            imported = _import_known(file, found, fetched=True)
            keep(imported, folder)
        finally:
            file.unlink()
    return imported.card, imported.variables


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time, the others wait; nothing where the system has no such locks or the cache is read-only."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(folder.with_name(f"{folder.name}.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(imported: Imported, folder: Path) -> Card:
    """Write what was imported as a checkpoint; returns the card with its leaves."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return checkpoint.save_checkpoint(folder, imported.card, imported.variables)


def read_card(spec: str | Path) -> Card:
    """The card alone of what `open_weights` opens. Of a set that was never fetched it is what the table knows."""
    found = find(spec)
    if isinstance(found, Weights):
        folder = cached_folder(found)
        return checkpoint.read_card(folder) if folder.exists() else card_of(found)
    return import_file(found).card if found.is_file() else checkpoint.read_card(found)


def card_of(weights: Weights, sha256: str = "") -> Card:
    """The card of a known set; sha256 of the file it was read from, where there is one."""
    top1, top5 = weights.accuracy
    split = "test split" if weights.data == "CIFAR-10" else "validation split"
    published = {"data": f"{weights.data}, {split}, single crop", "accuracy": None if top1 is None else top1 / 100}
    if top5 is not None:
        published["top5"] = top5 / 100
    return Card(
        model=weights.model, fields=models.defining_fields(models.create(weights.model, **weights.fields)),
        classes=weights.classes, preprocess=weights.preprocess, metrics={"published": published},
        licence=weights.licence, versions=_versions(),
        source=f"{weights.name}, {weights.file}" + (f", sha256 {sha256}" if sha256 else ""),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    from zoo.training.run import versions

    return versions()


# --- files ------------------------------------------------------------------------------------------------------


def import_file(
    file: str | Path,
    target: str | None = None,
    fields: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Imported:
    """A weight file of another project as a checkpoint to be, checked both ways.

    Args:
        file: safetensors, PyTorch or Keras.
        target: a name of WEIGHTS, whose hash the file must then have; or the name of a model, where the file is of no
            known set, whatever it is called. Not needed for a file that has the name and the hash of a known set.
        fields: with a model, its fields to change; the number of classes is read from the file.
        classes: the classes' names, where the file is of no known set.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, another file than its name says, or it does not fit; all that does not fit is listed.
    """
    file, fields = Path(file), dict(fields or {})
    if target is not None and ":" in target:
        weights = find(target)
        if not isinstance(weights, Weights):
            raise ValueError(f"{target}: is a path; say which known set or which model the file is for")
        if fields or classes:
            raise ValueError(f"{target}: is known with its fields and classes; name the model alone to change them")
        return _import_known(file, weights)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such weight file")
    files = {weights.file.rpartition("/")[2]: weights for weights in WEIGHTS.values() if weights.digest}
    known = files.get(file.name)
    notes: tuple[str, ...] = ()
    if known and target in (None, known.model) and not fields and not classes:
        try:
            return _import_known(file, known)
        except HashMismatchError:
            if target is None:
                raise
            notes = (f"it is called as the file of {known.name} is, but is another one",)
    if target is None:
        raise ValueError(
            f"{file}: say which model it is for: first `zoo import {file} --as resnet50 -o FOLDER`, or `zoo train "
            f"--model resnet50 --init …`; in Python zoo.load(…, 'resnet50')"
        )
    tensors = read_tensors(file)
    counted = {key: array for key, array in tensors.arrays.items() if key != AVERAGED}
    tensors = tensors._replace(arrays=counted)
    return _import_unknown(file, tensors._replace(notes=(*notes, *tensors.notes)), target, fields, classes)


def _import_known(file: Path, weights: Weights, fetched: bool = False) -> Imported:
    """Import a file as a set of WEIGHTS. Raises HashMismatchError for another file. fetched: it was just downloaded."""
    fields = [f"{name}={value}" for name, value in weights.fields.items()]
    try:
        sha256 = check_digest(file, weights.digest)
    except HashMismatchError as error:
        raise HashMismatchError(
            f"{file}: is not the file of {weights.name}: {error}; if it is weights of your own for that network, "
            f"name the model alone: {' --set '.join((weights.model, *fields))}"
        ) from None
    tensors = read_tensors(file)
    if not weights.digest and not fetched:
        unchecked = f"the hub alone knows the hash of {weights.name}, so that this is its file was not checked"
        tensors = tensors._replace(notes=(*tensors.notes, unchecked))
    model = models.create(weights.model, **weights.fields)
    source = SOURCES[weights.source]
    arrays = tensors.arrays
    if arrays and all(key.startswith("module.") for key in arrays):  # saved from DataParallel
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    variables = _converted(file, model, source, arrays, _shape(weights.preprocess))
    card = card_of(weights, sha256)
    if tensors.notes:
        card = dataclasses.replace(card, source="; ".join((card.source, *tensors.notes)))
    return Imported(card, variables, tensors.notes)


def _import_unknown(
    file: Path, tensors: Tensors, name: str, fields: dict[str, Any], classes: Sequence[str] | None
) -> Imported:
    model = models.create(name, **fields)
    source, arrays, key_map = _recognised(file, model, tensors)
    notes = [*tensors.notes, f"the tensors have the names of {source}"]
    if len(arrays) and next(iter(arrays)) not in tensors.arrays:
        notes.append("what a wrapper had put before or taken from every name was undone")
    if "num_classes" not in fields:
        head = _loaded(key_map, "params/head/kernel", arrays)
        model = model.clone(num_classes=model.num_classes if head is None else head.shape[-1])
    preprocess, assumed = _assumed_preprocess(source, name, model, _channels(model, key_map, arrays))
    notes.append(assumed)
    if classes is None:
        classes, assumed = _assumed_classes(source, model.num_classes or 0)
        notes.append(assumed)
    elif len(classes) != (model.num_classes or 0):
        raise ValueError(f"{file}: {len(classes)} class names for {model.num_classes or 0} outputs")
    variables = _converted(file, model, SOURCES[source], arrays, _shape(preprocess))
    card = Card(
        model=name, fields=models.defining_fields(model), classes=tuple(classes), preprocess=preprocess,
        versions=_versions(), source=f"{file.name}, sha256 {check_digest(file, '')}; {'; '.join(notes)}",
    )  # fmt: skip
    return Imported(card, variables, tuple(notes))


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return preprocess.input_shape


def _converted(file: Path, model: Any, source: ModuleType, arrays: Mapping[str, np.ndarray], shape: tuple) -> dict:
    abstract = models.abstract_variables(model, shape)
    try:
        return convert(source.key_map(model, abstract), arrays, abstract, source.IGNORED)
    except ValueError as error:
        first, *lines = str(error).splitlines()
        problems = "; ".join(line.strip() for line in lines)
        raise ValueError(f"{file}: {first}{': ' if lines else ''}{problems}") from None


def _recognised(file: Path, model: Any, tensors: Tensors) -> tuple[str, dict[str, np.ndarray], KeyMap]:
    """(source, its arrays, its key map) of the source whose names the file has most of."""
    abstract = models.abstract_variables(model)
    best: tuple[float, str, dict[str, np.ndarray], KeyMap] = (-1.0, "", tensors.arrays, {})
    reasons: list[str] = []
    for source in NAMINGS[tensors.naming]:
        try:
            key_map = SOURCES[source].key_map(model, abstract)
        except ValueError as error:
            reasons.append(str(error))
            continue
        wanted = {key for entry, _ in key_map.values() for key in ((entry,) if isinstance(entry, str) else entry)}
        for arrays in _spellings(tensors.arrays):
            share = len(wanted & set(arrays)) / len(wanted)
            if share > best[0]:
                best = (share, source, arrays, key_map)
    share, source, arrays, key_map = best
    if not source:
        raise ValueError(f"{file}: no key map reads it as this model: {'; '.join(reasons)}")
    if share < 0.5:
        few = ", ".join(list(tensors.arrays)[:3])
        raise ValueError(
            f"{file}: is not of this model: only {100 * share:.0f} % of the tensors that {source}'s network has are in "
            f"it (its first: {few}, …)"
        )
    return source, arrays, key_map


def _spellings(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays by their keys, and by their keys without what wrappers put before all of them."""
    found = [arrays]
    for prefix in PREFIXES:
        if arrays and all(key.startswith(prefix) for key in arrays):
            found += _spellings({key.removeprefix(prefix): array for key, array in arrays.items()})
    return found


def _loaded(key_map: KeyMap, path: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The array for one leaf as it lies in ours; None where it is missing or made of several."""
    entry, layout = key_map.get(path, ((), None))
    if layout is None or not isinstance(entry, str) or entry not in arrays:
        return None
    try:
        return layout.load(arrays[entry])
    except ValueError:
        return None


def _channels(model: Any, key_map: KeyMap, arrays: Mapping[str, np.ndarray]) -> int:
    """Of the images: those of the convolution that reads them in the model, as the file has it."""
    wanted = flatten(models.abstract_variables(model))
    reads_images = [path for path, leaf in wanted.items() if leaf.ndim == 4 and leaf.shape[2] == model.input_shape[2]]
    kernels = [_loaded(key_map, path, arrays) for path in reads_images]
    return 1 if any(kernel is not None and kernel.shape[2] == 1 for kernel in kernels) else 3


def _assumed_preprocess(source: str, name: str, model: Any, channels: int) -> tuple[Preprocess, str]:
    """That of the source's own set for this model; else the model's size and ImageNet's normalisation."""
    for weights in WEIGHTS.values():
        if weights.source == source and weights.model == name and channels == weights.preprocess.num_channels:
            return weights.preprocess, f"the preprocessing is assumed to be that of {weights.name}"
    height, width, _ = model.input_shape
    resize = (height * 8 // 7, width * 8 // 7) if height >= 96 else (height, width)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    preprocess = Preprocess(
        size=(height, width), resize=resize, channels="RGB" if channels == 3 else "L", mean=mean, std=std
    )
    return preprocess, f"the preprocessing is assumed: {height}x{width}, mean {mean}, std {std}"


def _assumed_classes(source: str, count: int) -> tuple[tuple[str, ...], str]:
    if count == 1000 and source != "akamaster":
        return class_names(), "the 1,000 classes are assumed to be ImageNet's"
    if count == 10 and source == "akamaster":
        return CIFAR10, "the 10 classes are assumed to be CIFAR-10's"
    return tuple(f"class {i}" for i in range(count)), "the file does not name its classes; they are numbered"
