"""Folders of class folders: train/cat/1.jpg, or cat/1.jpg without splits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.dataset import SPLITS, Note, nearest_names
from zoo.data.imagenet import validation_wnid
from zoo.data.sources.listing import FileStore, Listing, canonical_split, first_few, printable, stamp_files

# Files with these suffixes count as images; files with others do if they begin like an image.
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif", ".ico", ".tga", ".pcx", ".jxl",
})  # fmt: skip
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
SYSTEM_FOLDER = "__MACOSX"  # in archives made on macOS


@dataclass
class FolderWalk:
    """A walk through a folder that collects what it cannot use. All paths are relative to the root.

    Attributes:
        root: the folder.
        unreadable: "path: reason" for folders that cannot be read or followed.
        not_images: paths of the files that are not images.
    """

    root: str
    unreadable: list[str] = field(default_factory=list)
    not_images: list[str] = field(default_factory=list)

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder, sorted, without hidden and system files."""
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    name = entry.name
                    if name.startswith(".") or name.lower() in SYSTEM_FILES or name == SYSTEM_FOLDER:
                        continue
                    (folders if _is_folder(entry) else files).append(name)
        except OSError as error:
            self.unreadable.append(f"{printable(folder) or '.'}: folder cannot be read ({error.strerror})")
        return folders, files

    def images(self, folder: str) -> Iterator[str]:
        """Yield the images in a folder and its subfolders. Links are followed unless they lead back to a parent."""
        if self._leads_back(folder):
            self.unreadable.append(f"{printable(folder)}: link to a folder that contains it; not followed")
            return
        folders, files = self.entries(folder)
        for name in files:
            path = os.path.join(folder, name)
            if _has_image_suffix(name) or _begins_like_an_image(os.path.join(self.root, path)):
                yield path
            else:
                self.not_images.append(path)
        for name in folders:
            yield from self.images(os.path.join(folder, name))

    def _leads_back(self, folder: str) -> bool:
        """Return True if a folder is the same as one of its parents up to the root."""
        path = Path(self.root, folder)
        try:
            return any(path.samefile(parent) for parent in list(path.parents)[: len(Path(folder).parts)])
        except OSError:
            return False  # `entries` reports the reason


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _begins_like_an_image(path: str) -> bool:
    """Return True for files that begin like an image, and for broken links, so that they are reported."""
    if not os.path.isfile(path):
        return os.path.islink(path)
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def has_images(folder: Path) -> bool:
    """Return True if `list_folder` has anything to list or to report: an image file at any depth."""
    walk = FolderWalk(str(folder))
    folders, files = walk.entries("")
    return any(map(_has_image_suffix, files)) or any(next(walk.images(name), None) is not None for name in folders)


def list_folder(folder: Path) -> Listing:
    """List the images of a folder of class folders, with or without split folders above them.

    Split folders may have any usual name, such as "val" or "Testing". Without them, the folders are classes. Images in
    subfolders of a class folder belong to that class. A folder that contains a single folder stands for that one, as in
    unpacked archives. ImageNet's validation images need no class folders: their classes are known by file name.

    Raises:
        ValueError: two folders for one split.
    """
    walk = FolderWalk(str(folder))
    top, folders, files = "", *walk.entries("")
    while len(folders) == 1 and not canonical_split(folders[0]) and walk.entries(os.path.join(top, folders[0]))[0]:
        top = os.path.join(top, folders[0])
        folders, files = walk.entries(top)
    split_folders = find_split_folders(walk, top, folders)
    collected = _Images()
    for split, name in split_folders.items():
        _list_split(walk, split, top, name, *walk.entries(os.path.join(top, name)), collected)
    if not split_folders:
        _list_split(walk, "", top, "", folders, files, collected)
    notes = [*collected.notes, *_notes_on_folders(folders, split_folders)]
    if walk.not_images:
        examples = first_few([*map(printable, walk.not_images)], 3)
        notes.append(Note("unused", f"not used: {len(walk.not_images):,} files that are not images ({examples})"))
    return Listing(
        name=str(folder),
        store=FileStore(str(folder), tuple(collected.paths)),
        splits=tuple(collected.splits),
        labels=tuple(collected.labels),
        stamp=stamp_files(str(folder), collected.paths),
        unreadable=tuple(walk.unreadable),
        notes=tuple(notes),
    )


@dataclass
class _Images:
    """The images listed so far, and notes on their folders."""

    paths: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def add(self, paths: Sequence[str], split: str, labels: Sequence[str]) -> None:
        self.paths += paths
        self.splits += [split] * len(paths)
        self.labels += labels


def _list_split(
    walk: FolderWalk, split: str, top: str, name: str, classes: Sequence[str], files: Sequence[str], collected: _Images
) -> None:
    """Add the images of one split: those in its class folders, and ImageNet's validation images outside of them."""
    folder = os.path.join(top, name)
    empty = []
    for label in classes:
        images = list(walk.images(os.path.join(folder, label)))
        collected.add(images, split, [label] * len(images))
        if not images:
            empty.append(os.path.join(name, printable(label)))
    if empty:
        collected.notes.append(Note("unused", f"not used: folders without images: {first_few(empty)}", split))
    wnids = {file: wnid for file in files if (wnid := validation_wnid(file))}
    # ImageNet's validation images usually serve as the test split
    collected.add([os.path.join(folder, file) for file in wnids], split or "test", list(wnids.values()))
    where = printable(folder) or "the folder itself"
    if wnids:
        text = f"{len(wnids):,} images in {where}: classes taken from ImageNet's validation list, by file name"
        collected.notes.append(Note("source", text, split))
    if unsorted := [printable(file) for file in files if _has_image_suffix(file) and file not in wnids]:
        example = os.path.join(printable(folder), "cat")
        text = (
            f"not used: {len(unsorted):,} images in {where} outside of class folders ({first_few(unsorted, 2)}); "
            f"put images of a class cat in {example}"
        )
        collected.notes.append(Note("unused", text, split))


def _notes_on_folders(folders: Sequence[str], split_folders: Mapping[str, str]) -> list[Note]:
    """Return notes on folders that may have been misunderstood: splits taken for classes, and folders beside splits."""
    if split_folders:
        others = [printable(name) for name in folders if name not in split_folders.values()]
        text = f"not used: folders beside {', '.join(split_folders.values())}: {first_few(others)}"
        return [Note("unused", text)] if others else []
    like_splits = [printable(name) for name in folders if canonical_split(name)]
    if not like_splits:
        return []
    others = [printable(name) for name in folders if not canonical_split(name)]
    hint = next(filter(None, (nearest_names(name, SPLITS) for name in others)), "")
    text = (
        f"{first_few([*map(repr, others)], 3)}: not a split name{hint}, so {first_few([*map(repr, like_splits)])} is a "
        "class; if the folders are splits, name each of them train, validation or test"
    )
    return [Note("classes", text)]


def find_split_folders(walk: FolderWalk, top: str, folders: Sequence[str]) -> dict[str, str]:
    """Return {split: folder}, or {} if the folders are classes.

    The folders are splits if all have names of splits, or if one is named train and has folders in it.

    Raises:
        ValueError: two folders for one split.
    """
    named = [(canonical_split(name), name) for name in folders if canonical_split(name)]
    has_train = any(split == "train" and walk.entries(os.path.join(top, name))[0] for split, name in named)
    if not has_train and len(named) < len(folders):
        return {}
    split_folders: dict[str, str] = {}
    for split, name in named:
        if split in split_folders:
            raise ValueError(f"{walk.root}: {split_folders[split]} and {name} are both named {split}; keep one of them")
        split_folders[split] = name
    return split_folders
