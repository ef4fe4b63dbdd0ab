"""A training run as a user requests it, and what the request alone decides: model, fields, recipe and data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo import models
from zoo.data.dataset import Dataset, limited
from zoo.data.folds import Fold
from zoo.data.inspect import advice
from zoo.data.sources import open_dataset
from zoo.data.splits import image_sizes
from zoo.distributed.mesh import Parallelism
from zoo.suggest import did_you_mean
from zoo.training import finetune
from zoo.training.finetune import InitCheckpoint
from zoo.training.recipe import Recipe
from zoo.training.recipes import RULES
from zoo.training.run import RunConfig
from zoo.training.settings import Setting, apply_settings, in_terms_of_options, parse_model_field

DEFAULT_DATA = "digits"

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TrainRequest:
    """A training run as a user requests it.

    Attributes:
        model: name in MODELS; None for that of `init`, of `base`, or the default.
        data: what `open_dataset` takes, or a Dataset; None for that of `base`, or the default.
        recipe: a Recipe, a name in RECIPES, or None for that of `base`, or the default for model and data.
        init: the checkpoint to start from.
        base: the configuration of an earlier run, which the other attributes change.
        fields: fields of the model to change.
        changes: fields of the recipe to change; "micro_batch" may be "auto".
        settings: fields of recipe or model to change, as text from a command line.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of records per split, 0 for all; None for that of `base`.
        parallelism: the devices and how they share the work; None for all devices along "data".
        device_data: when the training images stay on the devices: "auto", "on" or "off".
        workdir: folder of the run; None for one in `runs_folder`, named after the configuration.
        runs_folder: folder of the folders of runs without `workdir`.
        open_init: opens pretrained weights by name, for photographs without `model` and `init`.
        fold: train and test on one fold of a cross-validation; None for that of `base`, or for the splits of the data.
        head: "linear" to fit only a linear head to the frozen features of `init`, by default those of the pretrained
            weights that suit the images (`zoo.analysis.quick`).
    """

    model: str | None = None
    data: str | Path | Dataset | None = None
    recipe: Recipe | str | None = None
    init: InitCheckpoint | None = None
    base: RunConfig | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[Setting] = ()
    data_dir: str | None = None
    limit: int | None = None
    parallelism: Parallelism | None = None
    device_data: str = "auto"
    workdir: str | Path | None = None
    runs_folder: str | Path = "runs"
    open_init: Callable[[str], InitCheckpoint] | None = None
    fold: Fold | None = None
    head: str = ""


def apply_rule(name: str, dataset: Dataset) -> Recipe:
    """Return the recipe that a rule gives for the size of the training split and of its images."""
    train = dataset.splits["train"]
    sizes = image_sizes(train)
    if sizes is None:
        sizes = np.array([image.shape[:2] for image in train.read(np.arange(min(len(train), 100)))])
    height, width = np.median(sizes, axis=0)
    return RULES[name](len(train), float(height), float(width))


def resolve_settings(request: TrainRequest) -> tuple[str, dict[str, Any], Recipe, bool]:
    """Return (model, its fields, recipe, True if the micro-batch is to be chosen) without reading any data."""
    name, fields = _resolve_model(request)
    recipe_fields, model_fields = apply_settings(request.settings, models.create(name, **fields))
    fields |= model_fields
    if request.head and "aux_heads" in models.defining_fields(models.create(name, **fields)):
        fields["aux_heads"] = False  # they matter in training only
    models.create(name, **fields)  # check the fields before reading data
    changes = {**request.changes, **recipe_fields}
    auto_micro_batch = changes.get("micro_batch") == "auto"
    if auto_micro_batch:
        changes["micro_batch"] = 0
    try:
        recipe = dataclasses.replace(_resolve_recipe(request, name, fields, changes), **changes)
    except ValueError as error:
        raise ValueError(in_terms_of_options(str(error), request.settings)) from None
    return name, _with_recipe_fields(recipe, name, fields), recipe, auto_micro_batch


def _with_recipe_fields(recipe: Recipe, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's fields with those of `recipe.model_fields` that are not given already."""
    defaults = models.defining_fields(models.create(name))
    chosen = {}
    for text in recipe.model_fields:
        field, _, value = (part.strip() for part in text.partition("="))
        where = f"recipe field model_fields: {text}"
        if field not in defaults:
            hint = did_you_mean(field, defaults) or f"its fields are {', '.join(defaults)}"
            raise ValueError(f"{where}: {name} has no such field; {hint}. Leave it out with --set model_fields=none")
        chosen[field] = parse_model_field(where, value, defaults[field])
    return {**chosen, **fields}


def _resolve_model(request: TrainRequest) -> tuple[str, dict[str, Any]]:
    """Return the model's name and the fields that differ from its defaults, before settings."""
    base, init = request.base, request.init
    if init is not None:
        if base and base.init_digest and base.init == init.spec and init.digest() != base.init_digest:
            raise ValueError(f"{init.spec}: is not the checkpoint that this run started from; give another with --init")
        name, fields = finetune.resolve_model(init, request.model, request.fields)
    else:
        name = request.model or (base.model if base else "")
        fields = dict(request.fields)
    if base and base.model == name and (init is None or base.init == init.spec):
        fields = {**base.fields, **request.fields}
        if request.data is not None and request.data != base.data:
            fields.pop("num_classes", None)
    return name, fields


def needs_default_model(request: TrainRequest) -> bool:
    """Return True if a request names no model, checkpoint or earlier run, so that the data choose the model."""
    return request.model is None and request.init is None and request.base is None


def with_default_model(request: TrainRequest, dataset: Dataset, say: Say) -> TrainRequest:
    """Return the request with the model that suits the data.

    Photographs, and colour images that are too few to train from scratch, get pretrained weights.

    Raises:
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    kind = advice.kind_of_images(dataset)
    scratch, pretrained = advice.MODELS[kind], advice.PRETRAINED.get(kind, "")
    if request.head and not pretrained:
        raise ValueError(f"{dataset.name}: holds points, which have no pretrained features; train without --quick")
    if request.head and request.open_init is not None:
        say(f"No --init given: the head is fitted to features of {pretrained}, which suits these images")
        try:
            return dataclasses.replace(request, init=request.open_init(pretrained))
        except ConnectionError as error:
            raise _without_network(error, kind, "give a checkpoint with --init") from None
    few = kind == "colour" and advice.describe_few_images(dataset) != ""
    if not (kind == "photographs" or few) or request.open_init is None:
        return dataclasses.replace(request, model=scratch)
    reason = "few" if few else "photographs"
    say(f"No --model given: the images are {reason}, so {pretrained} is fine-tuned (--model {scratch}: from scratch)")
    try:
        init = request.open_init(pretrained)
    except ConnectionError as error:
        raise _without_network(error, kind, f"train from scratch with --model {scratch}") from None
    return dataclasses.replace(request, init=init)


def _without_network(error: ConnectionError, kind: advice.Kind, other: str) -> ConnectionError:
    """Return the error of a download with what to do without network first: weights that the package holds."""
    problem, _, remedy = str(error).partition("; ")
    shipped = f"type --init {advice.SHIPPED[kind]}" if kind in advice.SHIPPED else ""
    ways = [way for way in (shipped, other, remedy) if way]
    return ConnectionError("; ".join([problem, ", or ".join(ways)]))


def _resolve_recipe(request: TrainRequest, model: str, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> Recipe:
    if isinstance(request.recipe, Recipe):
        return request.recipe
    if request.base and request.recipe is None:
        return request.base.recipe
    data = request.data.name if isinstance(request.data, Dataset) else str(_data_name(request))
    sizes = [changes.get("image_size") or 0, *(changes.get("progressive") or ())]
    side = max(sizes) or models.create(model, **fields).input_shape[0]
    return finetune.resolve_recipe(request.recipe, request.init, model, data, side)


def _data_name(request: TrainRequest) -> Any:
    if request.data is not None:
        return request.data
    if request.base is not None:
        return request.base.data
    if request.init is not None:
        raise ValueError(f"--init {request.init.spec}: name the data to train on with --data")
    return DEFAULT_DATA


def record_limit(request: TrainRequest) -> int:
    """Return the maximum number of records per split, 0 for all: that requested, or that of an earlier run."""
    if request.limit is not None:
        return request.limit
    return request.base.limit if request.base else 0


def requested_fold(request: TrainRequest) -> Fold | None:
    """Return the fold requested, or that of an earlier run of the same data."""
    return request.fold or (request.base.fold if request.base and request.data is None else None)


def open_data(request: TrainRequest, say: Say = lambda line: None) -> Dataset:
    """Open the data of a request and check that it can be trained on, with its own splits."""
    base, data = request.base, _data_name(request)
    if base and base.data == "arrays" and request.data is None:
        raise ValueError("this run trained on arrays in memory, which are not part of its configuration; give --data")
    if request.data is None and base is None:
        say(f"No data given: training on {DEFAULT_DATA}, small handwritten digits (--data FOLDER: your own images)")
    dataset = data
    if not isinstance(data, Dataset):
        dataset = open_dataset(data, request.data_dir or (base.data_dir if base else None))
    if dataset.num_classes < 2:
        left_out = dataset.left_out
        unreadable = f"; left out as unreadable: {len(left_out):,}, the first {left_out[0]}" if left_out else ""
        raise ValueError(
            f"{dataset.name}: all images are of class {dataset.class_names[0]}; training needs at least two classes"
            f"{unreadable}"
        )
    if "train" not in dataset.splits or "validation" not in dataset.splits:
        raise ValueError(f"{dataset.name}: has no training split; evaluate on it with `zoo eval`")
    limit = record_limit(request)
    return limited(dataset, limit) if limit else dataset


def with_open_data(request: TrainRequest, say: Say) -> tuple[TrainRequest, Dataset]:
    """Return the request with its data opened and its model chosen, for several plans to share them, and the data."""
    dataset = open_data(request, say)
    if needs_default_model(request):
        request = with_default_model(request, dataset, say)
    return dataclasses.replace(request, data=dataset, fold=requested_fold(request)), dataset
