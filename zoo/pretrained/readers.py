"""Weight files of other projects as plain arrays: safetensors, PyTorch's formats, Keras's.

Nothing in a file is executed, and no framework is needed. What is wrong with a file is said in one line that names it.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.pretrained.torch_files import read_torch

#: Where training scripts put the state dict among other things, the usual first.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_ema", "model_ema", "params", "weights")
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


class Tensors(NamedTuple):
    """A file's arrays by their keys, in the file's order; notes on what was unwrapped; "torch" or "keras" naming."""

    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...]
    naming: str


def read_tensors(path: str | Path) -> Tensors:
    """The arrays in a weight file, whose format is told by its content.

    Understood are safetensors, PyTorch's zip and legacy formats (state dicts, also inside of a training checkpoint) and
    Keras's .h5, .weights.h5 and .keras (which need h5py).

    Raises FileNotFoundError, and ValueError for a file that is damaged, cut off, of another kind, or asks for more than
    data; one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file")
    try:
        return _read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (OverflowError, RecursionError, MemoryError) as error:  # sizes and nests that no real file has
        raise ValueError(f"{path}: is damaged, or too large for this machine ({type(error).__name__})") from None


def _read(path: Path) -> Tensors:
    with path.open("rb") as stream:
        start = stream.read(16)
    if not start:
        raise ValueError("is an empty file")
    if start[:8] == HDF5_MAGIC or path.suffix == ".keras":
        from zoo.pretrained.keras_files import read_keras

        return Tensors(read_keras(path), (), "keras")
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and len(start) == 16):
        return Tensors(*_state_dict(_read_safetensors(path)), "torch")
    if start[:1] == b"<" or start[:8] == b"version ":
        what = "a Git LFS pointer" if start[:8] == b"version " else "a web page"
        raise ValueError(f"is {what} instead of the weights; download the file itself")
    return Tensors(*_state_dict(read_torch(path)), "torch")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with path.open("rb") as stream:
        (header,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
    if header > path.stat().st_size:
        raise ValueError("is cut off or no safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"is cut off or no safetensors file ({' '.join(str(error).split())})") from None


def _state_dict(tree: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays of a state dict, found where training scripts put it."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"holds a {type(tree).__name__}, not a state dict")
    arrays = {key: value for key, value in tree.items() if isinstance(key, str) and isinstance(value, np.ndarray)}
    for wrapper in WRAPPERS:
        inner = tree.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(value, np.ndarray) for value in inner.values()):
            found, notes = _state_dict(inner)
            rest = [str(key) for key in tree if key != wrapper]
            beside = f"; beside it: {', '.join(rest[:5])}{', …' if len(rest) > 5 else ''}" if rest else ""
            return found, (f"the weights are those under {wrapper!r}{beside}", *notes)
    if not arrays:
        raise ValueError(f"holds no tensors by name; it has {', '.join(map(str, list(tree)[:8])) or 'nothing'}")
    other = [str(key) for key in tree if key not in arrays]
    notes = (f"not tensors, left out: {', '.join(other[:5])}",) if other else ()
    return arrays, notes
