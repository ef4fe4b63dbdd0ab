"""The Python interface: fit, evaluate, load and save."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from zoo import checkpoint, models
from zoo.analysis.report import page_writer
from zoo.arguments import check_types, suggest_argument
from zoo.checkpoint import Card
from zoo.data.dataset import Dataset, all_splits, limited, with_classes
from zoo.data.images.measure import as_trained
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import at_size
from zoo.data.sources import from_arrays, names_data, open_dataset
from zoo.data.sources.arrays import evaluation_split
from zoo.data.sources.names import canonical_split
from zoo.distributed.mesh import parse_parallelism
from zoo.distributed.processes import require_joined
from zoo.inference import evaluate as evaluation
from zoo.inference.evidence import describe_trained_on
from zoo.inference.metrics import Metrics
from zoo.inference.predict import Checkpoint, require_head
from zoo.loading import is_checkpoint, open_checkpoint, open_init
from zoo.training import cross_validation, loop, run
from zoo.training.cross_validation import CrossValidation
from zoo.training.plan import make_plan
from zoo.training.recipe import Recipe, check_type, parse_field
from zoo.training.request import TrainRequest
from zoo.training.settings import RECIPE_FIELDS, in_terms_of_arguments, naming_arguments, say_arguments
from zoo.training.trackers import parse_trackers
from zoo.trees import match_leaves


@check_types()
def save(
    path: str | Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    allow_nonfinite: bool = False,
    **metadata: Any,
) -> Card:
    """Write a checkpoint folder that `load` and every command read.

    Args:
        path: the folder; an existing checkpoint is replaced.
        model: a network made by `create`.
        variables: {"params": …, "batch_stats": …}.
        classes: one name per output.
        preprocess: how an image becomes the network's input.
        allow_nonfinite: accept variables that hold NaN or infinity.
        **metadata: further fields of the Card.

    Returns:
        The card.

    Raises:
        ValueError: if classes or variables do not match the model, or variables are not finite.

    Example:
        >>> model = zoo.create("lenet5", num_classes=2)
        >>> preprocess = Preprocess(size=(32, 32), resize=(32, 32), channels="L")
        >>> zoo.save("cats-and-dogs", model, zoo.init(model, 0), ("cat", "dog"), preprocess)
    """
    classes = tuple(str(name) for name in classes)
    if len(classes) != (model.num_classes or 0):
        raise ValueError(f"{len(classes)} class names for a model with {model.num_classes or 0} classes")
    variables = match_leaves(variables, models.abstract_variables(model, preprocess.input_shape), "variables")
    name = models.name_of(model)
    card = Card(
        model=name, fields=models.card_fields(name, model), classes=classes, preprocess=preprocess,
        versions=run.versions(), **metadata,
    )  # fmt: skip
    return checkpoint.save_checkpoint(path, card, variables, allow_nonfinite)


@check_types("model", "quiet")
@naming_arguments
def fit(
    model: str | None = None,
    data: str | Path | Dataset | tuple | None = None,
    recipe: Recipe | str | None = None,
    *,
    init: str | Path | Checkpoint | None = None,
    fields: dict[str, Any] | None = None,
    workdir: str | Path | None = None,
    data_dir: str | Path | None = None,
    limit: int = 0,
    parallel: str = "jit",
    mesh: str = "",
    device_data: str = "auto",
    quiet: bool = False,
    workers: int | None = None,
    log: str | Sequence[str] = (),
    **changes: Any,
) -> Checkpoint:
    """Train a model, as `zoo train` does. An unfinished run of the same configuration is resumed.

    Args:
        model: name in MODELS; None for that of `init`.
        data: a name or folder that `open_dataset` takes, a Dataset, or arrays (images, labels), from which validation
            and test splits are held out; digits by default if a model is named.
        recipe: a Recipe, a name in RECIPES, or None for the default.
        init: checkpoint to fine-tune: a Checkpoint, or a folder or name that `load` takes. Model, fields, image size
            and normalisation are the checkpoint's. Heads are replaced where classes differ; rows of classes with equal
            names are kept.
        fields: fields of the model to change.
        workdir: folder of the run; by default one under runs/.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of records per split; 0 for all.
        parallel: "jit" or "pmap".
        mesh: "data=4,model=2", "fsdp=8", …; by default all devices along "data".
        device_data: "on" keeps the training images on the devices, "off" transfers each batch; "auto" keeps them where
            they fit, except on CPUs. It affects speed only.
        quiet: print nothing.
        workers: threads that read data which is not kept in memory; they affect speed only.
        log: experiment trackers that get the run as well: "wandb", "mlflow" or a list of both.
        **changes: fields of the recipe to change; micro_batch="auto" uses the largest that fits into memory.

    Returns:
        The best checkpoint, with `history` (the rows of metrics.jsonl) and `workdir`.

    Raises:
        ValueError: naming an argument or field and valid values.

    Example:
        >>> zoo.fit("lenet5", "digits", epochs=5, learning_rate=1e-3)
        >>> zoo.fit(init="runs/…/best", data="photos/")
    """
    request = _train_request(
        "fit", model, data, recipe, init=init, fields=fields, workdir=workdir, data_dir=data_dir, limit=limit,
        parallel=parallel, mesh=mesh, device_data=device_data, changes=changes,
    )  # fmt: skip
    trackers = parse_trackers(log, "fit: log")
    return loop.fit(
        make_plan(request, say_arguments(quiet)), quiet=quiet, workers=workers, write_page=page_writer(), log=trackers,
        rephrase=in_terms_of_arguments,
    )  # fmt: skip


@check_types("model", "folds", "quiet")
@naming_arguments
def cross_validate(
    model: str | None = None,
    data: str | Path | Dataset | tuple | None = None,
    recipe: Recipe | str | None = None,
    *,
    folds: int = 5,
    group: str | None = None,
    quiet: bool = False,
    workers: int | None = None,
    log: str | Sequence[str] = (),
    **arguments: Any,
) -> CrossValidation:
    """Train once per fold, as `zoo train --folds` does, so that every image is tested once.

    The splits of the data are pooled and divided into folds, stratified by class. Identical images, and images of one
    group, stay together. Each run holds its validation split out of its training images and is resumed if unfinished.

    Args:
        model: as in `fit`.
        data: as in `fit`.
        recipe: as in `fit`.
        folds: number of folds, at least 2.
        group: column of the table whose images stay together; "none" for no column. By default a column with a usual
            name, such as patient or subject.
        quiet: print nothing.
        workers: threads that read data which is not kept in memory.
        log: as in `fit`; each fold is a run, in a group with the others.
        **arguments: further arguments of `fit`; `workdir` is the folder of all runs.

    Returns:
        The accuracies of the folds, with mean and standard deviation, and the metrics over all images.

    Raises:
        ValueError: as `fit`, and for too few images or groups.

    Example:
        >>> result = zoo.cross_validate("lenet5", "photos/", folds=5, epochs=10)
        >>> result.mean, result.std, result.metrics.accuracy_interval
    """
    count = cross_validation.require_folds(folds, "cross_validate: folds")
    names = [name for name in inspect.signature(_train_request).parameters if name not in ("function", "changes")]
    known = {name: arguments.pop(name) for name in names if name in arguments}
    request = _train_request("cross_validate", model, data, recipe, **known, changes=arguments)
    trackers = parse_trackers(log, "cross_validate: log")
    fit_plan = partial(
        loop.fit, quiet=quiet, workers=workers, write_page=page_writer(), log=trackers, rephrase=in_terms_of_arguments
    )
    return cross_validation.cross_validate(request, count, group, fit_plan, say_arguments(quiet))


def _train_request(
    function: str,
    model: str | None,
    data: str | Path | Dataset | tuple | None,
    recipe: Recipe | str | None,
    *,
    init: str | Path | Checkpoint | None = None,
    fields: dict[str, Any] | None = None,
    workdir: str | Path | None = None,
    data_dir: str | Path | None = None,
    limit: int = 0,
    parallel: str = "jit",
    mesh: str = "",
    device_data: str = "auto",
    changes: dict[str, Any],
) -> TrainRequest:
    """Build the request of `fit` or `cross_validate`, whose name begins error messages."""
    require_joined()
    if unknown := sorted(set(changes).difference(RECIPE_FIELDS)):
        names = [*RECIPE_FIELDS, *inspect.signature(fit).parameters]
        names += ["folds", "group"] if function == "cross_validate" else []
        hints = {each: suggest_argument(each, names) for each in unknown}
        for each in unknown:
            if model in models.MODELS and each in models.defining_fields(models.create(model)):
                hints[each] = f"it is a field of {model}: write fields={{{each!r}: {changes[each]!r}}}"
        listed = ", ".join(f"{each} ({hints[each]})" if hints[each] and unknown[1:] else each for each in unknown)
        nouns = "are neither arguments nor fields" if unknown[1:] else "is neither an argument nor a field"
        hint = "" if unknown[1:] else hints[unknown[0]]
        raise ValueError(f"{function}: {listed} {nouns} of Recipe; {hint or 'see `zoo.Recipe`'}")
    _require_order(function, model, data, recipe, init)
    if isinstance(data, tuple):
        data = from_arrays(data)
    changes = {name: _recipe_value(function, name, value) for name, value in changes.items()}
    return TrainRequest(
        model=model,
        data=str(data) if isinstance(data, Path) else data,
        recipe=recipe,
        init=None if init is None else open_init(init, model),
        fields=fields or {},
        changes=changes,
        data_dir=None if data_dir is None else os.fspath(data_dir),
        limit=limit,
        parallelism=parse_parallelism(parallel, mesh),
        device_data=device_data,
        workdir=workdir,
    )


def _recipe_value(function: str, name: str, value: Any) -> Any:
    """Return the value of a field of the recipe, parsed if it is text; lists become tuples.

    Raises:
        ValueError: naming the field, for a value of another type.
    """
    if isinstance(value, str):
        return value if value == "auto" else parse_field(name, value, f"{function}: {name}")
    value = value.item() if isinstance(value, np.generic) else tuple(value) if isinstance(value, list) else value
    check_type(name, value)
    return value


def _require_order(function: str, model: Any, data: Any, recipe: Any, init: Any) -> None:
    """Raise ValueError for a model, data or a checkpoint in each other's place, and without a model or data."""
    call, arrays = f"zoo.{function}", _shown(data, "(images, labels)")
    fine_tune = f"to fine-tune it write {call}(init={{}}, data={{}})"
    known = model is None or (isinstance(model, str) and model in models.MODELS)
    if not known and is_checkpoint(model):
        problem = f"{function}: {_shown(model, 'a Checkpoint')} is not the name of a model"
        raise ValueError(f"{problem}; {fine_tune.format(_shown(model, 'checkpoint'), arrays)}")
    if not known and isinstance(data, str) and data in models.MODELS:
        raise ValueError(f"{function}: the model comes first: {call}({data!r}, {_shown(model, '(images, labels)')})")
    if not known and data is None and names_data(model):
        raise ValueError(f"{function}: {model!r} is data; name a model first: {call}('lenet5', {model!r})")
    if model is not None and not isinstance(model, str):
        name = models.name_of(model) if isinstance(model, nn.Module) else "lenet5"
        raise ValueError(
            f"{function}: model has type {type(model).__name__}; it takes the name of a model; write "
            f"{call}({name!r}, {arrays})"
        )
    for name, value in (("data", data), ("recipe", recipe)):
        if isinstance(value, (str, Path, Checkpoint)) and is_checkpoint(value) and not names_data(value):
            rest = "…" if name == "data" else arrays
            problem = f"{function}: {_shown(value, 'a Checkpoint')} is not {'data' if name == 'data' else 'a recipe'}"
            raise ValueError(f"{problem}; {fine_tune.format(_shown(value, 'checkpoint'), rest)}")
    if model is None and init is None:
        raise ValueError(f'{function}: name a model, e.g. {call}("lenet5", data), or a checkpoint with init=')
    if data is None and init is not None:
        raise ValueError(f'{function}: name the data to fine-tune on, e.g. data="photos/"')


def _shown(value: Any, otherwise: str) -> str:
    """Return a name or path as Python writes it, and `otherwise` for other values."""
    return repr(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else otherwise


@check_types("tta")
def evaluate(
    checkpoint: Checkpoint | str | Path,
    data: str | Path | Dataset | tuple,
    split: str = "test",
    *,
    data_dir: str | Path | None = None,
    limit: int = 0,
    batch_size: int = evaluation.BATCH_SIZE,
    on_batch: Callable[[int], Any] | None = None,
    tta: str = "",
    image_size: int = 0,
    per_example: bool = False,
) -> Metrics:
    """Evaluate a checkpoint on a whole split, counting each example once.

    Args:
        checkpoint: a Checkpoint, or a folder or name that `load` takes.
        data: a Dataset, a name or folder that `open_dataset` takes, or arrays (images, labels), which are the test
            split. Their labels are class names, or positions in the checkpoint's classes.
        split: "train", "validation", "test", or "all" for all of them together.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of records per split; 0 for all.
        batch_size: images per batch; it does not change the result.
        on_batch: called with the number of images done.
        tta: test-time augmentation, a name in VIEWS, whose probabilities are averaged.
        image_size: side of the input in pixels; 0 for the checkpoint's own.
        per_example: also return the prediction for each image, as `result.per_example`.

    Returns:
        The metrics over the split; `result.accuracy` and `result["accuracy"]` are the same.

    Raises:
        ValueError: if the data has no such split, or a class that the model does not have.

    Example:
        >>> zoo.evaluate("lenet5-mnist", "mnist").accuracy
        >>> examples = zoo.evaluate("lenet5-mnist", "mnist", per_example=True).per_example
        >>> worst = examples[examples.mistakes()[0]]  # (file, truth, prediction, probability, loss, split)
    """
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size is {batch_size}; it must be at least 1")
    loaded = open_checkpoint(checkpoint, "evaluate", data)
    require_head(loaded.card)
    if isinstance(data, tuple):
        dataset = evaluation_split(data, loaded.card.classes, loaded.card.preprocess.white)
    else:
        dataset = data if isinstance(data, Dataset) else open_dataset(data, data_dir)
    if limit:
        dataset = limited(dataset, limit)
    dataset = as_trained(with_classes(dataset, loaded.card.classes), loaded.card.preprocess)
    split = canonical_split(split) or split
    if split != "all" and split not in dataset.splits:
        raise ValueError(f"{dataset.name}: no split {split!r}; choose from {', '.join(dataset.splits)}, all")
    records = all_splits(dataset) if split == "all" else dataset.splits[split]
    preprocess = at_size(loaded.card.preprocess, image_size) if image_size else loaded.card.preprocess
    result = evaluation.evaluate(
        loaded.model, loaded.variables, records, preprocess, loaded.card.classes,
        batch_size=batch_size, on_batch=on_batch, tta=tta, parallelism=parse_parallelism(), per_example=per_example,
        calibration=loaded.card.calibration,
    )  # fmt: skip
    if line := describe_trained_on(loaded.card, dataset, split, records):
        result = dataclasses.replace(result, notes=(*result.notes, line))
    if not per_example or result.per_example is None:
        return result
    parts = dataset.splits.items() if split == "all" else [(split, records)]
    splits = tuple(name for name, part in parts for _ in range(len(part)))
    return dataclasses.replace(result, per_example=dataclasses.replace(result.per_example, splits=splits))
