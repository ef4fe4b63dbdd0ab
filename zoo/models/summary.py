"""What a model is made of: a row per layer with shapes, parameters and multiply-adds."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models import abstract_variables


class Layer(NamedTuple):
    """One module that has variables of its own. `output` is its shape without the batch."""

    path: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layers(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> list[Layer]:
    """The layers of a model in the order they are called, for one image [H, W, C]; nothing is computed.

    Multiply-adds are those of convolutions and dense layers (anything with a kernel), as the papers count them:
    additions of biases, norms, activations and pooling are left out.
    """
    shape = image_shape or model.input_shape
    variables = abstract_variables(model, shape)
    rows: dict[str, Layer] = {}

    def record(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        own = _own(variables["params"], context.module.path)
        if context.method_name != "__call__" or not own:
            return result
        output = tuple(result.shape[1:])
        positions = 1
        for size in output[:-1]:
            positions *= size
        work = own["kernel"].size * positions if "kernel" in own else 0
        path = "/".join(context.module.path)
        parameters = sum(leaf.size for leaf in own.values())
        rows[path] = Layer(path, type(context.module).__name__, output, parameters, work)
        return result

    def call(variables, images):
        with nn.intercept_methods(record):
            return model.apply(variables, images)

    jax.eval_shape(partial(call), variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return list(rows.values())


def _own(params: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """The leaves that belong to the module at `path` itself, not to its children."""
    for name in path:
        if name not in params:
            return {}
        params = params[name]
    return {name: leaf for name, leaf in params.items() if not isinstance(leaf, dict)}
