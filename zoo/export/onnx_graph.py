"""Translate an inference function to ONNX, from its jaxpr.

The function is traced with a free batch dimension and with its weights as constants. Every operation on constants alone
is computed now; the others become nodes of ONNX operators. JAX's images are [N, H, W, C] and ONNX's convolutions and
pools read [N, C, H, W]: a tensor is kept in the layout that its node gives, elementwise operations follow their
operands, and a transpose is added only where an operation needs the other layout, so that runtimes see the graph that
they optimise best.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

OPSET = 17
PLAIN, CHANNELS_FIRST = "plain", "channels first"
_TO_FIRST, _TO_PLAIN = (0, 3, 1, 2), (0, 2, 3, 1)
_INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")
_UNARY = {
    "neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs",
    "erf": "Erf", "stop_gradient": "Identity", "copy": "Identity", "name": "Identity",
}  # fmt: skip
_BINARY = {"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


class UnsupportedError(ValueError):
    """Raised for an operation that cannot be translated."""


class Tensor:
    """A value that depends on the input: the name of its node's output, by layout.

    `shape` is that of the plain layout. Dimensions of size 1 stand for any size where the traced shape is larger: ONNX
    broadcasts them in elementwise operations, and `Graph.expanded` elsewhere.
    """

    def __init__(self, name: str, shape: Sequence[Any], layout: str = PLAIN):
        self.names, self.shape = {layout: name}, tuple(shape)

    def is_image(self) -> bool:
        """Return True if convolutions and pools made it."""
        return CHANNELS_FIRST in self.names


class Graph:
    """The nodes and constants of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        import onnx

        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], output, **attributes))
        return output

    def constant(self, value: Any) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value).reshape(np.shape(value))
        return name

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def name(self, value: Tensor | np.ndarray, layout: str = PLAIN) -> str:
        """Return the name of a value in a layout, with a transpose if it exists in the other one only."""
        if not isinstance(value, Tensor):
            value = np.asarray(value)
            return self.constant(value.transpose(_TO_FIRST) if layout == CHANNELS_FIRST and value.ndim == 4 else value)
        if len(value.shape) != 4:
            layout = PLAIN
        if layout not in value.names:
            order = _TO_FIRST if layout == CHANNELS_FIRST else _TO_PLAIN
            (source,) = value.names.values()
            value.names[layout] = self.node("Transpose", [source], perm=order)
        return value.names[layout]

    def reshaped(self, value: Tensor, shape: Sequence[Any]) -> Tensor:
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise UnsupportedError(f"a reshape to {tuple(shape)}")
        return Tensor(self.node("Reshape", [self.name(value), self.integers(sizes)]), shape)

    def expanded(self, value: Tensor | np.ndarray, shape: Sequence[Any]) -> Tensor | np.ndarray:
        """Return the value with the sizes of the traced shape instead of 1."""
        if value.shape == tuple(shape):
            return value
        if not isinstance(value, Tensor) or value.shape[0] != shape[0]:
            raise UnsupportedError(f"a value that is the same for all images of a batch, {tuple(shape)}")
        sizes = [1, *shape[1:]]  # 1 stands for any size here
        return Tensor(self.node("Expand", [self.name(value), self.integers(sizes)]), shape)

    def model(self, inputs: Any, outputs: Any) -> Any:
        """Return the ModelProto, without nodes and constants that no output needs."""
        import onnx

        needed, nodes = {value.name for value in outputs}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        constants = [onnx.numpy_helper.from_array(v, name) for name, v in self.constants.items() if name in needed]
        graph = onnx.helper.make_graph(nodes[::-1], "network", inputs, outputs, constants)
        return onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8, producer_name="jax-model-zoo"
        )


def to_onnx(function: Callable[[jax.Array], jax.Array], shape: Sequence[int], names: tuple[str, str]) -> Any:
    """Translate a function from uint8 [N, *shape] to float32 [N, K].

    Args:
        function: a pure function in the plain formulation.
        shape: shape of one example.
        names: names of the input and of the output.

    Returns:
        The onnx.ModelProto, for any N.

    Raises:
        UnsupportedError: naming an operation that cannot be translated.
    """
    import onnx

    (batch,) = jax.export.symbolic_shape("N")
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *shape), np.uint8))
    graph = Graph()
    pixels = Tensor(names[0], (batch, *shape))
    (result,) = _Translator(graph).run(closed.jaxpr, closed.consts, [pixels])
    graph.node("Identity", [graph.name(result)], names[1])
    kinds = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    shapes = ["N", *shape], ["N", *closed.out_avals[0].shape[1:]]
    values = [onnx.helper.make_tensor_value_info(*each) for each in zip(names, kinds, shapes, strict=True)]
    return graph.model(values[:1], values[1:])


class _Translator:
    """Translates equations, each with the method or table entry of its primitive."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def run(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Translate a jaxpr and return its outputs, Tensors or arrays."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(np.asarray, constants), *inputs], strict=True))

        def read(variable: Any) -> Any:
            return np.asarray(variable.val) if hasattr(variable, "val") else values[variable]

        for equation in jaxpr.eqns:
            outputs = self.equation(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def equation(self, equation: Any, operands: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name in _INLINED:
            inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
            constants = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), constants, operands)
        shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
        if not any(isinstance(operand, Tensor) for operand in operands) and all(map(_is_static, shapes)):
            results = equation.primitive.bind(*operands, **params)
            return [np.asarray(each) for each in (results if equation.primitive.multiple_results else [results])]
        shape = equation.outvars[0].aval.shape
        if name in _BINARY:
            return [self.elementwise(_BINARY[name], operands, shape)]
        if name in _UNARY:
            return [self.elementwise(_UNARY[name], operands, shape)]
        if name == "broadcast_in_dim":
            return [self.broadcast(operands[0], shape, params["broadcast_dimensions"])]
        if name == "square":
            return [self.elementwise("Mul", operands * 2, shape)]
        if name == "erfc":
            one = np.ones((), equation.outvars[0].aval.dtype)
            return [self.elementwise("Sub", [one, self.elementwise("Erf", operands, shape)], shape)]
        if name == "rsqrt":
            return [self.elementwise("Reciprocal", [self.elementwise("Sqrt", operands, shape)], shape)]
        if name == "integer_pow":
            exponent = np.array(params["y"], equation.outvars[0].aval.dtype)
            return [self.elementwise("Pow", [*operands, exponent], shape)]
        if name == "convert_element_type":
            return [self.cast(operands[0], shape, params["new_dtype"])]
        pairs = zip(operands, equation.invars, strict=True)
        operands = [self.graph.expanded(operand, variable.aval.shape) for operand, variable in pairs]
        if name in _REDUCTIONS:
            return [self.reduce(_REDUCTIONS[name], operands[0], shape, params["axes"])]
        if name in ("reshape", "squeeze", "expand_dims"):
            return [self.graph.reshaped(operands[0], shape)]
        method = getattr(self, name, None)
        if method is None:
            raise UnsupportedError(f"the operation {name}")
        return [method(*operands, shape=shape, **params)]

    def elementwise(self, operator: str, operands: list[Any], shape: Sequence[Any]) -> Tensor:
        if not any(isinstance(operand, Tensor) for operand in operands):
            raise UnsupportedError(f"{operator} of constants of the batch's size")
        images = [operand for operand in operands if isinstance(operand, Tensor) and operand.is_image()]
        layout = CHANNELS_FIRST if images else PLAIN
        if operator == "Max" and not isinstance(operands[1], Tensor) and not np.any(operands[1]):
            operator, operands = "Relu", operands[:1]
        names = [self.graph.name(operand, layout) for operand in operands]
        ranks = [operand.shape for operand in operands if len(operand.shape) == len(shape)]
        actual = [next((size for size in sizes if size != 1), 1) for sizes in zip(*ranks, strict=True)]
        return Tensor(self.graph.node(operator, names), actual, layout)

    def broadcast(self, value: Any, shape: Sequence[Any], dimensions: Sequence[int]) -> Any:
        """Insert dimensions of size 1, which elementwise operations broadcast."""
        sizes = [1] * len(shape)
        for size, dimension in zip(value.shape, dimensions, strict=True):
            sizes[dimension] = size
        if isinstance(value, Tensor):
            return value if tuple(sizes) == value.shape else self.graph.reshaped(value, sizes)
        return value.reshape(sizes)

    def cast(self, value: Any, shape: Sequence[Any], dtype: Any) -> Any:
        import onnx

        if not isinstance(value, Tensor):
            return value.astype(dtype)
        layout = CHANNELS_FIRST if value.is_image() else PLAIN
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return Tensor(self.graph.node("Cast", [self.graph.name(value, layout)], to=kind), value.shape, layout)

    def reduce(self, operator: str, value: Tensor, shape: Sequence[Any], axes: Sequence[int]) -> Tensor:
        mixed = 3 not in axes and not {1, 2} <= set(axes)  # the order of what remains would be that of neither layout
        layout = CHANNELS_FIRST if value.is_image() and not mixed else PLAIN
        name, axes = self.graph.name(value, layout), [_axis(axis, layout) for axis in axes]
        if operator == "ReduceSum":
            return Tensor(self.graph.node(operator, [name, self.graph.integers(axes)], keepdims=0), shape)
        return Tensor(self.graph.node(operator, [name], axes=axes, keepdims=0), shape)

    def conv_general_dilated(
        self, value: Any, kernel: Any, *, shape: Any, dimension_numbers: Any, **params: Any
    ) -> Tensor:
        if (
            isinstance(kernel, Tensor)
            or dimension_numbers.lhs_spec != _TO_FIRST
            or dimension_numbers.out_spec != _TO_FIRST
        ):
            raise UnsupportedError("a convolution other than of images [N, H, W, C] with constants")
        if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
            raise UnsupportedError("a transposed convolution")
        return self.convolve(
            value, kernel.transpose(dimension_numbers.rhs_spec), shape, strides=params["window_strides"],
            pads=_pads(params["padding"]), dilations=params["rhs_dilation"], group=params["feature_group_count"],
        )  # fmt: skip

    def convolve(self, value: Tensor, kernel: np.ndarray, shape: Sequence[Any], **attributes: Any) -> Tensor:
        """Convolve with a kernel [F, C / groups, kh, kw]."""
        names = [self.graph.name(value, CHANNELS_FIRST), self.graph.constant(kernel)]
        node = self.graph.node("Conv", names, kernel_shape=kernel.shape[2:], **attributes)
        return Tensor(node, shape, CHANNELS_FIRST)

    def dot_general(self, left: Any, right: Any, *, shape: Any, dimension_numbers: Any, **_: Any) -> Tensor:
        (contracted, batch) = dimension_numbers
        ((left_axis,), (right_axis,)) = contracted
        if isinstance(right, Tensor) or any(batch) or right.ndim != 2 or left_axis != len(left.shape) - 1:
            raise UnsupportedError("a product other than of activations with a matrix")
        matrix = right if right_axis == 0 else right.T
        return Tensor(self.graph.node("MatMul", [self.graph.name(left), self.graph.constant(matrix)]), shape)

    def reduce_window_max(self, value: Tensor, *, shape: Any, **params: Any) -> Tensor:
        window = _spatial_window(params)
        if window is None:
            raise UnsupportedError("a maximum over other windows than of pixels")
        return Tensor(
            self.graph.node("MaxPool", [self.graph.name(value, CHANNELS_FIRST)], **window), shape, CHANNELS_FIRST
        )

    def reduce_window_sum(self, value: Tensor, *, shape: Any, **params: Any) -> Tensor:
        window = _spatial_window(params)
        if window is not None:
            names = [self.graph.name(value, CHANNELS_FIRST)]
            mean = Tensor(self.graph.node("AveragePool", names, count_include_pad=1, **window), shape, CHANNELS_FIRST)
            size = np.array(math.prod(window["kernel_shape"]), np.float32)
            return self.elementwise("Mul", [mean, size], shape)
        (before, _), channels = params["padding"][-1], value.shape[-1]
        if params["window_dimensions"][:-1] != (1, 1, 1) or shape != value.shape:
            raise UnsupportedError("a sum over other windows than of pixels or of channels")
        offsets = np.arange(channels)[None] - np.arange(channels)[:, None] + before  # input channel from window start
        band = ((offsets >= 0) & (offsets < params["window_dimensions"][-1])).astype(np.float32)
        return self.convolve(value, band[:, :, None, None], shape)

    def concatenate(self, *values: Any, shape: Any, dimension: int) -> Tensor:
        layout = CHANNELS_FIRST if any(isinstance(each, Tensor) and each.is_image() for each in values) else PLAIN
        names = [self.graph.name(value, layout) for value in values]
        return Tensor(self.graph.node("Concat", names, axis=_axis(dimension, layout)), shape, layout)

    def pad(self, value: Tensor, fill: Any, *, shape: Any, padding_config: Any) -> Tensor:
        if isinstance(fill, Tensor) or any(low < 0 or high < 0 or inner for low, high, inner in padding_config):
            raise UnsupportedError("padding by less than nothing, between elements, or by a variable")
        layout = CHANNELS_FIRST if value.is_image() else PLAIN
        order = _TO_FIRST if layout == CHANNELS_FIRST else range(len(shape))
        pads = [padding_config[axis][side] for side in (0, 1) for axis in order]
        names = [self.graph.name(value, layout), self.graph.integers(pads), self.graph.constant(fill)]
        return Tensor(self.graph.node("Pad", names), shape, layout)

    def slice(self, value: Tensor, *, shape: Any, start_indices: Any, limit_indices: Any, strides: Any) -> Tensor:
        layout = CHANNELS_FIRST if value.is_image() else PLAIN
        limits = zip(start_indices, limit_indices, strides or (1,) * len(shape), value.shape, strict=True)
        parts = [(a, b, _axis(n, layout), s) for n, (a, b, s, size) in enumerate(limits) if (a, b, s) != (0, size, 1)]
        if not parts:
            return value
        columns = [self.graph.integers(column) for column in zip(*parts, strict=True)]
        return Tensor(self.graph.node("Slice", [self.graph.name(value, layout), *columns]), shape, layout)

    def transpose(self, value: Tensor, *, shape: Any, permutation: Sequence[int]) -> Tensor:
        return Tensor(self.graph.node("Transpose", [self.graph.name(value)], perm=permutation), shape)


def _is_static(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _axis(axis: int, layout: str) -> int:
    """Return the position in a layout of an axis of the plain one."""
    return _TO_FIRST.index(axis) if layout == CHANNELS_FIRST else axis


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [side[end] for end in (0, 1) for side in padding]


def _spatial_window(params: dict[str, Any]) -> dict[str, Any] | None:
    """Return the attributes of an ONNX pool, or None if the window is not over height and width alone."""
    window, strides, padding = (params[key] for key in ("window_dimensions", "window_strides", "padding"))
    dilations = {*params["base_dilation"], *params["window_dilation"]}
    outer = [(window[axis], strides[axis], *padding[axis]) for axis in (0, -1)]
    if len(window) != 4 or dilations != {1} or outer != [(1, 1, 0, 0)] * 2:
        return None
    return {"kernel_shape": window[1:3], "strides": strides[1:3], "pads": _pads(padding[1:3])}
