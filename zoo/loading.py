"""Loading of checkpoints by folder, name or weight file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from zoo import models
from zoo.arguments import check_types
from zoo.inference.predict import Checkpoint
from zoo.pretrained import weights
from zoo.pretrained.names import names_checkpoint
from zoo.trees import match_leaves

if TYPE_CHECKING:
    from zoo.training.finetune import InitCheckpoint


@check_types("spec")
def load(spec: str | Path, model: str | None = None, *, allow_nonfinite: bool = False, **fields: Any) -> Checkpoint:
    """Load a checkpoint by folder or name.

    Files and leaves are checked against their hashes and must match the model exactly.

    Args:
        spec: a checkpoint folder; the folder of a run, which stands for its best checkpoint; the name of a shipped
            checkpoint ("lenet5-mnist"); a name in WEIGHTS, downloaded once ("torchvision:resnet50",
            "timm:resnet50.a1_in1k", "keras:ResNet50V2"); a checkpoint on the Hugging Face Hub
            ("hf:USER/NAME" or "hf:USER/NAME@REVISION"); a weight file; or the address of a run, a checkpoint or a
            weight file in an object store ("gs://bucket/run", "s3://bucket/run/best").
        model: name in MODELS, for a weight file that is not in WEIGHTS.
        allow_nonfinite: accept variables that hold NaN or infinity.
        **fields: fields of that model, e.g. load("mine.pth", "resnet50", stride_in="1x1").

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ConnectionError: if it cannot be downloaded.
        ValueError: naming every damaged file and every leaf that does not match.

    Example:
        >>> checkpoint = zoo.load("lenet5-mnist")
        >>> logits, endpoints = checkpoint.model.apply(checkpoint.variables, images)
    """
    if isinstance(spec, Checkpoint):
        raise ValueError(f"load: this {spec.card.model} is a Checkpoint already")
    if not isinstance(spec, (str, os.PathLike)) or not str(spec):
        raise ValueError(f"load: {spec!r} is neither a folder nor a name; try 'lenet5-mnist' or 'runs/…/best'")
    card, variables = weights.open_weights(spec, model, fields, allow_nonfinite)
    try:
        network = models.create(card.model, **card.fields)
        abstract = models.abstract_variables(network, card.preprocess.input_shape)
    except Exception as error:  # a card can hold any fields, and tracing what they describe can fail in any way
        raise ValueError(f"{spec}: its card describes no network of this zoo: {error}") from None
    return Checkpoint(network, jax.device_put(match_leaves(variables, abstract, str(spec))), card)


def open_checkpoint(checkpoint: str | Path | Checkpoint, function: str = "", second: Any = None) -> Checkpoint:
    """Return a Checkpoint, loaded if it is given by folder or name, as `load` takes it.

    Args:
        checkpoint: a Checkpoint, or a folder or name that `load` takes.
        function: the public function whose first argument it is.
        second: its second argument, which may be the checkpoint if the two were exchanged.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    try:
        return load(checkpoint)
    except (ValueError, OSError):
        if not is_checkpoint(second):
            raise
        name = "checkpoint" if isinstance(second, Checkpoint) else repr(os.fspath(second))
        order = f"zoo.{function}({name}, {os.fspath(checkpoint)!r})"
        raise ValueError(f"{function}: the checkpoint comes first: {order}") from None


def is_checkpoint(value: Any) -> bool:
    """Return True for a Checkpoint, and for the name or folder of one. Nothing is read or downloaded."""
    try:
        return isinstance(value, Checkpoint) or (isinstance(value, (str, Path)) and names_checkpoint(str(value)))
    except (OSError, RuntimeError):  # of a path such as ~nobody
        return False


def open_init(init: str | Path | Checkpoint, model: str | None = None) -> InitCheckpoint:
    """Open a checkpoint to start training from.

    Args:
        init: a Checkpoint, or a folder or name that `load` takes.
        model: name in MODELS, for a weight file whose model is not recognised.
    """
    from zoo.training.finetune import InitCheckpoint  # imports Optax, which prediction does without

    if isinstance(init, Checkpoint):
        return InitCheckpoint(f"a {init.card.model} in memory", init.card, jax.device_get(init.variables))
    with weights.on_disk(init) as path:
        loaded = load(path, model if Path(path).expanduser().is_file() else None)
    return InitCheckpoint(str(init), loaded.card, jax.device_get(loaded.variables))
