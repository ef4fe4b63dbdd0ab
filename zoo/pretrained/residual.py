"""Read the form of a residual network from the names and shapes of its tensors, without tracing any model."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.models.bit import BiT
from zoo.models.resnet import DEEP_STEMS, ResNet
from zoo.models.resnet_v2 import ResNetV2

RESIDUAL = (ResNet, ResNetV2, BiT)

#: Keys of residual blocks: torchvision's and akamaster's, timm's ResNet-v2, Keras's.
BLOCK_KEYS = (
    re.compile(r"(?:^|\.)layer(\d+)\.(\d+)\.conv1\.weight$"),
    re.compile(r"(?:^|\.)stages\.(\d+)\.blocks\.(\d+)\.conv1\.weight$"),
    re.compile(r"^conv(\d+)_block(\d+)_1_conv/kernel$"),
)


def block_counts(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Return the number of residual blocks of each stage; () for other networks."""
    for pattern in BLOCK_KEYS:
        stages: dict[int, set[int]] = {}
        for key in arrays:
            if match := pattern.search(key):
                stages.setdefault(int(match[1]), set()).add(int(match[2]))
        if stages:
            return tuple(len(stages[stage]) for stage in sorted(stages))
    return ()


def observed_form(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the tensors of a PyTorch file show of a residual network's form (see `model_form`); {} for others.

    Args:
        arrays: tensors by key; keys may have a prefix.
    """
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    if not any(pattern.search(key) for pattern in BLOCK_KEYS[:2] for key in shapes):
        return {}

    def has(pattern: str) -> bool:
        return any(re.search(rf"(?:^|\.){pattern}$", key) for key in shapes)

    def shape(pattern: str) -> tuple[int, ...]:
        return next((value for key, value in shapes.items() if re.search(rf"(?:^|\.){pattern}$", key)), ())

    first = r"(?:layer1\.0|stages\.0\.blocks\.0)"
    outer, inner = shape(rf"{first}\.conv1\.weight"), shape(rf"{first}\.conv2\.weight")
    stems = [key for key in shapes if re.search(r"(?:^|\.)(?:conv1|stem\.conv)\.weight$", key)]
    stem = shapes[min(stems, key=len)] if stems else ()  # blocks have longer names
    deep = [shape(rf"(?:conv1\.{place}|stem\.conv{i})\.weight")[:1] for i, place in ((1, 0), (2, 3), (3, 6))]
    form: dict[str, Any] = {
        "pre-activation": has(r"stages\.0\.blocks\.0\.norm1\.weight"),
        "bottleneck": has(rf"{first}\.conv3\.weight"),
        "attention": "se" if has(r"se(?:_module)?\.fc1\.weight") else "eca" if has(r"se\.conv\.weight") else "",
        "norm": "batch" if has(r"running_mean") else "group",
        "stem_pool": "conv" if has(r"maxpool\.0\.weight") else "ceil" if has(r"layer0\.conv1\.weight") else "max",
        "stem": tuple(width for (width,) in deep) if all(deep) else "one convolution",
    }
    if form["stem"] == "one convolution" and len(stem) == 4:
        form["stem kernel"] = stem[2]
    if len(outer) == 4:
        form["inner width"] = outer[0]
    if not form["pre-activation"]:
        form["pooled shortcut"] = len(shape(r"downsample\.1\.weight")) == 4
    if form["bottleneck"] and len(inner) == 4:
        form["groups"] = inner[0] // max(inner[1], 1)
    return form


def model_form(model: Any) -> dict[str, Any]:
    """Return the form of a model in the terms of `observed_form`."""
    pre_activated = not isinstance(model, ResNet)
    bit = isinstance(model, BiT)
    widths = DEEP_STEMS.get(model.stem)
    widen, groups = getattr(model, "widen", 1), getattr(model, "groups", 1)
    return {
        "pre-activation": pre_activated,
        "bottleneck": bit or model.bottleneck,
        "attention": "" if pre_activated else "eca" if model.eca else "se" if model.squeeze is not None else "",
        "norm": "group" if bit else model.norm,
        "stem_pool": "max" if pre_activated else model.stem_pool,
        "stem": tuple(eighths * model.width // 8 for eighths in widths) if widths else "one convolution",
        "pooled shortcut": not pre_activated and model.shortcut == "pool",
        "inner width": model.width * widen,
        "groups": groups,
        "stem kernel": 3 if model.stem == "small" else 7,
    }


def differences(model: Any, form: Mapping[str, Any]) -> int:
    """Return in how many respects a model differs from an observed form; 0 if it may be the model."""
    own = model_form(model)
    return sum(own[aspect] != value for aspect, value in form.items())
