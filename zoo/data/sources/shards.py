"""Tar shards in the format of WebDataset: members that share a folder and a name up to its first dot are one record.

A record is an image and its class. The class is a member .cls (a number or a word), or "label" or "class" in a member
.json. Images without such a member are records of their own, whatever dots are in their names, and have the class of
the folder that they are in; split folders above the class are understood. Members are indexed once and then read at
random, so that the order of training does not depend on the shards.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.cache import cached
from zoo.data.dataset import Note
from zoo.data.sources.folders import IMAGE_SUFFIXES, begins_like_an_image, class_folders
from zoo.data.sources.listing import Listing, require_image_size, stamp_files
from zoo.data.sources.names import (
    canonical_split,
    describe_misspelt_split,
    escape,
    is_system_file,
    similar_split,
    system_folder_in,
)
from zoo.data.sources.tables import json_cell, json_object
from zoo.data.splits import Store
from zoo.data.threads import tracked
from zoo.text import first_few, first_line

# First bytes of compressed files, and the program that unpacks them
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
TAR = re.compile(r".*\.(tar(\.\w+)?|tgz|tbz2?|txz)", re.IGNORECASE | re.DOTALL)
MAX_SHARDS = 10**6
RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
MAX_HEADER = 2**24  # bytes read at once; headers of names and attributes are far smaller
BLOCK = 512  # bytes; tar pads each member to a multiple of it and ends with blocks of zeros


@dataclass(frozen=True, eq=False)
class TarStore:
    """Members of uncompressed tar files.

    Attributes:
        shards: paths of the tar files.
        names: member name of each record.
        places: int64 [N, 3]: number of the shard, and offset and length of the member's bytes in it.
    """

    shards: tuple[str, ...]
    names: tuple[str, ...]
    places: NDArray[np.int64]

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return [self._read(record) for record in records]

    def _read(self, record: int) -> bytes:
        shard, start, length = self.places[record].tolist()
        require_image_size(length, self.name(record))
        try:
            with open(self.shards[shard], "rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            raise ValueError(f"{self.name(record)}: cannot be read ({error.strerror})") from error
        if len(data) != length:
            raise ValueError(f"{self.name(record)}: the shard is truncated")
        return data

    def name(self, record: int) -> str:
        shard = self.shards[int(self.places[record, 0])]
        return f"{escape(os.path.basename(shard))}/{escape(self.names[record])}"


def is_tar(path: Path) -> bool:
    """Return True if the path is a tar file by its name, or a pattern of names with a range in braces."""
    return TAR.fullmatch(path.name) is not None and (path.is_file() or RANGE.search(str(path)) is not None)


def expand_braces(pattern: str) -> list[str]:
    """Expand ranges in braces: "train-{000..002}.tar" gives three names; several ranges give every combination.

    Raises:
        ValueError: a range that does not count upwards.
    """
    total = 1
    for match in RANGE.finditer(pattern):
        count = int(match[2]) - int(match[1]) + 1
        total *= count
        if count < 1 or total > MAX_SHARDS + 1:
            raise ValueError(f"{pattern}: range {match[0]} must count upwards, to at most {MAX_SHARDS:,} names")
    names = [pattern]
    for _ in RANGE.findall(pattern):
        names = [each for name in names for each in _expand_first(name)]
    return names


def _expand_first(pattern: str) -> list[str]:
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [pattern[: match.start()] + str(n).zfill(width) + pattern[match.end() :] for n in numbers]


def tar_files(folder: Path) -> list[Path]:
    """Return the tar files in a folder, compressed or not, sorted by name."""
    return sorted(path for path in folder.iterdir() if TAR.fullmatch(path.name))


def list_shards(spec: Path) -> Listing:
    """List the records of a tar file, of a pattern such as train-{0000..0009}.tar, or of a folder of tar files.

    The split is a word in a shard's name, in any usual spelling, or a folder above the class folders in the shard.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is compressed (the message has the command that unpacks it) or truncated, a record has no
            class, only some of the shards name a split, or the folder has class folders beside the shards.
    """
    shards = tar_files(spec) if spec.is_dir() else [Path(name) for name in expand_braces(str(spec))]
    if spec.is_dir() and (folders := class_folders(spec)):
        raise ValueError(
            f"{spec}: has the tar file {escape(shards[0].name)} beside folders of images "
            f"({first_few([*map(escape, folders)], 3)}); move one of them, or name {shards[0]}"
        )
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: no such file")
        with shard.open("rb") as file:
            start = file.read(8)
        if program := next((p for magic, p in COMPRESSED.items() if start.startswith(magic)), None):
            command = _unpack_command(program, shard)
            raise ValueError(f"{shard}: is compressed and cannot be read in random order; run: {command}")
    paths = [str(shard) for shard in shards]
    stamp = stamp_files("", [os.path.abspath(path) for path in paths])
    return listing_of_shards(spec, paths, stamp, index_shard, lambda *records: TarStore(tuple(paths), *records))


def _unpack_command(program: str, shard: Path) -> str:
    """Return the command that unpacks a compressed shard beside itself, whatever its suffix."""
    stem = re.sub(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", "", str(shard), flags=re.IGNORECASE)
    plain = f"{stem}.tar" if not shard.name.lower().endswith(".tar") else f"{stem}-unpacked.tar"
    return f"{program} -dc {shlex.quote(str(shard))} > {shlex.quote(plain)}"


def listing_of_shards(
    spec: PurePath,
    paths: Sequence[str],
    stamp: str,
    index_one: Callable[[str], ShardIndex],
    make_store: Callable[[tuple[str, ...], NDArray[np.int64]], Store],
) -> Listing:
    """List the records of tar files.

    Args:
        spec: what names them, for messages.
        paths: paths or addresses of the shards.
        stamp: hash that changes with any shard.
        index_one: indexes one of them.
        make_store: returns the store, given member names and places as in `TarStore`.

    Raises:
        ValueError: as `list_shards`.
    """

    def index() -> dict[str, NDArray[np.generic]]:
        indices = [index_one(paths[number]) for number in tracked(range(len(paths)), "indexing shards")]
        rows = [(number, *row) for number, shard in enumerate(indices) for row in shard.records]
        if not rows:
            raise ValueError(f"{spec}: contains no images")
        about = {
            "names": [row[3] for row in rows],
            "labels": [row[4] for row in rows],
            "unused": {kind: [name for shard in indices for name in shard.unused[kind]] for kind in UNUSED},
        }
        places = np.array([row[:3] for row in rows], np.int64)
        return {"places": places, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}

    arrays = cached(f"shards-3-{stamp}", index)
    places, texts = arrays["places"], json.loads(arrays["about"].tobytes())
    names = [os.path.basename(path) for path in paths]
    split_of_shard = _splits_of_shards(names, spec)
    splits = [split_of_shard[shard] for shard in places[:, 0].tolist()]
    labels = list(texts["labels"])
    if not any(splits):
        splits, labels = _splits_of_folders(texts["names"], labels, str(spec))
    notes = [Note("unused", _describe_unused(kind, files)) for kind, files in texts["unused"].items() if files]
    return Listing(
        name=str(spec),
        store=make_store(tuple(texts["names"]), places),
        splits=tuple(splits),
        labels=tuple(
            label or os.path.basename(os.path.dirname(name)) for label, name in zip(labels, texts["names"], strict=True)
        ),
        stamp=stamp,
        notes=tuple(notes),
    )


def _splits_of_shards(names: Sequence[str], spec: PurePath) -> list[str]:
    """Return the split of each shard by a word in its name, "" for all if the names do not tell.

    Raises:
        ValueError: only some of the names tell their split, or one is misspelt.
    """
    words = [[word for word in re.split(r"[^A-Za-z]", name) if word] for name in names]
    first = [canonical_split(parts[0]) if parts else "" for parts in words]
    by_word = [{canonical_split(word) for word in parts[:-1]} - {""} for parts in words]
    if all(len(splits) == 1 for splits in by_word):  # such as imagenet-train-000.tar
        return [splits.pop() for splits in by_word]
    different = len({tuple(parts[:1]) for parts in words}) > 1
    for parts, split in zip(words, first, strict=True):
        if different and not split and parts and similar_split(parts[0]):
            raise ValueError(f"{spec}: {describe_misspelt_split(parts[0])}")
    if "" in first and (any(first) or len(set().union(*by_word)) > 1):
        unnamed = names[next(i for i, split in enumerate(first) if not split and (any(first) or not by_word[i]))]
        raise ValueError(f"{spec}: {escape(unnamed)} must begin with train, val or test, as the other shards do")
    return first


def _splits_of_folders(names: Sequence[str], labels: Sequence[str], spec: str) -> tuple[list[str], list[str]]:
    """Return splits and labels by the folders in the shards: train/cat/1.jpg, cat/train/1.jpg or cat/1.jpg.

    Args:
        names: names of the images in their shards.
        labels: class of each image; "" for that of its folder.
        spec: the shards, for messages.

    Raises:
        ValueError: some images are in split folders, others are not.
    """
    folders = [name.split("/")[:-1] for name in names]
    parents = {parts[-1] for parts, label in zip(folders, labels, strict=True) if not label}
    if parents and all(map(canonical_split, parents)) and all(len(parts) > 1 for parts in folders) and "" in labels:
        labels = [label or parts[-2] for parts, label in zip(folders, labels, strict=True)]
        return [canonical_split(parts[-1]) for parts in folders], list(labels)
    above = [parts[:-1] if not label else parts for parts, label in zip(folders, labels, strict=True)]
    splits = [next(filter(None, map(canonical_split, parts)), "") for parts in above]
    if any(splits) and "" in splits:
        odd = splits.index("")
        if misspelt := next(filter(similar_split, above[odd]), ""):
            raise ValueError(f"{spec}: {describe_misspelt_split(misspelt)}")
        raise ValueError(
            f"{spec}: {escape(names[odd])} is not in a folder train, val or test, but "
            f"{escape(names[next(i for i, split in enumerate(splits) if split)])} is; put every image in one"
        )
    return splits, list(labels)


# Kinds of members that are not used, and how to mend it
UNUSED = {
    "extra": "images beside another one in their record, of which the first is used; give each record one image",
    "links": "links and sparse files; make the shard of the files themselves (tar --dereference --hard-dereference)",
    "files": "files that are neither images nor classes",
    "system": "files in folders that the system or a NAS created",
}


def _describe_unused(kind: str, files: Sequence[str]) -> str:
    what, _, advice = UNUSED[kind].partition("; ")
    return f"not used: {len(files):,} {what} ({first_few([*map(escape, files)], 3)})" + (
        f"; {advice}" if advice else ""
    )


class Record(NamedTuple):
    """An image in a shard: offset and length of its bytes, its name, and its class; "" for that of its folder."""

    offset: int
    length: int
    name: str
    label: str


@dataclass
class ShardIndex:
    """The records of a shard, and the names of its other members by kind, see UNUSED."""

    records: list[Record] = field(default_factory=list)
    unused: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in UNUSED})


class _CheckedHeader(tarfile.TarInfo):
    """A header whose size is not negative; tarfile would read the same member for ever (CVE-2025-8194)."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("a member has a negative size")
        return super()._block(count)  # type: ignore[misc, no-any-return]


class _BoundedFile:
    """A binary file that never reads more at once than a header can be long, whatever lengths are in the file."""

    def __init__(self, file: Any, size: int) -> None:
        self.file, self.size = file, size

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self.file.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        if whence == 0 and not 0 <= position <= self.size:
            raise tarfile.ReadError(f"a member ends at byte {position:,}, the file at {self.size:,}")
        return self.file.seek(position, whence)

    def tell(self) -> int:
        return self.file.tell()

    def begins_like_an_image(self, member: tarfile.TarInfo) -> bool:
        """Return True if a member begins like an image; the position in the file stays."""
        position = self.tell()
        self.file.seek(member.offset_data)
        start = self.file.read(min(16, member.size))
        self.file.seek(position)
        return begins_like_an_image(start)


Group = dict[str, tarfile.TarInfo]  # the members of a record by suffix, in lower case


def index_shard(shard: str, remote: Any = None, size: int = 0) -> ShardIndex:
    """Index every image in a tar file.

    Args:
        shard: its path, or its name in messages.
        remote: the file itself, if it is not on disk: an object with read, seek and tell.
        size: bytes of `remote`.

    Raises:
        ValueError: the file is not a complete tar file, or an image has no class.
    """
    index = ShardIndex()
    groups: list[Group] = []
    latest: dict[tuple[str, str], Group] = {}
    try:
        with open(shard, "rb") if remote is None else nullcontext(remote) as file:
            bounded = _BoundedFile(file, os.fstat(file.fileno()).st_size if remote is None else size)
            with tarfile.open(fileobj=bounded, mode="r:", tarinfo=_CheckedHeader) as archive:  # type: ignore[call-overload]
                end = _group_members(archive, bounded, index, groups, latest)
                for group in groups:
                    _index_group(archive, group, shard, index)
            file.seek(end)  # tarfile does not notice a file that ends within a header
            if file.read(BLOCK) != bytes(BLOCK):
                raise EOFError("it is truncated")
    except (tarfile.TarError, EOFError, OverflowError, RecursionError) as error:
        raise ValueError(f"{shard}: is not a complete tar file ({first_line(error)})") from None
    return index


def _group_members(
    archive: Iterable[tarfile.TarInfo],
    file: _BoundedFile,
    index: ShardIndex,
    groups: list[Group],
    latest: dict[tuple[str, str], Group],
) -> int:
    """Sort the members of a tar file into records; return the position after the last one.

    The members of a record need not be adjacent. A name that occurs a second time begins a new record.
    """
    end = 0
    targets: dict[str, tarfile.TarInfo] = {}  # hard links have the content of an earlier member
    for member in archive:
        end = member.offset_data + (
            -(-member.size // BLOCK) * BLOCK if member.isreg() or member.type not in tarfile.SUPPORTED_TYPES else 0
        )
        folder, _, name = member.name.rpartition("/")
        if member.isdir() or is_system_file(name):
            continue
        if system := system_folder_in(member.name):
            index.unused["system"] += [] if system.startswith(".") else [member.name]
            continue
        if member.islnk() and member.linkname in targets:
            target = targets[member.linkname]
            member.offset_data, member.size, member.type = target.offset_data, target.size, target.type
        if not member.isfile() or member.issparse():
            index.unused["links"].append(member.name)
            continue
        targets[member.name] = member
        stem, _, suffix = name.partition(".")
        suffix = suffix.lower()
        if not _is_image(suffix) and not _is_class(suffix) and not file.begins_like_an_image(member):
            index.unused["files"].append(member.name)
            continue
        group = latest.get((folder, stem))
        if group is None or suffix in group:
            group = latest[folder, stem] = {}
            groups.append(group)
        group[suffix] = member
    return end


def _is_image(suffix: str) -> bool:
    return "." + suffix.rpartition(".")[2] in IMAGE_SUFFIXES


def _is_class(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in ("cls", "json")


def _index_group(archive: tarfile.TarFile, group: Group, shard: str, index: ShardIndex) -> None:
    """Add the images of a group of members to the index, with their classes."""
    by_class: dict[str, list[str]] = defaultdict(list)  # {suffix of the member with the class: suffixes of images}
    for suffix in group:
        if not _is_class(suffix):
            by_class[_class_member(group, suffix)].append(suffix)
    for class_suffix, suffixes in by_class.items():
        images = [group[suffix] for suffix in sorted(suffixes, key=lambda suffix: suffix.count("."))]
        label = ""
        if class_suffix:
            index.unused["extra"] += [image.name for image in images[1:]]
            images = images[:1]
            label = _read_class(archive, group[class_suffix], shard)
        for image in images:
            if not label and "/" not in image.name.strip("/").removeprefix("./"):
                raise ValueError(
                    f"{shard}: {escape(image.name)} has no class; add a .cls member, a label in a .json member, or "
                    "a class folder"
                )
            index.records.append(Record(image.offset_data, image.size, image.name, label))


def _class_member(group: Group, suffix: str) -> str:
    """Return the suffix of the member that has the class of an image: "2.cls" or "cls" for "2.png"; "" for none."""
    while suffix:
        suffix = suffix.rpartition(".")[0]
        for kind in ("cls", "json"):
            if (name := f"{suffix}.{kind}" if suffix else kind) in group:
                return name
    return ""


def _read_class(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> str:
    """Return the class in a .cls or .json member, "" without one."""
    if not member.name.lower().endswith(".json"):
        return _text(archive, member)
    where = f"{shard}: {escape(member.name)}"
    fields = json_object(_text(archive, member), where)
    return next(filter(None, (json_cell(fields, name, where) for name in ("label", "class", "cls"))), "")


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file: Any = archive.extractfile(member)
    return file.read(2**20).decode("utf-8", "replace").strip() if file else ""
