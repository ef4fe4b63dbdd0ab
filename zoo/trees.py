"""Variables as trees: leaves by path ("params/stem/conv/kernel"), patterns of paths, one tree merged into another.

Paths are public: checkpoints, `--freeze` and key maps of other projects' weights all speak of leaves by them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"params/stem/conv/kernel": leaf, …} of a nested dict."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def path_matches(pattern: str, path: str) -> bool:
    """Whether a regular expression fits the whole of a path, or its beginning up to a "/": "stem" fits all of stem."""
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
    """`fresh` with the leaves of `saved` in their places, path by path, over all collections.

    fresh: variables of the model, abstract ones where nothing is skipped. skip: patterns (see `fits`) of leaves that
    stay as they are in `fresh`, whatever `saved` has under these paths. rename: (pattern, replacement) pairs as of
    `re.sub`, done to each path of `saved` in turn, before anything else. Paths begin with the collection:
    "params/head/kernel". `what` begins the message of an error.

    Nothing is dropped and nothing made up: ValueError lists every leaf that is missing (-), that the model has no place
    for (+), or that is of another shape, and the patterns that fit nothing. What was saved in half precision comes back
    in the model's own.
    """
    have, want, lines = flatten(saved), flatten(fresh), []
    for pattern, replacement in rename:
        renamed = {path: re.sub(pattern, replacement, path) for path in have}
        if all(path == new for path, new in renamed.items()):
            lines.append(f"rename {pattern!r} changes no path")
        clashes = sorted(path for path, count in Counter(renamed.values()).items() if count > 1)
        lines += [f"rename {pattern!r} gives {path} several times" for path in clashes]
        have = {renamed[path]: leaf for path, leaf in have.items()}
    for pattern in skip:
        if not any(path_matches(pattern, path) for path in (*have, *want)):
            lines.append(f"skip {pattern!r} fits no leaf")
    skipped = {path for path in (*have, *want) if any(path_matches(pattern, path) for pattern in skip)}
    mine, theirs = want.keys() - skipped, have.keys() - skipped
    lines += [f"- missing {path} {tuple(want[path].shape)}" for path in sorted(mine - theirs)]
    lines += [f"+ unexpected {path} {tuple(have[path].shape)}" for path in sorted(theirs - mine)]
    for path in sorted(mine & theirs):
        if tuple(have[path].shape) != tuple(want[path].shape):
            lines.append(f"± {path} is {tuple(have[path].shape)}, the model wants {tuple(want[path].shape)}")
        elif not _convertible(have[path].dtype, want[path].dtype):
            lines.append(f"± {path} is of {have[path].dtype}, the model wants {want[path].dtype}")
    if lines:
        raise ValueError(f"{what} does not fit the model: {'; '.join(lines)}")
    merged = {path: leaf if path in skipped else _as(have[path], leaf.dtype) for path, leaf in want.items()}
    return {"params": {}, "batch_stats": {}, **unflatten(merged)}


def _convertible(have: Any, want: Any) -> bool:
    import jax.numpy as jnp

    return have == want or (jnp.issubdtype(have, jnp.floating) and jnp.issubdtype(want, jnp.floating))


def _as(leaf: Any, dtype: Any) -> Any:
    return leaf if leaf.dtype == dtype else leaf.astype(dtype)


def match_leaves(variables: Mapping, abstract: Mapping, what: str) -> dict:
    """`variables` with exactly the leaves of `abstract`: a merge without exceptions."""
    return merge(abstract, variables, what=what)
