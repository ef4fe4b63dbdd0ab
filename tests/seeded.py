"""Weights for golden values: drawn anew from the keys and shapes of a state dict, so that only those need storing."""

import zlib
from collections.abc import Mapping

import jax
import numpy as np


def seeded_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor that belongs to this key and shape of a PyTorch or Keras network, always the same.

    Variances lie between 0.5 and 1.5, scales between 0.5 and 1, kernels keep the size of what passes through them.
    """
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith(("running_var", "moving_variance")):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        depthwise = key.endswith("depthwise_kernel")  # of Keras, [kh, kw, C, 1]
        fan_in = np.prod(shape[1:] if key.endswith("weight") else shape[:2] if depthwise else shape[:-1])
        values = rng.normal(0, np.sqrt(2 / fan_in), shape)
    elif key.endswith(("weight", "gamma")):
        values = rng.uniform(0.5, 1, shape)
    else:
        values = rng.normal(0, 0.1, shape)
    return values.astype(np.float32)


def seeded_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict of such tensors."""
    return {key: seeded_tensor(key, tuple(shape)) for key, shape in shapes.items()}


def seeded_variables(shapes: Mapping) -> dict:
    """Variables of ours with these shapes, in the same manner: no scale hides a branch, no variance is negative."""
    names = {"kernel": "kernel", "scale": "gamma", "var": "moving_variance"}

    def draw(path, leaf):
        *modules, name = (part.key for part in path)
        return seeded_tensor("/".join([*modules, names.get(name, name)]), leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def seeded_images(shape: tuple[int, ...]) -> np.ndarray:
    """Images [B, H, W, C], float32, about as large as normalised ones."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
