"""Read Keras's files: the older HDF5 (.h5), the weights of Keras 3 (.weights.h5) and its archive (.keras).

The keys are Keras's own paths of weights, "conv1_conv/kernel"; a model nested inside another one adds nothing to them.
Keras numbers layers without a name in the order in which a session made them. Here they are numbered from the first one
in the file, as in a fresh session, which is what the key maps expect.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.files import ZIP_ERRORS
from zoo.pretrained.keras_config import preprocessing
from zoo.pretrained.metadata import Metadata
from zoo.text import one_line

#: Names of a layer's weights in Keras 3, whose files only number them. One may be absent: of a norm the first, its
#: scale (the key map of a model with scales then reports it), of other layers the last, a bias.
VARIABLES: dict[str, tuple[str, ...]] = {
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "normalization": ("mean", "variance", "count"),
}
#: Keras 1's names of weights and layers, which some of the oldest published files have.
KERAS_1 = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
KERAS_1_LAYERS = {"convolution2d": "conv2d", "batchnormalization": "batch_normalization"}
MEMBER, CONFIG = "model.weights.h5", "config.json"
#: Deflate's limit of bytes unpacked per stored byte; and the number of bytes that may be absent, as unwritten zeros.
MAX_EXPANSION, MAX_UNWRITTEN = 1032, 2**16
MAX_NESTING = 8  # models inside models


def read_keras(path: Path) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read a file of Keras.

    Args:
        path: the file.

    Returns:
        ({"layer/weight": array}, the preprocessing that the model does itself).

    Raises:
        ImportError: if h5py is not installed.
        ValueError: if the file is damaged or not Keras's. The message does not name the file.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: reading Keras's files needs h5py: pip install 'jax-model-zoo[keras]'") from None
    try:
        config: Any = None
        content: Any = path
        if path.suffix == ".keras" or not h5py.is_hdf5(path):
            content, config = _unpack(path)
        with h5py.File(content, "r") as file:
            if "layers" in file:
                arrays = _numbered(file, path.stat().st_size)
            else:
                arrays = _named(file, path.stat().st_size)
                config = config or _json(file.attrs.get("model_config"))
        if not arrays:
            raise ValueError("has no weights in it")
        stated = preprocessing(config, arrays)
        arrays = {key: array for key, array in arrays.items() if not key.startswith("normalization")}
        return _renumber(arrays), stated
    except (*ZIP_ERRORS, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"is cut off or not a file of Keras ({one_line(error)})") from None


def _unpack(path: Path) -> tuple[io.BytesIO, Any]:
    """Return (the HDF5 file, the configuration) in a .keras archive."""
    with zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            raise ValueError(f"is not an archive of Keras (no {MEMBER})")
        size = path.stat().st_size
        if archive.getinfo(MEMBER).file_size > size:
            raise ValueError(f"is damaged: {MEMBER} in it is compressed, which Keras never does")
        has_config = CONFIG in archive.namelist() and archive.getinfo(CONFIG).file_size <= MAX_EXPANSION * size
        config = _json(archive.read(CONFIG)) if has_config else None
        return io.BytesIO(archive.read(MEMBER)), config


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _add(arrays: dict[str, np.ndarray], key: str, array: np.ndarray) -> None:
    if key in arrays:
        raise ValueError(f"has two layers called {key.partition('/')[0]}, so its weights are ambiguous")
    arrays[key] = array


def _named(file: Any, file_size: int) -> dict[str, np.ndarray]:
    """Read the older form, which lists layers and weights by name: "conv1/kernel:0", or "conv1_W:0" in Keras 1.

    A nested model is one layer; its weights are listed by the names of its own layers.
    """
    group = _member(file, "model_weights") if "model_weights" in file else file
    if "layer_names" not in group.attrs:
        raise ValueError("is HDF5, but holds no weights of Keras")
    arrays: dict[str, np.ndarray] = {}
    for outer in map(_text, group.attrs["layer_names"]):
        weights = _member(group, outer)
        for weight in map(_text, weights.attrs["weight_names"]):
            if weight.split("/")[-1].startswith("seed_generator_state"):
                continue
            *modules, name = weight.removesuffix(":0").split("/")
            layer = modules[-1] if modules else outer
            name = name.removeprefix(f"{layer}_")
            _add(arrays, f"{layer}/{KERAS_1.get(name, name)}", _array(_member(weights, weight), file_size))
    return arrays


def _numbered(file: Any, file_size: int, depth: int = 0) -> dict[str, np.ndarray]:
    """Read the form of Keras 3: one group per layer, by class and number, with the layer's name; weights by number."""
    arrays: dict[str, np.ndarray] = {}
    layers = _member(file, "layers")
    for group_name in layers:
        group = _member(layers, group_name)
        if "layers" in group and depth < MAX_NESTING:  # a model inside this one
            for key, array in _numbered(group, file_size, depth + 1).items():
                _add(arrays, key, array)
        values: Any = _member(group, "vars") if "vars" in group else ()
        if len(values) == 0:
            continue
        kind = re.sub(r"_\d+$", "", group_name)
        names = VARIABLES.get(kind)
        if names is None:
            raise ValueError(f"has a layer of the kind {kind}, which no model here has")
        if "name" not in values.attrs:
            raise ValueError("does not state the names of its layers; save it with a newer version of Keras")
        layer = _text(values.attrs["name"])
        if not len(names) - 1 <= len(values) <= len(names):
            raise ValueError(f"{layer} in it has {len(values)} weights; a {kind} has {', '.join(names)}")
        if len(values) < len(names):
            names = names[1:] if kind == "batch_normalization" else names[:-1]
        for number, weight in enumerate(names):
            _add(arrays, f"{layer}/{weight}", _array(_member(values, str(number)), file_size))
    return arrays


def _member(group: Any, path: str) -> Any:
    """Return group[path], refusing links on the way, which may lead to another file."""
    import h5py

    for name in filter(None, path.split("/")):
        link = group.get(name, getlink=True)
        if link is None:
            raise KeyError(f"{path} is missing in it")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"has a link in place of {path}, which Keras never writes")
        group = group[name]
    return group


def _array(dataset: Any, file_size: int) -> np.ndarray:
    if dataset.is_virtual or dataset.external:  # would read other files
        raise ValueError("has data that are stored in another file")
    stored = min(dataset.id.get_storage_size(), file_size)  # the size that the file states may be damaged
    if dataset.nbytes > MAX_EXPANSION * stored + MAX_UNWRITTEN:
        raise ValueError(f"has {dataset.name} of shape {dataset.shape} in {stored} bytes")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"has {dataset.name} of type {dataset.dtype}, which is no array of numbers")
    return np.asarray(dataset)


def _renumber(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Number automatic layer names ("conv2d_95", "conv2d_96", …) from the first ("conv2d", "conv2d_1", …)."""
    numbers: dict[str, dict[int, str]] = {}
    for key in arrays:
        layer = key.split("/")[0]
        if match := re.fullmatch(r"(conv(?:olution)?2d|batch_?normalization)(?:_(\d+))?", layer):
            numbers.setdefault(KERAS_1_LAYERS.get(match[1], match[1]), {})[int(match[2] or 0)] = layer
    new = {
        old: kind if rank == 0 else f"{kind}_{rank}"
        for kind, layers in numbers.items()
        for rank, (_, old) in enumerate(sorted(layers.items()))
    }
    keys = {key: key.partition("/") for key in arrays}
    return {f"{new.get(layer, layer)}/{weight}": arrays[key] for key, (layer, _, weight) in keys.items()}
