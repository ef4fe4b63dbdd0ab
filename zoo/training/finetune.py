"""Fine-tuning: which variables come from a checkpoint, which are frozen when, and how fast each stage learns.

All of this is decided before the first step from the checkpoint, the recipe and the classes of the data.
Variables are named by path without their collection: "stage1_block1/conv1/conv/kernel", "stem/norm/mean".
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import flax.linen as nn
import numpy as np

from zoo import checkpoint, models
from zoo.checkpoint import Card
from zoo.data.content_sketch import TRAINED_ON, ContentSketch
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import at_size
from zoo.suggest import did_you_mean
from zoo.text import first_few
from zoo.training.optim import multipliers_by_kind
from zoo.training.recipe import Recipe
from zoo.training.recipes import SMALL_IMAGE, default_recipe, find_recipe
from zoo.training.timeline import Segment, Span, optimizer_span
from zoo.trees import flatten, merge, path_matches, unflatten

#: Name for everything but the head and the auxiliary heads in `freeze`.
BODY = "body"


# --- the initial checkpoint ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class InitCheckpoint:
    """The checkpoint that training starts from.

    Attributes:
        spec: its name, as the user gave it.
        card: its metadata.
        variables: its parameters and batch statistics.
    """

    spec: str
    card: Card
    variables: Mapping

    @property
    def origin(self) -> str:
        """The name, followed by the source that the card states."""
        return f"{self.spec} ({self.card.source})" if self.card.source else self.spec

    @property
    def trained_on(self) -> ContentSketch | None:
        """Sketch of the images that the checkpoint was trained on; None if its card has none."""
        return ContentSketch.from_json((self.card.data or {}).get(TRAINED_ON))

    def digest(self) -> str:
        """Return the sha256 of everything that training takes from the checkpoint."""
        card = self.card
        parts = [card.model, card.fields, card.classes, dataclasses.asdict(card.preprocess)]
        text = json.dumps([*parts, checkpoint.leaf_table(self.variables)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def preprocess(self, image_size: int = 0, channels: str = "") -> Preprocess:
        """Return the card's Preprocess, changed to another image size or other channels if given."""
        preprocess = self.card.preprocess
        if image_size:
            preprocess = at_size(preprocess, image_size)
        if channels and channels != preprocess.channels:
            # Mean and std follow the kernels: averaged over the old channels, or repeated for each new one.
            mixing = _channel_mixing(preprocess.channels, channels)
            shares = mixing / mixing.sum(axis=1, keepdims=True)
            mean, std = (
                tuple(np.round(shares @ np.array(values), 4).tolist()) for values in (preprocess.mean, preprocess.std)
            )
            preprocess = dataclasses.replace(preprocess, channels=channels, mean=mean, std=std)
        return preprocess

    def needs_new_rows(self, classes: Sequence[str]) -> bool:
        """Return True if a head for these classes has rows that the checkpoint's head lacks."""
        return not set(classes) <= set(self.card.classes)

    def variables_for(self, model: nn.Module, preprocess: Preprocess, classes: Sequence[str], fresh: Mapping) -> dict:
        """Return `fresh` with every variable that the checkpoint has for the model.

        Rows of the heads are matched by class name. Where channels differ, the kernels of the first layer are mixed.
        A head that the checkpoint lacks is that of `fresh`; one that the model lacks is left out.

        Args:
            model: the network to train.
            preprocess: its preprocessing.
            classes: its classes, one per output.
            fresh: freshly initialised variables of `model`.

        Raises:
            ValueError: listing every other variable that does not match.
        """
        saved, wanted = flatten(self.variables), flatten(fresh)
        if preprocess.channels != self.card.preprocess.channels:
            mixing = _channel_mixing(self.card.preprocess.channels, preprocess.channels)
            mixing = mixing * np.divide.outer(preprocess.std, self.card.preprocess.std).astype(np.float32)
            for path, axis in _channel_axes(model, preprocess.input_shape).items():
                if path in saved and saved[path].shape[axis] % mixing.shape[1] == 0:
                    saved[path] = _mix_channels(np.asarray(saved[path]), axis, mixing)
        for path, axis in _class_axes(model, preprocess.input_shape).items():
            if path in saved:
                saved[path] = self._match_rows(saved[path], wanted[path], axis, classes)
        heads = [path for path in saved.keys() ^ wanted.keys() if is_head(model, path.split("/", 1)[1])]
        return merge(fresh, unflatten(saved), skip=[re.escape(path) for path in heads], what=f"--init {self.spec}")

    def _match_rows(self, saved: Any, fresh: Any, axis: int, classes: Sequence[str]) -> Any:
        if np.delete(saved.shape, axis).tolist() != np.delete(fresh.shape, axis).tolist():
            return saved  # differs in another axis too; the merge reports it
        rows = np.array(fresh)
        places = {name: i for i, name in enumerate(self.card.classes)}
        pairs = [(i, places[name]) for i, name in enumerate(classes) if name in places]
        new, old = (np.array([pair[side] for pair in pairs], int) for side in (0, 1))
        np.moveaxis(rows, axis, 0)[new] = np.moveaxis(np.asarray(saved), axis, 0)[old]
        return rows

    def describe(self, model: nn.Module, preprocess: Preprocess, classes: Sequence[str]) -> list[str]:
        """Return lines on what is taken from the checkpoint and what is initialised."""
        old, lines = self.card, []
        known = set(old.classes)
        source = f"{self.spec} ({old.model}, {len(old.classes)} classes)"
        shared, new = [c for c in classes if c in known], [c for c in classes if c not in known]
        if not _has_head(model):
            lines.append(f"init: {source}; all variables are kept, the outputs are fixed codes")
        elif not new:
            dropped = len(old.classes) - len(shared)
            order = " matched by class name" if tuple(classes) != tuple(old.classes) else ""
            loss = f", {dropped} class{'es' if dropped > 1 else ''} dropped" if dropped else ""
            lines.append(f"init: {source}; head kept{order}{loss}")
        else:
            lines.append(
                f"init: {source}; new head rows for {len(new)} of {len(classes)} classes: {first_few(new, 10)}"
            )
            if shared:
                lines.append(f"      head rows kept for {first_few(shared, 10)}")
        if preprocess.channels != old.preprocess.channels:
            lines.append(f"      first layer adapted from {old.preprocess.channels} to {preprocess.channels}")
        return lines


def _channel_mixing(old: str, new: str) -> np.ndarray:
    """Return [new, old]: the weight of each old input channel of a kernel in each new one.

    Grey is the sum over RGB, and each of RGB a third of grey, so that a grey image repeated over three channels gives
    nearly the same output as before (the channel means are averaged); as timm's `adapt_input_conv`. RGB and BGR are
    permuted.
    """
    if len(new) == 1:
        return np.ones((1, len(old)), np.float32)
    if len(old) == 1:
        return np.full((len(new), 1), 1 / len(new), np.float32)
    return np.array([[float(a == b) for b in old] for a in new], np.float32)


def _mix_channels(kernel: np.ndarray, axis: int, mixing: np.ndarray) -> np.ndarray:
    """Apply `mixing` [new, old] along `axis`, whose size is positions x old (one position for a convolution)."""
    moved = np.moveaxis(kernel, axis, 0)
    by_channel = moved.reshape(-1, mixing.shape[1], *moved.shape[1:])
    mixed = np.einsum("nc,pc...->pn...", mixing, by_channel).astype(kernel.dtype)
    return np.ascontiguousarray(np.moveaxis(mixed.reshape(-1, *moved.shape[1:]), 0, axis))


def _differing_axes(first: Mapping, second: Mapping) -> dict[str, int]:
    """Return path -> axis for each leaf whose shapes differ between two trees of the same structure."""
    shapes, others = ({path: leaf.shape for path, leaf in flatten(tree).items()} for tree in (first, second))
    return {
        path: next(i for i, (a, b) in enumerate(zip(shape, others[path], strict=True)) if a != b)
        for path, shape in shapes.items()
        if shape != others[path]
    }


@lru_cache(maxsize=8)
def _has_head(model: nn.Module) -> bool:
    """Return False for a network whose outputs are fixed codes without parameters."""
    variables = models.abstract_variables(model, model.input_shape)
    return any(is_head(model, path.split("/", 1)[1]) for path in flatten(variables))


@lru_cache(maxsize=8)
def _class_axes(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Return path -> axis of the leaves of head and auxiliary heads that have a row per class."""
    if not _has_head(model):
        return {}
    wider = model.clone(num_classes=model.num_classes + 1)
    return _differing_axes(models.abstract_variables(model, shape), models.abstract_variables(wider, shape))


@lru_cache(maxsize=8)
def _channel_axes(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Return path -> axis of the leaves that have a row per input channel."""
    trees = (models.abstract_variables(model, (*shape[:2], shape[2] + extra)) for extra in (0, 1))
    return _differing_axes(*trees)


def resolve_model(
    init: InitCheckpoint | None, model: str | None, fields: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the name and fields of the model to train.

    Args:
        init: the initial checkpoint, whose model and fields are used.
        model: name of a model; None for that of `init`.
        fields: fields to change.

    Raises:
        ValueError: if neither is given or they name different models.
    """
    if init is None:
        if model is None:
            raise ValueError("no model: give a name of `zoo list`, or a checkpoint to start from")
        return model, dict(fields)
    card = init.card
    if model not in (None, card.model):
        raise ValueError(f"{init.spec} is a {card.model}, not a {model}; leave out the model to use the checkpoint's")
    return card.model, {key: value for key, value in card.fields.items() if key != "num_classes"} | dict(fields)


def resolve_recipe(name: str | None, init: InitCheckpoint | None, model: str, data: str, image_size: int = 0) -> Recipe:
    """Return the recipe called `name`, or the default one.

    The default for fine-tuning mirrors and crops photographs, but not drawings.

    Args:
        name: name in RECIPES, or None.
        init: the initial checkpoint.
        model: name in MODELS.
        data: name of the data set.
        image_size: side in pixels of what the model sees, if known.
    """
    if name is None and init is not None:
        preprocess = init.card.preprocess
        small = "fine-tune-small" if max(preprocess.size) <= SMALL_IMAGE else "fine-tune"
        name = small if preprocess.polarity is None else "fine-tune-drawings"
    return find_recipe(name or default_recipe(model, data, image_size))


# --- stages ----------------------------------------------------------------------------------------------------------


def stage_of(model: nn.Module, path: str) -> str:
    """Return the stage of a path.

    A stage covers every part whose name begins with it ("stage1": stage1_block1, …); the longest such stage is chosen.
    Auxiliary heads belong to the head.
    """
    part = path.split("/")[0]
    return max((stage for stage in model.stages if part.startswith(stage)), key=len, default=model.stages[-1])


def is_head(model: nn.Module, path: str) -> bool:
    """Return True if a parameter belongs to the model's last stage."""
    return stage_of(model, path) == model.stages[-1]


def paths_of(variables: Mapping) -> set[str]:
    """Return every path of every collection, without the collection."""
    return {path.split("/", 1)[1] for path in flatten(variables)}


def select_paths(model: nn.Module, paths: Iterable[str], names: Sequence[str]) -> frozenset[str]:
    """Return the paths that `names` denote.

    Args:
        model: the network.
        paths: paths to choose from.
        names: "body" (all but the heads), stages, or regular expressions for a path or its beginning.

    Raises:
        ValueError: for a name that matches no path.
    """
    paths, chosen = sorted(paths), set[str]()
    for name in names:
        if name == BODY:
            matching = {path for path in paths if not is_head(model, path)}
        elif name in model.stages:
            matching = {path for path in paths if stage_of(model, path) == name}
        else:
            matching = {path for path in paths if path_matches(name, path)}
        if not matching and name != BODY:
            hint = did_you_mean(name, [*model.stages, BODY])
            raise ValueError(
                f"freeze {name!r} matches no part of the model; {f'{hint} Or ' if hint else ''}use one of its stages "
                f"({', '.join(model.stages)}), {BODY} (all but the head), or a regular expression for paths such as "
                f"{paths[0]}"
            )
        chosen |= matching
    return frozenset(chosen)


# --- freezing and learning rates -------------------------------------------------------------------------------------


def frozen_spans(
    recipe: Recipe, model: nn.Module, variables: Mapping, total_steps: int, steps_per_epoch: float, new_head: bool
) -> tuple[Span, ...]:
    """Return spans of the set of frozen paths.

    The body is frozen while a new head is trained alone, and what the recipe freezes until it is unfrozen. Each span is
    trained with a fresh optimiser and the whole schedule.

    Args:
        recipe: the recipe.
        model: the network.
        variables: its variables; abstract ones suffice.
        total_steps: steps of the training.
        steps_per_epoch: steps per epoch.
        new_head: True if the head has newly initialised rows.

    Raises:
        ValueError: if a span would have no parameters to train.
    """
    paths = paths_of(variables)
    body, listed = select_paths(model, paths, (BODY,)), select_paths(model, paths, recipe.freeze)
    head_alone = new_head and len(body) < len(paths)
    head_stop = min(round(recipe.head_epochs * steps_per_epoch), total_steps) if head_alone else 0
    unfreeze = round(recipe.unfreeze_at * steps_per_epoch) if recipe.unfreeze_at else total_steps
    edges = sorted({0, head_stop, min(unfreeze, total_steps), total_steps})
    spans: list[Span] = []
    for start, stop in pairwise(edges):
        frozen = (body if start < head_stop else frozenset()) | (listed if start < unfreeze else frozenset())
        if spans and spans[-1].value == frozen:
            start = spans.pop().start
        spans.append(Span(start, stop, frozen))
    params = {path.removeprefix("params/") for path in flatten(variables) if path.startswith("params/")}
    for span in spans:
        if params <= span.value:
            raise ValueError(
                f"freeze {', '.join(recipe.freeze)}: no parameters left to train from step {span.start} on"
            )
    return tuple(spans)


def learning_rate_multipliers(recipe: Recipe, model: nn.Module, params: Mapping) -> dict[str, float]:
    """Return path -> factor on the learning rate.

    It is `layer_decay` per stage before the last and `head_lr` for the heads, times the factor of biases or norms.
    """
    last = len(model.stages) - 1
    head = recipe.head_lr / recipe.learning_rate if recipe.head_lr else 1.0
    kinds = multipliers_by_kind(params, recipe)
    return {
        path: kinds.get(path, 1.0)
        * (head if is_head(model, path) else recipe.layer_decay ** (last - model.stages.index(stage_of(model, path))))
        for path in flatten(params)
    }


def partition(params: Mapping, frozen: frozenset[str]) -> dict:
    """Return the parameters that are not frozen: those with gradients and optimiser state."""
    if not frozen:
        return dict(params)
    return unflatten({path: leaf for path, leaf in flatten(params).items() if path not in frozen})


def combine(params: Mapping, trainable: Mapping) -> dict:
    """Return `params` with the leaves of `trainable` in their places: the inverse of `partition`."""
    return unflatten({**flatten(params), **flatten(trainable)})


def describe_frozen(
    segments: Sequence[Segment], model: nn.Module, params: Mapping, steps_per_epoch: float
) -> list[str]:
    """Return a line per span of frozen paths on what is trained; none if nothing is ever frozen."""
    if not any(segment.frozen for segment in segments):
        return []
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in flatten(params).items()}
    lines = []
    for segment in segments:
        if not segment.fresh_optimizer:
            continue
        trained = {path: size for path, size in sizes.items() if path not in segment.frozen}
        stages = [stage for stage in model.stages if any(stage_of(model, path) == stage for path in trained)]
        first, last = (step / steps_per_epoch for step in optimizer_span(segments, segment))
        names = first_few(stages, 10) if segment.frozen else "all"
        lines.append(f"epochs {first:.3g} to {last:.3g}: training {sum(trained.values()):,} parameters ({names})")
    return lines
