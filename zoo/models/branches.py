"""Inception modules as tables of parallel branches.

A branch is a tuple of steps, from the input upwards. A step is a `Unit` (convolution, norm, ReLU), a `Pool`, or a tuple
of units that read the same activations. The outputs of all branches are concatenated in the order of the table.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.layers import BatchNorm, ConvNorm, Initializer, he_normal_fan_out, scale_width
from zoo.models.operations import avg_pool, max_pool


class Unit(NamedTuple):
    """A convolution with its norm and activation.

    Attributes:
        name: name of the submodule, part of the parameter path.
        features: number of output channels, before scaling by the width of the model.
        kernel_size: side of the kernel, or (height, width).
        stride: stride of the convolution.
        valid: no padding; otherwise half the kernel on each side.
    """

    name: str
    features: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    valid: bool = False


class Pool(NamedTuple):
    """3x3 pooling.

    Attributes:
        kind: "max", "avg" (padding counts as zeros) or "avg_inside" (padding is not counted).
        stride: stride of the pooling.
        valid: no padding; otherwise one pixel on each side.
    """

    kind: str
    stride: int = 1
    valid: bool = False


Step = Unit | Pool | tuple[Unit, ...]
Branch = tuple[Step, ...]


def units(branches: tuple[Branch, ...]) -> list[Unit]:
    """Return the units of a table in order."""
    steps = [step for branch in branches for step in branch if not isinstance(step, Pool)]
    return [unit for step in steps for unit in ([step] if isinstance(step, Unit) else step)]


def chain(name: str, *layers: tuple) -> tuple[Unit, ...]:
    """Return consecutive units called `name`_1, `name`_2, …, or `name` if there is only one.

    Args:
        name: prefix of the names.
        *layers: (features, kernel_size[, stride, valid]) of each unit.
    """
    if len(layers) == 1:
        return (Unit(name, *layers[0]),)
    return tuple(Unit(f"{name}_{i}", *layer) for i, layer in enumerate(layers, 1))


def run_branches(branches: tuple[Branch, ...], conv: Callable[..., nn.Module], x: jax.Array, train: bool) -> jax.Array:
    """Apply parallel branches inside the calling module.

    Args:
        branches: table of branches.
        conv: constructor of a unit, conv(features, kernel_size, stride, padding, name=…), called with (x, train).
        x: activations [B, H, W, C].
        train: mode of the batch norms.

    Returns:
        [B, H', W', F], F being the sum of the channels of all branches.
    """

    def run(step: Step, x: jax.Array) -> jax.Array:
        if isinstance(step, Unit):
            padding = 0 if step.valid else None
            return conv(step.features, step.kernel_size, step.stride, padding, name=step.name)(x, train)
        if isinstance(step, Pool):
            padding = 0 if step.valid else 1
            if step.kind == "max":
                return max_pool(x, 3, step.stride, padding)
            return avg_pool(x, 3, step.stride, padding, count_include_pad=step.kind == "avg")
        return jnp.concatenate([run(unit, x) for unit in step], axis=-1)

    outputs = [reduce(lambda y, step: run(step, y), branch, x) for branch in branches]
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)


class Branches(nn.Module):
    """An Inception module or a reduction: [B, H, W, C] -> [B, H', W', F] (see `run_branches`).

    Children: the units, by name.
    """

    branches: tuple[Branch, ...]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        return run_branches(self.branches, self.conv, x, train)


def unit_constructor(model: nn.Module, kernel_init: Initializer = he_normal_fan_out) -> Callable[..., nn.Module]:
    """Return conv(features, kernel_size, stride, padding, name=…) for the units of a model.

    Args:
        model: supplies the fields width, epsilon, axis_name and dtype.
        kernel_init: initialiser of the kernels.
    """
    norm = partial(BatchNorm, epsilon=model.epsilon, axis_name=model.axis_name)

    def conv(features, kernel_size, stride=1, padding=None, *, kernel_init=kernel_init, name):
        return ConvNorm(scale_width(features, model.width), kernel_size, norm, stride, padding,
                        kernel_init=kernel_init, dtype=model.dtype, name=name)  # fmt: skip

    return conv
