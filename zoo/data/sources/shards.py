"""Tar shards in the format of WebDataset: consecutive members that share a name up to its first dot are one record.

A record is an image and its class. The class is a member .cls (a number or a word), or "label" or "class" in a member
.json, or else the folder that the image is in. Members are indexed once and then read at random, so that the order of
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
from zoo.data.sources.listing import Listing, canonical_split, printable, stamp_files
from zoo.data.sources.tables import json_cell, json_object
from zoo.data.threads import tracked

# First bytes of compressed files, and the command that unpacks them in place
COMPRESSED = {b"\x1f\x8b": "gunzip -k", b"BZh": "bunzip2 -k", b"\xfd7zXZ": "unxz -k", b"\x28\xb5\x2f\xfd": "unzstd"}
TAR = re.compile(r".*\.(tar(\.\w+)?|tgz|tbz2?|txz)", re.IGNORECASE | re.DOTALL)
MAX_SHARDS = 10**6
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
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
        return f"{printable(os.path.basename(shard))}/{printable(self.names[record])}"


def is_tar(path: Path) -> bool:
    """Return True if the path is a tar file by its name, or a pattern of names with a range in braces."""
    return TAR.fullmatch(path.name) is not None and (path.is_file() or RANGE.search(str(path)) is not None)


def expand_braces(pattern: str) -> list[str]:
    """Expand ranges in braces: "train-{000..002}.tar" gives three names; several ranges give every combination.

    Raises:
        ValueError: a range that does not count upwards.
    """
    match = RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first > MAX_SHARDS:
        raise ValueError(f"{pattern}: range {match[0]} must count upwards, to at most {MAX_SHARDS:,} names")
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
    names = (pattern[: match.start()] + str(n).zfill(width) + pattern[match.end() :] for n in range(first, last + 1))
    return [each for name in names for each in expand_braces(name)]


def tar_files(folder: Path) -> list[Path]:
    """Return the tar files in a folder, compressed or not, sorted by name."""
    return sorted(path for path in folder.iterdir() if TAR.fullmatch(path.name))


def list_shards(spec: Path) -> Listing:
    """List the records of a tar file, of a pattern such as train-{0000..0009}.tar, or of a folder of tar files.

    The split is the first word of a shard's name, in any usual spelling.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is compressed (the message has the command that unpacks it) or truncated, or a record has
            no class.
    """
    shards = tar_files(spec) if spec.is_dir() else [Path(name) for name in expand_braces(str(spec))]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: no such file")
        with shard.open("rb") as file:
            start = file.read(8)
        if command := next((c for magic, c in COMPRESSED.items() if start.startswith(magic)), None):
            raise ValueError(f"{shard}: is compressed and cannot be read in random order; run: {command} {shard}")
    paths = [str(shard) for shard in shards]
    stamp = stamp_files("", [os.path.abspath(path) for path in paths])

    def index() -> dict[str, NDArray[np.generic]]:
        rows = [
            (number, *row)
            for number in tracked(range(len(paths)), "indexing shards")
            for row in index_shard(paths[number])
        ]
        if not rows:
            raise ValueError(f"{spec}: contains no images")
        text = json.dumps({"names": [row[3] for row in rows], "labels": [row[4] for row in rows]})
        places = np.array([row[:3] for row in rows], np.int64)
        return {"places": places, "about": np.frombuffer(text.encode(), np.uint8)}

    arrays = cached(f"shards-2-{stamp}", index)
    places, texts = arrays["places"], json.loads(arrays["about"].tobytes())
    splits = [canonical_split(_first_word(os.path.basename(path))) for path in paths]
    if "" in splits and any(splits):
        unnamed = os.path.basename(paths[splits.index("")])
        raise ValueError(f"{spec}: {unnamed} must begin with train, val or test, as the other shards do")
    return Listing(
        name=str(spec),
        store=TarStore(tuple(paths), tuple(texts["names"]), places),
        splits=tuple(splits[shard] for shard in places[:, 0].tolist()),
        labels=tuple(texts["labels"]),
        stamp=stamp,
    )


def _first_word(name: str) -> str:
    return re.split(r"[^A-Za-z]", name, maxsplit=1)[0]


def index_shard(shard: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield (offset, length, name, class) of every image in a tar file."""
    group: dict[str, tarfile.TarInfo] = {}
    current = None
    end = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not member.isfile() or not stem:  # nor hidden files
                    continue
                if (folder, stem) != current:
                    yield from _index_record(archive, group, shard)
                    group, current = {}, (folder, stem)
                group[suffix.lower()] = member
            yield from _index_record(archive, group, shard)
        with open(shard, "rb") as file_end:  # tarfile does not notice a file that ends within a header
            file_end.seek(end)
            if file_end.read(BLOCK) != bytes(BLOCK):
                raise EOFError("it is truncated")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: is not a complete tar file ({first_line(error)})") from None


def _index_record(
    archive: tarfile.TarFile, group: dict[str, tarfile.TarInfo], shard: str
) -> Iterator[tuple[int, int, str, str]]:
    """Yield the index entry of a record {suffix: member}, or nothing if it has no image."""
    images = [m for suffix, m in group.items() if "." + suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    if not images:
        return
    image = images[0]
    label = ""
    if "cls" in group:
        label = _text(archive, group["cls"])
    elif "json" in group:
        where = f"{shard}: {printable(group['json'].name)}"
        fields = json_object(_text(archive, group["json"]), where)
        label = next(filter(None, (json_cell(fields, name, where) for name in ("label", "class", "cls"))), "")
    else:
        label = os.path.basename(os.path.dirname(image.name))
    if not label:
        raise ValueError(
            f"{shard}: {image.name} has no class; add a .cls member, a label in a .json member, or a class folder"
        )
    yield image.offset_data, image.size, image.name, label


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    return file.read(2**20).decode("utf-8", "replace").strip() if file else ""
