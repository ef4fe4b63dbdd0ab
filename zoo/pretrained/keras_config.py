"""Read the preprocessing that a saved Keras model does itself: its layers before the first one with weights."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from zoo.pretrained.metadata import Metadata

#: Layers that do nothing in evaluation or do not change the values of pixels.
NEUTRAL = frozenset({"InputLayer", "Identity", "Dropout", "GaussianNoise", "Cast"})
CONTAINERS = frozenset({"Sequential", "Functional", "Model", "Pipeline"})


def preprocessing(config: Any, arrays: Mapping[str, np.ndarray]) -> Metadata:
    """Return the size and the normalisation stated by a model's configuration.

    The layers Rescaling, Normalization and Resizing are understood, and the arithmetic of
    `keras.applications.….preprocess_input`. Random augmentations do nothing in evaluation.

    Args:
        config: config.json of a .keras file, or the attribute model_config of an .h5 file.
        arrays: the model's arrays, for the statistics of Normalization layers.

    Raises:
        ValueError: naming a layer whose effect on the pixels is not understood.
    """
    scale, offset = np.ones(3), np.zeros(3)  # the network sees scale * pixel + offset, pixels in 0..255
    fields: dict[str, Any] = {}
    arithmetic: list[str] = []
    picked: dict[str, int] = {}  # name of a GetItem operation -> the channel that it takes
    for kind, layer, node in _first_layers(config):
        if kind == "InputLayer":
            shape = layer.get("batch_shape") or layer.get("batch_input_shape") or ()
            if len(shape) == 4 and all(isinstance(side, int) for side in shape[1:3]):
                fields["size"] = tuple(shape[1:3])
            continue
        if kind in NEUTRAL or kind.startswith("Random"):
            continue
        if kind == "Resizing":
            fields["size"] = (layer["height"], layer["width"])
            fields["resize"] = fields["size"]
            fields["resize_mode"] = "crop" if layer.get("crop_to_aspect_ratio") else "squash"
            continue
        if kind == "GetItem":
            picked[layer["name"]] = _constant(node, 1)[-1]
            continue
        if kind == "Stack":
            order = [picked.get(part["config"]["keras_history"][0]) for part in node["args"][0]]
            if order != [2, 1, 0]:
                raise ValueError(
                    "reorders the channels of its input in an unknown way; give --channels, --mean and --std"
                )
            fields["channels"] = "BGR"
            scale, offset = scale[::-1], offset[::-1]
            continue
        with np.errstate(all="ignore"):  # constants may be anything; the result is checked below
            a, b = _affine(kind, layer, node, arrays)
            scale, offset = a * scale, a * offset + b
        arithmetic.append(kind)
    if not arithmetic:
        return Metadata(preprocess=fields)
    if not np.all(np.isfinite(scale) & np.isfinite(offset) & (scale > 0)):
        raise ValueError("normalises its input in an unknown way; give --mean and --std")
    fields |= {"mean": tuple((0 - offset) / (255 * scale)), "std": tuple(1 / (255 * scale))}
    note = f"the normalisation is that of the model's own layers: {', '.join(arithmetic)}"
    return Metadata(preprocess=fields, preprocess_note=note)


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
        raise ValueError("computes with its input in an unknown way; give --mean and --std") from None
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
        raise ValueError("computes with its input in an unknown way; give --mean and --std")
    return np.broadcast_to(numbers, 3).copy()


def _normalization(layer: Mapping, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (scale, offset) of a Normalization layer; its statistics are in its configuration or its weights."""
    mean, variance = layer.get("mean"), layer.get("variance")
    if mean is None:
        mean, variance = (arrays.get(f"{layer['name']}/{name}") for name in ("mean", "variance"))
    if mean is None or variance is None or layer.get("invert"):
        raise ValueError(f"has a layer {layer.get('name')} without statistics; give --mean and --std")
    deviation = np.maximum(np.sqrt(_three(variance)), 1e-7)  # Keras's epsilon
    return 1 / deviation, -_three(mean) / deviation
