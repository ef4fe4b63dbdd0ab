"""Local copies of objects, in a folder of bounded size below the user's cache folder.

An entry is named after address and version of its object, so a changed object is another entry. Several processes may
use the folder: what it holds is counted in a file, under a lock, before an entry is written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from zoo.cache import cache_folder
from zoo.stores import objects
from zoo.stores.objects import ObjectInfo

#: Environment variable: largest size of the cache, such as 500M or 20G.
LIMIT_VARIABLE = "ZOO_STORE_CACHE"
LIMIT = 20 * 10**9
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
#: Share of the disk that the cache leaves free.
SPARED = 0.05
#: Share of the largest size to which the oldest entries are deleted once it is reached.
TRIMMED = 0.9
#: Seconds for which a cache that is full of entries in use is not looked at again.
FULL_SECONDS = 30.0
#: Seconds after which an unfinished download is of a process that died.
STALE_SECONDS = 86400.0


def limit_bytes() -> int:
    """Return the largest size of the cache in bytes: that of ZOO_STORE_CACHE, or LIMIT.

    Raises:
        ValueError: if the variable is not a size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return LIMIT
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        return int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{LIMIT_VARIABLE}={text}: is not a size; write 500M or 20G") from None


class ObjectCache:
    """Local copies of objects.

    Args:
        folder: where they are kept.
        limit: their largest size together, in bytes.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.started = time.time()
        self.touched: set[str] = set()
        self.full_until = 0.0
        self.guard = threading.Lock()
        self.downloads: dict[Path, threading.Lock] = {}

    def path(self, address: str, info: ObjectInfo) -> Path:
        """Return the name of an entry; its ending is that of the object."""
        digest = hashlib.sha256(f"{address}\n{info.size}\n{info.version}".encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}{Path(address).suffix[:12]}"

    def get(self, address: str, info: ObjectInfo) -> Path | None:
        """Return the local copy of an object, downloading it if there is room; None if there is not.

        Entries that this process has used are never deleted to make room.
        """
        path = self.path(address, info)
        if self._is_entry(path, info.size):
            return path
        with self.guard:
            download = self.downloads.setdefault(path, threading.Lock())
        try:
            with download:  # the other threads that want this object wait for it
                if self._is_entry(path, info.size):
                    return path
                return self._download(address, path, info)
        finally:
            with self.guard:
                self.downloads.pop(path, None)

    def _download(self, address: str, path: Path, info: ObjectInfo) -> Path | None:
        if not self._reserve(info.size):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.touched.add(path.name)
        try:
            objects.download(address, path)
        except BaseException:
            self._add(-info.size)
            raise
        return path

    def _is_entry(self, path: Path, size: int) -> bool:
        """Return True if an entry exists and is whole; note that it is in use."""
        try:
            if path.stat().st_size != size:
                return False
            if path.name not in self.touched:
                os.utime(path)
                self.touched.add(path.name)
        except OSError:
            return False
        return True

    def _reserve(self, size: int) -> bool:
        """Count the bytes of a new entry, deleting old ones if necessary; return False if there is no room."""
        if size > self.limit or time.monotonic() < self.full_until:
            return False
        with self.guard, self._locked():
            used = self._read_count()
            if used is None or used + size > self._room(used):
                used = self._trim(size)
            if used + size > self._room(used):
                self.full_until = time.monotonic() + FULL_SECONDS
                self._write_count(used)
                return False
            self._write_count(used + size)
        return True

    def _room(self, used: int) -> float:
        """Return the largest size that the cache may have now, of which `used` bytes are taken."""
        disk = shutil.disk_usage(self.folder)
        return min(self.limit, used + disk.free - SPARED * disk.total)

    def _add(self, size: int) -> None:
        with self.guard, self._locked():
            self._write_count(max((self._read_count() or 0) + size, 0))

    def _locked(self):
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "lock")

    def _read_count(self) -> int | None:
        try:
            return int((self.folder / "bytes").read_text())
        except (OSError, ValueError):
            return None

    def _write_count(self, used: int) -> None:
        (self.folder / "bytes").write_text(str(used))

    def _trim(self, size: int) -> int:
        """Return the bytes in the folder, after deleting the oldest entries if they leave no room for `size` more."""
        entries = []
        for file in self.folder.glob("??/*"):
            with suppress(OSError):
                status = file.stat()
                if not file.name.endswith(".part"):
                    entries.append((status.st_mtime, status.st_size, file))
                elif status.st_mtime < self.started - STALE_SECONDS:
                    file.unlink()
        used = sum(entry[1] for entry in entries)
        room = self._room(used)
        if used + size <= room:
            return used
        for modified, number, file in sorted(entries):
            if used + size <= TRIMMED * room or modified >= self.started:
                break
            if file.name in self.touched:  # at the start: the times of files come from a coarser clock
                continue
            with suppress(OSError):
                file.unlink()
                used -= number
        return used


@cache
def shared_cache(folder: Path, limit: int) -> ObjectCache:
    """Return the cache in a folder, one for all threads."""
    return ObjectCache(folder, limit)


def object_cache() -> ObjectCache:
    """Return the cache of objects in the user's cache folder."""
    return shared_cache(cache_folder() / "objects", limit_bytes())


def local_copy(address: str, info: ObjectInfo) -> Path:
    """Return the local copy of a whole object.

    Raises:
        ValueError: if the cache has no room for it.
    """
    path = object_cache().get(address, info)
    if path is None:
        raise ValueError(
            f"{address}: has {info.size:,} bytes, for which the cache of objects has no room; raise {LIMIT_VARIABLE} "
            f"(now {limit_bytes():,} bytes) or download the file"
        )
    return path
