"""Open weights by name, for `zoo.load`, `--init` and the commands: a card and variables.

A folder is a checkpoint; a bare name is a shipped checkpoint; the names of WEIGHTS ("torchvision:resnet50") are
downloaded, converted once and kept in the user's cache as checkpoints; "hf:USER/NAME" is a checkpoint on the Hugging
Face Hub; any other file is imported.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from zoo import checkpoint
from zoo.addresses import is_address
from zoo.checkpoint import Card, CorruptCheckpointError
from zoo.checkpoint.manifest import MANIFEST
from zoo.pretrained import hub
from zoo.pretrained.download import fetch
from zoo.pretrained.file_kinds import file_kind
from zoo.pretrained.importing import Imported, card_of, import_file, import_published
from zoo.pretrained.names import cached_folder, find, names_checkpoint, on_disk
from zoo.pretrained.readers import holds_weights
from zoo.pretrained.registry import WEIGHTS, Weights


def folder_of(spec: str | Path) -> Path:
    """Return the folder of a checkpoint on this machine, or of the best one of a run.

    Raises:
        FileNotFoundError: if there is none, or if published weights have not been downloaded yet.
        ValueError: if it is a file, or a run without a best checkpoint.
    """
    located = find(spec)
    if isinstance(located, Weights):
        if not cached_folder(located).exists():
            raise FileNotFoundError(f"{located.name}: is not downloaded yet; zoo.load({located.name!r}) downloads it")
        return cached_folder(located)
    if _is_foreign(located):
        part = file_kind(located) if located.name in (checkpoint.CARD, MANIFEST) else ""
        hint = f"is {part}" if part else f"is no checkpoint yet; convert it: zoo import {located} -o FOLDER"
        raise ValueError(f"{located}: {hint}")
    return checkpoint.best_of_run(located)


def find_set(card: Card) -> Weights | None:
    """Return the row of WEIGHTS that a card is of, or None."""
    return WEIGHTS.get(card.source.partition(",")[0])


def open_weights(
    spec: str | Path,
    model: str | None = None,
    fields: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
) -> tuple[Card, dict]:
    """Open weights by folder, file or name.

    Args:
        spec: a checkpoint folder, the name of a shipped checkpoint, a name in WEIGHTS, "hf:USER/NAME", a weight file,
            or the address of a checkpoint or weight file in an object store.
        model: name in MODELS, for a weight file whose model is not recognised.
        fields: fields of that model to change.
        allow_nonfinite: accept variables that hold NaN or infinity.

    Returns:
        (card, variables as NumPy arrays).

    Raises:
        FileNotFoundError: with similar names, if there are no such weights.
        ConnectionError: if they cannot be downloaded.
        ValueError: if they are damaged or do not match the model.
    """
    with on_disk(spec) as path:
        return _open_weights(path, model, fields, allow_nonfinite)


def _open_weights(
    spec: str | Path, model: str | None, fields: Mapping[str, Any] | None, allow_nonfinite: bool
) -> tuple[Card, dict]:
    located = find(spec)
    if isinstance(located, Path) and _is_foreign(located):
        imported = import_file(located, model, fields)
        if not allow_nonfinite:
            checkpoint.require_finite(imported.variables, str(spec))
        return imported.card, imported.variables
    if model or fields:
        given = ", ".join([*(["model"] if model else []), *(fields or {})])
        raise ValueError(f"{spec}: states its own model and fields; leave out {given} (they are for weight files only)")
    if isinstance(located, Path):
        try:
            return checkpoint.load_checkpoint(located, allow_nonfinite=allow_nonfinite)
        except CorruptCheckpointError:
            if not hub.is_hub_name(spec) or Path(spec).exists():
                raise
            return checkpoint.load_checkpoint(hub.fetch(str(spec), repair=True), allow_nonfinite=allow_nonfinite)
    folder = cached_folder(located)
    with _lock(folder):
        if folder.exists():
            try:
                return checkpoint.load_checkpoint(folder)
            except (CorruptCheckpointError, FileNotFoundError):
                shutil.rmtree(folder)  # downloaded again below
        file = fetch(located, folder.parent)
        try:
            imported = import_published(file, located, downloaded=True)
            save_imported(imported, folder)
        finally:
            file.unlink()
    return imported.card, imported.variables


def _is_foreign(path: Path) -> bool:
    """Return True for what is read by `import_file`: a file, or a folder of weight files that is no checkpoint."""
    return path.is_file() or (
        holds_weights(path) and not (path / MANIFEST).exists() and not names_checkpoint(str(path))
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Admit one process at a time; without effect if the cache is read-only."""
    with ExitStack() as stack:
        with suppress(OSError):
            from filelock import FileLock

            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder.with_name(f"{folder.name}.lock")))
        yield


def save_imported(imported: Imported, folder: str | Path, allow_nonfinite: bool = False) -> Card:
    """Write an imported file as a checkpoint, on disk or at an address; return its card with the table of leaves."""
    if not is_address(folder):
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
    return checkpoint.save_checkpoint(folder, imported.card, imported.variables, allow_nonfinite)


def read_card(spec: str | Path) -> Card:
    """Return the card of what `open_weights` opens; of published weights not yet downloaded, what WEIGHTS states."""
    with on_disk(spec) as path:
        located = find(path)
        if isinstance(located, Weights):
            folder = cached_folder(located)
            return checkpoint.read_card(folder) if folder.exists() else card_of(located)
        return import_file(located).card if _is_foreign(located) else checkpoint.read_card(located)
