"""Checkpoints that describe themselves, and a run's rolling state. The only module that imports Orbax.

A checkpoint is a folder: `card.json` (what it is: model, classes, preprocess, recipe, metrics, and a table of its
leaves with a sha256 each), `arrays/` (Orbax) and `manifest.json` (size and sha256 of every file). It is enough to
rebuild the model and classify an image. A rolling state has `progress.json` in the card's place.

Nothing in a file is ever executed: JSON and arrays only. The manifest is checked before anything is parsed, the leaf
hashes after, because Orbax itself does not notice a flipped bit in array data.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.preprocess import Preprocess
from zoo.trees import flatten

FORMAT = 1
MANIFEST, CARD, PROGRESS, ARRAYS = "manifest.json", "card.json", "progress.json", "arrays"
LEAF = {"path", "shape", "dtype", "sha256"}


class DamagedCheckpoint(ValueError):
    """A file or leaf of a checkpoint is not what was written."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint says about itself. `model` and `fields` rebuild the network; `classes` name its outputs."""

    model: str
    fields: dict[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    source: str = ""
    command: str = ""
    leaves: tuple[dict[str, Any], ...] = ()
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def card_from_json(data: Any, where: str) -> Card:
    """The card in parsed JSON. ValueError, naming `where`, for another format version or unknown fields."""
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise ValueError(f"{where}: is not a card of this zoo (no format version)")
    if data["format"] != FORMAT:
        newer = "a newer version of the zoo wrote it: upgrade" if data["format"] > FORMAT else "no longer read"
        raise ValueError(f"{where}: format version {data['format']}, this version reads {FORMAT} ({newer})")
    parts = [(Card, data), (Preprocess, data.get("preprocess"))]
    for kind, part in parts:
        names = {f.name for f in dataclasses.fields(kind)}
        if not isinstance(part, dict) or set(part) != names:
            strange = sorted(set(part) ^ names) if isinstance(part, dict) else ["preprocess"]
            raise ValueError(f"{where}: fields do not fit format {FORMAT}: {', '.join(strange)}")
    classes, leaves = data["classes"], data["leaves"]
    if not isinstance(classes, list) or any(not isinstance(name, str) for name in classes):
        raise ValueError(f"{where}: its classes do not fit format {FORMAT}")
    if not isinstance(leaves, list) or any(not isinstance(row, dict) or set(row) != LEAF for row in leaves):
        raise ValueError(f"{where}: its table of leaves does not fit format {FORMAT}")
    values = {**data, "classes": tuple(classes), "leaves": tuple(leaves)}
    return Card(**{**values, "preprocess": Preprocess(**data["preprocess"])})


# --- checkpoints -----------------------------------------------------------------------------------------------


def save_checkpoint(path: str | Path, card: Card, variables: Mapping) -> Card:
    """Write a checkpoint folder, replacing one that is there in a single rename. Returns the card with its leaves."""
    import jax

    from zoo.data.dataset import require_different

    require_different(card.classes, str(path))
    variables = jax.tree.map(np.asarray, dict(variables))
    card = dataclasses.replace(card, leaves=tuple(leaf_table(variables)))
    path = _named(path)
    temporary = path.with_name(f".{path.name}.tmp")
    if _is_first():
        _finish_replacement(path)
        if path.exists() and not (path / MANIFEST).exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ValueError(
                f"{path}: is there already and is no checkpoint; it is not overwritten, choose another name"
            )
        _clear(temporary)
        temporary.mkdir(parents=True)
        _write_json(temporary / CARD, card.to_json())
    _write_arrays(temporary / ARRAYS, variables)
    if _is_first():
        _write_manifest(temporary)
        _replace(temporary, path)
    return card


def load_checkpoint(path: str | Path, check: bool = True) -> tuple[Card, dict]:
    """(card, variables as NumPy arrays) of a checkpoint folder.

    Raises FileNotFoundError where there is none, DamagedCheckpoint naming every file or leaf that is not what was
    written, ValueError for a format this version does not read or a card that does not fit its arrays.
    """
    path = _named(path)
    for _ in range(5):
        place = _place(path)
        before = place.stat().st_ino
        try:
            return _load_checkpoint(place, check)
        except (DamagedCheckpoint, FileNotFoundError):
            # A training may have put a newer one in its place while this one was read.
            if _place(path).stat().st_ino == before:
                raise
    raise DamagedCheckpoint(f"{path}: changes all the time; wait for the training that writes it")


def _named(path: str | Path) -> Path:
    """The path, whole where it ends in no name: a folder is replaced under another name beside it."""
    path = Path(path)
    return path if path.name and path.name != ".." else Path(os.path.abspath(path))


def _place(path: Path) -> Path:
    """Where the checkpoint of this name is: for a moment, while it is replaced, it has another. Changes nothing."""
    for place in (path, path.with_name(f".{path.name}.old"), path):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{path}: there is no such checkpoint folder")


def _load_checkpoint(path: Path, check: bool) -> tuple[Card, dict]:
    if not (path / MANIFEST).exists() and not (path / CARD).exists():
        raise FileNotFoundError(f"{path}: is not a checkpoint (no {CARD}){_look_inside(path)}")
    if check:
        check_manifest(path)
    card = card_from_json(_read_json(path / CARD), str(path / CARD))
    variables = {"params": {}, "batch_stats": {}, **_read_arrays(path / ARRAYS)}
    if check:
        differing = compare_leaves(card.leaves, leaf_table(variables))
        if differing:
            raise DamagedCheckpoint(f"{path}: arrays do not fit the card: {'; '.join(differing)}")
    return card, variables


def read_card(path: str | Path) -> Card:
    """The card alone, for listings; every file is checked against the manifest, the arrays are not read."""
    place = _place(_named(path))
    file = place / CARD
    if not file.exists() and not (place / MANIFEST).exists():
        raise FileNotFoundError(f"{path}: is not a checkpoint (no {CARD}){_look_inside(place)}")
    check_manifest(place)
    return card_from_json(_read_json(file), str(file))


def verify_checkpoint(path: str | Path) -> list[str]:
    """Every file and leaf of a checkpoint that is not what was written, a line each; none where all is well.

    Nothing in it is trusted: the manifest and every leaf are computed anew. FileNotFoundError where there is none.
    """
    place = _place(_named(path))
    lines = []
    try:
        lines = _manifest_problems(place) if (place / MANIFEST).exists() else []
        if any(line.startswith(CARD) for line in lines):
            return lines  # what it says of the leaves is worth nothing
        card, variables = _load_checkpoint(place, check=not (place / MANIFEST).exists())
    except ValueError as error:
        return [*lines, str(error)]
    return lines + compare_leaves(card.leaves, leaf_table(variables))


def _look_inside(path: Path) -> str:
    """A hint where a run's folder was given instead of the checkpoint in it."""
    return f"; did you mean {path / 'best'}?" if (path / "best" / CARD).exists() else ""


def leaf_table(variables: Mapping) -> list[dict[str, Any]]:
    """A row per leaf, sorted by path: path, shape, dtype, sha256 of the C-order little-endian bytes."""
    rows = []
    for path, leaf in sorted(flatten(variables).items()):
        array = np.asarray(leaf)
        raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest = hashlib.sha256(raw.tobytes()).hexdigest()
        rows.append({"path": path, "shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest})
    return rows


def compare_leaves(expected: Any, found: list[dict[str, Any]]) -> list[str]:
    """A line for every leaf of one table that is missing, unknown or different in the other."""
    old, new = ({row["path"]: row for row in rows} for rows in (expected, found))
    lines = [f"{path} is missing" for path in sorted(set(old) - set(new))]
    lines += [f"{path} is not in the card" for path in sorted(set(new) - set(old))]
    for path in sorted(set(old) & set(new)):
        if old[path] != new[path]:
            changed = [key for key in ("shape", "dtype", "sha256") if old[path].get(key) != new[path][key]]
            lines.append(f"{path} has another {' and '.join(changed)}")
    return lines


# --- a run's rolling state -------------------------------------------------------------------------------------


def save_state(folder: str | Path, step: int, arrays: Any, progress: Mapping[str, Any], keep: int = 2) -> Path:
    """Commit a run's whole state under folder/step_N; only the newest `keep` commits stay.

    `arrays` is any pytree, `progress` is JSON: everything else that decides the future of the run. Of several processes
    all call this, with the same whole arrays, and see the same folder. The commit exists only once its folder has its
    name, which is the last thing that happens.
    """
    folder = Path(folder)
    path = folder / f"step_{step:09d}"
    temporary = folder / f".{path.name}.tmp"
    if _is_first():
        _clear(temporary)
        temporary.mkdir(parents=True)
        _write_json(temporary / PROGRESS, dict(progress))
    _write_arrays(temporary / ARRAYS, _plain(arrays))
    if _is_first():
        _write_manifest(temporary)
        _replace(temporary, path)
        for old in _commits(folder)[:-keep]:
            _clear(old)
    return path


def intact_commit(folder: str | Path, warn: Any = print) -> Path | None:
    """The newest commit whose files are what was written, or None. What a killed save left behind is removed.

    A damaged commit is reported through `warn` and the one before is taken: training from there gives the same bits
    again.
    """
    folder = Path(folder)
    for leftover in folder.glob(".*.tmp"):
        _clear(leftover)
    for i, path in reversed(list(enumerate(_commits(folder)))):
        try:
            check_manifest(path)
            return path
        except DamagedCheckpoint as damage:
            warn(f"{damage}; {'going back to the commit before it' if i else 'starting from step 0'}")
    return None


def read_commit(path: Path, like: Callable[[int], Any]) -> tuple[Any, dict[str, Any]]:
    """(arrays with the structure of `like(step)`, progress) of a commit.

    Of several processes all call this: Orbax numbers its calls in each, and they must agree at the next save.
    """
    from flax import serialization

    progress = _read_json(path / PROGRESS)
    arrays = _read_arrays(path / ARRAYS)
    template = like(int(path.name.removeprefix("step_")))
    have, want = flatten(arrays), flatten(_plain(template))
    if set(have) != set(want) or any(np.shape(have[key]) != np.shape(want[key]) for key in want):
        raise ValueError(f"{path}: was written by another configuration or version; start a new run")
    nested = _nest_like(serialization.to_state_dict(template), arrays)
    return serialization.from_state_dict(template, nested), progress


def newest_commit(folder: str | Path) -> Path | None:
    commits = _commits(Path(folder))
    return commits[-1] if commits else None


def _commits(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name))


def _plain(tree: Any) -> dict:
    """Nested dicts of arrays: named tuples, optimiser states and None become dicts, empty ones vanish."""
    from flax import serialization

    def prune(node):
        if isinstance(node, Mapping):
            return {str(key): kept for key, value in node.items() if (kept := prune(value)) is not None} or None
        return None if node is None else np.asarray(node)

    return prune(serialization.to_state_dict(tree)) or {}


def _nest_like(template: Any, arrays: Any) -> Any:
    """`arrays` with the empty nodes that `_plain` pruned put back where the template has them."""
    if isinstance(template, Mapping):
        return {key: _nest_like(value, (arrays or {}).get(str(key))) for key, value in template.items()}
    return None if template is None else arrays


# --- files -----------------------------------------------------------------------------------------------------


def check_manifest(path: Path) -> None:
    """DamagedCheckpoint naming every file under `path` that is missing, of another size or another content."""
    if lines := _manifest_problems(path):
        raise DamagedCheckpoint(f"{path}: damaged: {'; '.join(lines)}")


def _manifest_problems(path: Path) -> list[str]:
    """A line for every file that is not as the manifest says. DamagedCheckpoint where the manifest itself is not."""
    file = path / MANIFEST
    if not file.exists():
        raise DamagedCheckpoint(f"{path}: {MANIFEST} is missing")
    raw = file.read_bytes()
    try:
        manifest = json.loads(raw)
        listed, version = manifest["files"], manifest["format"]
        whole = raw == _manifest_bytes(listed, version)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
        whole = False
    if not whole:
        raise DamagedCheckpoint(f"{file}: is damaged")
    if version != FORMAT:
        raise ValueError(f"{file}: format version {version}, this version of the zoo reads {FORMAT}; upgrade it")
    lines = []
    for name, row in listed.items():
        part = path / name
        if not part.is_file():
            lines.append(f"{name} is missing")
        elif part.stat().st_size != row["bytes"]:
            lines.append(f"{name} has {part.stat().st_size} bytes instead of {row['bytes']}")
        elif _sha256(part) != row["sha256"]:
            lines.append(f"{name} has another content (sha256)")
    arrays = path / ARRAYS
    present = {part.relative_to(path).as_posix() for part in arrays.rglob("*") if part.is_file()}
    return lines + [f"{name} does not belong to it" for name in sorted(present - set(listed))]


def _manifest_bytes(files: Mapping[str, Any], version: int = FORMAT) -> bytes:
    """The one spelling of a manifest, so that a flipped bit in it cannot hide in white space."""
    body = {"files": files, "format": version}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _write_manifest(path: Path) -> None:
    parts = sorted(part for part in path.rglob("*") if part.is_file())
    files = {
        part.relative_to(path).as_posix(): {"bytes": part.stat().st_size, "sha256": _sha256(part)} for part in parts
    }
    (path / MANIFEST).write_bytes(_manifest_bytes(files))
    for part in (*parts, path / MANIFEST):
        descriptor = os.open(part, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedCheckpoint(f"{file}: is not JSON ({error})") from None


def _write_arrays(path: Path, tree: Mapping) -> None:
    from orbax.checkpoint import v1

    save = v1.save if hasattr(v1, "save") else v1.save_pytree  # Orbax before 0.12, which jax2onnx brings
    save(path.absolute(), dict(tree))


def _read_arrays(path: Path) -> dict:
    import jax
    from orbax.checkpoint import v1

    try:
        with _alone():
            tree = (v1.load if hasattr(v1, "load") else v1.load_pytree)(path.absolute())
    except Exception as error:  # Orbax and TensorStore raise many kinds for a folder that is not theirs
        raise DamagedCheckpoint(f"{path}: Orbax cannot read it ({type(error).__name__})") from None
    return jax.tree.map(np.asarray, tree)


def _is_first() -> bool:
    """Whether this process is the one that writes: of several that train together only Orbax is called by all."""
    import jax

    return jax.process_index() == 0


def _alone() -> AbstractContextManager:
    """Orbax's reading in this process by itself: of several that train together it waits for none."""
    import jax
    from orbax.checkpoint import v1

    if jax.process_count() == 1:
        return nullcontext()
    own = jax.process_index()
    context = v1.Context()
    context.multiprocessing.primary_host = own
    context.multiprocessing.active_processes = {own}
    context.multiprocessing.barrier_sync_key_prefix = f"process{own}"
    return context


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)


def _replace(new: Path, path: Path) -> None:
    """Put folder `new` in the place of `path`. A kill in between leaves either, which `_finish_replacement` settles."""
    old = path.with_name(f".{path.name}.old")
    _clear(old)
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync_folder(path.parent)
    _clear(old)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a loss of power, where the system lets one."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _finish_replacement(path: Path) -> None:
    """If a kill struck between the two renames of `_replace`, put the old folder back; for its writer alone."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
