"""Features that a network has learned: filters of the first layer, activations, and images that excite a unit."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.analysis.features import endpoints
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.data.loader import eval_batches
from zoo.data.splits import Split
from zoo.inference.evaluate import BATCH_SIZE
from zoo.inference.predict import Checkpoint
from zoo.models.summary import layers
from zoo.suggest import did_you_mean
from zoo.trees import flatten

ASCENT_STEPS = 200


class Unit(NamedTuple):
    """A channel of a stage, a unit of a dense stage, or a class ("logits")."""

    stage: str
    channel: int

    def __str__(self) -> str:
        return f"{self.stage}:{self.channel}"


def parse_unit(text: str, checkpoint: Checkpoint) -> Unit:
    """Parse "stage3:17".

    Raises:
        ValueError: naming the stages of the network, or the number of units of the stage.
    """
    match = re.fullmatch(r"([^:]+):(\d+)", text.strip())
    if match is None:
        raise ValueError(f"unit {text!r}: write it as STAGE:NUMBER, such as {next(iter(checkpoint.model.stages))}:0")
    known = endpoints(checkpoint.model, checkpoint.card.preprocess)
    stage, index = match[1], int(match[2])
    if stage not in known:
        hint = did_you_mean(stage, known) or f"it has {', '.join(known)}"
        raise ValueError(f"unit {text!r}: {checkpoint.card.model} has no stage {stage!r}; {hint}")
    if index >= known[stage][-1]:
        raise ValueError(f"unit {text!r}: {stage} has the units 0 to {known[stage][-1] - 1}")
    return Unit(stage, index)


def first_layer_filters(model: nn.Module, variables: dict, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return the kernels of the first layer with weights, float32 [F, kh, kw, C]; of a dense layer [F, H, W, C].

    Args:
        model: a model of this package.
        variables: {"params": …, "batch_stats": …}.
        image_shape: [H, W, C] of the network's input.
    """
    kernel = np.asarray(flatten(variables["params"])[f"{layers(model, image_shape)[0].path}/kernel"], np.float32)
    if kernel.ndim == 2:
        return kernel.T.reshape(-1, *image_shape)
    return kernel.transpose(3, 0, 1, 2)


@partial(jax.jit, static_argnames="model")
def stage_activations(model: nn.Module, variables: dict, images: jax.Array) -> dict[str, jax.Array]:
    """Return the activations of every stage but the head, by name."""
    _, ends = model.apply(variables, images)
    return {name: ends[name] for name in model.stages if name in ends}


def feature_maps(checkpoint: Checkpoint, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the feature maps of every stage that has positions, in order.

    Args:
        checkpoint: the checkpoint.
        pixels: the network's input before normalisation, uint8 [N, H, W, C].

    Returns:
        {stage: float32 [N, h, w, F]}.
    """
    images = normalise(pixels, checkpoint.card.preprocess)
    ends = stage_activations(checkpoint.model, checkpoint.variables, images)
    stages = [name for name in checkpoint.model.stages if name in ends and ends[name].ndim == 4]
    return {name: np.asarray(ends[name], np.float32) for name in stages}


def _excitation(end: jax.Array, index: jax.Array, reduce: Callable) -> jax.Array:
    """Return the activation of a unit for every image, [B], reduced over positions if there are any."""
    values = jnp.take(end.astype(jnp.float32), index, axis=-1)
    return reduce(values.reshape(len(values), -1), axis=1)


@partial(jax.jit, static_argnames=("model", "preprocess", "stage", "steps"))
def maximise_activation(
    model: nn.Module,
    variables: dict,
    preprocess: Preprocess,
    stage: str,
    index: jax.Array,
    key: jax.Array,
    steps: int = ASCENT_STEPS,
) -> jax.Array:
    """Search for an image that excites a unit, by gradient ascent from noise (Erhan et al. 2009; Olah et al. 2017).

    The gradient is smoothed, the image is shifted at random in each step and its total variation is penalised, because
    unconstrained ascent gives high-frequency noise.

    Args:
        model: the network.
        variables: {"params": …, "batch_stats": …}.
        preprocess: supplies size, mean and standard deviation.
        stage: an endpoint.
        index: the channel, unit or class.
        key: random key.
        steps: number of steps.

    Returns:
        The image, float32 [H, W, C] in [0, 1].
    """
    height, width, channels = preprocess.input_shape
    jitter = max(min(height, width) // 16, 1)
    start_key, key = jax.random.split(key)
    noise = 0.02 * jax.random.normal(start_key, (height, width, channels))
    start = jnp.asarray(preprocess.mean, jnp.float32) + noise
    optimizer_rate, smoothing = 0.05, 1e-3

    def objective(image, shift):
        moved = jnp.roll(image, shift, (0, 1))[None]
        _, ends = model.apply(variables, normalise(255 * moved, preprocess))
        variation = jnp.square(jnp.diff(image, axis=0)).sum() + jnp.square(jnp.diff(image, axis=1)).sum()
        return _excitation(ends[stage], index, jnp.mean)[0] - smoothing * variation

    def step(state, key):
        image, first, second, count = state
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)
        gradient = _blur(jax.grad(objective)(image, shift))
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * jnp.square(gradient)
        change = first / (1 - 0.9**count) / (jnp.sqrt(second / (1 - 0.99**count)) + 1e-8)  # Adam
        return (jnp.clip(image + optimizer_rate * change, 0, 1), first, second, count + 1), None

    zeros = jnp.zeros_like(start)
    (image, *_), _ = jax.lax.scan(step, (start, zeros, zeros, 1.0), jax.random.split(key, steps))
    return image


def _blur(image: jax.Array) -> jax.Array:
    """Smooth an image [H, W, C] with the kernel (1, 2, 1) / 4 along both axes."""
    for axis in (0, 1):
        if image.shape[axis] > 2:
            image = (jnp.roll(image, 1, axis) + 2 * image + jnp.roll(image, -1, axis)) / 4
    return image


class TopImage(NamedTuple):
    """A record that excites a unit: its index in the split, its activation, its class and its pixels, uint8 [H, W, C].

    `position` is the (row, column) of the strongest position in the stage; None for stages without positions.
    """

    record: int
    activation: float
    label: int
    pixels: np.ndarray
    position: tuple[int, int] | None


def top_images(
    checkpoint: Checkpoint, split: Split, unit: Unit, count: int = 9, on_batch: Callable[[int], Any] | None = None
) -> list[TopImage]:
    """Return the records of a split that excite a unit most, the strongest first.

    Args:
        checkpoint: the checkpoint.
        split: the records; labels are class indices of the data set.
        unit: the unit.
        count: number of records.
        on_batch: called with the number of images done.
    """
    preprocess = checkpoint.card.preprocess
    step = _top_step(checkpoint.model, preprocess, unit.stage)
    best: list[TopImage] = []
    done = 0
    for batch in eval_batches(split, preprocess, batch_size=min(BATCH_SIZE, len(split))):
        maps = np.asarray(step(checkpoint.variables, batch["image"], unit.channel))
        size = int((batch["weight"] > 0).sum())
        strongest = maps.reshape(len(maps), -1).max(1)[:size]
        for row in np.argsort(-strongest, kind="stable")[:count]:
            flat = int(maps[row].argmax())
            position = None if maps.ndim == 1 else (flat // maps.shape[2], flat % maps.shape[2])
            found = TopImage(
                done + int(row), float(strongest[row]), int(batch["label"][row]), batch["image"][row].copy(), position
            )
            best.append(found)
        best = sorted(best, key=lambda image: -image.activation)[:count]
        done += size
        if on_batch:
            on_batch(done)
    return best


@partial(jax.jit, static_argnums=(0, 1, 2))
def _unit_maps(model, preprocess, stage, variables, images, index):
    _, ends = model.apply(variables, normalise(images, preprocess))
    return jnp.take(ends[stage].astype(jnp.float32), index, axis=-1)


def _top_step(model: nn.Module, preprocess: Preprocess, stage: str) -> Callable:
    return partial(_unit_maps, model, preprocess, stage)
