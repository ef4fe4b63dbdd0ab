"""Weights by name: whatever `zoo.load`, `--init` and the commands are given, as (card, variables).

A folder is one of our checkpoints; a bare name is one that the project ships. Anything else is refused with the
nearest names.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo import checkpoint
from zoo.checkpoint import Card

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """Where the project's own checkpoints are: beside the package in a copy of the repository, inside of it when
    installed from a wheel."""
    inside = _PACKAGE / "_checkpoints"
    return inside if inside.is_dir() else _PACKAGE.parent / "checkpoints"


def shipped() -> list[str]:
    """The names of the checkpoints that the project ships, sorted."""
    return sorted(card.parent.name for card in shipped_folder().glob(f"*/{checkpoint.CARD}"))


def open_weights(
    spec: str | Path, model: str | None = None, fields: Mapping[str, Any] | None = None
) -> tuple[Card, dict]:
    """(card, variables as NumPy arrays) of whatever names weights.

    Args:
        spec: the folder of a checkpoint, or the name of a shipped one.
        model: for a file of no known set, the model of MODELS that it is for.
        fields: fields of that model to change.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no such name (the nearest ones are said), a damaged checkpoint.
    """
    if model or fields:
        raise ValueError(f"{spec}: a checkpoint says itself what model it is; model and fields are for weight files")
    return checkpoint.load_checkpoint(_folder_of(spec))


def read_card(spec: str | Path) -> Card:
    """The card alone of what `open_weights` opens; every file is checked, the arrays are not read."""
    return checkpoint.read_card(_folder_of(spec))


def _folder_of(spec: str | Path) -> Path:
    path = Path(spec).expanduser()
    if path.exists() or isinstance(spec, Path):
        return path
    if spec in shipped():
        return shipped_folder() / spec
    if os.sep in spec or spec.startswith("."):
        return path
    near = difflib.get_close_matches(spec, shipped(), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise FileNotFoundError(
        f"{spec}: there is no such checkpoint folder, and no checkpoint is shipped by that name{hint}"
    )
