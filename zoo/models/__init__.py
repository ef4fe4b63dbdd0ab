"""MODELS: every network by its public name, and what can be done with any of them.

Adding a model is one file here and one line in MODELS; the tests then ask of it what they ask of all.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.lenet import LeNet5, LeNet51998
from zoo.models.mlp import MLP

MODELS: dict[str, Callable[..., nn.Module]] = {
    "softmax": partial(MLP, widths=()),
    "mlp": MLP,
    "lenet5": LeNet5,
    "lenet5_1998": LeNet51998,
}

#: Fields that say how a model is run, not what it is: they never go into a card.
RUNTIME_FIELDS = ("axis_name", "dtype", "remat")
_LINEN_FIELDS = ("parent", "name")


def create(name: str, **fields: Any) -> nn.Module:
    """The model `name` of MODELS with some of its fields changed, e.g. create("lenet5", num_classes=26).

    Raises ValueError naming the nearest models for an unknown name, and the fields there are for an unknown field.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`zoo list` shows them all"
        raise ValueError(f"no model is called {name!r}; {hint}")
    known = [*defining_fields(MODELS[name]()), *runtime_fields(MODELS[name]())]
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name} has no field {field!r}; {hint or 'its fields are ' + ', '.join(known)}")
    # JSON has lists where a hashable dataclass needs tuples.
    return MODELS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def init(model: nn.Module, key: jax.Array | int, image_shape: tuple[int, int, int] | None = None) -> dict:
    """Fresh variables {"params": …, "batch_stats": …} for images [H, W, C] (the model's native shape by default)."""
    key = jax.random.key(key) if isinstance(key, int) else key
    shape = image_shape or model.input_shape
    variables = jax.jit(partial(model.init, train=False))(key, jnp.zeros((1, *shape)))
    return {"params": variables.get("params", {}), "batch_stats": variables.get("batch_stats", {})}


def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> dict:
    """The variables' shapes and dtypes, without computing anything."""
    return jax.eval_shape(partial(init, model, image_shape=image_shape), jax.random.key(0))


def count_parameters(variables: Mapping) -> int:
    """Trainable parameters: everything under "params", nothing else."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def defining_fields(model: nn.Module) -> dict[str, Any]:
    """The fields that define the function: what a card holds beside the name."""
    skipped = (*RUNTIME_FIELDS, *_LINEN_FIELDS)
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in skipped}


def runtime_fields(model: nn.Module) -> dict[str, Any]:
    """The fields that say how it is run; a model has only those that mean something for it."""
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name in RUNTIME_FIELDS}


def with_runtime(model: nn.Module, **fields: Any) -> nn.Module:
    """The same function run another way (axis_name, dtype, remat); what the model does not have is left out."""
    return model.clone(**{key: value for key, value in fields.items() if key in runtime_fields(model)})
