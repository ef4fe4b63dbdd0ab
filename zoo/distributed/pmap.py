"""Data parallelism by `jax.pmap`: everything that differs from jit over a mesh.

pmap runs one copy of the step per device. A device sees its own rows of a batch alone, so gradients, metrics and batch
statistics are averaged over a named axis inside the step. jit over a mesh is the main path; pmap exists beside it to be
compared with (jax has it in maintenance mode since 0.8, where it is jit and shard_map inside).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zoo.data.augment.ops import PAIRING, parse

#: Name of the axis over which devices average gradients and batch statistics.
AXIS_NAME = "batch"


def stack_per_device(batch: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """Reshape each array of a batch from [B, …] to [devices, B / devices, …]."""
    return {key: value.reshape(stacked_shape(value.shape, devices)) for key, value in batch.items()}


def stacked_shape(shape: Sequence[int], devices: int) -> tuple[int, ...]:
    """Return (devices, B / devices, …) for a shape (B, …)."""
    return (devices, shape[0] // devices, *shape[1:])


def compile_step(step: Callable, devices: Sequence[Any], state: Any, batch: Any) -> Any:
    """Compile a training step (state, batch) -> (state, metrics) for pmap; the state is donated.

    Args:
        step: the pure function, which averages over `AXIS_NAME` itself.
        devices: the devices to run on, in the order of the batch's rows.
        state: the training state, replicated by pmap.
        batch: shapes and dtypes of a batch, stacked per device.
    """
    mapped = jax.pmap(
        step, axis_name=AXIS_NAME, in_axes=(None, 0), out_axes=None, donate_argnums=(0,), devices=list(devices)
    )
    return mapped.lower(state, batch).compile()


def require_supported(batch_size: int, devices: int, micro_batch: int | str, augment: Sequence[str]) -> None:
    """Raise ValueError for settings that would give different results per device than over the whole batch.

    Args:
        batch_size: images per step over all devices.
        devices: number of devices.
        micro_batch: images per forward pass, 0 for the whole batch, or "auto".
        augment: the recipe's augmentation.
    """
    if micro_batch:
        raise ValueError("--micro-batch is not supported with --parallel pmap; drop one of the two")
    mixing = [op for op in augment if parse(op)[0] in PAIRING]
    if mixing and batch_size // devices % 2:
        raise ValueError(
            f"{mixing[0]} mixes pairs of neighbours: with --parallel pmap each device needs an even number of images, "
            f"not {batch_size // devices}; use --batch-size {2 * devices} or a multiple, or drop --parallel pmap"
        )


def abstract_batch(shapes: Mapping[str, tuple[tuple[int, ...], Any]], devices: int) -> dict[str, Any]:
    """Return shapes and dtypes of a batch stacked per device, from those of the whole batch."""
    return {
        key: jax.ShapeDtypeStruct(stacked_shape(shape, devices), np.dtype(dtype))
        for key, (shape, dtype) in shapes.items()
    }
