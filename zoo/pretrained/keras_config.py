"""Read the preprocessing that a saved Keras model does itself: its layers before the first one with weights."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from zoo.pretrained.metadata import Metadata

#: Layers that do nothing in evaluation or do not change the values of pixels.
NEUTRAL = frozenset({"InputLayer", "Identity", "Dropout", "GaussianNoise", "Cast"})
#: Keras's interpolations -> those of `Preprocess`.
INTERPOLATIONS = {
    "nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos3": "lanczos", "area": "box",
}  # fmt: skip
CONTAINERS = frozenset({"Sequential", "Functional", "Model", "Pipeline"})
_REORDERED = ("takes channels of its input in an unknown order", "channels", "mean", "std")


class _UnknownEffectError(ValueError):
    """Raised for a layer whose effect on the pixels is not understood.

    Attributes:
        fields: the fields of `Preprocess` that make up for it if they are given.
    """

    def __init__(self, message: str, *fields: str):
        self.fields = fields or ("mean", "std")
        options = [f"--{field}" for field in self.fields]
        super().__init__(f"{message}; give {', '.join(options[:-1])}{' and ' if options[1:] else ''}{options[-1]}")


def preprocessing(config: Any, arrays: Mapping[str, np.ndarray]) -> Metadata:
    """Return the size and the normalisation stated by a model's configuration.

    The layers Rescaling, Normalization and Resizing are understood, and the arithmetic of
    `keras.applications.….preprocess_input`. Random augmentations do nothing in evaluation. A layer whose effect is not
    understood is a problem in the result, with the fields that solve it if they are given.

    Args:
        config: config.json of a .keras file, or the attribute model_config of an .h5 file.
        arrays: the model's arrays, for the statistics of Normalization layers.
    """
    scale, offset = np.ones(3), np.zeros(3)  # the network sees scale * pixel + offset, pixels in 0..255
    fields: dict[str, Any] = {}
    arithmetic: list[str] = []
    notes: list[str] = []
    errors: list[_UnknownEffectError] = []
    picked: dict[str, Any] = {}  # name of a GetItem operation -> the channel that it takes
    for kind, layer, node in _first_layers(config):
        if kind == "InputLayer":
            shape = layer.get("batch_shape") or layer.get("batch_input_shape") or ()
            if len(shape) == 4 and all(isinstance(side, int) for side in shape[1:3]):
                fields["size"] = tuple(shape[1:3])
            continue
        if kind in NEUTRAL or kind.startswith("Random"):
            continue
        try:
            if kind == "Resizing":
                fields["size"] = fields["resize"] = (layer["height"], layer["width"])
                fields["resize_mode"] = "crop" if layer.get("crop_to_aspect_ratio") else "squash"
                if layer.get("pad_to_aspect_ratio"):
                    fields["resize_mode"] = "pad"
                    notes.append("the model pads images with a value of its own; here they are padded with the mean")
                fields["interpolation"] = _interpolation(layer)
            elif kind == "GetItem":
                picked[layer["name"]] = _last_index(node)
            elif kind == "Stack":
                _require_reversed(node, picked)
                fields["channels"] = "BGR"
                scale, offset = scale[::-1], offset[::-1]
            else:
                with np.errstate(all="ignore"):  # constants may be anything; the result is checked below
                    a, b = _affine(kind, layer, node, arrays)
                    scale, offset = a * scale, a * offset + b
                arithmetic.append(kind)
        except _UnknownEffectError as error:
            errors.append(error)
    if picked and "channels" not in fields:
        errors.append(_UnknownEffectError(*_REORDERED))
    if not np.all(np.isfinite(scale) & np.isfinite(offset) & (scale > 0)):
        errors.append(_UnknownEffectError("normalises its input in an unknown way"))
    if arithmetic and not errors:
        fields |= {"mean": tuple((0 - offset) / (255 * scale)), "std": tuple(1 / (255 * scale))}
        notes.append(f"the normalisation is that of the model's own layers: {', '.join(arithmetic)}")
    problems = {str(error): error.fields for error in errors}
    return Metadata(preprocess=fields, preprocess_notes=tuple(notes), preprocess_problems=problems)


def _interpolation(layer: Mapping) -> str:
    """Return the interpolation of a Resizing layer."""
    name = str(layer.get("interpolation", "bilinear")).lower()
    if name not in INTERPOLATIONS:
        raise _UnknownEffectError(f"resizes images by {name}, which is not available here", "interpolation")
    return INTERPOLATIONS[name]


def _last_index(node: Mapping) -> Any:
    """Return the last index of a GetItem operation: that of the channel if it takes one."""
    try:
        return _constant(node, 1)[-1]
    except (_UnknownEffectError, TypeError, IndexError, KeyError):
        return None


def _require_reversed(node: Mapping, picked: Mapping[str, Any]) -> None:
    """Check that a Stack operation reverses the order of the channels that GetItem operations have taken."""
    try:
        order = [picked.get(part["config"]["keras_history"][0]) for part in _constant(node, 0)]
    except (_UnknownEffectError, TypeError, IndexError, KeyError):
        order = []
    if order != [2, 1, 0]:
        raise _UnknownEffectError(*_REORDERED)


def _affine(kind: str, layer: Mapping, node: Mapping, arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Return (factor, summand) of a layer that scales and shifts its input."""
    if kind == "Rescaling":
        return _three(layer["scale"]), _three(layer["offset"])
    if kind == "Normalization":
        return _normalization(layer, arrays)
    constant = _three(_constant(node, 1))
    if kind in ("TrueDivide", "Multiply"):
        return (constant if kind == "Multiply" else 1 / constant), 0.0
    return 1.0, (constant if kind == "Add" else -constant)


_ARITHMETIC = frozenset({
    "Rescaling", "Normalization", "Resizing", "TrueDivide", "Multiply", "Add", "Subtract", "GetItem", "Stack",
})  # fmt: skip


def _first_layers(config: Any) -> Iterator[tuple[str, dict, dict]]:
    """Yield (class, config, first call) of the layers before the first layer with another effect, in order."""
    waiting = [config] if isinstance(config, dict) else []
    while waiting:
        layer = waiting.pop(0)
        kind, inner = layer.get("class_name", ""), layer.get("config", {})
        if kind in CONTAINERS:
            waiting = [*(inner if isinstance(inner, list) else inner.get("layers", [])), *waiting]
            continue
        if kind not in NEUTRAL and kind not in _ARITHMETIC and not kind.startswith("Random"):
            return
        nodes = layer.get("inbound_nodes") or [{}]
        yield kind, inner, nodes[0] if isinstance(nodes[0], dict) else {}


def _constant(node: Mapping, index: int) -> Any:
    """Return a constant argument of an operation."""
    try:
        value = node["args"][index]
    except (KeyError, IndexError):
        raise _UnknownEffectError("computes with its input in an unknown way") from None
    if isinstance(value, dict) and value.get("class_name") == "__tensor__":
        value = value["config"]["value"]
    return value


def _three(value: Any) -> np.ndarray:
    """Return a constant per channel: one number or three."""
    try:
        numbers = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if len(numbers) not in (1, 3):
        raise _UnknownEffectError("computes with its input in an unknown way")
    return np.broadcast_to(numbers, 3).copy()


def _normalization(layer: Mapping, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (scale, offset) of a Normalization layer; its statistics are in its configuration or its weights."""
    mean, variance = layer.get("mean"), layer.get("variance")
    if mean is None:
        mean, variance = (arrays.get(f"{layer['name']}/{name}") for name in ("mean", "variance"))
    if mean is None or variance is None or layer.get("invert"):
        what = "that inverts a normalisation" if layer.get("invert") else "without statistics"
        raise _UnknownEffectError(f"has a layer {layer.get('name')} {what}")
    deviation = np.maximum(np.sqrt(_three(variance)), 1e-7)  # Keras's epsilon
    return 1 / deviation, -_three(mean) / deviation
