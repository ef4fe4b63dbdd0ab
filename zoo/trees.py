"""Trees of variables: flattening by path ("params/stem/conv/kernel"), path patterns, and strict merging.

Paths are public: checkpoints, `--freeze` and the key maps of other projects' weights refer to leaves by path.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping into {"params/stem/conv/kernel": leaf, …}; empty mappings are dropped."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
    """Rebuild the nested dict from the paths of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def path_matches(pattern: str, path: str) -> bool:
    """Return True if a regular expression matches a whole path or a prefix of it that ends before a "/".

    "stem" matches "stem/conv/kernel", but not "stem2/conv/kernel".

    Raises:
        ValueError: if `pattern` is not a regular expression.
    """
    try:
        return re.fullmatch(f"(?:{pattern})(?:/.*)?", path) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None


def merge(
    fresh: Mapping,
    saved: Mapping,
    *,
    skip: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
    what: str = "the checkpoint",
) -> dict:
    """Replace the leaves of `fresh` by those of `saved` that have the same path, over all collections.

    The merge is strict: nothing is dropped or filled in silently. Leaves saved in another floating-point type are
    converted to the type of the model. Paths begin with the collection, as in "params/head/kernel".

    Args:
        fresh: variables of the model; they may be abstract if nothing is skipped.
        saved: variables to copy from.
        skip: patterns (see `path_matches`) of leaves that keep their value in `fresh`, whatever `saved` holds there.
        rename: (pattern, replacement) pairs of `re.sub`, applied in turn to each path of `saved` before anything else.
        what: name of `saved`, with which the error message begins.

    Returns:
        A nested dict with the leaves of `fresh`, and at least the collections "params" and "batch_stats".

    Raises:
        ValueError: listing every leaf that is missing (-), unexpected (+) or of another shape or type (±), every
            pattern that matches nothing, and every rename that makes two paths equal.
    """
    have, want, lines = flatten(saved), flatten(fresh), []
    for pattern, replacement in rename:
        renamed = {path: re.sub(pattern, replacement, path) for path in have}
        if all(path == new for path, new in renamed.items()):
            lines.append(f"rename {pattern!r} changes no path")
        clashes = sorted(path for path, count in Counter(renamed.values()).items() if count > 1)
        lines += [f"rename {pattern!r} maps several leaves to {path}" for path in clashes]
        have = {renamed[path]: leaf for path, leaf in have.items()}
    for pattern in skip:
        if not any(path_matches(pattern, path) for path in (*have, *want)):
            lines.append(f"skip {pattern!r} matches no leaf")
    skipped = {path for path in (*have, *want) if any(path_matches(pattern, path) for pattern in skip)}
    expected, actual = want.keys() - skipped, have.keys() - skipped
    lines += [f"- missing {path} {tuple(want[path].shape)}" for path in sorted(expected - actual)]
    lines += [f"+ unexpected {path} {tuple(have[path].shape)}" for path in sorted(actual - expected)]
    for path in sorted(expected & actual):
        if tuple(have[path].shape) != tuple(want[path].shape):
            lines.append(f"± {path} has shape {tuple(have[path].shape)}, the model expects {tuple(want[path].shape)}")
        elif not _convertible(have[path].dtype, want[path].dtype):
            lines.append(f"± {path} is of type {have[path].dtype}, the model expects {want[path].dtype}")
    if lines:
        raise ValueError(f"{what} does not fit the model: {'; '.join(lines)}")
    merged = {path: leaf if path in skipped else _cast(have[path], leaf.dtype) for path, leaf in want.items()}
    return {"params": {}, "batch_stats": {}, **unflatten(merged)}


def _convertible(have: Any, want: Any) -> bool:
    import jax.numpy as jnp

    return have == want or (jnp.issubdtype(have, jnp.floating) and jnp.issubdtype(want, jnp.floating))


def _cast(leaf: Any, dtype: Any) -> Any:
    return leaf if leaf.dtype == dtype else leaf.astype(dtype)


def match_leaves(variables: Mapping, abstract: Mapping, what: str) -> dict:
    """Return `variables` after checking that it has exactly the leaves of `abstract`, in its types (see `merge`)."""
    return merge(abstract, variables, what=what)
