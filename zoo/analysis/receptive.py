"""Receptive fields: the square of the image that one position of a stage can depend on.

They follow from the window, stride and padding of every traced operation, not from weights, so they agree with the
literature (Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks") also where they
are larger than the image.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp

from zoo.models import abstract_variables


class ReceptiveField(NamedTuple):
    """The receptive field of one position of a stage.

    Attributes:
        size: height and width in pixels; they may exceed the image.
        stride: distance in the image between the fields of neighbouring positions, vertical and horizontal.
        whole: the stage depends on the whole image, through a dense layer or a mean over all positions; `size` is then
            the size of the image.
        start: row and column at which the field of position (0, 0) begins; negative where it reaches into padding. That
            of position p begins at start + stride * p.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    whole: bool = False
    start: tuple[int, int] = (0, 0)


class _Field(NamedTuple):
    """Along one axis, position p depends on the pixels start + stride * p … start + stride * p + size - 1."""

    size: int
    stride: int
    start: int

    def window(self, length: int, stride: int, before: int) -> "_Field":
        """Return the field after a window of `length` with this stride and padding before the first position."""
        size = self.size + (length - 1) * self.stride
        return _Field(size, self.stride * stride, self.start - before * self.stride)


# The fields along height and width; None for a value that depends on the whole image.
_Fields = tuple[_Field, _Field] | None


def receptive_fields(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> dict[str, ReceptiveField]:
    """Compute the receptive field of every stage but the head, without computing the network.

    Args:
        model: a model of this package.
        image_shape: [H, W, C]; None for the native shape of the model.

    Returns:
        {stage: receptive field}, in order.
    """
    shape = tuple(image_shape or model.input_shape)
    variables = abstract_variables(model, shape)
    names: list[str] = []

    def forward(variables, images):
        _, ends = model.apply(variables, images)
        names[:] = [name for name in model.stages if name in ends]
        return [ends[name] for name in names]

    closed = jax.make_jaxpr(forward)(variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    fields: dict[Any, _Fields] = {closed.jaxpr.invars[-1]: (_Field(1, 1, 0), _Field(1, 1, 0))}
    _propagate(closed.jaxpr, fields)
    result = {}
    for name, var in zip(names, closed.jaxpr.outvars, strict=True):
        field = fields[var]
        if field is None or len(_shape(var)) != 4:
            result[name] = ReceptiveField(shape[:2], shape[:2], whole=True)
        else:
            rows, columns = field
            result[name] = ReceptiveField(
                (rows.size, columns.size), (rows.stride, columns.stride), start=(rows.start, columns.start)
            )
    return result


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _propagate(jaxpr: jex.Jaxpr, fields: dict[Any, _Fields]) -> None:
    """Add the fields of every value that depends on the image to `fields`."""
    for equation in jaxpr.eqns:
        inputs = [var for var in equation.invars if isinstance(var, jex.Var) and var in fields and 0 not in _shape(var)]
        if not inputs:
            continue
        inner = next(iter(_called(equation)), None)
        if inner is not None and len(inner.invars) == len(equation.invars):
            pairs = zip(inner.invars, equation.invars, strict=True)
            inside = {var: fields[given] for var, given in pairs if isinstance(given, jex.Var) and given in fields}
            _propagate(inner, inside)
            results = zip(equation.outvars, inner.outvars, strict=True)
            fields |= {var: inside[end] for var, end in results if isinstance(end, jex.Var) and end in inside}
            continue
        for var in equation.outvars:
            fields[var] = _output_fields(equation, inputs, var, fields)


def _called(equation: Any) -> Iterator[jex.Jaxpr]:
    """Yield the jaxpr that an equation calls: that of jit, a custom derivative or rematerialisation."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if (inner := equation.params.get(name)) is not None:
            yield inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner


def _output_fields(equation: Any, inputs: list[Any], output: Any, fields: dict[Any, _Fields]) -> _Fields:
    given = [fields[var] for var in inputs]
    params, shape = equation.params, _shape(inputs[0])
    if any(field is None for field in given) or len(shape) != 4:
        return None
    first = given[0]
    assert first is not None
    name = equation.primitive.name
    if name == "conv_general_dilated":
        lengths = _kernel_size(equation)
        return _windows(first, lengths, params["window_strides"], params["padding"])
    if name.startswith("reduce_window"):
        return _windows(first, params["window_dimensions"][1:3], params["window_strides"][1:3], params["padding"][1:3])
    if name == "pad":
        return _windows(first, (1, 1), (1, 1), params["padding_config"][1:3])
    if name == "slice":
        strides = params["strides"] or (1,) * 4
        before = [(-start, 0) for start in params["start_indices"][1:3]]
        return _windows(first, (1, 1), strides[1:3], before)
    if name == "concatenate" and params["dimension"] in (1, 2):
        return _join_along(params["dimension"] - 1, equation.invars, fields)
    if name == "reshape":  # towers side by side, between which no operation reads across positions
        return first if len(_shape(output)) == 4 and _shape(output)[1] == shape[1] else None
    if len(_shape(output)) != 4 or _shape(output)[1:3] != shape[1:3]:
        return None
    return _union(given)


def _kernel_size(equation: Any) -> tuple[int, int]:
    """Return the height and width of a convolution's kernel, holes of dilation included."""
    spec, kernel = equation.params["dimension_numbers"].rhs_spec, _shape(equation.invars[1])
    sides = [kernel[axis] for axis in spec[2:]]
    height, width = ((side - 1) * step + 1 for side, step in zip(sides, equation.params["rhs_dilation"], strict=True))
    return height, width


def _windows(field: tuple[_Field, _Field], lengths: Any, strides: Any, padding: Any) -> tuple[_Field, _Field]:
    axes = zip(field, lengths, strides, padding, strict=True)
    height, width = (axis.window(length, stride, pad[0]) for axis, length, stride, pad in axes)
    return height, width


def _union(given: list[_Fields]) -> _Fields:
    """Return the smallest fields that contain all of these, at equal stride."""
    axes = []
    for axis in range(2):
        parts = [field[axis] for field in given if field is not None]
        start = min(part.start for part in parts)
        stop = max(part.start + part.size for part in parts)
        axes.append(_Field(stop - start, max(part.stride for part in parts), start))
    return axes[0], axes[1]


def _join_along(axis: int, parts: list[Any], fields: dict[Any, _Fields]) -> _Fields:
    """Return the fields of images put beside each other, such as an image and its repeated edge: those of the longest.

    Parts of one position each, as adaptive pooling joins, share no stride; together they depend on everything.
    """
    lengths = [_shape(part)[axis + 1] for part in parts]
    longest = max(range(len(parts)), key=lengths.__getitem__)
    field = fields.get(parts[longest])
    if field is None or (len(parts) > 1 and lengths[longest] == 1):
        return None
    moved = list(field)
    moved[axis] = field[axis].window(1, 1, sum(lengths[:longest]))
    return moved[0], moved[1]
