"""The manifest of a checkpoint or saved state: the size and sha256 of every file.

Orbax does not notice a flipped bit in array data, so the manifest is checked before anything in the folder is parsed.

README.md is text for people, which nothing reads: it may be missing. If it is listed, it must not differ; an author who
edits it takes it off the list with `unlist_readme`, and a checkpoint on the Hub, where it is edited, does not list it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoint.schema import check_files, parse_json
from zoo.files import read_bounded, sync_file, write_atomically
from zoo.text import escape, one_line

#: Version of the checkpoint format that this version writes, and the versions that it reads.
FORMAT = 2
READABLE_FORMATS = (1, 2)
MANIFEST, ARRAYS, README = "manifest.json", "arrays", "README.md"
#: Largest JSON file that is read, in bytes. The card of a ResNet-1202 has 1.5 MB.
MAX_JSON = 256 * 2**20


class CorruptCheckpointError(ValueError):
    """Raised when a file or leaf of a checkpoint differs from what was written."""


def check_manifest(path: Path) -> None:
    """Check every file under `path` against its manifest.

    Raises:
        CorruptCheckpointError: naming every file that is missing, or has another size or content.
        ValueError: for a format version that is not readable.
    """
    if lines := manifest_problems(path):
        raise CorruptCheckpointError(f"{path}: damaged: {'; '.join(lines)}")


def manifest_problems(path: Path) -> list[str]:
    """Return a line for every file that differs from the manifest.

    Raises:
        CorruptCheckpointError: if the manifest itself is missing or damaged.
        ValueError: for a format version that is not readable.
    """
    listed = listed_files(path)
    lines = []
    for listed_name, row in listed.items():
        part, name = path / listed_name, escape(listed_name)
        if listed_name == README:
            if part.exists() and (not part.is_file() or file_sha256(part) != row["sha256"]):
                lines.append(
                    f"{name} has different content (sha256); if you edited it: zoo verify {path} --accept-readme"
                )
        elif not part.is_file():
            lines.append(f"{name} is missing")
        elif part.stat().st_size != row["bytes"]:
            lines.append(f"{name} has {part.stat().st_size} bytes instead of {row['bytes']}")
        elif file_sha256(part) != row["sha256"]:
            lines.append(f"{name} has different content (sha256)")
    arrays = path / ARRAYS
    present = {part.relative_to(path).as_posix() for part in arrays.rglob("*") if part.is_file()}
    return lines + [f"{escape(name)} is not listed in the manifest" for name in sorted(present - set(listed))]


def listed_files(path: Path) -> dict[str, Any]:
    """Return the files of a folder's manifest: relative path -> {"bytes": …, "sha256": …}.

    Raises:
        CorruptCheckpointError: if the manifest is missing or damaged.
        ValueError: for a format version that is not readable.
    """
    file = path / MANIFEST
    if not file.exists():
        raise CorruptCheckpointError(f"{path}: {MANIFEST} is missing")
    manifest = read_json(file)
    if not isinstance(manifest, dict):
        raise CorruptCheckpointError(f"{file}: is damaged")
    listed, version = manifest.get("files", {}), manifest.get("format")
    if not check_files(listed) or file.read_bytes() != _manifest_bytes(listed, version):
        raise CorruptCheckpointError(f"{file}: is damaged")
    require_readable(version, str(file))
    return listed


def without_readme(path: Path) -> bytes:
    """Return the content of a folder's manifest without its row of README.md."""
    return _manifest_bytes({name: row for name, row in listed_files(path).items() if name != README})


def unlist_readme(path: Path) -> None:
    """Take README.md off the manifest of a folder, so that it may be edited."""
    if README in listed_files(path):
        write_atomically(path / MANIFEST, without_readme(path).decode())


def require_readable(version: Any, where: str) -> None:
    """Raise ValueError, naming `where`, unless this version of the zoo reads format `version`."""
    if version in READABLE_FORMATS:
        return
    newer = isinstance(version, int) and version > FORMAT
    advice = "written by a newer version of the zoo; upgrade jax-model-zoo" if newer else "not a known format"
    raise ValueError(f"{where}: format version {one_line(version, 40)}, this version reads up to {FORMAT} ({advice})")


def write_manifest(path: Path, known: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of every file under `path` and flush all of them to disk.

    Args:
        path: the folder.
        known: rows of files that their writers have hashed and flushed, by path in the folder; they are not read again.
    """
    files, known = {}, known or {}
    for part in sorted(part for part in path.rglob("*") if part.is_file()):
        name = part.relative_to(path).as_posix()
        if name not in known:
            files[name] = {"bytes": part.stat().st_size, "sha256": file_sha256(part)}
            sync_file(part)
    (path / MANIFEST).write_bytes(_manifest_bytes({**files, **known}))
    sync_file(path / MANIFEST)


def _manifest_bytes(files: Mapping[str, Any], version: Any = FORMAT) -> bytes:
    """Serialise a manifest in its only valid spelling, so that a flipped bit cannot hide in white space."""
    body = {"files": files, "format": version}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(file: Path, data: Any, indent: int | None = 1) -> None:
    """Write data as JSON in UTF-8, indented for readers; None is several times faster."""
    file.write_text(json.dumps(data, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(file: Path) -> Any:
    """Parse a JSON file of a checkpoint.

    Raises:
        CorruptCheckpointError: naming the file, if it is not a regular file, too large or not JSON.
    """
    try:
        return parse_json(read_bounded(file, MAX_JSON), str(file))
    except ValueError as error:
        raise CorruptCheckpointError(str(error)) from None
