"""Export a checkpoint as safetensors, StableHLO, ONNX or OpenVINO, for programs without this library.

A network is exported as one function from pixels, uint8 [N, height, width, channels], to logits, float32 [N, classes].
The pixels are those that `image_to_input` returns: resized and cropped, channels in the card's order. Normalisation is
inside, and N is free. The metadata of a file holds the card as JSON.

Networks are traced in the plain formulation on every machine (`zoo.models.operations.formulation`). For ONNX and
OpenVINO batch norm is folded into the convolutions.
"""

import dataclasses
import datetime
import importlib
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import models
from zoo.checkpoint.manifest import MAX_JSON
from zoo.data.images.preprocess import normalise
from zoo.export.onnx_graph import UnsupportedError, to_onnx
from zoo.export.preprocess_file import WRITTEN_BY, preprocess_file
from zoo.files import atomic_writer, read_bounded, read_text, write_atomically
from zoo.inference.calibrate import temperature_of
from zoo.inference.folding import fold
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


def pixels_to_logits(loaded: Checkpoint) -> Callable[[jax.Array], jax.Array]:
    """Return the network as a function from pixels, uint8 [N, H, W, C], to logits [N, K].

    The logits are divided by the temperature of the card, so that their softmax gives calibrated probabilities.
    """
    temperature = temperature_of(loaded.card.calibration)

    def network(pixels: jax.Array) -> jax.Array:
        with formulation("plain"):
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
        if not isinstance(made, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
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
    """Write the network as ONNX with a free batch dimension, checked with ONNX Runtime.

    Args:
        loaded: the checkpoint.
        file: the file to write.

    Raises:
        ImportError: without onnx and onnxruntime.
        ValueError: if the network has an operation that cannot be translated, or the file gives other logits; nothing
            is written then.
    """
    _require("ONNX", "onnx", "onnx", "onnxruntime")
    import onnxruntime

    data = onnx_model(loaded, file)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    _compare(file, loaded, lambda example: session.run(["logits"], {"pixels": example})[0])
    with atomic_writer(Path(file)) as stream:
        stream.write(data)


def write_openvino(loaded: Checkpoint, file: str | Path) -> None:
    """Write the network as an OpenVINO model in float32 with a free batch dimension, checked with OpenVINO on the CPU.

    Args:
        loaded: the checkpoint.
        file: the .xml file to write. The weights are written beside it, with the suffix .bin.

    Raises:
        ImportError: without openvino and onnx.
        ValueError: as `write_onnx`.
    """
    # OpenVINO's telemetry would fork this process to report to its makers whenever it reads a model; without the
    # package it does without.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    _require("OpenVINO", "openvino", "openvino", "onnx")
    import openvino

    file = Path(file)
    model = openvino.Core().read_model(onnx_model(loaded, file))
    for key, value in description(loaded).items():
        model.set_rt_info(value, ["zoo", key])
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    _compare(file, loaded, lambda example: compiled([example])["logits"])
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, f"{folder}/net.xml", compress_to_fp16=False)
        for suffix in (".bin", ".xml"):  # the .xml last: it names no .bin, which is found by its name
            with open(f"{folder}/net{suffix}", "rb") as source, atomic_writer(file.with_suffix(suffix)) as stream:
                shutil.copyfileobj(source, stream)


def onnx_model(loaded: Checkpoint, file: str | Path) -> bytes:
    """Return the network as ONNX, with the metadata of `description`; errors name the file."""
    import onnx

    shape = input_shape(loaded)
    folded = dataclasses.replace(loaded, variables=fold(loaded.model, loaded.variables, shape))
    try:
        proto = to_onnx(pixels_to_logits(folded), shape, ("pixels", "logits"))
    except UnsupportedError as error:
        raise ValueError(f"{file}: ONNX cannot express {loaded.card.model}: {error}; use --to stablehlo") from None
    for key, value in description(loaded).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _require(format: str, extra: str, *packages: str) -> None:
    """Raise ImportError, naming the extra, unless the packages that a format needs can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"export to {format} needs {error.name}: pip install 'jax-model-zoo[{extra}]'") from None


def write_preprocess(loaded: Checkpoint, file: str | Path) -> Path:
    """Write a Python file that brings images to the network's pixels with NumPy and Pillow alone, beside an export.

    Args:
        loaded: the checkpoint.
        file: the exported file; for net.onnx the file is net_preprocess.py.

    Returns:
        The path of the Python file.
    """
    file = Path(file)
    path = _preprocess_path(file)
    write_atomically(path, preprocess_file(loaded.card, file.name))
    return path


def _preprocess_path(file: Path) -> Path:
    return file.with_name(f"{file.stem}_preprocess.py")


def require_companions(file: Path) -> None:
    """Check that what an export writes beside its file replaces nothing but an earlier export.

    Args:
        file: the file to write; by its suffix other files are written beside it.

    Raises:
        ValueError: naming a file beside it that something else wrote.
    """
    script = _preprocess_path(file)
    others = {".xml": file.with_suffix(".bin"), ".stablehlo": file.with_name(f"{file.name}.json")}
    other = others.get(file.suffix)
    lost = other if other is not None and other.exists() and not file.exists() else None
    if script.exists() and WRITTEN_BY not in script.read_bytes()[:1000].decode(errors="replace"):
        lost = script
    if lost is not None:
        raise ValueError(f"{lost}: exists, and the export of {file.name} would replace it; choose another name")


def _compare(file: Any, loaded: Checkpoint, exported: Callable[[np.ndarray], np.ndarray]) -> None:
    """Raise ValueError unless the exported function gives the logits of the network, to TOLERANCE."""
    pixels = example_pixels(loaded, 3)
    expected, actual = np.asarray(jax.jit(pixels_to_logits(loaded))(pixels)), exported(pixels)
    largest = max(float(np.abs(expected).max()), 1e-6)  # all logits of a zero-initialised head are zero
    error = float(np.abs(expected - actual).max()) / largest if actual.shape == expected.shape else float("inf")
    if not error <= TOLERANCE:
        raise ValueError(f"{file}: not written: its logits differ from the network's by {error:.1e} of the largest")
