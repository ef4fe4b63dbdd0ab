"""Training images that stay on the devices: a step transfers the indices of its batch instead of its pixels.

The batches are those of `zoo.data.loader.train_batches`, to the bit and in the same order.
"""

from collections.abc import Generator, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data.threads import lookahead
from zoo.distributed import processes
from zoo.distributed.device_memory import available_bytes
from zoo.distributed.mesh import Parallelism, batch_sharding, replicate, shard_batch

#: When images stay on the devices: on other platforms than CPUs if they fit, always, or never.
CHOICES = ("auto", "on", "off")
#: Largest fraction of the available memory of a device that the images may take.
MAX_FRACTION = 1 / 8


def fits_on_devices(image_bytes: int, step_bytes: int, parallelism: Parallelism) -> bool:
    """Return True if the images should stay on the devices with "auto". All processes must call this together.

    Args:
        image_bytes: bytes of the images; every device holds all of them.
        step_bytes: bytes per device that training steps need beside the state.
        parallelism: the devices.
    """
    available = None if jax.default_backend() == "cpu" else available_bytes(parallelism)
    fits = available is not None and image_bytes <= min(MAX_FRACTION * available, available - step_bytes)
    return not any(processes.all_reduce_max(int(not fits)))


def resident_batches(
    images: np.ndarray, labels: np.ndarray, indices: Iterable[np.ndarray], parallelism: Parallelism
) -> Generator[dict[str, jax.Array]]:
    """Yield batches on the devices, gathered there, one ahead.

    Args:
        images: all preprocessed images, uint8 [N, H, W, C].
        labels: int32 [N].
        indices: for each batch the records of this process's rows, int [B / processes].
        parallelism: the devices; not by pmap, which takes its batches from the host.
    """

    def gather(images: jax.Array, labels: jax.Array, rows: jax.Array) -> dict[str, jax.Array]:
        return {
            "image": images.at[rows].get(mode="promise_in_bounds"),
            "label": labels.at[rows].get(mode="promise_in_bounds"),
            "weight": jnp.ones(rows.shape, jnp.float32),
        }

    sharding = None if parallelism.is_single_device else batch_sharding(parallelism)
    gather_on_devices = jax.jit(gather, out_shardings=sharding)
    placed = replicate(parallelism, (images, labels))

    def batch(rows: np.ndarray) -> dict[str, jax.Array]:
        return gather_on_devices(*placed, shard_batch(parallelism, {"rows": rows.astype(np.int32)})["rows"])

    yield from lookahead(batch(rows) for rows in indices)
