"""The way out: a checkpoint as safetensors, StableHLO or ONNX, for programs that know nothing of this zoo.

Networks are exported as one function of pixels, uint8 [N, height, width, channels] as `image_to_input` gives them
(resized and cut, channels in the card's order), to logits float32 [N, classes]: normalisation is inside, so that nobody
has to repeat it, and N is free. What else is to be known of a file stands in its metadata: the card, as JSON.

They are traced in the plain formulation, whatever machine this is (zoo.models.layers.formulation).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import models
from zoo.api import Checkpoint
from zoo.data.images.preprocess import normalise
from zoo.models.layers import formulation
from zoo.pretrained.convert import export as export_tensors
from zoo.pretrained.weights import SOURCES
from zoo.trees import flatten

#: Whose names a safetensors file may have; "zoo" is our own paths.
KEYS = ("torchvision", "timm", "akamaster", "keras", "zoo")
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4  # of the largest logit, between what was written and what wrote it


def pixels_to_logits(loaded: Checkpoint) -> Callable[[jax.Array], jax.Array]:
    """The whole network as a function: uint8 [N, H, W, C] -> logits [N, K]."""

    def network(pixels: jax.Array) -> jax.Array:
        with formulation("plain"):
            images = normalise(pixels, loaded.card.preprocess)
            return loaded.model.apply(loaded.variables, images)[0]

    return network


def input_shape(loaded: Checkpoint) -> tuple[int, int, int]:
    """(height, width, channels) of the pixels."""
    return loaded.card.preprocess.input_shape


def description(loaded: Checkpoint) -> dict[str, str]:
    """What a file says of itself: {"card": JSON, "input": …, "output": …}."""
    shape, channels = "x".join(map(str, input_shape(loaded))), loaded.card.preprocess.channels
    card = {key: value for key, value in loaded.card.to_json().items() if key != "leaves"}
    return {
        "input": f"pixels uint8 [N, height, width, channels] = [N, {shape}], {channels}, resized as the card says; "
        "normalisation is inside",
        "output": f"logits float32 [N, {len(loaded.card.classes)}], in the order of the card's classes",
        "card": json.dumps(card),
    }


def example_pixels(loaded: Checkpoint, count: int) -> np.ndarray:
    """Pixels to compare two forms of a network on."""
    return np.random.default_rng(0).integers(0, 256, (count, *input_shape(loaded)), np.uint8)


def write_safetensors(loaded: Checkpoint, file: str | Path, keys: str | None = None) -> str:
    """Write the weights under the names of `keys`, by default the first of torchvision, timm that has the network.

    Returns the names used. Raises ValueError for a network that `keys` does not have, or cannot express.
    """
    from safetensors.numpy import save_file

    named = [keys] if keys else ["torchvision", "timm", "akamaster", "zoo"]
    for name in named:
        try:
            tensors = _tensors(loaded, name)
            break
        except ValueError:
            if name == named[-1]:
                raise
    framework = {"keras": "np", "zoo": "np"}.get(name, "pt")
    about = {**description(loaded), "format": framework, "keys": name}
    del about["input"], about["output"]
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, file, about)
    return name


def _tensors(loaded: Checkpoint, keys: str) -> dict[str, np.ndarray]:
    variables = jax.tree.map(np.asarray, loaded.variables)
    if keys == "zoo":
        return flatten(variables)
    abstract = models.abstract_variables(loaded.model, input_shape(loaded))
    return export_tensors(SOURCES[keys].key_map(loaded.model, abstract), variables)


def write_stablehlo(loaded: Checkpoint, file: str | Path) -> None:
    """Write the network as `jax.export` serialises it, for any batch size and platform; its metadata in FILE.json.

    `jax.export.deserialize(data).call(pixels)` gives the logits. Raises ValueError where it gives others than here.
    """
    from jax import export

    file = Path(file)
    (batch,) = export.symbolic_shape("batch")
    network = jax.jit(pixels_to_logits(loaded))
    pixels = jax.ShapeDtypeStruct((batch, *input_shape(loaded)), np.uint8)
    data = export.export(network, platforms=PLATFORMS)(pixels).serialize()
    again = export.deserialize(bytearray(data))
    _compare(file, loaded, lambda example: np.asarray(again.call(example)))
    file.write_bytes(data)
    about = json.dumps(description(loaded), indent=1, ensure_ascii=False)
    file.with_name(f"{file.name}.json").write_text(about + "\n", encoding="utf-8")


def write_onnx(loaded: Checkpoint, file: str | Path) -> None:
    """Write the network as ONNX with a free batch dimension, checked with onnxruntime.

    Needs jax2onnx and onnxruntime (docs/export.md). Raises ImportError without them, ValueError where the file gives
    other logits than the network.
    """
    try:
        import onnx
        import onnxruntime
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {error.name}: pip install jax2onnx onnxruntime, best in an environment of its own, because it "
            "brings an older Orbax (docs/export.md)"
        ) from None
    from jax import export

    (batch,) = export.symbolic_shape("N")
    pixels = jax.ShapeDtypeStruct((batch, *input_shape(loaded)), np.uint8)
    try:
        proto = to_onnx(
            pixels_to_logits(loaded), [pixels], model_name=loaded.card.model, input_names=["pixels"],
            output_names=["logits"],
        )  # fmt: skip
    except Exception as error:  # of many types, for what it has no rule for
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: jax2onnx cannot write {loaded.card.model} ({reason}); StableHLO can") from error
    for key, value in description(loaded).items():
        proto.metadata_props.add(key=key, value=value)
    data = proto.SerializeToString()
    onnx.checker.check_model(data)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    _compare(file, loaded, lambda example: session.run(["logits"], {"pixels": example})[0])
    Path(file).write_bytes(data)


def _compare(file: Any, loaded: Checkpoint, written: Callable[[np.ndarray], np.ndarray]) -> None:
    """ValueError unless what is written gives the network's logits."""
    pixels = example_pixels(loaded, 3)
    ours, theirs = np.asarray(jax.jit(pixels_to_logits(loaded))(pixels)), written(pixels)
    largest = max(float(np.abs(ours).max()), 1e-6)  # a head that is all zeros gives none
    error = float(np.abs(ours - theirs).max()) / largest if theirs.shape == ours.shape else float("inf")
    if not error <= TOLERANCE:
        raise ValueError(f"{file}: not written: its logits differ from the network's by {error:.1e} of the largest")
