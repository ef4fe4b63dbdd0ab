"""A folder of class folders: train/cat/1.jpg, or cat/1.jpg where nothing is split yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.imagenet import validation_wnid
from zoo.data.sources.listing import FileStore, Listing, shown, some, split_of, stamp_of_files

# Files by these names are looked at; other files are, too, if they begin like an image.
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif", ".ico", ".tga", ".pcx", ".jxl",
})  # fmt: skip
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
JUNK = frozenset({"thumbs.db", "desktop.ini", "icon\r"})  # made by systems, not by people


@dataclass
class Walk:
    """What is met on the way through a folder; names are relative to the root."""

    root: str
    faults: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and files in a folder, sorted, hidden ones and junk not among them."""
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(os.path.join(self.root, folder)) as found:
                for entry in sorted(found, key=lambda e: e.name):
                    if entry.name.startswith(".") or entry.name.lower() in JUNK or entry.name == "__MACOSX":
                        continue
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            self.faults.append(f"{shown(folder) or '.'}: folder cannot be read ({error.strerror})")
        return folders, files

    def images(self, folder: str) -> Iterator[str]:
        """The images in a folder and, however deep, in the folders in it. Links are followed, never in rings."""
        if self._leads_back(folder):
            self.faults.append(f"{shown(folder)}: a link that leads back to a folder that it is in; not followed")
            return
        folders, files = self.entries(folder)
        for name in files:
            path = os.path.join(folder, name)
            if _is_named_image(name) or _begins_like_an_image(os.path.join(self.root, path)):
                yield path
            else:
                self.others.append(path)
        for name in folders:
            yield from self.images(os.path.join(folder, name))

    def _leads_back(self, folder: str) -> bool:
        """Whether a folder is one of those above it on the way from the root."""
        here = Path(self.root, folder)
        try:
            return any(here.samefile(above) for above in list(here.parents)[: len(Path(folder).parts)])
        except OSError:
            return False  # and `entries` will say why


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _begins_like_an_image(path: str) -> bool:
    if not os.path.isfile(path):
        return os.path.islink(path)  # one that leads nowhere is worth a word, whatever it is called
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def has_images(folder: Path) -> bool:
    """Whether there is anything for `list_folder` to list, or to say: an image by name, however deep."""
    walk = Walk(str(folder))
    folders, files = walk.entries("")
    return any(map(_is_named_image, files)) or any(next(walk.images(name), None) is not None for name in folders)


def _is_named_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_folder(folder: Path) -> Listing:
    """List the images of a folder of class folders, with train, validation and test in any usual spelling above them.

    Without them, the folders in it are classes. What lies deeper in a class's folder is of that class. A folder that
    holds one folder only stands for that one, as unpacked archives do. ImageNet's validation images may lie loose:
    their classes are known by their names.

    Raises:
        ValueError: two folders for one split.
    """
    walk = Walk(str(folder))
    notes: list[str] = []
    top, folders, loose = "", *walk.entries("")
    while len(folders) == 1 and not split_of(folders[0]) and walk.entries(os.path.join(top, folders[0]))[0]:
        top = os.path.join(top, folders[0])
        folders, loose = walk.entries(top)
    parts = split_folders(walk, top, folders)
    names: list[str] = []
    splits: list[str] = []
    labels: list[str] = []
    for split, part in parts.items() if parts else [("", "")]:
        place = os.path.join(top, part)
        classes, files = walk.entries(place) if parts else (folders, loose)
        empty = []
        for name in classes:
            images = list(walk.images(os.path.join(place, name)))
            names += images
            splits += [split] * len(images)
            labels += [name] * len(images)
            if not images:
                empty.append(os.path.join(part, shown(name)))
        if empty:
            notes.append(f"empty, and no classes: {some(empty)}")
        known = {name: wnid for name in files if (wnid := validation_wnid(name))}
        names += [os.path.join(place, name) for name in known]
        splits += [split or "test"] * len(known)  # as everybody uses it
        labels += known.values()
        here = shown(place) or "the folder itself"
        if known:
            notes.append(f"{len(known):,} images in {here} have their classes from ImageNet's validation list, by name")
        if unsorted := [name for name in files if _is_named_image(name) and name not in known]:
            notes.append(
                f"not used: {len(unsorted):,} images in {here} that are in no class's folder "
                f"({some([shown(name) for name in unsorted], 2)}); those of a class cat belong in "
                f"{os.path.join(shown(place), 'cat')}"
            )
    if not parts and (called := [shown(name) for name in folders if split_of(name)]):
        others = [shown(name) for name in folders if not split_of(name)]
        notes.append(
            f"taken for a class: {some(called)}, beside {some(others)}; where it is a split, call the others train, "
            "validation or test too, with folders of classes in them"
        )
    if parts and (aside := [shown(name) for name in folders if name not in parts.values()]):
        notes.append(f"not used: beside {', '.join(parts.values())} there is {some(aside)}")
    if walk.others:
        notes.append(f"not used: {len(walk.others):,} files that are no images ({some([*map(shown, walk.others)], 3)})")
    return Listing(
        name=str(folder),
        store=FileStore(str(folder), tuple(names)),
        splits=tuple(splits),
        labels=tuple(labels),
        stamp=stamp_of_files(str(folder), names),
        faults=tuple(walk.faults),
        notes=tuple(notes),
    )


def split_folders(walk: Walk, top: str, folders: list[str]) -> dict[str, str]:
    """split -> folder, where the folders are splits and not classes: all are, or one is train and has folders in it."""
    known = [(split_of(name), name) for name in folders if split_of(name)]
    trained = any(split == "train" and walk.entries(os.path.join(top, name))[0] for split, name in known)
    if not trained and len(known) < len(folders):
        return {}
    found: dict[str, str] = {}
    for split, name in known:
        if split in found:
            raise ValueError(f"{walk.root}: {found[split]} and {name} are both the {split} split; keep one")
        found[split] = name
    return found
