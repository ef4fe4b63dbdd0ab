"""Folding of batch norm into the preceding convolution for inference (Jacob et al. 2017, arXiv:1712.05877, 3.2).

With stored statistics a norm is multiplier * x + shift per channel. If x is the output of a convolution that nothing
else reads, the multiplier goes into the kernel and the shift becomes a bias. The function is the same up to rounding.

Folded variables exist in memory only and are never saved. Models need no change: a `BatchNorm` that has a bias in the
collection "folded" adds it instead of normalising.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from zoo.distributed.processes import gather_to_host
from zoo.models import abstract_variables, with_runtime
from zoo.models.layers import BatchNorm, Conv
from zoo.trees import flatten, unflatten


class Pair(NamedTuple):
    """Paths of a convolution and of the norm that is the only reader of its output."""

    conv: str
    norm: str
    epsilon: float


def fold(model: nn.Module, variables: dict, image_shape: tuple[int, int, int]) -> dict:
    """Fold every batch norm that can be folded.

    Args:
        model: the network.
        variables: {"params": …, "batch_stats": …}.
        image_shape: (H, W, C) of the network's input.

    Returns:
        Variables for `model.apply(…, train=False)`, on the host except for leaves that are split among devices, which
        stay there. They lack the parameters and statistics of the folded norms, so they cannot be trained; the
        collection "folded" holds the biases. `variables` itself if there is nothing to fold.
    """
    foldable = foldable_pairs(model, tuple(image_shape)) if variables.get("batch_stats") else ()
    if not foldable:
        return variables
    flat = flatten(variables)

    def take(path: str, default: float) -> np.ndarray:
        return np.asarray(gather_to_host(flat.pop(path, default)), np.float64)

    for conv, norm, epsilon in foldable:
        mean, var = take(f"batch_stats/{norm}/mean", 0), take(f"batch_stats/{norm}/var", 1)
        multiplier = take(f"params/{norm}/scale", 1) / np.sqrt(var + epsilon)
        flat[f"folded/{norm}/bias"] = (take(f"params/{norm}/bias", 0) - mean * multiplier).astype(np.float32)
        for path in (f"params/{conv}/kernel", f"params/{conv}/bias"):
            if path in flat:
                flat[path] = _multiply(flat[path], multiplier.astype(np.float32))
    return unflatten(flat)


def _multiply(leaf: Any, multiplier: np.ndarray) -> Any:
    """Return leaf * multiplier: on the host, or where the leaf is if devices share it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
        return jax.jit(jax.numpy.multiply, out_shardings=leaf.sharding)(leaf, multiplier)
    return np.asarray(leaf) * multiplier


def folded_on_device(model: nn.Module, variables: dict, image_shape: tuple[int, int, int]) -> dict:
    """Return `fold(…)` on the device. The last result is cached for the same JAX arrays; NumPy arrays are mutable."""
    leaves, tree = jax.tree.flatten(variables)
    key = (model, tuple(image_shape), tree)
    for cached_key, refs, placed in tuple(_cache):
        if cached_key == key and all(ref() is leaf for ref, leaf in zip(refs, leaves, strict=True)):
            return placed
    folded = fold(model, variables, image_shape)
    on_device = all(isinstance(leaf, jax.Array) for leaf in leaves)
    if folded is variables and on_device:
        return variables
    placed = jax.device_put(folded)
    if on_device:
        _cache[:] = [(key, [weakref.ref(leaf) for leaf in leaves], placed)]
        weakref.finalize(leaves[0], _cache.clear).atexit = False  # free the folded copy together with its source
    return placed


_cache: list[tuple[Any, list[weakref.ref], dict]] = []


@lru_cache(maxsize=16)
def foldable_pairs(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Pair, ...]:
    """Find the pairs of convolution and norm that can be folded, in a trace of the network.

    The trace names the output of every convolution and the input of every norm. A pair is foldable if the norm's input
    is the convolution's output, and nothing else reads it.
    """
    epsilons: dict[str, float] = {}
    calls: Counter[str] = Counter()  # layers that are called twice share their parameters and cannot be folded

    def name_values(call, args, kwargs, context):
        module, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__" or not isinstance(module, (Conv, BatchNorm)):
            return call(*args, **kwargs)
        calls[path] += 1
        if isinstance(module, Conv):
            return checkpoint_name(call(*args, **kwargs), f"conv:{path}")
        epsilons[path] = module.epsilon
        return call(checkpoint_name(args[0], f"norm:{path}"), *args[1:], **kwargs)

    def network(variables, images):
        with nn.intercept_methods(name_values):
            return model.apply(variables, images)

    model = with_runtime(model, remat=False)  # remat would hide blocks in nested functions of the trace
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    traced = jax.make_jaxpr(network)(abstract_variables(model, image_shape), images)
    adjacent = _adjacent_names(traced.jaxpr)
    return tuple(Pair(conv, norm, epsilons[norm]) for conv, norm in adjacent if calls[conv] == calls[norm] == 1)


def _adjacent_names(jaxpr: Any) -> Iterator[tuple[str, str]]:
    """Yield (conv, norm) for every value named "conv:…" whose only reader is the name "norm:…"."""
    readers: dict[Any, list[str]] = {}
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if not hasattr(variable, "val"):  # literals have no readers
                readers.setdefault(variable, []).append(_name(equation))
    outputs = {id(variable) for variable in jaxpr.outvars}
    for equation in jaxpr.eqns:
        kind, _, conv = _name(equation).partition(":")
        if kind == "conv" and id(equation.outvars[0]) not in outputs:
            names = [name.partition(":") for name in readers.get(equation.outvars[0], [])]
            if len(names) == 1 and names[0][0] == "norm":
                yield conv, names[0][2]


def _name(equation: Any) -> str:
    return equation.params["name"] if equation.primitive.name == "name" else ""
