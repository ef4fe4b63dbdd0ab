"""Summary of a model: output shape, parameters and multiply-adds of every layer.

`python -m zoo.models.summary` writes the totals of every model to figures.json, because tracing all networks whenever
`zoo list` runs would take minutes. The tests recompute them.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models import MODELS, abstract_variables, create
from zoo.models.protocol import ImageClassifier

FIGURES = Path(__file__).with_name("figures.json")


class Layer(NamedTuple):
    """A module with parameters, or an operation between modules (see `zoo.models.graph`).

    Attributes:
        path: path of the module, "stage1_block1/conv1/conv".
        kind: name of its class, or of the operation.
        output: shape of its output, without the batch.
        parameters: number of trainable parameters.
        multiply_adds: number of multiplications with a kernel, for one image.
        inputs: paths of the layers whose outputs it reads; "image" is the input of the network. () if not traced.
    """

    path: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    inputs: tuple[str, ...] = ()


def layers(model: ImageClassifier, image_shape: tuple[int, int, int] | None = None) -> list[Layer]:
    """Return the layers of a model in the order of their calls, without computing anything.

    Multiply-adds are counted for convolutions and dense layers only, as in the papers: biases, norms, activations and
    pooling are not counted.

    Args:
        model: a model of this package.
        image_shape: [H, W, C] of the image; None for the native shape of the model.
    """
    shape = image_shape or model.input_shape
    variables = abstract_variables(model, shape)
    rows: dict[str, Layer] = {}

    def call(variables, images):
        with record_layers(variables["params"], rows):
            return model.apply(variables, images)

    jax.eval_shape(call, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return list(rows.values())


def record_layers(params: Any, rows: dict[str, Layer]) -> Any:
    """Return a context in which every layer of a model that is called is added to `rows`, by path."""

    def record(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        leaves = _direct_leaves(params, context.module.path)
        if context.method_name != "__call__" or not leaves:
            return result
        output = tuple(result.shape[1:])
        positions = math.prod(output[:-1])
        if hasattr(context.module, "positions"):
            positions = context.module.positions(args[0].shape)
        multiply_adds = leaves["kernel"].size * positions if "kernel" in leaves else 0
        path = "/".join(context.module.path)
        parameters = sum(leaf.size for leaf in leaves.values())
        rows[path] = Layer(path, type(context.module).__name__, output, parameters, multiply_adds)
        return result

    return nn.intercept_methods(record)


def _direct_leaves(params: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """Return the leaves of the module at `path`, without those of its children."""
    for name in path:
        if name not in params:
            return {}
        params = params[name]
    return {name: leaf for name, leaf in params.items() if not isinstance(leaf, dict)}


def totals(rows: list[Layer]) -> dict[str, int]:
    """Return {"parameters": …, "multiply_adds": …}, summed over the layers of a model."""
    return {
        "parameters": sum(layer.parameters for layer in rows),
        "multiply_adds": sum(layer.multiply_adds for layer in rows),
    }


def figures() -> dict[str, dict[str, int]]:
    """Return the totals of every model at its native input shape.

    They are read from figures.json, and computed for models that it does not list.
    """
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return {name: known.get(name) or totals(layers(create(name))) for name in MODELS}


if __name__ == "__main__":
    computed = {name: totals(layers(create(name))) for name in MODELS}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in computed.items())
    FIGURES.write_text("{\n" + rows + "\n}\n")
