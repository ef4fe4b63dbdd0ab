"""Export a checkpoint as safetensors, StableHLO or ONNX, for programs without this library.

A network is exported as one function from pixels, uint8 [N, height, width, channels], to logits, float32 [N, classes].
The pixels are those that `image_to_input` returns: resized and cropped, channels in the card's order. Normalisation is
inside, and N is free. The metadata of a file holds the card as JSON.

Networks are traced in the plain formulation on every machine, for ONNX in the portable one
(`zoo.models.operations.formulation`).
"""

import datetime
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import models
from zoo.checkpoint.manifest import MAX_JSON
from zoo.data.images.preprocess import normalise
from zoo.export.preprocess_file import preprocess_file
from zoo.files import atomic_writer, read_bounded, read_text, write_atomically
from zoo.inference.calibrate import temperature_of
from zoo.inference.predict import Checkpoint
from zoo.models.operations import formulation
from zoo.pretrained.convert import export as export_tensors
from zoo.pretrained.recognise import SOURCES
from zoo.text import first_line
from zoo.trees import flatten

#: Projects whose names the tensors of a safetensors file may have; "zoo" is this project's parameter paths.
KEYS = ("torchvision", "timm", "akamaster", "keras", "zoo")
PLATFORMS = ("cpu", "cuda", "tpu")
#: jax.export promises that releases of JAX up to six months after the one that wrote a file read it.
READABLE_DAYS = 180
MAX_STABLEHLO = 2**34  # bytes
TOLERANCE = 1e-4  # difference between exported and original logits, relative to the largest logit


def pixels_to_logits(loaded: Checkpoint, form: str = "plain") -> Callable[[jax.Array], jax.Array]:
    """Return the network as a function from pixels, uint8 [N, H, W, C], to logits [N, K]; `form` is a `formulation`.

    The logits are divided by the temperature of the card, so that their softmax gives calibrated probabilities.
    """
    temperature = temperature_of(loaded.card.calibration)

    def network(pixels: jax.Array) -> jax.Array:
        with formulation(form):
            images = normalise(pixels, loaded.card.preprocess)
            logits = loaded.model.apply(loaded.variables, images)[0]
            return logits if temperature == 1 else logits / temperature

    return network


def input_shape(loaded: Checkpoint) -> tuple[int, int, int]:
    """Return (height, width, channels) of the pixels."""
    return loaded.card.preprocess.input_shape


def description(loaded: Checkpoint) -> dict[str, str]:
    """Return the metadata of an exported file: {"card": JSON, "input": …, "output": …}."""
    shape, channels = "x".join(map(str, input_shape(loaded))), loaded.card.preprocess.channels
    card = {key: value for key, value in loaded.card.to_json().items() if key != "leaves"}
    return {
        "input": f"pixels uint8 [N, height, width, channels] = [N, {shape}], {channels}, resized as the card says; "
        "normalisation is inside",
        "output": f"logits float32 [N, {len(loaded.card.classes)}], in the order of the card's classes, divided by its "
        "temperature",
        "card": json.dumps(card),
    }


def example_pixels(loaded: Checkpoint, count: int) -> np.ndarray:
    """Return random pixels, uint8 [count, H, W, C], for comparing two forms of a network."""
    return np.random.default_rng(0).integers(0, 256, (count, *input_shape(loaded)), np.uint8)


def write_safetensors(loaded: Checkpoint, file: str | Path, keys: str | None = None) -> str:
    """Write the weights as safetensors.

    Args:
        loaded: the checkpoint.
        file: the file to write; its permissions follow the umask.
        keys: project whose names the tensors get; by default the first of torchvision, timm and akamaster that has the
            network, else "zoo".

    Returns:
        The value of `keys` that was used.

    Raises:
        ValueError: if the project does not have the network, or cannot represent its variables.
    """
    from safetensors.numpy import save

    candidates = [keys] if keys else ["torchvision", "timm", "akamaster", "zoo"]
    for name in candidates:
        try:
            tensors = _tensors(loaded, name)
            break
        except ValueError:
            if name == candidates[-1]:
                raise
    framework = {"keras": "np", "zoo": "np"}.get(name, "pt")
    about = {**description(loaded), "format": framework, "keys": name}
    del about["input"], about["output"]
    # safetensors' own writer makes a file that only its owner can read, and leaves half of it if the disk is full.
    data = save({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, about)
    with atomic_writer(Path(file)) as stream:
        stream.write(data)
    return name


def _tensors(loaded: Checkpoint, keys: str) -> dict[str, np.ndarray]:
    variables = jax.tree.map(np.asarray, loaded.variables)
    if keys == "zoo":
        return flatten(variables)
    abstract = models.abstract_variables(loaded.model, input_shape(loaded))
    return export_tensors(SOURCES[keys].key_map(loaded.model, abstract), variables)


def write_stablehlo(loaded: Checkpoint, file: str | Path) -> str:
    """Write the network in the serialisation of `jax.export`, for any batch size and platform.

    `jax.export.deserialize(data).call(pixels)` returns the logits. The metadata are written to FILE.json, with the day,
    the version of JAX, and the day until which new releases of JAX are promised to read the file.

    Args:
        loaded: the checkpoint.
        file: the file to write.

    Returns:
        That last day, as "2027-05-26".

    Raises:
        ValueError: if the serialised network gives other logits; nothing is written then.
    """
    from jax import export

    today = datetime.date.today()
    until = (today + datetime.timedelta(days=READABLE_DAYS)).isoformat()

    file = Path(file)
    (batch,) = export.symbolic_shape("batch")
    network = jax.jit(pixels_to_logits(loaded))
    pixels = jax.ShapeDtypeStruct((batch, *input_shape(loaded)), np.uint8)
    data = export.export(network, platforms=PLATFORMS)(pixels).serialize()
    again = export.deserialize(bytearray(data))
    _compare(file, loaded, lambda example: np.asarray(again.call(example)))
    dates = {"made": today.isoformat(), "jax": jax.__version__, "readable_until": until}
    about = json.dumps({**description(loaded), **dates}, indent=1, ensure_ascii=False)
    write_atomically(file.with_name(f"{file.name}.json"), about + "\n")
    with atomic_writer(file) as stream:
        stream.write(data)
    return until


def read_stablehlo(file: str | Path) -> Callable[[np.ndarray], jax.Array]:
    """Read a network that `write_stablehlo` wrote.

    Warns if the file is older than what new releases of JAX are promised to read, and another release made it.

    Args:
        file: the file; FILE.json beside it tells when and with which JAX it was made.

    Returns:
        A function from pixels, uint8 [N, H, W, C], to logits, float32 [N, classes].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if this version of JAX cannot read it.
    """
    from jax import export

    file = Path(file)
    data, about = read_bounded(file, MAX_STABLEHLO), file.with_name(f"{file.name}.json")
    try:
        made = json.loads(read_text(about, MAX_JSON)) if about.exists() else {}
    except ValueError as error:
        raise ValueError(f"{about}: is not the card of a StableHLO file ({first_line(error)})") from None
    line = describe_expiry(made, datetime.date.today())
    if line:
        warnings.warn(f"{file}: {line}", UserWarning, stacklevel=2)
    try:
        return export.deserialize(bytearray(data)).call
    except Exception as error:  # of flatbuffers or of JAX, for a damaged file or another version
        reason = line or first_line(error)[:200]
        raise ValueError(f"{file}: JAX {jax.__version__} cannot read it ({reason})") from None


def describe_expiry(about: Mapping[str, str], today: datetime.date) -> str:
    """Return a line if a file with this metadata is past what JAX promises to read, or ""."""
    made, version, until = (str(about.get(key, "")) for key in ("made", "jax", "readable_until"))
    if not until or version == jax.__version__ or today.isoformat() <= until:
        return ""
    return (
        f"made on {made} with JAX {version}, which JAX promises to read in releases until {until}, and this is "
        f"{jax.__version__}: export it anew"
    )


def write_onnx(loaded: Checkpoint, file: str | Path) -> None:
    """Write the network as ONNX with a free batch dimension, checked with onnxruntime.

    Args:
        loaded: the checkpoint.
        file: the file to write.

    Raises:
        ImportError: without jax2onnx and onnxruntime (docs/export.md).
        ValueError: if jax2onnx cannot write the network, or the file gives other logits; nothing is written then.
    """
    try:
        import onnx
        import onnxruntime
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {error.name}: pip install jax2onnx onnxruntime, in an environment of its own: it brings an "
            "older Orbax (docs/export.md)"
        ) from None
    from jax import export

    (batch,) = export.symbolic_shape("N")
    pixels = jax.ShapeDtypeStruct((batch, *input_shape(loaded)), np.uint8)
    try:
        proto = to_onnx(
            pixels_to_logits(loaded, "portable"), [pixels], model_name=loaded.card.model, input_names=["pixels"],
            output_names=["logits"],
        )  # fmt: skip
    except Exception as error:  # many types, for operations without a rule
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: jax2onnx cannot write {loaded.card.model} ({reason}); use --to stablehlo") from error
    for key, value in description(loaded).items():
        proto.metadata_props.add(key=key, value=value)
    data = proto.SerializeToString()
    onnx.checker.check_model(data)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    _compare(file, loaded, lambda example: session.run(["logits"], {"pixels": example})[0])
    with atomic_writer(Path(file)) as stream:
        stream.write(data)


def write_preprocess(loaded: Checkpoint, file: str | Path) -> Path:
    """Write a Python file that brings images to the network's pixels with NumPy and Pillow alone, beside an export.

    Args:
        loaded: the checkpoint.
        file: the exported file; for net.onnx the file is net_preprocess.py.

    Returns:
        The path of the Python file.
    """
    file = Path(file)
    path = file.with_name(f"{file.stem}_preprocess.py")
    write_atomically(path, preprocess_file(loaded.card, file.name))
    return path


def _compare(file: Any, loaded: Checkpoint, exported: Callable[[np.ndarray], np.ndarray]) -> None:
    """Raise ValueError unless the exported function gives the logits of the network, to TOLERANCE."""
    pixels = example_pixels(loaded, 3)
    expected, actual = np.asarray(jax.jit(pixels_to_logits(loaded))(pixels)), exported(pixels)
    largest = max(float(np.abs(expected).max()), 1e-6)  # all logits of a zero-initialised head are zero
    error = float(np.abs(expected - actual).max()) / largest if actual.shape == expected.shape else float("inf")
    if not error <= TOLERANCE:
        raise ValueError(f"{file}: not written: its logits differ from the network's by {error:.1e} of the largest")
