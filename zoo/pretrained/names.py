"""Resolve the names of weights: shipped checkpoints, names of WEIGHTS, names on the Hugging Face Hub, and paths."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo import checkpoint
from zoo.addresses import is_address, parse_address, require_local
from zoo.cache import cache_folder
from zoo.files import require_regular
from zoo.models import MODELS
from zoo.pretrained import hub
from zoo.pretrained.registry import DEFAULTS, WEIGHTS, Weights
from zoo.stores import objects
from zoo.stores.object_cache import local_copy
from zoo.suggest import did_you_mean, nearest_path
from zoo.text import renamed_in_errors

_PACKAGE = Path(__file__).resolve().parents[1]
SOURCE_NAMES = tuple(dict.fromkeys(weights.source for weights in WEIGHTS.values()))


def shipped_folder() -> Path:
    """Return the folder of the shipped checkpoints: inside the installed package, or beside it in the repository."""
    inside = _PACKAGE / "_checkpoints"
    return inside if inside.is_dir() else _PACKAGE.parent / "checkpoints"


def shipped() -> list[str]:
    """Return the names of the shipped checkpoints, sorted."""
    return sorted(card.parent.name for card in shipped_folder().glob(f"*/{checkpoint.CARD}"))


@contextmanager
def on_disk(spec: str | Path) -> Iterator[str | Path]:
    """Yield `spec`, or for an address the path of a local copy of the checkpoint or weight file there.

    Errors of the block name the address.

    Raises:
        FileNotFoundError: if there is neither at the address.
        CorruptCheckpointError: naming every damaged object of a checkpoint.
    """
    if not is_address(spec):
        yield spec
        return
    address = parse_address(spec)
    found = objects.info(address)
    copy = checkpoint.fetch_checkpoint(address) if found is None else local_copy(address, found)
    with renamed_in_errors(str(copy), address):
        yield copy


def find(spec: str | Path) -> Path | Weights:
    """Resolve a name to a path (of a checkpoint or a weight file) or to a row of WEIGHTS.

    An existing path takes precedence over a name. A checkpoint on the Hub is downloaded.

    Raises:
        FileNotFoundError: with similar names, if nothing has this name.
        ConnectionError: if it cannot be downloaded.
        ValueError: for a pipe, a socket, a device or an address, whose local copy `on_disk` gives.
    """
    require_local(spec)
    path = Path(spec).expanduser()
    if path.exists() and not path.is_dir():
        require_regular(path)
    if path.exists() or isinstance(spec, Path):
        return path
    if hub.is_hub_name(spec):
        return hub.fetch(spec)
    if spec in shipped():
        return shipped_folder() / spec
    if (name := DEFAULTS.get(spec, spec)) in WEIGHTS:
        return WEIGHTS[name]
    source, colon, network = spec.partition(":")
    known: list[str] = [*shipped(), *DEFAULTS, *WEIGHTS]
    if colon and source in SOURCE_NAMES:
        known = [name for name in (*DEFAULTS, *WEIGHTS) if name.startswith(f"{source}:")]
        if tags := [name for name in WEIGHTS if name.startswith(f"{source}:{network.partition('.')[0]}.")]:
            known = tags  # the network exists, the tag does not
        problem = f"no weights of {source} have this name"
    elif os.sep in spec or spec.startswith("."):
        meant = nearest_path(path)
        if not meant and not Path(spec).parent.exists():
            meant = hub.suggestion(spec)
        hint = f"; did you mean {meant}?" if meant else ""
        raise FileNotFoundError(f"{spec}: no such checkpoint folder or weight file{hint}")
    else:
        problem = "no such checkpoint folder or weight file, and no shipped or published weights of this name"
        if spec in MODELS:
            problem = "is a model without weights; train it, or load one of its checkpoints"
    completions = [name for name in known if name.startswith(spec)][:3] if spec else []
    hint = f"did you mean {' or '.join(completions)}?" if completions else did_you_mean(spec, known)
    if spec and not completions and Path(meant := nearest_path(path), "card.json").is_file():
        hint = f"did you mean {meant}?"
    raise FileNotFoundError(f"{spec}: {problem}; {hint or '`zoo list --weights` lists them'}")


def names_checkpoint(word: str) -> bool:
    """Return True for the name or folder of a checkpoint, or the folder of a run. Nothing is read or downloaded."""
    path = Path(word).expanduser()
    if path.exists():
        return any((path / name).is_file() for name in (checkpoint.CARD, f"{checkpoint.BEST}/{checkpoint.CARD}"))
    return hub.is_hub_name(word) or word in shipped() or DEFAULTS.get(word, word) in WEIGHTS


def cached_folder(weights: Weights) -> Path:
    """Return the folder in the user's cache for a converted set; it depends on the format and on the row of WEIGHTS."""
    row = hashlib.sha256(repr(weights).encode()).hexdigest()[:8]
    return cache_folder() / "weights" / f"{weights.name.replace(':', '-')}-{checkpoint.FORMAT}-{row}"
