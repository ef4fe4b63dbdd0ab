"""Parallel branches, the unit that the Inception papers' figures draw: written as tables, run by one module.

A branch is a tuple of steps from the input upwards; a step is a Unit (convolution, norm, ReLU), a Pool, or a tuple of
units that read the same maps side by side. The branches' outputs are concatenated in the order of the table.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import avg_pool, max_pool


class Unit(NamedTuple):
    """A convolution with what follows it. `valid`: without padding; otherwise half the kernel on each side."""

    name: str
    features: int
    kernel: int | tuple[int, int]
    stride: int = 1
    valid: bool = False


class Pool(NamedTuple):
    """Pooling over 3x3. `kind`: "max", "avg" (padding counts as zeros) or "avg_inside" (padding does not count)."""

    kind: str
    stride: int = 1
    valid: bool = False


Step = Unit | Pool | tuple[Unit, ...]
Branch = tuple[Step, ...]


def units(branches: tuple[Branch, ...]) -> list[Unit]:
    """The units of a module in the order of its table."""
    steps = [step for branch in branches for step in branch if not isinstance(step, Pool)]
    return [unit for step in steps for unit in ([step] if isinstance(step, Unit) else step)]


class Branches(nn.Module):
    """An Inception module or a reduction: [B, H, W, C] -> [B, H', W', sum of the branches' features].

    `conv(features, kernel, stride, padding, name=)` makes the module of a unit, called with (x, train). Children: the
    units, by their names.
    """

    branches: tuple[Branch, ...]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        def run(step: Step, x):
            if isinstance(step, Unit):
                padding = 0 if step.valid else None
                return self.conv(step.features, step.kernel, step.stride, padding, name=step.name)(x, train)
            if isinstance(step, Pool):
                padding = 0 if step.valid else 1
                if step.kind == "max":
                    return max_pool(x, 3, step.stride, padding)
                return avg_pool(x, 3, step.stride, padding, count_include_pad=step.kind == "avg")
            return jnp.concatenate([run(unit, x) for unit in step], axis=-1)

        outputs = [reduce(lambda y, step: run(step, y), branch, x) for branch in self.branches]
        return jnp.concatenate(outputs, axis=-1)
