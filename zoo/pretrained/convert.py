"""Key maps: which tensor of another project's weight file becomes which leaf of the variables, and how its axes change.

A key map is a plain dict {path of a leaf: (source key, axis transform)}, for example

    {"params/stem/conv/kernel": ("conv1.weight", CONV), "batch_stats/stem/norm/mean": ("bn1.running_mean", SAME), …}

If a leaf is computed from several tensors, or from none, a tuple of keys replaces the key, and the axis transform
(FOLDED_BIAS, ONES) says how to compute it. `convert` reads a key map from source to leaf, `export` from leaf to source.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from zoo.trees import flatten, unflatten


@dataclass(frozen=True)
class AxisTransform:
    """A named rearrangement of axes and its inverse.

    Attributes:
        name: name shown in error messages.
        load: function of the source tensors that returns the leaf.
        store: function of the leaf that returns the tuple of source tensors; load(*store(leaf)) equals the leaf.
    """

    name: str
    load: Callable[..., np.ndarray]
    store: Callable[[np.ndarray], tuple[np.ndarray, ...]]


Entry = str | tuple[str, ...]
KeyMap = Mapping[str, tuple[Entry, AxisTransform]]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

#: Pattern of a residual block's path, for rules.
BLOCK = r"stage(?P<stage>\d+)_block(?P<block>\d+)"


def _require_ones(leaf: np.ndarray) -> tuple[()]:
    if np.any(leaf != 1):
        raise ValueError("the source has no scale here, so only a scale of exactly 1 can be written")
    return ()


SAME = AxisTransform("same", lambda x: x, lambda x: (x,))
#: PyTorch's convolution [F, C, kh, kw] <-> [kh, kw, C, F].
CONV = AxisTransform("conv", lambda x: x.transpose(2, 3, 1, 0), lambda x: (x.transpose(3, 2, 0, 1),))
#: PyTorch's linear layer [F, C] <-> [C, F].
DENSE = AxisTransform("dense", lambda x: x.transpose(1, 0), lambda x: (x.transpose(1, 0),))
#: PyTorch's 1x1 convolution [F, C, 1, 1] <-> a dense layer [C, F].
CONV_AS_DENSE = AxisTransform("conv as dense", lambda x: x.squeeze((2, 3)).T, lambda x: (x.T[:, :, None, None],))
#: PyTorch's convolution of one channel along one axis [1, 1, k] <-> [k].
CONV1D = AxisTransform("conv along one axis", lambda x: x.squeeze((0, 1)), lambda x: (x[None, None],))
#: Keras's depthwise convolution [kh, kw, C, 1] <-> a convolution grouped by channel [kh, kw, 1, C].
KERAS_DEPTHWISE = AxisTransform(
    "keras depthwise", lambda x: x.transpose(0, 1, 3, 2), lambda x: (x.transpose(0, 1, 3, 2),)
)
#: No tensor: the source's norm has no scale, so the scale is 1. Exported only if it still is.
ONES = AxisTransform("ones", lambda: np.ones(()), _require_ones)
#: (running mean, bias of the preceding convolution) -> mean - bias: the same function. Exported with a bias of 0.
FOLDED_BIAS = AxisTransform("folded bias", lambda mean, bias: mean - bias, lambda mean: (mean, np.zeros_like(mean)))


def flattened(height: int, width: int) -> AxisTransform:
    """Return the transform of a linear layer that follows a flattened feature map.

    PyTorch flattens [C, height, width], this project [height, width, C]: the rows of the kernel are permuted.
    """

    def load(x):
        return x.reshape(len(x), -1, height, width).transpose(2, 3, 1, 0).reshape(-1, len(x))

    def store(x):
        outputs = x.shape[1]
        return (x.reshape(height, width, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1),)

    return AxisTransform(f"flattened {height}x{width}", load, store)


def source_keys(entry: Entry) -> tuple[str, ...]:
    """Return the source keys of a key map's entry as a tuple."""
    return (entry,) if isinstance(entry, str) else entry


def convert(
    key_map: KeyMap, tensors: Mapping[str, np.ndarray], abstract_variables: Mapping, ignore: Sequence[str] = ()
) -> dict:
    """Convert source tensors to variables, strictly in both directions.

    Args:
        key_map: source key and axis transform of every leaf.
        tensors: source tensors by key.
        abstract_variables: shapes and dtypes of the result (`zoo.models.abstract_variables`).
        ignore: regular expressions of source keys that do not affect the function (PyTorch's num_batches_tracked).

    Returns:
        Nested dict {"params": …, "batch_stats": …} of arrays.

    Raises:
        ValueError: listing every mismatch: leaves without a tensor, tensors without a leaf, wrong shapes, wrong dtypes
            (integers, text, or finite values that overflow the dtype of the leaf), and negative variances.
    """
    wanted = flatten(abstract_variables)
    missing = [f"{path} (in the model, not in the key map)" for path in wanted if path not in key_map]
    unexpected = [f"{path} (in the key map, not in the model)" for path in key_map if path not in wanted]
    used = {key for entry, _ in key_map.values() for key in source_keys(entry)}
    unexpected += [
        key for key in tensors if key not in used and not any(re.fullmatch(pattern, key) for pattern in ignore)
    ]
    wrong_shape, wrong_dtype, negative, leaves = [], [], [], {}
    for path, (entry, transform) in key_map.items():
        keys = source_keys(entry)
        absent = [key for key in keys if key not in tensors]
        missing += [f"{key} (for {path})" for key in absent]
        if absent or path not in wanted:
            continue
        sources = {key: np.asarray(tensors[key]) for key in keys}
        not_floating = [
            f"{key} {tensor.dtype} (for {path})"
            for key, tensor in sources.items()
            if not jax.numpy.issubdtype(tensor.dtype, jax.numpy.floating)
        ]
        if not_floating:
            wrong_dtype += not_floating
            continue
        shape, dtype = tuple(wanted[path].shape), wanted[path].dtype
        leaf = _transformed(transform, list(sources.values()), shape)
        if leaf is None:
            shown = " and ".join(f"{key} {tensor.shape}" for key, tensor in sources.items())
            wrong_shape.append(f"{path} {shape}: {shown}, read as {transform.name}")
            continue
        with np.errstate(over="ignore"):
            leaves[path] = np.ascontiguousarray(leaf, dtype=dtype)
        if leaf.dtype != dtype and np.any(np.isfinite(leaf) & ~np.isfinite(leaves[path])):
            wrong_dtype.append(f"{' and '.join(keys)} {leaf.dtype} (for {path}): too large for {np.dtype(dtype)}")
        if re.fullmatch(r"batch_stats/(.*/)?var", path) and np.any(leaf < 0):  # its root would be NaN
            negative.append(f"{' and '.join(keys)} (for {path})")
    problems = {
        "missing": missing, "unexpected": unexpected, "with the wrong shape": wrong_shape,
        "with the wrong dtype": wrong_dtype, "with negative variances": negative,
    }  # fmt: skip
    if any(problems.values()):
        lines = [f"{len(rows)} {kind}:\n  " + "\n  ".join(rows) for kind, rows in problems.items() if rows]
        raise ValueError("the tensors do not match the model\n" + "\n".join(lines))
    return {"params": {}, "batch_stats": {}} | unflatten(leaves)


def _transformed(transform: AxisTransform, sources: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the leaf of this shape, or None if the sources give another shape."""
    try:
        leaf = transform.load(*sources)
    except ValueError:  # wrong number of axes
        return None
    if not sources:
        leaf = np.broadcast_to(leaf, shape)
    return leaf if leaf.shape == shape else None


def export(key_map: KeyMap, variables: Mapping) -> dict[str, np.ndarray]:
    """Convert variables to source tensors, the inverse of `convert`.

    convert(key_map, export(key_map, variables), variables) equals the variables to the bit.

    Args:
        key_map: source key and axis transform of every leaf.
        variables: nested dict of arrays.

    Returns:
        Source tensors by key.

    Raises:
        ValueError: listing leaves that are missing on either side and leaves that the source cannot represent.
    """
    leaves = flatten(variables)
    problems = [f"{path}: is not in the key map" for path in leaves if path not in key_map]
    tensors: dict[str, np.ndarray] = {}
    for path, (entry, transform) in key_map.items():
        if path not in leaves:
            problems.append(f"{path}: is not in the variables")
            continue
        try:
            stored = transform.store(np.asarray(leaves[path]))
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        tensors.update(zip(source_keys(entry), map(np.ascontiguousarray, stored), strict=True))
    if problems:
        raise ValueError("the variables cannot be exported in this form\n  " + "\n  ".join(problems))
    return tensors


def rename_path(path: str, rules: Sequence[Rule]) -> str:
    """Rename a path by the first rule whose pattern matches all of it.

    Args:
        path: path of a module, "stage1_block2/conv1".
        rules: pairs of a pattern and its replacement, which is a template for `re.Match.expand` or, where an index must
            be shifted, a function of the match.

    Raises:
        ValueError: naming the path, if no rule matches.
    """
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, path):
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    raise ValueError(f"no rule of this key map matches {path}")


#: PyTorch's names of leaves.
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
#: Source keys that do not affect the function: PyTorch counts batches beside the running averages.
TORCH_IGNORED = (r"(.*\.)?num_batches_tracked",)


def torch_key_map(
    variables: Mapping, rules: Sequence[Rule], transforms: Mapping[str, AxisTransform] | None = None
) -> KeyMap:
    """Return the key map of a PyTorch network.

    Kernels of four axes are convolutions, kernels of two axes linear layers, kernels of one axis convolutions along
    the channels.

    Args:
        variables: variables of the model; may be abstract.
        rules: rules from the path of a module ("stem/conv") to its PyTorch name ("conv1").
        transforms: other axis transforms, by a pattern of the leaf's path without the collection ("dense1/kernel").
    """
    key_map = {}
    for path, leaf in flatten(variables).items():
        _, _, inner = path.partition("/")
        module, _, name = inner.rpartition("/")
        transform = {4: CONV, 2: DENSE, 1: CONV1D}[leaf.ndim] if name == "kernel" else SAME
        for pattern, other in (transforms or {}).items():
            if re.fullmatch(pattern, inner):
                transform = other
        key_map[path] = (f"{rename_path(module, rules)}.{TORCH_NAMES[name]}", transform)
    return key_map


def key_map_builder(source: str, maps: Mapping[type, Callable[..., KeyMap]], model: Any) -> Callable[..., KeyMap]:
    """Return the function in a source's table that builds the key map of this model.

    Raises:
        ValueError: if the source has no such network.
    """
    if type(model) not in maps:
        known = ", ".join(kind.__name__ for kind in maps)
        raise ValueError(f"{source} has no network like {type(model).__name__}; it has key maps for {known}")
    return maps[type(model)]


class FieldMismatchError(ValueError):
    """The source's network has other values of some fields than the model.

    Attributes:
        fields: the values of the source's network.
    """

    def __init__(self, message: str, fields: Mapping[str, Any]):
        super().__init__(message)
        self.fields = dict(fields)


def require_fields(source: str, model: Any, fields: Mapping[str, Any]) -> None:
    """Check that the model has the field values of the source's network; with others it is a different function.

    Raises:
        FieldMismatchError: naming the first field with another value.
    """
    for field, value in fields.items():
        if getattr(model, field) != value:
            raise FieldMismatchError(
                f"{source}'s {type(model).__name__} has {field}={value!r}; this model has {getattr(model, field)!r}",
                fields,
            )
