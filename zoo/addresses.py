"""Addresses in object stores, such as gs://bucket/run and s3://bucket/run, told apart from paths of files."""

import os
import re
from pathlib import PurePath, PurePosixPath
from typing import Any

#: Stores that the zoo reads and writes; "memory" is that of fsspec, for tests.
SCHEMES = ("gs", "s3", "memory")
SYNONYMS = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
#: Names of data sets such as hf:/folder are no addresses.
FORM = re.compile(r"(?!hf:|tfds:)([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


class AddressPath(PurePosixPath):
    """An address as a path, for code that takes paths apart. As text it keeps both slashes."""

    def __str__(self) -> str:
        return FORM.sub(r"\1://\2", super().__str__())

    def __fspath__(self) -> str:
        return str(self)


def is_address(spec: Any) -> bool:
    """Return True for a text or path that is spelt as a URL, in whatever scheme."""
    return isinstance(spec, (str, os.PathLike)) and FORM.fullmatch(os.fspath(spec)) is not None


def parse_address(spec: str | os.PathLike[str]) -> str:
    """Return an address in its usual spelling, without a slash at its end.

    A `Path` made of an address has lost one of its slashes, which is put back.

    Raises:
        ValueError: naming the address, for a scheme that is no object store, or without a bucket.
    """
    text = os.fspath(spec)
    match = FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an address such as gs://bucket/run or s3://bucket/run")
    scheme = SYNONYMS.get(match[1].lower(), match[1].lower())
    if scheme == "file":
        raise ValueError(f"{text}: give the path alone, without file://")
    if scheme not in SCHEMES:
        raise ValueError(f"{text}: {scheme}:// is not supported; give a path on disk, gs://bucket/… or s3://bucket/…")
    parts = [part for part in match[2].split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise ValueError(f"{text}: is not an address; write {scheme}://bucket/folder")
    return f"{scheme}://{'/'.join(parts)}"


def join_address(address: str, *names: str) -> str:
    """Return the address of something below `address`."""
    return "/".join([address, *names])


def name_of(address: str) -> str:
    """Return the last part of an address."""
    return address.rpartition("/")[2]


def parent_of(address: str) -> str:
    """Return the address without its last part."""
    return address.rpartition("/")[0]


def require_local(path: str | PurePath) -> None:
    """Raise ValueError for an address where only a path on disk can be used.

    As a path, gs://bucket/run would be a folder "gs:" in the current one.
    """
    if is_address(path):
        text = FORM.sub(r"\1://\2", os.fspath(path))
        raise ValueError(f"{text}: only a path on disk can be used here, not an address in an object store")
