"""The graph of a model: its layers and the operations between them, from one trace.

The traced operations carry the path of the module that they belong to. Operations of a module with parameters of its
own are one node; between modules, pooling, means, additions, products, concatenations, response normalisation and
activations are nodes. Everything else, such as reshaping and padding, is passed through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from zoo.models import abstract_variables
from zoo.models.protocol import ImageClassifier
from zoo.models.summary import Layer, record_layers

IMAGE = "image"
ACTIVATIONS = {"relu": "ReLU", "tanh": "tanh", "logistic": "sigmoid", "sigmoid": "sigmoid"}
#: Activations in the table would be half of its rows.
NOT_LISTED = {*ACTIVATIONS.values(), "Subsample", IMAGE}


@dataclass
class Node:
    """A layer or an operation.

    Attributes:
        path: unique path, "stage1_block1/add".
        kind: name of the module's class, or "MaxPool", "AvgPool", "Mean", "Add", "Multiply", "Concatenate",
            "ResponseNorm", "Subsample", an activation, or "image".
        output: shape of its output, without the batch.
        inputs: paths of the nodes whose outputs it reads.
        detail: window and stride, "3x3/2".
        parameters: number of trainable parameters.
        multiply_adds: number of multiplications with a kernel, for one image.
    """

    path: str
    kind: str
    output: tuple[int, ...]
    inputs: tuple[str, ...] = ()
    detail: str = ""
    parameters: int = 0
    multiply_adds: int = 0


@dataclass
class Graph:
    """The nodes of a network by path, in the order of the trace; the first is the image."""

    nodes: dict[str, Node] = field(default_factory=dict)
    logits: str = ""

    def rows(self) -> list[Layer]:
        """Return the layers and operations as rows of a table, without activations."""
        return [
            Layer(node.path, node.kind, node.output, node.parameters, node.multiply_adds, self._listed(node.inputs))
            for node in self.nodes.values()
            if node.kind not in NOT_LISTED
        ]

    def _listed(self, inputs: Sequence[str]) -> tuple[str, ...]:
        """Return the nearest listed nodes before these."""
        found: list[str] = []
        for path in inputs:
            while self.nodes[path].kind in NOT_LISTED and self.nodes[path].inputs:
                path = self.nodes[path].inputs[0]
            found.append(path)
        return tuple(dict.fromkeys(found))


def trace(model: ImageClassifier, image_shape: tuple[int, int, int] | None = None) -> Graph:
    """Return the graph of a model, without computing anything.

    Args:
        model: a model of this package.
        image_shape: [H, W, C] of the image; None for the native shape of the model.
    """
    shape = image_shape or model.input_shape
    variables = abstract_variables(model, shape)
    layers: dict[str, Layer] = {}

    def call(variables, images):
        with record_layers(variables["params"], layers):
            return model.apply(variables, images)[0]

    closed = jax.make_jaxpr(call)(variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    tracer = _Tracer(layers)
    tracer.graph.nodes[IMAGE] = Node(IMAGE, IMAGE, shape)
    tracer.sources[closed.jaxpr.invars[-1]] = IMAGE
    tracer.run(closed.jaxpr, "")
    tracer.graph.logits = tracer.sources[closed.jaxpr.outvars[0]]
    return tracer.graph


class _Tracer:
    """The state of the walk: the node that each traced value comes from."""

    def __init__(self, layers: dict[str, Layer]):
        self.layers, self.graph = layers, Graph()
        self.sources: dict[Any, str] = {}

    def run(self, jaxpr: jex.Jaxpr, scope: str) -> None:
        for equation in jaxpr.eqns:
            inputs = [var for var in equation.invars if isinstance(var, jex.Var) and var in self.sources]
            if not inputs:
                continue
            parents = tuple(dict.fromkeys(self.sources[var] for var in inputs))
            path = self._path(equation, scope)
            source = self._layer(path, parents)
            if source is None:
                source = self._activation(equation, path, parents)
            inner = next(_called(equation), None)
            if source is None and inner is not None and len(inner.invars) == len(equation.invars):
                pairs = zip(inner.invars, equation.invars, strict=True)
                self.sources |= {a: self.sources[b] for a, b in pairs if isinstance(b, jex.Var) and b in self.sources}
                self.run(inner, path)
                results = zip(equation.outvars, inner.outvars, strict=True)
                known = {a: self.sources[b] for a, b in results if isinstance(b, jex.Var) and b in self.sources}
                self.sources |= known
                continue
            if source is None:
                source = self._operation(equation, path, inputs, parents)
            self.sources |= dict.fromkeys(equation.outvars, source)

    def _path(self, equation: Any, scope: str) -> str:
        """Return the path of the module that an operation belongs to."""
        parts = str(equation.source_info.name_stack).split("/")[1:]
        return "/".join(parts) if parts else scope

    def _layer(self, path: str, parents: tuple[str, ...]) -> str | None:
        """Return the node of the module with parameters that an operation belongs to; None if there is none."""
        layer = self.layers.get(path)
        if layer is None:
            return None
        if path not in self.graph.nodes:
            self.graph.nodes[path] = Node(
                path, layer.kind, layer.output, parents, parameters=layer.parameters, multiply_adds=layer.multiply_adds
            )
        return path

    def _activation(self, equation: Any, path: str, parents: tuple[str, ...]) -> str | None:
        name = str(equation.params.get("name", equation.primitive.name))
        inner = next(_called(equation), None)
        if inner is not None and name not in ACTIVATIONS:  # jax.nn.relu is a custom derivative around a jit of its name
            names = {str(part.params.get("name", part.primitive.name)) for part in inner.eqns}
            name = next(iter(names)) if len(names) == 1 else name
            name = "relu" if name == "max" else name
        if name not in ACTIVATIONS or len(parents) != 1:
            return None
        return self._add(path, ACTIVATIONS[name], equation.outvars[0], parents)

    def _operation(self, equation: Any, path: str, inputs: list[Any], parents: tuple[str, ...]) -> str:
        """Return the node of an operation between modules, or the node that it passes through."""
        name, params, output = equation.primitive.name, equation.params, equation.outvars[0]
        rank = len(inputs[0].aval.shape)
        if name.startswith("reduce_window"):
            window, strides = params["window_dimensions"], params["window_strides"]
            if rank == 4 and window[3] > 1:
                norm = self._add(path, "ResponseNorm", output, parents, f"{window[3]} channels")
                self.graph.nodes[norm].output = self.graph.nodes[parents[0]].output  # towers may lie side by side
                return norm
            kind = "MaxPool" if name.endswith("max") else "AvgPool"
            return self._add(path, kind, output, parents, _window(window[1:3], strides[1:3]))
        if name == "reduce_sum" and rank == 4 and set(params["axes"]) <= {1, 2}:
            return self._add(path, "Mean", output, parents)
        if name == "slice" and params["strides"] and max(params["strides"]) > 1:
            return self._add(path, "Subsample", output, parents, f"/{max(params['strides'])}")
        if name == "concatenate" and len(inputs) > 1:
            return self._concatenate(path, params["dimension"], output, parents)
        if name in ("add", "mul", "sub") and len(parents) > 1:
            normalised = [parent for parent in parents if self.graph.nodes[parent].kind == "ResponseNorm"]
            if normalised and set(parents) - {normalised[-1]} <= set(self.graph.nodes[normalised[-1]].inputs):
                return normalised[-1]  # the last product of response normalisation
            return self._add(path, "Multiply" if name == "mul" else "Add", output, parents)
        return parents[0]

    def _concatenate(self, path: str, dimension: int, output: Any, parents: tuple[str, ...]) -> str:
        nodes = [self.graph.nodes[parent] for parent in parents]
        before = {node.inputs for node in nodes}
        if dimension in (1, 2) and len(before) == 1 and all(node.kind == "Mean" for node in nodes):
            # Adaptive pooling: means over cells, put together again, first along one axis and then along the other.
            for parent in parents:
                del self.graph.nodes[parent]
            (given,) = before
            inner = self.graph.nodes[given[0]]
            if inner.kind == "AvgPool" and inner.detail.startswith("to "):
                del self.graph.nodes[inner.path]
                given = inner.inputs
            size = "x".join(map(str, output.aval.shape[1:3]))
            return self._add(path, "AvgPool", output, given, f"to {size}")
        if len(parents) == 1:
            return parents[0]
        return self._add(path, "Concatenate", output, parents)

    def _add(self, scope: str, kind: str, output: Any, parents: tuple[str, ...], detail: str = "") -> str:
        name = f"{scope}/{kind.lower()}" if scope else kind.lower()
        path, number = name, 1
        while path in self.graph.nodes:
            number += 1
            path = f"{name}{number}"
        self.graph.nodes[path] = Node(path, kind, tuple(output.aval.shape[1:]), parents, detail)
        return path


def _called(equation: Any) -> Iterator[jex.Jaxpr]:
    """Yield the jaxpr that an equation calls: that of jit, a custom derivative or rematerialisation."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if (inner := equation.params.get(name)) is not None:
            yield inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner


def _window(sides: Sequence[int], strides: Sequence[int]) -> str:
    stride = f"/{max(strides)}" if max(strides) > 1 else ""
    return f"{sides[0]}x{sides[1]}{stride}"
