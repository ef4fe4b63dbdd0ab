"""What a model is made of: a row per layer with shapes, parameters and multiply-adds.

`python -m zoo.models.summary` writes the totals of every model to figures.json, because tracing fifty deep networks to
list them would take minutes; the tests compute them anew.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models import MODELS, abstract_variables, create

FIGURES = Path(__file__).with_name("figures.json")


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
        positions = math.prod(output[:-1])
        if hasattr(context.module, "positions"):
            positions = context.module.positions(args[0].shape)
        work = own["kernel"].size * positions if "kernel" in own else 0
        path = "/".join(context.module.path)
        parameters = sum(leaf.size for leaf in own.values())
        rows[path] = Layer(path, type(context.module).__name__, output, parameters, work)
        return result

    def call(variables, images):
        with nn.intercept_methods(record):
            return model.apply(variables, images)

    jax.eval_shape(call, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return list(rows.values())


def _own(params: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """The leaves that belong to the module at `path` itself, not to its children."""
    for name in path:
        if name not in params:
            return {}
        params = params[name]
    return {name: leaf for name, leaf in params.items() if not isinstance(leaf, dict)}


def totals(made_of: list[Layer]) -> dict[str, int]:
    """Parameters and multiply-adds of the whole."""
    return {
        "parameters": sum(layer.parameters for layer in made_of),
        "multiply_adds": sum(layer.multiply_adds for layer in made_of),
    }


def figures() -> dict[str, dict[str, int]]:
    """The totals of every model at its native input: from figures.json, and computed for what is not there."""
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return {name: known.get(name) or totals(layers(create(name))) for name in MODELS}


if __name__ == "__main__":
    computed = {name: totals(layers(create(name))) for name in MODELS}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in computed.items())
    FIGURES.write_text("{\n" + rows + "\n}\n")
