"""Augmentation on the device: pure functions of a key and a batch that run inside the compiled train step.

A recipe lists its operations as text, in order: `("affine(rotate=10, shift=2)", "cutout(size=8)")`. Operation n draws
the random numbers of example b from `fold_in(fold_in(key, n), index[b])`, where `index` is the position in the global
batch. The result for an example therefore does not depend on the devices and processes that share the batch.

Each operation has two steps: `draw_*` maps one example's key to its random numbers, and a function of images and
numbers applies them. Images are float32 [B, H, W, C] in 0..255, grey or RGB, targets float32 [B, K], and `fill` is the
background colour [C] that enters where an image is moved away. For models of BGR images, `augment` reverses the
channels before and after.

This file holds the table of all operations and their parser. The operations are in warp.py (moving pixels), mixing.py
(covering and mixing), photo.py (crops and colours of photographs) and auto.py (RandAugment and TrivialAugment).
"""

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from zoo.data.augment.auto import rand_augment, trivial_augment
from zoo.data.augment.interpolation import INTERPOLATIONS
from zoo.data.augment.mixing import cutmix, cutout, mixup, mixup_or_cutmix
from zoo.data.augment.photo import (
    colour_jitter,
    distort_colour,
    pca_noise,
    random_erasing,
    resized_crop,
    scale_crop,
)
from zoo.data.augment.warp import affine, affine_elastic, elastic, flip, pad_crop, shift
from zoo.suggest import did_you_mean
from zoo.text import is_finite, one_line

# Each function maps (keys [B], index [B], images, targets, fill, **numbers) to (images, targets). A recipe may set its
# keyword-only parameters, in that order; a parameter with an integer default takes integers only.
AUGMENTATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "pad_crop": pad_crop,
    "shift": shift,
    "flip": flip,
    "affine": affine,
    "elastic": elastic,
    "affine_elastic": affine_elastic,
    "cutout": cutout,
    "mixup": mixup,
    "cutmix": cutmix,
    "mixup_or_cutmix": mixup_or_cutmix,
    "resized_crop": resized_crop,
    "scale_crop": scale_crop,
    "colour_jitter": colour_jitter,
    "pca_noise": pca_noise,
    "distort_colour": distort_colour,
    "rand_augment": rand_augment,
    "trivial_augment": trivial_augment,
    "random_erasing": random_erasing,
}

# Operations that combine an example with its neighbour: under pmap they need an even number of images per device.
PAIRING = ("mixup", "cutmix", "mixup_or_cutmix")

# Bounds of the parameters; others are at least 0 and at most MAX_ARGUMENT, and none is so small that float32 rounds it
# to 0. Padding and the number of operations are bounded because they decide memory and the time of compilation.
MAX_ARGUMENT, SMALLEST = 1e6, 1e-30
MINIMUM = {"ratio": 0.01, "low": 1.0, "high": 1.0}
MAXIMUM = {
    "low": 16.0,
    "high": 16.0,
    "reflect": 1,
    "increasing": 1,
    "slim": 1,
    "p": 1.0,
    "scale": 0.9,
    "rotate": 180.0,
    "area": 1.0,
    "smallest": 1.0,
    "largest": 1.0,
    "ratio": 1.0,
    "hue": 0.5,
    "magnitude": 10.0,
    "pad": 1024,
    "pixels": 1024,
    "size": 16_384,
    "sigma": 16_384.0,
    "number": 16,
}


#: Values of the parameters that are names.
CHOICES = {"interpolation": tuple(INTERPOLATIONS)}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Parse the text of an operation; nothing in it is ever executed.

    Example:
        >>> parse("affine(rotate=10, shift=2)")
        ('affine', {'rotate': 10, 'shift': 2})

    Args:
        text: NAME or NAME(number, ..., argument=number, ...), with a name in AUGMENTATIONS. Arguments in CHOICES are
            names rather than numbers.

    Returns:
        The name, and the arguments by name.

    Raises:
        ValueError: one line that names the text and the error: syntax, an unknown name (with a suggestion), or an
            argument that is unknown, repeated, of the wrong type or out of bounds.
    """
    where = f"augmentation {text!r}"
    advice = "; a comma separates operations" if re.search(r"[;|&+]|\)\s", text) else ""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"{where} is not of the form 'flip' or 'affine(rotate=10, shift=2)'{advice}") from None
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name) or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"{where} is not of the form 'flip' or 'affine(rotate=10, shift=2)'{advice}")
    name = call.func.id
    if name not in AUGMENTATIONS:
        raise ValueError(f"{where}: unknown operation {name!r}; {_suggest(name, list(AUGMENTATIONS))}")
    signature = inspect.signature(AUGMENTATIONS[name]).parameters.values()
    parameters = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    if len(call.args) > len(parameters):
        raise ValueError(
            f"{where}: {name} takes {', '.join(parameters) or 'no arguments'}, not {len(call.args)} values"
        )
    arguments = [*zip(parameters, call.args, strict=False), *((str(k.arg), k.value) for k in call.keywords)]
    numbers: dict[str, Any] = {}
    for argument, node in arguments:
        if argument not in parameters:
            raise ValueError(f"{where}: {name} has no argument {argument!r}; {_suggest(argument, list(parameters))}")
        if argument in numbers:
            raise ValueError(f"{where}: {argument} appears twice")
        if argument in CHOICES:
            numbers[argument] = _choice(f"{where}: {argument}", node, CHOICES[argument])
            continue
        bounds = MINIMUM.get(argument, 0), MAXIMUM.get(argument, MAX_ARGUMENT)
        numbers[argument] = _number(f"{where}: {argument}", node, parameters[argument], *bounds)
    chosen = parameters | numbers
    if "low" in chosen and chosen["high"] < chosen["low"]:
        raise ValueError(f"{where}: high={chosen['high']:g} must be at least low={chosen['low']:g}")
    return name, numbers


def _choice(where: str, node: ast.expr, choices: tuple[str, ...]) -> str:
    value = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
    if value not in choices:
        hint = did_you_mean(str(value), choices) or f"choose from {', '.join(choices)}"
        raise ValueError(f"{where} must be a name, not {ast.unparse(node)}; {hint}")
    return str(value)


def _number(where: str, node: ast.expr, default: float, lower: float, upper: float) -> float:
    kind = "an integer" if isinstance(default, int) else "a number"
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{where} must be {kind}, not {ast.unparse(node)}") from None
    if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else (int, float)):
        raise ValueError(f"{where} must be {kind}, not {value!r}")
    if not (is_finite(value) and lower <= value <= upper) or 0 < value < SMALLEST:
        raise ValueError(f"{where} must be between {lower:g} and {upper:g}, not {one_line(value, 40)}")
    return value


def _suggest(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known, cutoff=0.6)
    return (f"{hint} " if hint else "") + f"Known: {', '.join(known)}"


def augment(
    ops: Sequence[str],
    key: Array,
    index: Array,
    images: Array,
    targets: Array,
    *,
    fill: Sequence[float] | Array,
    channels: str = "RGB",
) -> tuple[Array, Array]:
    """Apply operations in order. Under jit, `ops` is static and everything else may be traced.

    Args:
        ops: texts as for `parse`; with none, images and targets are returned unchanged.
        key: the step's key.
        index: int32 [B], position of each example in the global batch.
        images: float32 [B, H, W, C] in 0..255.
        targets: float32 [B, K], each row a distribution over classes.
        fill: background colour [C] in 0..255, in the order of the images' channels.
        channels: "L", "RGB" or "BGR": the order of the images' channels, as in `Preprocess`.

    Returns:
        Images and targets of the same shapes, the channels in the same order.

    Raises:
        ValueError: as `parse`.
    """
    colour = jnp.asarray(fill, images.dtype)
    if channels == "BGR" and ops:  # the operations weigh red, green and blue differently
        images, targets = augment(ops, key, index, images[..., ::-1], targets, fill=colour[::-1])
        return images[..., ::-1], targets
    for n, op in enumerate(ops):
        name, numbers = parse(op)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, n), index)
        images, targets = AUGMENTATIONS[name](keys, index, images, targets, colour, **numbers)
    return images, targets
