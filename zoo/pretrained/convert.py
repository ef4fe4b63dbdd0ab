"""Key maps: which tensor of another project's file is which leaf of ours, and how its axes lie.

A key map is a plain dict {path of our leaf: (source key, layout)}, for example

    {"params/stem/conv/kernel": ("conv1.weight", CONV), "batch_stats/stem/norm/mean": ("bn1.running_mean", SAME), …}

Where a leaf is made of several tensors, or of none, a tuple of keys stands in place of the key: the layouts for that
(FOLDED_BIAS, ONES) say what is done. `convert` reads a key map one way, `export` the other way.
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
    """A named rearrangement and its inverse.

    `load`: source tensors -> our leaf. `store`: our leaf -> tuple of source tensors; load(*store(leaf)) == leaf.
    """

    name: str
    load: Callable[..., np.ndarray]
    store: Callable[[np.ndarray], tuple[np.ndarray, ...]]


KeyMap = Mapping[str, tuple[str | tuple[str, ...], AxisTransform]]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

#: In a rule: a block of a residual network.
BLOCK = r"stage(?P<stage>\d+)_block(?P<block>\d+)"


def _only_ones(leaf: np.ndarray) -> tuple[()]:
    if np.any(leaf != 1):
        raise ValueError("the source has no scale here, so only a scale of exactly 1 can be written")
    return ()


SAME = AxisTransform("same", lambda x: x, lambda x: (x,))
#: PyTorch's convolution [F, C, kh, kw] <-> ours [kh, kw, C, F].
CONV = AxisTransform("conv", lambda x: x.transpose(2, 3, 1, 0), lambda x: (x.transpose(3, 2, 0, 1),))
#: PyTorch's linear layer [F, C] <-> ours [C, F].
DENSE = AxisTransform("dense", lambda x: x.transpose(1, 0), lambda x: (x.transpose(1, 0),))
#: A 1x1 convolution of PyTorch [F, C, 1, 1] <-> a dense layer of ours [C, F].
CONV_AS_DENSE = AxisTransform("conv as dense", lambda x: x.squeeze((2, 3)).T, lambda x: (x.T[:, :, None, None],))
#: Keras's depthwise convolution [kh, kw, C, 1] <-> ours, grouped by channel [kh, kw, 1, C].
KERAS_DEPTHWISE = AxisTransform(
    "keras depthwise", lambda x: x.transpose(0, 1, 3, 2), lambda x: (x.transpose(0, 1, 3, 2),)
)
#: No tensor at all: the source's norm has no scale, ours is 1. Written back only while it still is.
ONES = AxisTransform("ones", lambda: np.ones(()), _only_ones)
#: (running mean, bias of the convolution before it) -> mean - bias: the same function. Written back with bias 0.
FOLDED_BIAS = AxisTransform("folded bias", lambda mean, bias: mean - bias, lambda mean: (mean, np.zeros_like(mean)))


def flattened(height: int, width: int) -> AxisTransform:
    """A linear layer of PyTorch after flattening [C, height, width] <-> a dense layer after flattening [h, w, C]."""

    def load(x):
        return x.reshape(len(x), -1, height, width).transpose(2, 3, 1, 0).reshape(-1, len(x))

    def store(x):
        outputs = x.shape[1]
        return (x.reshape(height, width, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1),)

    return AxisTransform(f"flattened {height}x{width}", load, store)


def _keys(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry


def convert(
    key_map: KeyMap, tensors: Mapping[str, np.ndarray], abstract_variables: Mapping, ignore: Sequence[str] = ()
) -> dict:
    """The source's tensors as variables of ours, checked both ways.

    `abstract_variables`: the shapes and dtypes wanted (`zoo.models.abstract_variables`). `ignore`: patterns of source
    keys that stand for nothing in the function (PyTorch's num_batches_tracked).

    Raises one ValueError that lists everything that does not fit: leaves without a tensor, tensors that no leaf
    wants, differing shapes, numbers of another kind (integers, text; or finite ones that our dtype cannot hold).
    """
    wanted = flatten(abstract_variables)
    missing = [f"{path} (the model has it, the key map does not)" for path in wanted if path not in key_map]
    unexpected = [f"{path} (the key map has it, the model does not)" for path in key_map if path not in wanted]
    shapes, kinds, leaves = [], [], {}
    used = {key for entry, _ in key_map.values() for key in _keys(entry)}
    unexpected += [
        key for key in tensors if key not in used and not any(re.fullmatch(pattern, key) for pattern in ignore)
    ]
    for path, (entry, layout) in key_map.items():
        keys = _keys(entry)
        absent = [key for key in keys if key not in tensors]
        missing += [f"{key} (for {path})" for key in absent]
        if absent or path not in wanted:
            continue
        shape, dtype = wanted[path].shape, wanted[path].dtype
        given = [np.asarray(tensors[key]) for key in keys]
        others = [
            f"{key} {tensor.dtype} (for {path})"
            for key, tensor in zip(keys, given, strict=True)
            if not jax.numpy.issubdtype(tensor.dtype, jax.numpy.floating)
        ]
        if others:
            kinds += others
            continue
        try:
            leaf = layout.load(*given)
        except ValueError:
            leaf = None  # not even the number of axes fits
        if leaf is not None and not keys:
            leaf = np.broadcast_to(leaf, shape)
        if leaf is None or leaf.shape != tuple(shape):
            sources = " and ".join(f"{key} {tensor.shape}" for key, tensor in zip(keys, given, strict=True))
            shapes.append(f"{path} {tuple(shape)}: {sources}, read as {layout.name}")
        else:
            with np.errstate(over="ignore"):
                leaves[path] = np.ascontiguousarray(leaf, dtype=dtype)
            if leaf.dtype != dtype and np.any(np.isfinite(leaf) & ~np.isfinite(leaves[path])):
                kinds.append(f"{' and '.join(keys)} {leaf.dtype} (for {path}): too large for {np.dtype(dtype)}")
    problems = (
        ("missing", missing), ("unexpected", unexpected), ("of another shape", shapes), ("of another kind", kinds),
    )  # fmt: skip
    if any(found for _, found in problems):
        lines = [f"{len(found)} {what}:\n  " + "\n  ".join(found) for what, found in problems if found]
        raise ValueError("the tensors do not fit the model\n" + "\n".join(lines))
    return {"params": {}, "batch_stats": {}} | unflatten(leaves)


def export(key_map: KeyMap, variables: Mapping) -> dict[str, np.ndarray]:
    """Variables of ours as the source's tensors: convert(key_map, export(key_map, v), v) == v, to the bit.

    Raises one ValueError that lists the leaves missing on either side and those the source cannot express.
    """
    leaves = flatten(variables)
    problems = [f"{path}: the key map does not have it" for path in leaves if path not in key_map]
    tensors: dict[str, np.ndarray] = {}
    for path, (entry, layout) in key_map.items():
        if path not in leaves:
            problems.append(f"{path}: the variables do not have it")
            continue
        try:
            stored = layout.store(np.asarray(leaves[path]))
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        tensors.update(zip(_keys(entry), map(np.ascontiguousarray, stored), strict=True))
    if problems:
        raise ValueError("the variables cannot be written in this form\n  " + "\n  ".join(problems))
    return tensors


def renamed(path: str, rules: Sequence[Rule]) -> str:
    """`path` by the first rule (pattern, replacement) whose pattern matches all of it.

    The replacement is a template for `re.Match.expand`, or a function of the match where an index has to be shifted.
    """
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, path):
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    raise ValueError(f"no rule of this key map has a name for {path}")


#: Our leaf names as PyTorch has them.
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
#: PyTorch counts batches beside the running averages; nothing depends on it.
TORCH_IGNORED = (r"(.*\.)?num_batches_tracked",)


def torch_key_map(
    variables: Mapping, rules: Sequence[Rule], layouts: Mapping[str, AxisTransform] | None = None
) -> KeyMap:
    """The key map of a PyTorch network, from rules that rename our modules' paths ("stem/conv") into its ("conv1").

    Kernels of four axes are convolutions, of two axes linear layers; `layouts` gives other layouts, by a pattern of
    our leaf's path without the collection ("dense1/kernel").
    """
    key_map = {}
    for path, leaf in flatten(variables).items():
        _, _, inner = path.partition("/")
        module, _, name = inner.rpartition("/")
        layout = {4: CONV, 2: DENSE}[leaf.ndim] if name == "kernel" else SAME
        for pattern, other in (layouts or {}).items():
            if re.fullmatch(pattern, inner):
                layout = other
        key_map[path] = (f"{renamed(module, rules)}.{TORCH_NAMES[name]}", layout)
    return key_map


def map_for(source: str, maps: Mapping[type, Callable[..., KeyMap]], model: Any) -> Callable[..., KeyMap]:
    """The function of a source's table that makes the key map of this model. Raises ValueError where there is none."""
    if type(model) not in maps:
        known = ", ".join(kind.__name__ for kind in maps)
        raise ValueError(f"{source} has no network like {type(model).__name__}; its key maps are for {known}")
    return maps[type(model)]


def require_fields(source: str, model: Any, fields: Mapping[str, Any]) -> None:
    """ValueError unless the model has these values: with any other the source's network is another function."""
    for field, value in fields.items():
        if getattr(model, field) != value:
            raise ValueError(
                f"{source}'s {type(model).__name__} has {field}={value!r}; this model has {getattr(model, field)!r}"
            )
