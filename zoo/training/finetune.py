"""Fine-tuning: what a training starts from, what is frozen when, how fast each part learns.

Everything here is settled before the first step and follows from the checkpoint, the recipe and the data's class names.
Parts of a network are named by path, without the collection: "stage1_block1/conv1/conv/kernel", "stem/norm/mean".
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
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import at_size
from zoo.training.recipe import Recipe
from zoo.training.recipes import default_recipe, find_recipe
from zoo.trees import flatten, merge, path_matches, unflatten

#: What `freeze` calls everything but the head and the auxiliary heads.
BODY = "body"


# --- what a training starts from -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class InitCheckpoint:
    """A checkpoint to start from: its name, what its card says, its variables."""

    spec: str
    card: Card
    variables: Mapping

    @property
    def origin(self) -> str:
        """The name, and what the card says of where that is from."""
        return f"{self.spec} ({self.card.source})" if self.card.source else self.spec

    def digest(self) -> str:
        """sha256 of all that training takes from it: another checkpoint under the same name is another start."""
        card = self.card
        parts = [card.model, card.fields, card.classes, dataclasses.asdict(card.preprocess)]
        whole = json.dumps([*parts, checkpoint.leaf_table(self.variables)], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def preprocess(self, image_size: int = 0, channels: str = "") -> Preprocess:
        """The card's, for another size or other channels where asked."""
        plan = self.card.preprocess
        if image_size:
            plan = at_size(plan, image_size)
        if channels and channels != plan.channels:
            # As the kernels are mixed: the mean over the old channels, or the same for every new one.
            mixing = _mixing(plan.channels, channels)
            share = mixing / mixing.sum(axis=1, keepdims=True)
            mean, std = (tuple(np.round(share @ np.array(of), 4).tolist()) for of in (plan.mean, plan.std))
            plan = dataclasses.replace(plan, channels=channels, mean=mean, std=std)
        return plan

    def has_new_rows(self, classes: Sequence[str]) -> bool:
        """Whether a head for these classes has rows that the checkpoint's has not."""
        return not set(classes) <= set(self.card.classes)

    def variables_for(self, model: nn.Module, preprocess: Preprocess, classes: Sequence[str], fresh: Mapping) -> dict:
        """`fresh` variables of `model` with everything the checkpoint has for them.

        Rows of the heads are kept by class name; where channels differ, the first layer's kernels are mixed. A head
        that only one side has is left as it is in `fresh`, or out. ValueError lists what else does not fit.
        """
        shape = preprocess.input_shape
        saved, wanted = flatten(self.variables), flatten(fresh)
        if preprocess.channels != self.card.preprocess.channels:
            mixing = _mixing(self.card.preprocess.channels, preprocess.channels)
            mixing = mixing * np.divide.outer(preprocess.std, self.card.preprocess.std).astype(np.float32)
            for path, axis in _channel_axes(model, shape).items():
                if path in saved and saved[path].shape[axis] % mixing.shape[1] == 0:
                    saved[path] = _mixed(np.asarray(saved[path]), axis, mixing)
        for path, axis in _class_axes(model, shape).items():
            if path in saved:
                saved[path] = self._rows(saved[path], wanted[path], axis, classes)
        heads = [path for path in saved.keys() ^ wanted.keys() if is_head(model, path.split("/", 1)[1])]
        what = f"--init {self.spec}"
        return merge(fresh, unflatten(saved), skip=[re.escape(path) for path in heads], what=what)

    def _rows(self, saved: Any, fresh: Any, axis: int, classes: Sequence[str]) -> Any:
        if np.delete(saved.shape, axis).tolist() != np.delete(fresh.shape, axis).tolist():
            return saved  # does not fit for another reason, which the merge will say
        rows = np.array(fresh)
        places = [(i, self.card.classes.index(name)) for i, name in enumerate(classes) if name in self.card.classes]
        ours, theirs = (np.array([pair[side] for pair in places], int) for side in (0, 1))
        np.moveaxis(rows, axis, 0)[ours] = np.moveaxis(np.asarray(saved), axis, 0)[theirs]
        return rows

    def report(self, model: nn.Module, preprocess: Preprocess, classes: Sequence[str]) -> list[str]:
        """Lines on what is taken from the checkpoint and what is new."""
        old, lines = self.card, []
        source = f"{self.spec} ({old.model}, {len(old.classes)} classes)"
        kept, new = [c for c in classes if c in old.classes], [c for c in classes if c not in old.classes]
        if not _has_head(model):
            lines.append(f"start: {source}; its outputs are fixed, all of it is kept")
        elif not new:
            dropped = len(old.classes) - len(kept)
            how = "by class name" if tuple(classes) != tuple(old.classes) else "as it is"
            lines.append(
                f"start: {source}; the head is kept {how}" + (f", {dropped} classes left out" if dropped else "")
            )
        else:
            lines.append(f"start: {source}; the head is new for {len(new)} of {len(classes)} classes: {_some(new)}")
            if kept:
                lines.append(f"       rows kept for {_some(kept)}")
        if preprocess.channels != old.preprocess.channels:
            lines.append(f"       the first layer is adapted from {old.preprocess.channels} to {preprocess.channels}")
        return lines


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _mixing(old: str, new: str) -> np.ndarray:
    """[new, old] channels: what each new input channel of a kernel is made of.

    Grey takes the sum over RGB, and RGB a third of grey each, so that a grey image in three equal channels gives nearly
    the same answer as before (the channels' means are averaged); the practice of timm (`adapt_input_conv`). RGB and BGR
    change places.
    """
    if len(new) == 1:
        return np.ones((1, len(old)), np.float32)
    if len(old) == 1:
        return np.full((len(new), 1), 1 / len(new), np.float32)
    return np.array([[float(a == b) for b in old] for a in new], np.float32)


def _mixed(kernel: np.ndarray, axis: int, mixing: np.ndarray) -> np.ndarray:
    """Along `axis`, positions times channels (of a convolution one position), the channels mixed."""
    moved = np.moveaxis(kernel, axis, 0)
    by_channel = moved.reshape(-1, mixing.shape[1], *moved.shape[1:])
    mixed = np.einsum("nc,pc...->pn...", mixing, by_channel).astype(kernel.dtype)
    return np.ascontiguousarray(np.moveaxis(mixed.reshape(-1, *moved.shape[1:]), 0, axis))


def _differing_axes(one: Mapping, other: Mapping) -> dict[str, int]:
    """For each leaf whose shapes differ, the axis in which they do."""
    shapes, others = ({path: leaf.shape for path, leaf in flatten(tree).items()} for tree in (one, other))
    return {
        path: next(i for i, (a, b) in enumerate(zip(shape, others[path], strict=True)) if a != b)
        for path, shape in shapes.items()
        if shape != others[path]
    }


@lru_cache(maxsize=8)
def _has_head(model: nn.Module) -> bool:
    """False where the outputs are fixed codes without parameters."""
    shape = model.input_shape
    return any(is_head(model, path.split("/", 1)[1]) for path in flatten(models.abstract_variables(model, shape)))


@lru_cache(maxsize=8)
def _class_axes(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """The leaves that have a row per class, and in which axis: of the head and the auxiliary heads."""
    if not _has_head(model):
        return {}
    more = model.clone(num_classes=model.num_classes + 1)
    return _differing_axes(models.abstract_variables(model, shape), models.abstract_variables(more, shape))


@lru_cache(maxsize=8)
def _channel_axes(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """The leaves that have a row per input channel, and in which axis."""
    here, more = (models.abstract_variables(model, (*shape[:2], shape[2] + extra)) for extra in (0, 1))
    return _differing_axes(here, more)


def model_and_fields(
    start: InitCheckpoint | None, model: str | None, fields: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The model to train and its fields: those of the checkpoint, `fields` being changes, or what is given."""
    if start is None:
        if model is None:
            raise ValueError("say which model to train, or give a checkpoint to start from")
        return model, dict(fields)
    card = start.card
    if model not in (None, card.model):
        raise ValueError(
            f"{start.spec} is a {card.model}, not a {model}; it says itself what it is, so leave the model out"
        )
    return card.model, {key: value for key, value in card.fields.items() if key != "num_classes"} | dict(fields)


def recipe_for(name: str | None, start: InitCheckpoint | None, model: str, data: str) -> Recipe:
    """The recipe of this name, or the one that suits: photographs may be mirrored and cropped, drawings may not."""
    if name is None and start is not None:
        plan = start.card.preprocess
        small = "fine-tune-small" if max(plan.size) <= 64 else "fine-tune"
        name = small if plan.polarity is None else "fine-tune-drawings"
    return find_recipe(name or default_recipe(model, data))


# --- stages ----------------------------------------------------------------------------------------------------------


def stage_of(model: nn.Module, path: str) -> str:
    """The stage that a path belongs to; auxiliary heads are of the head.

    A stage is every part whose name begins with it ("stage1": stage1_block1, …), the longest one where several fit.
    """
    part = path.split("/")[0]
    return max((stage for stage in model.stages if part.startswith(stage)), key=len, default=model.stages[-1])


def is_head(model: nn.Module, path: str) -> bool:
    return stage_of(model, path) == model.stages[-1]


def paths_of(variables: Mapping) -> set[str]:
    """Every path of every collection, without the collection."""
    return {path.split("/", 1)[1] for path in flatten(variables)}


def select(model: nn.Module, paths: Iterable[str], names: Sequence[str]) -> frozenset[str]:
    """The paths that `names` mean: "body" (all but the heads), stages, or regular expressions for a path or its
    beginning. ValueError for one that fits none."""
    paths, chosen = sorted(paths), set[str]()
    for name in names:
        if name == BODY:
            found = {path for path in paths if not is_head(model, path)}
        elif name in model.stages:
            found = {path for path in paths if stage_of(model, path) == name}
        else:
            found = {path for path in paths if path_matches(name, path)}
        if not found and name != BODY:
            stages = ", ".join(model.stages)
            raise ValueError(
                f"freeze {name!r} fits no part of the model; its stages are {stages}; {BODY} is all but the head; "
                f"anything else is a regular expression for paths such as {paths[0]}"
            )
        chosen |= found
    return frozenset(chosen)


# --- phases ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """The steps from `start` to `stop` - 1, in which `frozen` paths stay as they are.

    Each phase is a training of its own: it starts its optimiser afresh and runs the whole schedule.
    """

    start: int
    stop: int
    frozen: frozenset[str] = frozenset()


def phases(
    recipe: Recipe, model: nn.Module, variables: Mapping, total_steps: int, steps_per_epoch: float, new_head: bool
) -> tuple[Phase, ...]:
    """When what is frozen: the body while a new head is trained alone, and what the recipe freezes until it joins.

    variables: of the model; abstract ones do. ValueError where nothing would be left to train.
    """
    paths = paths_of(variables)
    body, listed = select(model, paths, (BODY,)), select(model, paths, recipe.freeze)
    alone = new_head and len(body) < len(paths)
    until_all = min(round(recipe.head_epochs * steps_per_epoch), total_steps) if alone else 0
    until_joined = round(recipe.unfreeze_at * steps_per_epoch) if recipe.unfreeze_at else total_steps
    edges = sorted({0, until_all, min(until_joined, total_steps), total_steps})
    found: list[Phase] = []
    for start, stop in pairwise(edges):
        frozen = (body if start < until_all else frozenset()) | (listed if start < until_joined else frozenset())
        if found and found[-1].frozen == frozen:
            start = found.pop().start
        found.append(Phase(start, stop, frozen))
    params = {path.removeprefix("params/") for path in flatten(variables) if path.startswith("params/")}
    for phase in found:
        if params <= phase.frozen:
            raise ValueError(f"freeze {', '.join(recipe.freeze)}: nothing is left to train from step {phase.start} on")
    return tuple(found)


def rates(recipe: Recipe, model: nn.Module, params: Mapping) -> dict[str, float]:
    """path -> what the learning rate is multiplied with: `layer_decay` per stage before the last, the head's own."""
    last = len(model.stages) - 1
    head = recipe.head_lr / recipe.learning_rate if recipe.head_lr else 1.0
    return {
        path: head if is_head(model, path) else recipe.layer_decay ** (last - model.stages.index(stage_of(model, path)))
        for path in flatten(params)
    }


def trainable(params: Mapping, frozen: frozenset[str]) -> dict:
    """The parameters that are not frozen: what gradients and optimiser states are about."""
    if not frozen:
        return dict(params)
    return unflatten({path: leaf for path, leaf in flatten(params).items() if path not in frozen})


def joined(params: Mapping, free: Mapping) -> dict:
    """`params` with the leaves of `free` in their places."""
    return unflatten({**flatten(params), **flatten(free)})


def describe(job_phases: Sequence[Phase], model: nn.Module, params: Mapping, steps_per_epoch: float) -> list[str]:
    """A line on each phase where something is frozen."""
    if not any(phase.frozen for phase in job_phases):
        return []
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in flatten(params).items()}
    lines = []
    for phase in job_phases:
        free = sum(size for path, size in sizes.items() if path not in phase.frozen)
        stages = [
            name for name in model.stages if any(stage_of(model, p) == name and p not in phase.frozen for p in sizes)
        ]
        first, last = phase.start / steps_per_epoch, phase.stop / steps_per_epoch
        lines.append(
            f"epochs {first:.3g} to {last:.3g}: {free:,} parameters learn ({_some(stages) if phase.frozen else 'all'})"
        )
    return lines
