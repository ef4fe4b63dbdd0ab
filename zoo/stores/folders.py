"""Folders of files in an object store, complete once their last object, such as a manifest, has been written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.addresses import join_address, name_of, parent_of
from zoo.stores import objects
from zoo.stores.objects import ObjectInfo

#: Objects that are moved at a time.
PARALLEL = 8


def files_in(folder: Path) -> list[str]:
    """Return the names of all files in a folder, relative to it, sorted."""
    return sorted(part.relative_to(folder).as_posix() for part in folder.rglob("*") if part.is_file())


def _in_parallel(tasks: Sequence[Any]) -> None:
    """Call functions with threads. The first error is raised, once those that have begun are done."""
    if len(tasks) <= 1:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def staging_of(address: str) -> str:
    """Return the address at which `replace_folder` keeps the new folder until the old one is replaced."""
    return join_address(parent_of(address), f".{name_of(address)}.new")


def upload_files(folder: Path, names: Iterable[str], address: str) -> None:
    """Write files of a folder below an address."""
    _in_parallel([partial(objects.upload, folder / name, join_address(address, name)) for name in names])


def download_files(address: str, names: Iterable[str], folder: Path) -> None:
    """Write objects below an address into a folder."""
    names = list(names)
    for parent in {(folder / name).parent for name in names} | {folder}:
        parent.mkdir(parents=True, exist_ok=True)
    _in_parallel([partial(objects.download, join_address(address, name), folder / name) for name in names])


def remove_folder(address: str, last: str, present: Iterable[str] | None = None) -> None:
    """Delete every object below an address, `last` first, so that what is left is never taken for a complete folder."""
    names = set(objects.listing(address) if present is None else present)
    if last in names:
        objects.remove(join_address(address, last))
    _in_parallel([partial(objects.remove, join_address(address, name)) for name in sorted(names - {last})])


def upload_folder(folder: Path, address: str, last: str, first: str = "") -> None:
    """Write a folder below an address. What was there is not complete meanwhile.

    Args:
        folder: the folder.
        address: where it is written.
        last: the file that is written last.
        first: a file that is written first, to tell what an unfinished folder is; "" for none.
    """
    names = set(files_in(folder))
    if left := set(objects.listing(address)):
        remove_folder(address, last, (left - names) | (left & {last}))
    for part in (names & {first}, names - {first, last}, {last}):
        upload_files(folder, sorted(part), address)


def replace_folder(folder: Path, address: str, last: str, first: str = "") -> None:
    """Write a folder below an address, in place of what is there. The arguments are those of `upload_folder`.

    The new folder is written beside the old one and then copied within the store, so that at any moment one of the two
    is complete: a reader that does not find `last` looks at `staging_of(address)`.
    """
    staging = staging_of(address)
    present = objects.listing(address)
    if last not in present:
        upload_folder(folder, address, last, first)
    else:
        remove_folder(staging, last)
        upload_folder(folder, staging, last)
        _put_in_place(staging, address, last, present, files_in(folder))
    remove_folder(staging, last)


def finish_replacement(address: str, last: str) -> None:
    """Complete a `replace_folder` that was killed while it copied. Only the writer calls this."""
    staging = staging_of(address)
    new = objects.listing(staging)
    if last in new:
        _put_in_place(staging, address, last, objects.listing(address), new)
    remove_folder(staging, last, new)


def _put_in_place(staging: str, address: str, last: str, present: Iterable[str], names: Iterable[str]) -> None:
    names, present = set(names), set(present)
    remove_folder(address, last, (present - names) | (present & {last}))  # what both have is overwritten, never absent
    pairs = [(join_address(staging, name), join_address(address, name)) for name in sorted(names - {last})]
    _in_parallel([partial(objects.copy, old, new) for old, new in pairs])
    objects.copy(join_address(staging, last), join_address(address, last))


def top_level(listing: dict[str, ObjectInfo]) -> list[str]:
    """Return the distinct first parts of the names of a listing, sorted."""
    return sorted({PurePosixPath(name).parts[0] for name in listing})
