"""Batch norm folded into the convolution before it, for inference (Jacob et al. 2017, arXiv:1712.05877, section 3.2).

With stored statistics a norm is multiplier * x + shift for each channel. Where x is what a convolution puts out, and
nothing else reads it, the multiplier goes into the kernel and a bias is left. The same function to rounding.

It is a way to run a network, not another network: folded variables live in memory only, and no checkpoint holds them.
Models know nothing of it; a `BatchNorm` that finds a bias in the collection "folded" adds it, and that is all.
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

from zoo.models import abstract_variables, with_runtime
from zoo.models.layers import BatchNorm, Conv
from zoo.trees import flatten, unflatten


class Pair(NamedTuple):
    """A convolution and the norm that alone reads what it puts out, by their paths."""

    conv: str
    norm: str
    epsilon: float


def fold(model: nn.Module, variables: dict, image_shape: tuple[int, int, int]) -> dict:
    """Variables for `model.apply(…, train=False)`, on the host, with what can be folded in the collection "folded".

    image_shape: [H, W, C] of what the variables are for. The parameters and statistics of a folded norm are not among
    them any more, so they cannot be trained. Where there is nothing to fold, `variables` come back as they are.
    """
    found = pairs(model, tuple(image_shape)) if variables.get("batch_stats") else ()
    if not found:
        return variables
    flat = flatten(variables)

    def take(path: str, default: float) -> np.ndarray:
        return np.asarray(flat.pop(path, default), np.float64)

    for conv, norm, epsilon in found:
        mean, var = take(f"batch_stats/{norm}/mean", 0), take(f"batch_stats/{norm}/var", 1)
        multiplier = take(f"params/{norm}/scale", 1) / np.sqrt(var + epsilon)
        flat[f"folded/{norm}/bias"] = (take(f"params/{norm}/bias", 0) - mean * multiplier).astype(np.float32)
        for path in (f"params/{conv}/kernel", f"params/{conv}/bias"):
            if path in flat:
                flat[path] = np.asarray(flat[path]) * multiplier.astype(np.float32)
    return unflatten(flat)


def folded_on_device(model: nn.Module, variables: dict, image_shape: tuple[int, int, int]) -> dict:
    """`fold`, on the device; not done anew while the same arrays of JAX are given (others may have changed inside)."""
    leaves, tree = jax.tree.flatten(variables)
    key = (model, tuple(image_shape), tree)
    for known, refs, placed in tuple(_last):
        if known == key and all(ref() is leaf for ref, leaf in zip(refs, leaves, strict=True)):
            return placed
    folded = fold(model, variables, image_shape)
    placed = jax.device_put(folded)
    if folded is not variables and all(isinstance(leaf, jax.Array) for leaf in leaves):
        _last[:] = [(key, [weakref.ref(leaf) for leaf in leaves], placed)]
        weakref.finalize(leaves[0], _last.clear).atexit = False  # what was folded goes when its source does
    return placed


_last: list[tuple[Any, list[weakref.ref], dict]] = []


@lru_cache(maxsize=16)
def pairs(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Pair, ...]:
    """What can be folded, read off a trace of the network, so that it holds for any order of layers.

    Every convolution's output and every norm's input passes through a mark; a pair is two marks in a row.
    """
    epsilons: dict[str, float] = {}
    calls: Counter[str] = Counter()  # a layer may be run several times with the same parameters

    def mark(call, args, kwargs, context):
        module, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__" or not isinstance(module, (Conv, BatchNorm)):
            return call(*args, **kwargs)
        calls[path] += 1
        if isinstance(module, Conv):
            return checkpoint_name(call(*args, **kwargs), f"conv:{path}")
        epsilons[path] = module.epsilon
        return call(checkpoint_name(args[0], f"norm:{path}"), *args[1:], **kwargs)

    def network(variables, images):
        with nn.intercept_methods(mark):
            return model.apply(variables, images)

    model = with_runtime(model, remat=False)  # its blocks would be functions of their own in the trace
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    traced = jax.make_jaxpr(network)(abstract_variables(model, image_shape), images)
    found = _marks_in_a_row(traced.jaxpr)
    return tuple(Pair(conv, norm, epsilons[norm]) for conv, norm in found if calls[conv] == calls[norm] == 1)


def _marks_in_a_row(jaxpr: Any) -> Iterator[tuple[str, str]]:
    """(conv, norm) of each mark "conv:…" whose result only a mark "norm:…" reads."""
    readers: dict[Any, list[str]] = {}
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if not hasattr(variable, "val"):  # a literal
                readers.setdefault(variable, []).append(_mark(equation))
    results = {id(variable) for variable in jaxpr.outvars}
    for equation in jaxpr.eqns:
        kind, _, conv = _mark(equation).partition(":")
        if kind == "conv" and id(equation.outvars[0]) not in results:
            reading = [mark.partition(":") for mark in readers.get(equation.outvars[0], [])]
            if len(reading) == 1 and reading[0][0] == "norm":
                yield conv, reading[0][2]


def _mark(equation: Any) -> str:
    return equation.params["name"] if equation.primitive.name == "name" else ""
