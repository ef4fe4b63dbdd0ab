"""Tar shards in WebDataset's form: consecutive members that share a name up to its first dot are one record.

A record is an image and its class: a member .cls (a number or a word), or "label" or "class" in a member .json; where
there is neither, the folder that the image is in. Members are found once and then read at random, so the order of
training does not depend on the shards.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.cache import cached
from zoo.data.dataset import first_line
from zoo.data.sources.folders import IMAGE_SUFFIXES
from zoo.data.sources.listing import Listing, shown, split_of, stamp_of_files
from zoo.data.sources.tables import json_cell, json_object
from zoo.data.threads import tracked

# How compressed files begin, and what unpacks them beside themselves
COMPRESSED = {b"\x1f\x8b": "gunzip -k", b"BZh": "bunzip2 -k", b"\xfd7zXZ": "unxz -k", b"\x28\xb5\x2f\xfd": "unzstd"}


TAR = r"\.(tar(\.\w+)?|tgz|tbz2?|txz)"  # how their names end, in small letters


@dataclass(frozen=True, eq=False)
class TarStore:
    """Members of uncompressed tar files.

    Attributes:
        shards: the files.
        names: of each record: the member's.
        places: int64 [N, 3]: the shard's number, and where in it the member's bytes begin and how many they are.
    """

    shards: tuple[str, ...]
    names: tuple[str, ...]
    places: NDArray[np.int64]

    def fetch(self, records: Sequence[int]) -> list[bytes]:
        return [self._read(record) for record in records]

    def _read(self, record: int) -> bytes:
        shard, start, length = self.places[record].tolist()
        try:
            with open(self.shards[shard], "rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            raise ValueError(f"{self.name(record)}: cannot be read ({error.strerror})") from error
        if len(data) != length:
            raise ValueError(f"{self.name(record)}: the shard is cut off")
        return data

    def name(self, record: int) -> str:
        shard = self.shards[int(self.places[record, 0])]
        return f"{shown(os.path.basename(shard))}/{shown(self.names[record])}"


def braces(pattern: str) -> list[str]:
    """ "train-{000..002}.tar" -> its three names; several braces give every combination."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first > 10**6:
        raise ValueError(f"{pattern}: {match[0]} does not count upwards")
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    names = (pattern[: match.start()] + str(n).zfill(width) + pattern[match.end() :] for n in range(first, last + 1))
    return [each for name in names for each in braces(name)]


def tar_files(folder: Path) -> list[Path]:
    """The tar files, compressed or not, that lie in a folder."""
    return sorted(p for p in folder.iterdir() if re.search(TAR + "$", p.name.lower()))


def list_shards(spec: Path) -> Listing:
    """List the records of a tar file, of a pattern of them such as train-{0000..0009}.tar, or of a folder of them.

    The split is how a shard's name begins, in any usual spelling.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is compressed (with the command that unpacks it), or not whole; a record without a class.
    """
    shards = tar_files(spec) if spec.is_dir() else [Path(name) for name in braces(str(spec))]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: no such file")
        with shard.open("rb") as file:
            start = file.read(8)
        if command := next((c for magic, c in COMPRESSED.items() if start.startswith(magic)), None):
            raise ValueError(f"{shard}: is compressed and cannot be read at random; run: {command} {shard}")
    paths = [str(shard) for shard in shards]
    stamp = stamp_of_files("", [os.path.abspath(path) for path in paths])

    def index() -> dict[str, NDArray[np.generic]]:
        rows = [
            (number, *row)
            for number in tracked(range(len(paths)), "indexing shards")
            for row in _records(paths[number])
        ]
        if not rows:
            raise ValueError(f"{spec}: has no images in it")
        about = json.dumps({"names": [row[3] for row in rows], "labels": [row[4] for row in rows]})
        places = np.array([row[:3] for row in rows], np.int64)
        return {"places": places, "about": np.frombuffer(about.encode(), np.uint8)}

    found = cached(f"shards-2-{stamp}", index)
    about = json.loads(found["about"].tobytes())
    split = [split_of(_first_word(os.path.basename(path))) for path in paths]
    if "" in split and any(split):
        odd = os.path.basename(paths[split.index("")])
        raise ValueError(f"{spec}: {odd} does not begin with train, val or test as other shards do")
    return Listing(
        name=str(spec),
        store=TarStore(tuple(paths), tuple(about["names"]), found["places"]),
        splits=tuple(split[shard] for shard in found["places"][:, 0].tolist()),
        labels=tuple(about["labels"]),
        stamp=stamp,
    )


def _first_word(name: str) -> str:
    return re.split(r"[^A-Za-z]", name, maxsplit=1)[0]


def _records(shard: str) -> Iterator[tuple[int, int, str, str]]:
    """(start, length, name, class) of every image in a tar file."""
    group: dict[str, tarfile.TarInfo] = {}
    current = None
    end = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // 512) * 512
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not member.isfile() or not stem:  # hidden files too
                    continue
                if (folder, stem) != current:
                    yield from _record(archive, group, shard)
                    group, current = {}, (folder, stem)
                group[suffix.lower()] = member
            yield from _record(archive, group, shard)
        with open(shard, "rb") as whole:  # tarfile takes a file that is cut off within a header for one that ends
            whole.seek(end)
            if whole.read(512) != bytes(512):
                raise EOFError("it is cut off")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: is not a whole tar file ({first_line(error)})") from None


def _record(
    archive: tarfile.TarFile, group: dict[str, tarfile.TarInfo], shard: str
) -> Iterator[tuple[int, int, str, str]]:
    images = [m for suffix, m in group.items() if "." + suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    if not images:
        return
    image = images[0]
    label = ""
    if "cls" in group:
        label = _text(archive, group["cls"])
    elif "json" in group:
        where = f"{shard}: {shown(group['json'].name)}"
        about = json_object(_text(archive, group["json"]), where)
        label = next(filter(None, (json_cell(about, name, where) for name in ("label", "class", "cls"))), "")
    else:
        label = os.path.basename(os.path.dirname(image.name))
    if not label:
        raise ValueError(f"{shard}: {image.name} has no class (.cls, a label in .json, or a folder that it is in)")
    yield image.offset_data, image.size, image.name, label


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    return file.read(2**20).decode("utf-8", "replace").strip() if file else ""
