"""A linear classifier on frozen features as the head of its network: an ordinary checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo import loading, models
from zoo.analysis.features import HEAD_INPUT, digest_of
from zoo.analysis.probe import ProbeResult
from zoo.arguments import check_types
from zoo.checkpoint import Card, save_checkpoint
from zoo.data.content_sketch import TRAINED_ON, ContentSketch
from zoo.inference.predict import Checkpoint
from zoo.training import run
from zoo.training.finetune import is_head
from zoo.trees import flatten, match_leaves, unflatten


@check_types()
def attach_head(
    checkpoint: Checkpoint | str | Path,
    probed: ProbeResult,
    path: str | Path | None = None,
    *,
    command: str = "",
    allow_nonfinite: bool = False,
) -> Checkpoint:
    """Return the network whose features a probe was trained on, with the probe's classifier as its head.

    Its probabilities are those of the probe, with its calibration. Auxiliary heads, which matter in training only, are
    left out.

    Args:
        checkpoint: the Checkpoint, or a folder or name that `load` takes.
        probed: the result of `probe`.
        path: folder to write the checkpoint to; an existing checkpoint is replaced. None to write nothing.
        command: command line to record in the card.
        allow_nonfinite: accept variables that hold NaN or infinity, such as those of the head that is replaced.

    Raises:
        ValueError: if the probe was trained on another endpoint than the head's input or on features of another
            network, or if the network has no head that could be replaced.
    """
    if isinstance(checkpoint, Checkpoint):
        loaded = checkpoint
    else:
        loaded = loading.load(checkpoint, allow_nonfinite=allow_nonfinite)
    require_head_input(probed)
    name = loaded.card.model
    if probed.origin and probed.origin.digest != digest_of(loaded):
        given = checkpoint if isinstance(checkpoint, (str, Path)) else f"this {name}"
        raise ValueError(f"{given}: is not the network that computed the features (or it has changed since)")
    model = model_with_classes(name, loaded.card.fields, len(probed.class_names))
    shape = loaded.card.preprocess.input_shape
    variables = head_variables(model, shape, jax.device_get(loaded.variables), probed.kernel, probed.bias, name)
    card = _card(loaded.card, model, probed, checkpoint, command)
    if path is not None:
        card = save_checkpoint(path, card, variables, allow_nonfinite)
    return Checkpoint(model, jax.device_put(variables), card)


def require_head_input(probed: ProbeResult) -> None:
    """Raise ValueError unless the probe reads what the head reads."""
    if probed.origin and probed.origin.at != HEAD_INPUT:
        raise ValueError(
            f"a head reads the endpoint {HEAD_INPUT!r}, but this probe was trained on {probed.origin.at!r}; drop --at"
        )


def model_with_classes(name: str, fields: dict[str, Any], num_classes: int) -> nn.Module:
    """Return a model with a head for `num_classes` classes and without auxiliary heads.

    Raises:
        ValueError: for a network whose outputs are fixed.
    """
    changes: dict[str, Any] = {"num_classes": num_classes}
    if "aux_heads" in fields:
        changes["aux_heads"] = False
    model = models.create(name, **{**fields, **changes})
    if not head_paths(model, model.input_shape):
        raise ValueError(f"{name}: its outputs are fixed codes, so it has no head to train; use another network")
    return model


def head_paths(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """Return the paths of the head's leaves, with their collection."""
    leaves = flatten(models.abstract_variables(model, shape))
    return [path for path in leaves if is_head(model, path.split("/", 1)[1])]


def head_variables(
    model: nn.Module, shape: tuple[int, int, int], variables: dict, kernel: np.ndarray, bias: np.ndarray, name: str
) -> dict:
    """Return variables with a linear map as the head.

    Args:
        model: the network with the new head.
        shape: [H, W, C] of its images.
        variables: those of the network with or without another head.
        kernel: [D, K].
        bias: [K].
        name: name of the model, for messages.

    Raises:
        ValueError: if the head is not one dense layer of this shape, or a variable is missing.
    """
    abstract = models.abstract_variables(model, shape)
    wanted, saved = flatten(abstract), flatten(variables)
    fitted = {2: kernel, 1: bias}
    heads = {path: fitted.get(wanted[path].ndim) for path in head_paths(model, shape)}
    if len(heads) != 2 or any(leaf is None or leaf.shape != wanted[path].shape for path, leaf in heads.items()):
        shapes = ", ".join(f"{path} {wanted[path].shape}" for path in heads)
        raise ValueError(f"{name}: its head is not one dense layer on {kernel.shape[0]} features ({shapes})")
    leaves = {path: leaf.astype(wanted[path].dtype) for path, leaf in heads.items() if leaf is not None}
    leaves |= {path: saved[path] for path in wanted if path not in leaves and path in saved}
    return match_leaves({"params": {}, "batch_stats": {}, **unflatten(leaves)}, abstract, name)


def _card(old: Card, model: nn.Module, probed: ProbeResult, checkpoint: Any, command: str) -> Card:
    origin = probed.origin
    spec = str(checkpoint) if isinstance(checkpoint, (str, Path)) else f"a {old.model} in memory"
    chosen = f"by {probed.folds}-fold cross-validation" if probed.folds else "on the validation split"
    brief = {key: value for key, value in probed.metrics.to_json().items() if key != "confusion"}
    metrics: dict[str, Any] = {probed.split: brief}
    if probed.folds:
        metrics["cross_validation"] = {"accuracy": probed.cross_validated, "folds": probed.folds}
    data: dict[str, Any] = {"source": origin.data, "limit": origin.limit, "notes": []} if origin else {}
    if probed.images is not None:
        before = ContentSketch.from_json((old.data or {}).get(TRAINED_ON))
        data[TRAINED_ON] = (probed.images if before is None else before.merge(probed.images)).to_json()
    return dataclasses.replace(
        old,
        fields=models.defining_fields(model),
        classes=tuple(probed.class_names),
        recipe=None,
        data=data or None,
        metrics=metrics,
        versions=run.versions(),
        source=f"linear {probed.kind} classifier on frozen features of {spec}"
        + (f" ({old.source})" if old.source else "")
        + f"; trained on {' and '.join(probed.trained_on)}, penalty C {probed.strength:g} per 1,000 examples, chosen "
        + chosen,
        command=command,
        calibration=probed.calibration,
    )
