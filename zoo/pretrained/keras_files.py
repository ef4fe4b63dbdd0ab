"""Keras's files: the older HDF5 (.h5), the weights of Keras 3 (.weights.h5), and the archive that holds them (.keras).

The keys given are Keras's own paths of its weights, "conv1_conv/kernel". Layers without a name of their own are
numbered in the order in which they were made, from wherever the session's counter stood; here they are numbered from
the first, as in a fresh session, which is what the key maps expect.
"""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

#: The names of a layer's weights in Keras 3, where the file only numbers them. One may be missing: the last, a bias;
#: of a norm the first, its scale (the key map of a model whose norms have a scale will then not find it).
VARIABLES: dict[str, tuple[str, ...]] = {
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
#: What Keras 1 called weights and layers, as some of the oldest published files still do.
KERAS_1 = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
NUMBERED = {"convolution2d": "conv2d", "batchnormalization": "batch_normalization"}
MEMBER = "model.weights.h5"
#: To how many bytes one in the file can unpack (deflate's limit); and what may stand in none, as zeros never written.
EXPANSION, UNWRITTEN = 1032, 2**16


def read_keras(path: Path) -> dict[str, np.ndarray]:
    """{"layer/weight": array} of a file of Keras. ImportError where h5py is missing, ValueError for a damaged file."""
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: reading Keras's files needs h5py: pip install 'jax-model-zoo[keras]'") from None
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                if MEMBER not in archive.namelist():
                    raise ValueError(f"is not an archive of Keras (no {MEMBER})")
                if archive.getinfo(MEMBER).file_size > path.stat().st_size:
                    raise ValueError(f"{MEMBER} in it is compressed, which Keras never does")
                content: Any = io.BytesIO(archive.read(MEMBER))
        else:
            content = path
        with h5py.File(content, "r") as file:
            arrays = _numbered(file) if "layers" in file else _named(file)
        if not arrays:
            raise ValueError("has no weights in it")
        return _renumbered(arrays)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"is cut off or no file of Keras ({' '.join(str(error).split())})") from None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _named(file: Any) -> dict[str, np.ndarray]:
    """The older form: layers and weights are listed by name, "conv1/kernel:0"; "conv1_W:0" in Keras 1."""
    group = _member(file, "model_weights") if "model_weights" in file else file
    if "layer_names" not in group.attrs:
        raise ValueError("is HDF5, but holds no weights of Keras")
    arrays = {}
    for layer in map(_text, group.attrs["layer_names"]):
        weights = _member(group, layer)
        for weight in map(_text, weights.attrs["weight_names"]):
            name = weight.removesuffix(":0").rpartition("/")[2].removeprefix(f"{layer}_")
            arrays[f"{layer}/{KERAS_1.get(name, name)}"] = _array(_member(weights, weight))
    return arrays


def _numbered(file: Any) -> dict[str, np.ndarray]:
    """Keras 3: a group by class and number for each layer, which says the layer's name; weights by number."""
    arrays = {}
    layers = _member(file, "layers")
    for place in layers:
        group = _member(layers, place)
        values: Any = _member(group, "vars") if "vars" in group else ()
        if len(values) == 0:
            continue
        kind = re.sub(r"_\d+$", "", place)
        names = VARIABLES.get(kind)
        if names is None:
            raise ValueError(f"has a layer of the kind {kind}, which no model here has")
        if "name" not in values.attrs:
            raise ValueError("does not say its layers' names; save it with a newer version of Keras")
        layer = _text(values.attrs["name"])
        if not len(names) - 1 <= len(values) <= len(names):
            raise ValueError(f"{layer} in it has {len(values)} weights; a {kind} has {', '.join(names)}")
        if len(values) < len(names):
            names = names[1:] if kind == "batch_normalization" else names[:-1]
        for number, weight in enumerate(names):
            arrays[f"{layer}/{weight}"] = _array(_member(values, str(number)))
    return arrays


def _member(group: Any, path: str) -> Any:
    """group[path], where nothing on the way is a link to elsewhere, which could be another file."""
    import h5py

    for name in filter(None, path.split("/")):
        link = group.get(name, getlink=True)
        if link is None:
            raise KeyError(f"{path} is missing in it")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"has a link in place of {path}, which Keras never writes")
        group = group[name]
    return group


def _array(dataset: Any) -> np.ndarray:
    if dataset.is_virtual or dataset.external:  # would read other files
        raise ValueError("has data that lie in another file")
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if dataset.nbytes > EXPANSION * stored + UNWRITTEN:
        raise ValueError(f"has {dataset.name} of shape {dataset.shape} in {stored} bytes")
    return np.asarray(dataset)


def _renumbered(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers that Keras numbered ("conv2d_95", "conv2d_96", …) numbered from the first ("conv2d", "conv2d_1", …)."""
    names: dict[str, dict[int, str]] = {}
    for key in arrays:
        layer = key.split("/")[0]
        if match := re.fullmatch(r"(conv(?:olution)?2d|batch_?normalization)(?:_(\d+))?", layer):
            names.setdefault(NUMBERED.get(match[1], match[1]), {})[int(match[2] or 0)] = layer
    new = {
        old: kind if rank == 0 else f"{kind}_{rank}"
        for kind, found in names.items()
        for rank, (_, old) in enumerate(sorted(found.items()))
    }
    keys = {key: key.partition("/") for key in arrays}
    return {f"{new.get(layer, layer)}/{weight}": arrays[key] for key, (layer, _, weight) in keys.items()}
