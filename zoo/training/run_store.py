"""Runs whose folder is in an object store: `--workdir gs://bucket/run`.

A run trains in a working folder on this machine, below the user's cache folder, with all that a folder on disk gives.
Every completed save goes to the store: first the state, then the best checkpoint, then the logs, each folder with its
manifest last. At the start what the store has is fetched and checked against its hashes, so a run goes on from its
newest intact save, on whichever machine. A lease keeps two processes from training the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from zoo.addresses import is_address, join_address, name_of, parse_address
from zoo.cache import cache_folder
from zoo.checkpoint.manifest import MANIFEST, CorruptCheckpointError, check_manifest, file_sha256
from zoo.checkpoint.remote import download_listed
from zoo.checkpoint.run_state import KEPT_SAVES
from zoo.checkpoint.schema import parse_json
from zoo.files import atomic_writer, locked, remove_folder, replace_folder, write_atomically
from zoo.stores import folders, objects
from zoo.stores.lease import FOLDER as LEASE_FOLDER
from zoo.stores.lease import Lease
from zoo.stores.objects import ObjectInfo, StoreError
from zoo.text import escape, one_line, renamed_in_errors
from zoo.training.interruption import InterruptedRunError
from zoo.training.run import BEST, CONFIG, METRICS, RESULTS, STATE, RunConfig, config_from_json, is_finished, run_folder

#: In the store: the hashes of the files beside the folders.
INDEX = "files.json"
#: On disk, in a folder beside the working folder: the hash of the index that was last written or read, and a second one
#: (or "") while files in the store may lag behind it; the lock of the working folder; a random text that stands for it.
SYNCED, LOCAL_LOCK, OWNER = "synced.json", "lock", "owner"
PLAIN = re.compile(r"[A-Za-z0-9_][\w.=+-]*")
BEST_MANIFEST = f"{BEST}/{MANIFEST}"

Say = Callable[[str], Any]


def working_folder(address: str) -> Path:
    """Return the folder on this machine in which the run at an address is trained."""
    endpoints = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")]
    endpoints.append(os.environ.get("STORAGE_EMULATOR_HOST", ""))
    digest = hashlib.sha256(repr([address, *endpoints]).encode()).hexdigest()[:16]
    return cache_folder() / "runs" / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name_of(address))[:60]}-{digest}"


def notes_of(folder: Path) -> Path:
    """Return the folder of what this machine knows of the store, beside a working folder."""
    return folder.with_name(f".{folder.name}")


def place_of_run(workdir: str | Path | None, config: RunConfig, runs_folder: str | Path = "runs") -> tuple[Path, str]:
    """Return the folder of a run on this machine, and its address in a store; "" for a run on disk."""
    if workdir is None or not is_address(workdir):
        return run_folder(workdir, config, runs_folder), ""
    address = parse_address(workdir)
    folder = run_folder(working_folder(address), config)
    return folder, join_address(address, folder.name) if config.fold else address


def recorded_micro_batch(address: str) -> int | None:
    """Return the micro-batch of the run at an address, as `zoo.training.run.recorded_micro_batch` does of a folder."""
    where = join_address(address, CONFIG)
    try:
        micro_batch = config_from_json(parse_json(objects.read(where), where), where).recipe.micro_batch
    except FileNotFoundError:
        return None
    saved = any(name.endswith(f"/{MANIFEST}") for name in objects.listing(join_address(address, STATE)))
    return micro_batch if micro_batch or saved else None


def list_saves(folder: Path) -> list[Path]:
    """Return the saves in a state folder, the newest last."""
    return sorted((path for path in folder.glob("step_*") if _step(path.name) >= 0), key=lambda path: _step(path.name))


def require_no_run(address: str) -> None:
    """Raise ValueError if there is a single run at an address, where the folds of a cross-validation are to be."""
    if objects.info(join_address(address, CONFIG)) is not None:
        raise ValueError(f"{address}: holds a single run; choose another --workdir for the folds")


class RunStore:
    """The place of a run in an object store.

    Args:
        address: the run's address.
        folder: its working folder on this machine.
        say: called with lines on damage and on waiting.
    """

    def __init__(self, address: str, folder: Path, say: Say):
        self.address, self.folder, self.say = address, folder, say
        self.notes = notes_of(folder)
        self.index: dict[str, list[str]] = {}  # name -> accepted sha256, the newest first
        self.stored_index = ""  # hash of the index in the store
        self.lease: Lease | None = None

    # --- at the start ------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Take the lease. The caller holds the lock of the working folder."""
        objects.listing(self.address)  # names the address if there is no such bucket
        file = self.notes / OWNER
        if not file.exists():
            write_atomically(file, uuid.uuid4().hex)
        self.lease = Lease(self.address, file.read_text(), self.say)

    def pull(self) -> None:
        """Bring the working folder to what the store has, unless it is ahead: what a failing store did not take.

        Raises:
            ValueError: if something else than a run is at the address.
            CorruptCheckpointError: if the configuration, or the checkpoint of a finished run, is damaged.
        """
        present = objects.listing(self.address)
        listing = {name: info for name, info in present.items() if not name.startswith(f"{LEASE_FOLDER}/")}
        if CONFIG not in listing:
            self._require_empty(listing)
            self._clear()
            return
        raw = objects.read(join_address(self.address, INDEX)) if INDEX in listing else b""
        self.index, self.stored_index = self._parse_index(raw) if raw else {}, _digest(raw)
        config = self._read_checked(CONFIG)
        is_other = _read(self.folder / CONFIG) != config  # another run was here before
        if is_other:
            self._clear()
        is_behind = is_other or self.stored_index not in self._synced()
        if is_behind or not self._is_settled():
            contents, damaged = self._read_files(listing)
            if is_behind:
                self._write_files(listing, contents, damaged)
            if self.index:  # from now on what the store has, so that the next push writes the rest
                found = {name: [_digest(content)] for name, content in contents.items()}
                self.index = {name: row for name, row in self.index.items() if "/" in name} | found
        if is_behind or not (self.folder / BEST).exists():
            self._pull_best()
        if is_behind:
            self._set_synced(self.stored_index, "")
        if not is_finished(self.folder):
            self._pull_state(listing)

    def _require_empty(self, listing: dict[str, ObjectInfo]) -> None:
        if f"fold1/{CONFIG}" in listing:
            raise ValueError(
                f"{self.address}: holds the folds of a cross-validation; add --folds, or choose another --workdir"
            )
        if set(listing) - {INDEX}:
            raise ValueError(f"{self.address}: is not empty and not a run; choose another --workdir")

    def _clear(self) -> None:
        for part in self.folder.iterdir():
            if part.is_dir():
                remove_folder(part)
            else:
                part.unlink()

    def _parse_index(self, raw: bytes) -> dict[str, list[str]]:
        where = join_address(self.address, INDEX)
        try:
            data = parse_json(raw, where)
            rows = {str(name): [str(digest) for digest in row] for name, row in data["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            rows = None
        if rows is None or _index_bytes(rows) != raw:
            raise CorruptCheckpointError(f"{where}: is damaged; delete this object to go on without it")
        return rows

    def _read_checked(self, name: str) -> bytes:
        """Return the content of a file beside the folders.

        Raises:
            CorruptCheckpointError: if its hash is not in the index.
        """
        raw = objects.read(join_address(self.address, name))
        if self.index and _digest(raw) not in self.index.get(name, ()):
            raise CorruptCheckpointError(f"{self.address}: damaged: {name} has different content (sha256)")
        return raw

    def _read_files(self, listing: dict[str, ObjectInfo]) -> tuple[dict[str, bytes], dict[str, CorruptCheckpointError]]:
        """Return the contents of the files beside the folders, and an error for each damaged one."""
        contents: dict[str, bytes] = {}
        damaged: dict[str, CorruptCheckpointError] = {}
        for name in sorted(name for name in listing if PLAIN.fullmatch(name) and name != INDEX):
            if self.index and name not in self.index:  # not of this run
                continue
            try:
                contents[name] = self._read_checked(name)
            except CorruptCheckpointError as error:
                if name == CONFIG:
                    raise
                damaged[name] = error
        return contents, damaged

    def _write_files(
        self,
        listing: dict[str, ObjectInfo],
        contents: dict[str, bytes],
        damaged: dict[str, CorruptCheckpointError],
    ) -> None:
        """Write the files that `_read_files` returned. A damaged one is reported; the run makes what it needs anew."""
        for error in damaged.values():
            self.say(f"{error}; left out")
        for name, content in contents.items():
            with atomic_writer(self.folder / name) as stream:
                stream.write(content)
        for part in self.folder.iterdir():
            if PLAIN.fullmatch(part.name) and part.is_file() and part.name not in listing:
                part.unlink()
        missing = {name for name in self.index if "/" not in name} - set(listing)
        for name in sorted(missing):
            self.say(f"{self.address}: {escape(name)} is missing")
        if (set(damaged) | missing) & {METRICS, RESULTS}:  # written again from the last save
            (self.folder / RESULTS).unlink(missing_ok=True)

    def _pull_best(self) -> None:
        address = join_address(self.address, BEST)
        folders.finish_replacement(address, MANIFEST)
        if objects.info(join_address(address, MANIFEST)) is None:
            return
        try:
            self._pull_folder(BEST)
        except CorruptCheckpointError as error:
            if (self.folder / RESULTS).exists():
                raise
            self.say(f"{error}; written again at the next save")
            remove_folder(self.folder / BEST)

    def _pull_state(self, listing: dict[str, ObjectInfo]) -> None:
        """Fetch the newest intact save, unless the working folder has one that is as new."""
        steps = [part.split("/")[1] for part in listing if re.fullmatch(rf"{STATE}/step_\d+/{MANIFEST}", part)]
        for name in sorted(steps, key=_step, reverse=True):
            if any(_step(save.name) >= _step(name) and _is_intact(save) for save in list_saves(self.folder / STATE)):
                return
            try:
                self._pull_folder(f"{STATE}/{name}")
                return
            except CorruptCheckpointError as error:
                self.say(f"{error}; {'using the save before it' if name != min(steps, key=_step) else 'no save left'}")

    def _pull_folder(self, name: str) -> None:
        """Fetch a folder with a manifest and check it before it takes its place."""
        address, path = join_address(self.address, name), self.folder / name
        part = path.with_name(f".{path.name}.part")
        remove_folder(part)
        try:
            raw = objects.read(join_address(address, MANIFEST))
            download_listed(address, address, raw, objects.listing(address), part)
            replace_folder(part, path)
        finally:
            remove_folder(part)

    # --- after every save --------------------------------------------------------------------------------------------

    def push(self) -> None:
        """Write what is complete in the working folder to the store.

        Raises:
            StoreError: if the store keeps failing, or another process has taken over the run. The working folder has
                everything, and the next process that trains this run on this machine goes on from it.
        """
        assert self.lease is not None
        try:
            for write in (self._push_state, self._push_best, self._push_files, self._remove_old_saves):
                self.lease.check()  # each may take long, and a machine that was suspended has lost its lease meanwhile
                write()
        except StoreError as error:
            saves = list_saves(self.folder / STATE)
            kept = f"step {_step(saves[-1].name):,}" if saves else "its start"
            raise UnmirroredRunError(
                f"{one_line(error)}; the run is kept up to {kept} in {self.folder}. Repeat the command on this machine "
                "to resume"
            ) from None

    def _push_state(self) -> None:
        present = objects.listing(join_address(self.address, STATE))
        for save in list_saves(self.folder / STATE)[-1:]:
            name = f"{save.name}/{MANIFEST}"
            address = join_address(self.address, STATE, save.name)
            if name not in present or objects.read(join_address(address, MANIFEST)) != _read(save / MANIFEST):
                folders.upload_folder(save, address, MANIFEST)

    def _push_best(self) -> None:
        file = self.folder / BEST_MANIFEST
        if file.exists() and file_sha256(file) not in self.index.get(BEST_MANIFEST, ())[:1]:
            folders.replace_folder(self.folder / BEST, join_address(self.address, BEST), MANIFEST)

    def _push_files(self) -> None:
        """Write the files that changed: first the index with their old and new hashes, the results last of all."""
        names = [part.name for part in self.folder.iterdir() if part.is_file() and PLAIN.fullmatch(part.name)]
        contents = {name: (self.folder / name).read_bytes() for name in sorted(names) if name != INDEX}
        if (self.folder / BEST_MANIFEST).exists():
            contents[BEST_MANIFEST] = (self.folder / BEST_MANIFEST).read_bytes()
        rows: dict[str, list[str]] = {}
        for name, raw in contents.items():
            known, digest = self.index.get(name, []), _digest(raw)
            rows[name] = known if known[:1] == [digest] else [digest, *known[:1]]
        changed = [name for name in rows if rows[name] != self.index.get(name)]
        if not changed and self._is_settled():
            return
        index = _index_bytes(rows)
        self._set_synced(_digest(index), self.stored_index)
        objects.write(join_address(self.address, INDEX), index)
        self.stored_index = _digest(index)
        for name in sorted(changed, key=lambda name: (name == RESULTS, name)):
            if name != BEST_MANIFEST:
                objects.write(join_address(self.address, name), contents[name])
        self.index = rows
        self._set_synced(self.stored_index)

    def _remove_old_saves(self) -> None:
        """Delete all saves but the newest one and the one before it; later ones are damaged, and were not used."""
        saves = list_saves(self.folder / STATE)
        present = objects.listing(join_address(self.address, STATE))
        complete = [name for name in folders.top_level(present) if f"{name}/{MANIFEST}" in present]
        if not saves or saves[-1].name not in complete:
            return
        kept = sorted((name for name in complete if _step(name) <= _step(saves[-1].name)), key=_step)[-KEPT_SAVES:]
        for name in set(folders.top_level(present)) - set(kept):
            prefix = f"{name}/"
            inside = [part.removeprefix(prefix) for part in present if part.startswith(prefix)]
            folders.remove_folder(join_address(self.address, STATE, name), MANIFEST, inside)

    # --- what the working folder knows of the store ------------------------------------------------------------------

    def _synced(self) -> list[str]:
        try:
            return [str(digest) for digest in json.loads(_read(self.notes / SYNCED) or b"[]")]
        except (ValueError, TypeError):
            return []

    def _is_settled(self) -> bool:
        """Return True if every file in the store has the first hash of its row in the index."""
        return self._synced() == [self.stored_index]

    def _set_synced(self, *digests: str) -> None:
        write_atomically(self.notes / SYNCED, json.dumps(digests))


class UnmirroredRunError(RuntimeError):
    """Raised when a store does not take the state of a run, which the working folder on this machine keeps."""


def _index_bytes(rows: dict[str, list[str]]) -> bytes:
    """Serialise the index in its only valid spelling."""
    body = {"files": rows, "format": 1}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _step(name: str) -> int:
    digits = name.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def _is_intact(save: Path) -> bool:
    try:
        check_manifest(save)
    except CorruptCheckpointError:
        return False
    return True


@contextmanager
def open_store(address: str, folder: Path, say: Say) -> Iterator[RunStore]:
    """Open the run at an address for training in its working folder.

    Errors of the block that name the working folder name the address instead.

    Raises:
        ValueError: if another process trains the run, or something else is at the address.
        StoreError: if the store cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes_of(folder).mkdir(exist_ok=True)
    store = RunStore(address, folder, say)
    with ExitStack() as stack:
        stack.enter_context(
            locked(notes_of(folder) / LOCAL_LOCK, f"{address}: another process is training in this folder")
        )
        store.acquire()
        assert store.lease is not None
        stack.callback(_release, store.lease)
        store.pull()
        with renamed_in_errors(str(folder), address):
            try:
                yield store
            except InterruptedRunError:
                store.push()  # the row of this session in timing.jsonl
                raise
        if is_finished(folder):  # all of it is in the store, and nobody looks into the cache for it
            remove_folder(folder / STATE)


def _release(lease: Lease) -> None:
    with suppress(StoreError):  # it expires by itself, and must not hide the error that ended the run
        lease.release()
