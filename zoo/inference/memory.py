"""Memory of inference: checked from shapes before a batch is read, and by compiling if it may be too large."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from zoo.distributed.device_memory import OutOfMemoryError, available_bytes, format_bytes, required_bytes
from zoo.distributed.mesh import SINGLE_DEVICE, Parallelism

#: Bytes of a network's float32 input above which memory is looked at.
SMALL_INPUT_BYTES = 32 * 2**20
#: Forward passes need up to this many times the bytes of their input; below it nothing is compiled to find out.
USUAL_FACTOR = 64


def abstract_batch(images_shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of an evaluation batch whose images are uint8 of this shape."""
    rows = images_shape[:1]
    shapes = {"image": (images_shape, np.uint8), "label": (rows, np.int32), "weight": (rows, np.float32)}
    return {key: jax.ShapeDtypeStruct(shape, dtype) for key, (shape, dtype) in shapes.items()}


def shortage(step: Any, variables: Any, batch: Any, parallelism: Parallelism = SINGLE_DEVICE) -> tuple[int, int] | None:
    """Return (required, available) bytes if a forward pass does not fit into memory, else None.

    Args:
        step: the jitted function of (variables, batch).
        variables: its variables, as arrays or shapes and dtypes.
        batch: an array of images as shape and dtype, or a dict with one as "image"; the part of one device.
        parallelism: the devices.
    """
    images = batch["image"] if isinstance(batch, dict) else batch
    pixels = math.prod(images.shape)
    if 4 * pixels <= SMALL_INPUT_BYTES or (available := available_bytes(parallelism)) is None:
        return None
    least = (3 + 4) * pixels  # three batches of uint8: in use, transferred, being read; and the normalised floats
    if least > available:
        return least, available
    if USUAL_FACTOR * 4 * pixels <= available or not parallelism.is_single_device:
        return None
    required = required_bytes(step.lower(variables, batch).compile())
    if required is None or 3 * pixels + required <= available:
        return None
    return 3 * pixels + required, available


def require_room(
    step: Any,
    variables: Any,
    batch: Any,
    advice: str,
    parallelism: Parallelism = SINGLE_DEVICE,
    doing: str = "a batch of {} images of {}",
) -> None:
    """Raise OutOfMemoryError if a forward pass does not fit into memory.

    Args:
        step: as in `shortage`.
        variables: as in `shortage`.
        batch: as in `shortage`.
        advice: end of the message.
        parallelism: the devices.
        doing: begin of the message, with {} for the number of images per device and for their shape.
    """
    if (found := shortage(step, variables, batch, parallelism)) is not None:
        images = batch["image"] if isinstance(batch, dict) else batch
        count, size = images.shape[0], "x".join(map(str, images.shape[-3:]))
        required, available = format_bytes(*found)
        raise OutOfMemoryError(
            f"{doing.format(f'{count:,}', size)} needs at least {required}, {available} available; {advice}"
        )


def largest_batch(step: Any, variables: Any, sizes: Sequence[int], batch_of: Callable[[int], Any], advice: str) -> int:
    """Return the first of `sizes`, in decreasing order, whose batch fits into memory.

    Raises:
        OutOfMemoryError: ending in advice, if not even the last one does.
    """
    for size in sizes[:-1]:
        if shortage(step, variables, batch_of(size)) is None:
            return size
    require_room(step, variables, batch_of(sizes[-1]), advice)
    return sizes[-1]
