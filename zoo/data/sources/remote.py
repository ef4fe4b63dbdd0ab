"""Data in object stores: tar shards, tables, class folders and .npz files at gs:// and s3:// addresses.

Objects are copied into the cache of objects while there is room, whole shards as well as single images. What has no
room is read by ranges of bytes each time, so data of any size can be trained on with a cache of bounded size.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from zoo.addresses import AddressPath, is_address, join_address, parent_of, parse_address
from zoo.data.dataset import Dataset, Note
from zoo.data.sources.folders import FolderWalk, list_walk
from zoo.data.sources.listing import Listing, hash_parts, require_image_size
from zoo.data.sources.names import escape, is_system_file, is_system_folder
from zoo.data.sources.npz_idx import npz
from zoo.data.sources.shards import (
    COMPRESSED,
    RANGE,
    TAR,
    ShardIndex,
    expand_braces,
    index_shard,
    listing_of_shards,
)
from zoo.data.sources.tables import SUFFIXES, listing_of_table
from zoo.data.splits import Store
from zoo.files import MAX_TEXT
from zoo.stores import objects
from zoo.stores.object_cache import local_copy, object_cache
from zoo.stores.objects import ObjectInfo
from zoo.text import first_few, renamed_in_errors

#: Threads that fetch images while a data set is checked.
WORKERS = 16
#: Bytes that are read ahead while a shard without room in the cache is indexed.
READ_AHEAD = 2**22


def open_remote(address: str) -> Dataset | Listing:
    """Open the data at an address.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: for data of another kind, or as the sources on disk.
    """
    path = AddressPath(address)
    if RANGE.search(address) and TAR.fullmatch(path.name):
        return list_remote_shards(address, expand_braces(address))
    if info := objects.info(address):
        name = path.name.lower()
        if name.endswith(SUFFIXES):
            return listing_of_table(path, _Objects(path, info))
        if TAR.fullmatch(path.name):
            return list_remote_shards(address, [address])
        if name.endswith(".npz"):
            copy = local_copy(address, info)
            with renamed_in_errors(str(copy), address):
                return dataclasses.replace(npz(copy), name=address)
        kinds = "tar shards, tables, .npz files and folders of class folders"
        raise ValueError(f"{address}: unsupported file type; supported at addresses are {kinds}")
    present = objects.listing(address)
    if not present:
        raise FileNotFoundError(f"{address}: no such object or folder")
    walk = RemoteWalk(address, names=tuple(present))
    shards = [name for name in walk.entries("")[1] if TAR.fullmatch(name)]
    folders = [name for name in walk.entries("")[0] if walk.has_images(name)]
    if shards and folders:
        raise ValueError(
            f"{address}: has the tar file {escape(shards[0])} beside folders of images "
            f"({first_few([*map(escape, folders)], 3)}); move one of them, or name {address}/{shards[0]}"
        )
    if shards:
        return list_remote_shards(address, [join_address(address, name) for name in shards])
    if not folders and not walk.has_images(""):
        raise ValueError(
            f"{address}: has no class folders with images or tar shards; put the images of each class in a folder, or "
            "list them in a table of paths and labels"
        )
    again = RemoteWalk(address, names=tuple(present))  # the first walk has counted files that are not images
    return list_walk(again, lambda names: _open_objects(address, names, present, ()))


def _open_objects(
    root: str, names: Sequence[str], infos: Mapping[str, ObjectInfo], stamped: Sequence[object],
    columns: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Store, str]:  # fmt: skip
    """Return the store of objects, and its stamp."""
    used = {name: infos[name] for name in names if name in infos}
    stamp = hash_parts([root, *stamped, *((name, used.get(name)) for name in names)])
    return ObjectStore(root, tuple(names), used, columns or {}), stamp


def read_part(address: str, info: ObjectInfo, start: int, length: int) -> bytes:
    """Read bytes of an object: from its local copy, which is made if there is room, else from the store."""
    copy = object_cache().get(address, info)
    if copy is not None:
        try:
            with open(copy, "rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:  # deleted by another process that needed the room
            pass
    return objects.read(address, start, start + length)


@dataclass(frozen=True, eq=False)
class ObjectStore:
    """Objects that are images.

    Attributes:
        root: the address that names are relative to.
        names: the name of each object, relative to `root`, or an address.
        infos: size and version by name; objects that do not exist have none.
        columns: as in `FileStore`.
    """

    root: str
    names: tuple[str, ...]
    infos: Mapping[str, ObjectInfo]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    workers: int = WORKERS

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return _fetch(self._read, records)

    def _read(self, record: int) -> bytes:
        name = self.names[record]
        info = self.infos.get(name)
        if info is None:
            raise ValueError(f"{self.name(record)}: no such object")
        require_image_size(info.size, self.name(record))
        address = name if is_address(name) else join_address(self.root, name)
        return _read_whole(self.name(record), address, info, 0, info.size)

    def name(self, record: int) -> str:
        return escape(self.names[record])


@dataclass(frozen=True, eq=False)
class ShardStore:
    """Members of uncompressed tar files in an object store; see `TarStore`."""

    shards: tuple[str, ...]
    infos: tuple[ObjectInfo, ...]
    names: tuple[str, ...]
    places: NDArray[np.int64]
    workers: int = WORKERS

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return _fetch(self._read, records)

    def _read(self, record: int) -> bytes:
        shard, start, length = self.places[record].tolist()
        require_image_size(length, self.name(record))
        return _read_whole(self.name(record), self.shards[shard], self.infos[shard], start, length)

    def name(self, record: int) -> str:
        shard = self.shards[int(self.places[record, 0])]
        return f"{escape(posixpath.basename(shard))}/{escape(self.names[record])}"


def _fetch(read: Callable[[int], bytes], records: Sequence[int]) -> list[bytes]:
    """Read records with threads, since each may take a round trip."""
    if len(records) <= 1:
        return [read(record) for record in records]
    with ThreadPoolExecutor(min(WORKERS, len(records))) as pool:
        return list(pool.map(read, records))


def _read_whole(name: str, address: str, info: ObjectInfo, start: int, length: int) -> bytes:
    """Read bytes of an object; the messages of errors begin with `name`."""
    try:
        data = read_part(address, info, start, length)
    except OSError as error:  # the cause says that another attempt may succeed
        raise ValueError(f"{name}: {error}") from error
    if len(data) != length:
        raise ValueError(f"{name}: has {len(data):,} bytes instead of {length:,}; it was changed meanwhile")
    return data


# --- tables ----------------------------------------------------------------------------------------------------------


class _Objects:
    """A table and the objects that it may name: relative to its own folder, or by address."""

    def __init__(self, table: AddressPath, info: ObjectInfo):
        self.table, self.info, self.root = table, info, parent_of(str(table))
        self.infos: dict[str, ObjectInfo] = {}

    def read(self) -> bytes:
        if self.info.size > MAX_TEXT:
            raise ValueError(f"{self.table}: is larger than {MAX_TEXT:,} bytes")
        return objects.read(str(self.table))

    def resolve(self, names: Sequence[str], split: str) -> tuple[list[str], list[Note]]:
        resolved = []
        for name in names:
            if is_address(name):
                resolved.append(parse_address(name).removeprefix(f"{self.root}/"))
            else:
                resolved.append(posixpath.normpath(name.replace("\\", "/")))
        self.infos = dict(objects.listing(self.root))
        for folder in sorted({parent_of(name) for name in resolved if is_address(name)}):
            self.infos |= {join_address(folder, name): info for name, info in objects.listing(folder).items()}
        return resolved, []

    def open(self, names: Sequence[str], columns: Mapping[str, tuple[str, ...]]) -> tuple[Store, str]:
        return _open_objects(self.root, names, self.infos, [self.table.name, self.info], columns)


# --- folders ---------------------------------------------------------------------------------------------------------


@dataclass
class RemoteWalk(FolderWalk):
    """A walk through the names of objects, as if they were files in folders.

    Attributes:
        names: the names below the root.
    """

    names: tuple[str, ...] = ()
    _children: dict[str, tuple[set[str], list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._children[""] = (set(), [])
        for name in self.names:
            folder, _, file = name.rpartition("/")
            if not file or any(part in ("", ".", "..") for part in name.split("/")):
                continue  # a placeholder of a folder, or a name that no file can have
            self._children.setdefault(folder, (set(), []))[1].append(file)
            while folder:
                parent, _, last = folder.rpartition("/")
                self._children.setdefault(parent, (set(), []))[0].add(last)
                folder = parent

    def _scan(self, folder: str) -> tuple[list[str], list[str]]:
        folders, files = self._children.get(folder.replace(os.sep, "/"), (set(), []))
        self.system_folders += [
            posixpath.join(folder, name) for name in sorted(folders) if is_system_folder(name) and name[0] != "."
        ]
        kept = [name for name in sorted(folders) if not is_system_folder(name)]
        return kept, [name for name in sorted(files) if not is_system_file(name)]

    def is_empty(self, folder: str) -> bool:
        return folder not in self._children

    def _leads_back(self, folder: str) -> bool:
        return False


def images_at(address: str) -> list[AddressPath]:
    """Return the addresses of the object at an address, or of the images below it, sorted.

    Raises:
        FileNotFoundError: if there is neither an object nor a folder.
        ValueError: for a folder without images.
    """
    if objects.info(address) is not None:
        return [AddressPath(address)]
    present = objects.listing(address)
    if not present:
        raise FileNotFoundError(f"{address}: no such object or folder")
    images = sorted(RemoteWalk(address, names=tuple(present)).images(""))
    if not images:
        raise ValueError(f"{address}: has no images")
    return [AddressPath(join_address(address, name)) for name in images]


# --- shards ----------------------------------------------------------------------------------------------------------


def list_remote_shards(spec: str, shards: Sequence[str]) -> Listing:
    """List the records of tar files at addresses, as `list_shards` does.

    Args:
        spec: the address, pattern or folder that names them.
        shards: their addresses.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: as `list_shards`.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        infos = dict(zip(shards, pool.map(_require_tar, shards), strict=True))

    def index(shard: str) -> ShardIndex:
        copy = object_cache().get(shard, infos[shard])
        if copy is not None:
            with renamed_in_errors(str(copy), shard):
                return index_shard(str(copy))
        return index_shard(shard, RangeFile(shard, infos[shard].size), infos[shard].size)

    stamp = hash_parts([(shard, infos[shard]) for shard in shards])
    make_store = partial(ShardStore, tuple(shards), tuple(infos[shard] for shard in shards))
    return listing_of_shards(AddressPath(spec), shards, stamp, index, make_store)


def _require_tar(shard: str) -> ObjectInfo:
    """Return size and version of a shard; raise an error if there is none or it is compressed."""
    info = objects.info(shard)
    if info is None:
        raise FileNotFoundError(f"{shard}: no such object")
    start = objects.read(shard, 0, 8) if info.size else b""
    if any(start.startswith(magic) for magic in COMPRESSED):
        raise ValueError(f"{shard}: is compressed and cannot be read in random order; store it uncompressed, as .tar")
    return info


class RangeFile:
    """An object as a file that is read by ranges of bytes, some of them ahead.

    Args:
        address: the object.
        size: its bytes.
    """

    def __init__(self, address: str, size: int):
        self.address, self.size = address, size
        self.position = self.start = 0
        self.block = b""

    def read(self, size: int = -1) -> bytes:
        stop = self.size if size < 0 else min(self.position + size, self.size)
        if stop <= self.position:
            return b""
        if not self.start <= self.position <= stop <= self.start + len(self.block):
            last = min(max(stop, self.position + READ_AHEAD), self.size)
            self.start, self.block = self.position, objects.read(self.address, self.position, last)
        data = self.block[self.position - self.start : stop - self.start]
        self.position = stop
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        self.position = position + (0, self.position, self.size)[whence]
        return self.position

    def tell(self) -> int:
        return self.position
