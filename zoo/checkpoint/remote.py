"""Checkpoints in object stores: folders of objects, complete once their manifest has been written.

A checkpoint is read through a local copy, whose files are checked against the manifest. The copy is kept in the user's
cache folder, and used again as long as no object has changed in the store.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.addresses import is_address, join_address, parse_address
from zoo.cache import cache_folder
from zoo.checkpoint.manifest import ARRAYS, MANIFEST, README, CorruptCheckpointError, listed_files, manifest_problems
from zoo.files import remove_folder
from zoo.stores import folders, objects
from zoo.stores.object_cache import limit_bytes
from zoo.stores.objects import ObjectInfo
from zoo.text import escape, renamed_in_errors

CARD = "card.json"
#: Names in the folder of a run, which stands for its best checkpoint wherever one is read.
RUN_CONFIG, BEST = "config.json", "best"
NO_BEST = "has a config.json but no best checkpoint yet; finish the run by its command, or name a weight file in it"
#: Attempts to read a folder that a training is replacing, and seconds between them.
ATTEMPTS, PAUSE = 5, 1.0


def fetch_checkpoint(address: str, fresh: bool = False) -> Path:
    """Return the folder of a local copy of a checkpoint, whose files match their manifest.

    Args:
        address: address of the checkpoint.
        fresh: read every object, even if there is a copy of the same content.

    Raises:
        FileNotFoundError: if there is no checkpoint at the address.
        CorruptCheckpointError: naming every object that is missing, or has another size or content.
    """
    from filelock import FileLock

    root = cache_folder() / "checkpoints"
    for number in range(ATTEMPTS):
        base, listing = _locate(address)
        raw = objects.read(join_address(base, MANIFEST))
        versions = sorted((name, info.size, info.version) for name, info in listing.items())
        digest = hashlib.sha256(raw + repr(versions).encode()).hexdigest()
        copy = root / hashlib.sha256(address.encode()).hexdigest()[:16] / digest[:16]
        if not fresh and _is_intact(copy):
            os.utime(copy)
            return copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.parent / "lock"):  # of several processes that want the same checkpoint one downloads it
            is_intact = _is_intact(copy)
            if is_intact and not fresh:
                return copy
            part = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=copy.parent))
            try:
                download_listed(base, address, raw, listing, part)
                if not is_intact:  # another process may be reading an intact one
                    remove_folder(copy)
                    part.replace(copy)
            except CorruptCheckpointError:
                if number + 1 < ATTEMPTS and _is_changing(address, base, raw):
                    time.sleep(PAUSE)
                    continue
                raise
            finally:
                remove_folder(part)
        _remove_oldest(root, copy)
        return copy
    raise CorruptCheckpointError(f"{address}: keeps changing; wait for the training that writes it")


def _is_changing(address: str, base: str, raw: bytes) -> bool:
    """Return True if a folder that does not match its manifest has just been replaced."""
    try:
        return _locate(address)[0] != base or objects.read(join_address(base, MANIFEST)) != raw
    except (FileNotFoundError, CorruptCheckpointError):
        return True


def _locate(address: str) -> tuple[str, dict[str, ObjectInfo]]:
    """Return (address, listing) of a complete checkpoint, or of the best one of a run.

    While it is replaced, a checkpoint is under another name.
    """
    first = objects.listing(address)
    if RUN_CONFIG in first and not {MANIFEST, CARD} & set(first):
        if not any(name.partition("/")[0].strip(".").startswith(BEST) for name in first):
            raise ValueError(f"{address}: {NO_BEST}")
        return _locate(join_address(address, BEST))
    for base, listing in ((address, first), (staging := folders.staging_of(address), None), (address, None)):
        listing = objects.listing(base) if listing is None else listing
        if MANIFEST in listing:
            return base, listing
    if CARD in first or objects.listing(staging):
        raise CorruptCheckpointError(f"{address}: {MANIFEST} is missing: it was not written to its end")
    inner = next((name for name in (BEST, "fold1") if any(key.startswith(f"{name}/") for key in first)), "")
    hint = f"; did you mean {join_address(address, inner)}?" if inner else ""
    raise FileNotFoundError(f"{address}: no such checkpoint folder or weight file{hint}")


def download_listed(base: str, address: str, raw: bytes, listing: dict[str, ObjectInfo], folder: Path) -> None:
    """Download the objects that a manifest lists, and check them.

    Args:
        base: where the objects are.
        address: what messages name.
        raw: the manifest.
        listing: the objects below `base`.
        folder: an empty folder, or one that does not exist.

    Raises:
        CorruptCheckpointError: naming every object that is missing, or has another size or content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(raw)
    with renamed_in_errors(str(folder), address):
        rows = {name: row for name, row in listed_files(folder).items() if name != README or name in listing}
        lines = []
        for name, row in rows.items():
            if name not in listing:
                lines.append(f"{escape(name)} is missing")
            elif listing[name].size != row["bytes"]:
                lines.append(f"{escape(name)} has {listing[name].size} bytes instead of {row['bytes']}")
        extra = {name for name in listing if name.startswith(f"{ARRAYS}/")} - set(rows)
        lines += [f"{escape(name)} is not listed in the manifest" for name in sorted(extra)]
        if lines:
            raise CorruptCheckpointError(f"{address}: damaged: {'; '.join(lines)}")
        try:
            folders.download_files(base, rows, folder)
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"{address}: damaged: {error}") from None
        if lines := manifest_problems(folder):
            raise CorruptCheckpointError(f"{address}: damaged: {'; '.join(lines)}")


def _is_intact(copy: Path) -> bool:
    try:
        return copy.is_dir() and not manifest_problems(copy)
    except (ValueError, OSError):
        return False


def _remove_oldest(root: Path, keep: Path) -> None:
    """Delete the copies that were used longest ago until all together have at most the size of the cache of objects."""
    copies = []
    for copy in root.glob("*/*"):
        with suppress(OSError):
            size = sum(part.stat().st_size for part in copy.rglob("*") if part.is_file())
            copies.append((copy.stat().st_mtime, size, copy))
    used = sum(size for _, size, _ in copies)
    for _, size, copy in sorted(copies):
        if used <= limit_bytes():
            break
        if copy != keep:
            shutil.rmtree(copy, ignore_errors=True)
            used -= size


@contextmanager
def local_folder(path: str | os.PathLike[str], fresh: bool = False) -> Iterator[Path]:
    """Yield the folder of a checkpoint on this machine; for an address its local copy, whose errors name the address.

    Args:
        path: folder or address.
        fresh: as in `fetch_checkpoint`.
    """
    if not is_address(path):
        yield absolute_if_unnamed(path)
        return
    address = parse_address(path)
    copy = fetch_checkpoint(address, fresh)
    with renamed_in_errors(str(copy), address):
        yield copy


@contextmanager
def storing(address: str) -> Iterator[Path]:
    """Yield a temporary folder. If the block writes a checkpoint there, it replaces that at the address.

    Raises:
        ValueError: if something else than a checkpoint is at the address.
    """
    present = objects.listing(address)
    if present and not {MANIFEST, CARD} & set(present):
        raise ValueError(f"{address}: exists and is not a checkpoint; choose another name")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "checkpoint")
        with renamed_in_errors(str(folder), address):
            yield folder
        if (folder / MANIFEST).exists():
            folders.replace_folder(folder, address, MANIFEST, CARD)  # the card marks an unfinished one as ours


def absolute_if_unnamed(path: str | os.PathLike[str]) -> Path:
    """Return the path, made absolute if it ends in no name (".", ".."), since it is replaced under a name beside it."""
    path = Path(path)
    return path if path.name and path.name != ".." else Path(os.path.abspath(path))
