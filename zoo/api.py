"""The Python side of the three uses: fit, evaluate, save, load and predict."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from zoo import checkpoint, models
from zoo.checkpoint import Card
from zoo.data.dataset import Dataset, all_splits, limited, with_classes
from zoo.data.images.polarity import match_polarity
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import at_size
from zoo.data.sources import from_arrays, open_dataset
from zoo.data.sources.listing import canonical_split
from zoo.distributed.mesh import parallelism_for
from zoo.inference import evaluate as evaluation
from zoo.inference.predict import Prediction, predict, require_head
from zoo.pretrained import weights
from zoo.training import loop, run
from zoo.training.finetune import InitCheckpoint, model_and_fields, recipe_for
from zoo.training.recipe import Recipe
from zoo.trees import match_leaves


class Checkpoint(NamedTuple):
    """What `load` returns. `model.apply(variables, images)` is the network; `predict` is the whole way from a file."""

    model: nn.Module
    variables: dict
    card: Card

    def predict(self, images: Any, top: int = 5, tta: str = "") -> list[Prediction]:
        """Classify images: a path, an array uint8 or float in [0, 1] of [H, W], [H, W, C] or [N, H, W, C], or a list.

        Everything happens as the card says: size, channels, normalisation, and for drawings the polarity of ink and
        paper. Returns one Prediction per image. ValueError for a file that is no image or an array of another form.
        """
        return predict(self.model, self.variables, self.card, images, top, tta)


def load(spec: str | Path, model: str | None = None, **fields: Any) -> Checkpoint:
    """A checkpoint by folder or name, its files and leaves checked against their hashes, strictly fitted to its model.

    spec: a folder; the name of a checkpoint that the project ships ("lenet5-mnist"); a name of WEIGHTS, fetched once
    ("torchvision:resnet50", "timm:resnet50.a1_in1k", "keras:ResNet50V2"); or a weight file. model, fields: for a weight
    file of no known set, the model that it is for, e.g. load("mine.pth", "resnet50", stride_in="1x1").
    Raises FileNotFoundError, ConnectionError, or ValueError naming every file or leaf that is wrong and what to do.
    """
    card, variables = weights.open_weights(spec, model, fields)
    network = models.create(card.model, **card.fields)
    shape = card.preprocess.input_shape
    variables = match_leaves(variables, models.abstract_variables(network, shape), str(spec))
    return Checkpoint(network, jax.device_put(variables), card)


def start_from(init: str | Path | Checkpoint | loop.Fitted, model: str | None = None) -> InitCheckpoint:
    """What `--init` and `fit(init=…)` are given, opened: anything `load` takes, or what it or `fit` returned.

    model: for a weight file, which may not say what it is for.
    """
    if not isinstance(init, (str, Path)):
        return InitCheckpoint(f"a {init.card.model} in memory", init.card, jax.device_get(init.variables))
    loaded = load(init, model if Path(init).expanduser().is_file() else None)
    return InitCheckpoint(str(init), loaded.card, jax.device_get(loaded.variables))


def save(
    path: str | Path, model: nn.Module, variables: dict, classes: Sequence[str], preprocess: Preprocess, **about: Any
) -> Card:
    """Write a checkpoint folder that `load` and every command take. `about`: further fields of the Card.

    model: made by `create`. classes: one name per output. ValueError where the parts do not fit together.
    """
    name = models.name_of(model)
    classes = tuple(str(name) for name in classes)
    if len(classes) != (model.num_classes or 0):
        raise ValueError(f"{len(classes)} class names for a model with {model.num_classes or 0} classes")
    shape = preprocess.input_shape
    variables = match_leaves(variables, models.abstract_variables(model, shape), "variables")
    card = Card(
        model=name, fields=models.defining_fields(model), classes=classes, preprocess=preprocess,
        versions=run.versions(), **about,
    )  # fmt: skip
    return checkpoint.save_checkpoint(path, card, variables)


def fit(
    model: str | None = None,
    data: str | Path | Dataset | tuple = "digits",
    recipe: Recipe | str | None = None,
    *,
    init: str | Path | Checkpoint | loop.Fitted | None = None,
    fields: dict[str, Any] | None = None,
    workdir: str | Path | None = None,
    data_dir: str | None = None,
    limit: int = 0,
    parallel: str = "jit",
    mesh: str = "",
    quiet: bool = False,
    workers: int | None = None,
    **changes: Any,
) -> loop.Fitted:
    """Train a model of MODELS, as `zoo train` does: fit("lenet5", "digits", epochs=5, learning_rate=1e-3).

    init: fine-tune this checkpoint: fit(init="runs/…/best", data="a/folder"). Model, fields, image size and
    normalisation are the checkpoint's; heads are replaced where classes differ, rows of equal class names are kept.
    data: what `open_dataset` takes, a Dataset, or arrays (images, labels), of which validation and test are held out.
    recipe: a name of RECIPES or a Recipe; by default the one that suits. changes: fields of the recipe to change.
    fields: fields of the model to change. parallel, mesh: "jit" or "pmap", over "data=4,model=2", "fsdp=8", …; all
    devices along "data" by default. micro_batch="auto": the largest that fits into memory. workers: threads that read
    data which is not kept in memory; they change nothing but the speed. An unfinished run of the same configuration is
    continued.
    """
    if isinstance(data, tuple):
        data = from_arrays(data)
    if not isinstance(data, (str, Path, Dataset)):
        raise ValueError(
            f"fit: data is a {type(data).__name__}; give a name, a folder, a Dataset, or a tuple (images, labels)"
        )
    start = None if init is None else start_from(init, model)
    model, fields = model_and_fields(start, model, fields or {})
    name = data.name if isinstance(data, Dataset) else str(data)
    base = recipe if isinstance(recipe, Recipe) else recipe_for(recipe, start, model, name)
    auto = changes.get("micro_batch") == "auto"
    if auto:
        changes["micro_batch"] = 0
    unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(Recipe)})
    if unknown:
        raise ValueError(f"fit: {', '.join(unknown)} is neither an argument nor a field of Recipe")
    return loop.fit(
        model, data if isinstance(data, Dataset) else str(data), dataclasses.replace(base, **changes),
        init=start, fields=fields, data_dir=data_dir, limit=limit, workdir=workdir, quiet=quiet,
        parallelism=parallelism_for(parallel, mesh), auto_micro_batch=auto, workers=workers,
    )  # fmt: skip


def evaluate(
    checkpoint: Checkpoint | loop.Fitted | str | Path,
    data: str | Path | Dataset,
    split: str = "test",
    *,
    data_dir: str | None = None,
    limit: int = 0,
    batch_size: int = evaluation.BATCH_SIZE,
    on_batch: Any = None,
    tta: str = "",
    image_size: int = 0,
) -> dict[str, Any]:
    """Every metric of a checkpoint over a whole split, or over "all" of them as one, each example counted once.

    checkpoint: what `load` or `fit` returned, or a folder. tta: a name of VIEWS, averaged. image_size: the side that
    the model is to see instead of its own; 0: its own. ValueError where a class of the data is none of the model's.
    """
    loaded = load(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    require_head(loaded.card)
    dataset = data if isinstance(data, Dataset) else open_dataset(data, data_dir)
    if limit:
        dataset = limited(dataset, limit)
    dataset = match_polarity(with_classes(dataset, loaded.card.classes), loaded.card.preprocess.polarity)
    split = canonical_split(split) or split
    if split != "all" and split not in dataset.splits:
        raise ValueError(
            f"{dataset.name}: has no split {split!r}; it has {', '.join(dataset.splits)}, and all of them: all"
        )
    records = all_splits(dataset) if split == "all" else dataset.splits[split]
    preprocess = at_size(loaded.card.preprocess, image_size) if image_size else loaded.card.preprocess
    return evaluation.evaluate(
        loaded.model, loaded.variables, records, preprocess, loaded.card.classes,
        batch_size=batch_size, on_batch=on_batch, tta=tta, parallelism=parallelism_for(),
    )  # fmt: skip
