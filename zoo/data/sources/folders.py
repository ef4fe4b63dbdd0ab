"""Folders of class folders: train/cat/1.jpg, or cat/1.jpg without splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.dataset import Note
from zoo.data.imagenet import validation_wnid
from zoo.data.sources.listing import OPEN_FLAGS, FileStore, Listing, stamp_files
from zoo.data.sources.names import (
    UNLABELLED,
    canonical_split,
    class_key,
    describe_misspelt_split,
    escape,
    is_system_file,
    is_system_folder,
    similar_split,
)
from zoo.data.splits import Store
from zoo.text import counted, first_few

# Files with these suffixes count as images; files with others do if they begin like an image.
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif", ".ico", ".tga", ".pcx", ".jxl",
})  # fmt: skip
MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cJXL ", b"8BPS", b"qoif", b"DDS ", b"icns", b"\x01\xda\0", b"\x01\xda\x01",
    b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0",  # raw files of cameras, which are reported
)  # fmt: skip
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"crx ")  # as MP4, but no videos
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")
MAX_OTHER_ENTRIES = 1_000_000  # files and folders looked at; more of them, nearly all not images, are no data set
MAX_DEPTH = 100  # folders within folders
RUN_FILES = {"config.json", "metrics.jsonl"}  # of the folder of a run


@dataclass
class FolderWalk:
    """A walk through a folder that collects what it cannot use. All paths are relative to the root.

    Attributes:
        root: the folder.
        unreadable: "path: reason" for folders that cannot be read or followed.
        not_images: paths of the files that are not images.
        system_folders: paths of folders that systems create, such as @eaDir; they are not read.
        system_files: folder -> files in it that systems create, such as Thumbs.db, without hidden ones.
    """

    root: str
    unreadable: list[str] = field(default_factory=list)
    not_images: list[str] = field(default_factory=list)
    system_folders: list[str] = field(default_factory=list)
    system_files: dict[str, list[str]] = field(default_factory=dict)
    _entries: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    _num_entries: int = 0
    _num_images: int = 0

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder, sorted, without hidden and system files.

        Raises:
            ValueError: the root has so many other files that it is no data set, such as a home folder.
        """
        if folder not in self._entries:
            self._entries[folder] = self._scan(folder)
        return self._entries[folder]

    def _scan(self, folder: str) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    if not _is_folder(entry):
                        if not is_system_file(entry.name):
                            files.append(entry.name)
                        elif not entry.name.startswith("."):
                            self.system_files.setdefault(folder, []).append(entry.name)
                    elif not is_system_folder(entry.name):
                        folders.append(entry.name)
                    elif not entry.name.startswith("."):
                        self.system_folders.append(os.path.join(folder, entry.name))
        except OSError as error:
            self.unreadable.append(f"{escape(folder) or '.'}: folder cannot be read ({error.strerror})")
        if folder and set(files) >= RUN_FILES:  # of a training whose data is a folder above: its pictures are no class
            return [], []
        self._num_entries += len(folders) + len(files)
        self._num_images += sum(map(_has_image_suffix, files))
        if self._num_entries > MAX_OTHER_ENTRIES and self._num_images * 100 < self._num_entries:
            raise ValueError(
                f"{self.root}: only {self._num_images:,} of its first {self._num_entries:,} files and folders are "
                "images; name the folder that contains the class folders"
            )
        return folders, files

    def has_images(self, folder: str) -> bool:
        """Return True if a folder or one of its subfolders has an image."""
        return next(self.images(folder), None) is not None

    def images(self, folder: str) -> Iterator[str]:
        """Yield the images in a folder and its subfolders. Links are followed unless they lead back to a parent."""
        if self._leads_back(folder):
            self.unreadable.append(f"{escape(folder)}: link to a folder that contains it; not followed")
            return
        if folder.count(os.sep) >= MAX_DEPTH:
            self.unreadable.append(f"{escape(folder[:80])}…: more than {MAX_DEPTH} folders deep; not followed")
            return
        folders, files = self.entries(folder)
        for name in files:
            path = os.path.join(folder, name)
            if _has_image_suffix(name) or _file_begins_like_an_image(os.path.join(self.root, path)):
                yield path
            else:
                self.not_images.append(path)
        for name in folders:
            yield from self.images(os.path.join(folder, name))

    def is_empty(self, folder: str) -> bool:
        """Return True for a folder without entries, and for one that cannot be read, as lost+found usually is."""
        try:
            return not os.listdir(os.path.join(self.root, folder))
        except OSError:
            return True

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


def _file_begins_like_an_image(path: str) -> bool:
    """Return True for files that begin like an image, and for broken links, so that they are reported."""
    if not os.path.isfile(path):
        return os.path.islink(path)
    try:
        file = os.open(path, OPEN_FLAGS)
        try:
            start = os.read(file, 16)
        finally:
            os.close(file)
    except OSError:
        return False
    return begins_like_an_image(start)


def begins_like_an_image(start: bytes) -> bool:
    """Return True if the first 16 bytes of a file are those of an image format."""
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(MAGIC) or is_webp or (start[4:8] == b"ftyp" and start[8:12] in BRANDS)


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def has_images(folder: Path) -> bool:
    """Return True if `list_folder` has anything to list or to report: an image file at any depth."""
    walk = FolderWalk(str(folder))
    folders, files = walk.entries("")
    return any(map(_has_image_suffix, files)) or any(map(walk.has_images, folders))


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that have images, at any depth."""
    walk = FolderWalk(str(folder))
    return [name for name in walk.entries("")[0] if walk.has_images(name)]


def list_folder(folder: Path) -> Listing:
    """List the images of a folder of class folders, with or without split folders above them.

    Split folders may have any usual name, such as "val" or "Testing". Without them, the folders are classes; splits may
    also be below all classes (cat/train/1.jpg). Images in other subfolders of a class folder belong to that class. A
    folder that contains a single folder stands for that one, as in unpacked archives. ImageNet's validation images need
    no class folders: their classes are known by file name. Validation and test images in folders that are not classes
    of train, such as test/all/1.jpg, are not used.

    Raises:
        ValueError: two folders for one split, a misspelt split, or splits whose classes have nothing in common.
    """

    def on_disk(paths: list[str]) -> tuple[Store, str]:
        return FileStore(str(folder), tuple(paths)), stamp_files(str(folder), paths)

    return list_walk(FolderWalk(str(folder)), on_disk)


def list_walk(walk: FolderWalk, open_files: Callable[[list[str]], tuple[Store, str]]) -> Listing:
    """List the images that a walk finds, as `list_folder` does.

    Args:
        walk: a walk through the folder.
        open_files: returns the store and the stamp of files, given their paths relative to the folder.

    Raises:
        ValueError: as `list_folder`.
    """
    top, folders, files = "", *walk.entries("")
    collected = _Images()
    while len(folders) == 1 and not canonical_split(folders[0]) and walk.entries(os.path.join(top, folders[0]))[0]:
        loose = [*files, *walk.system_files.get(top, [])]
        collected.notes += _notes_on_loose_files(loose, top, f"the folder {escape(folders[0])}, which is used")
        top = os.path.join(top, folders[0])
        folders, files = walk.entries(top)
    split_folders = find_split_folders(walk, top, folders)
    below = {} if split_folders else splits_below_classes(walk, top, folders)
    for split, name in split_folders.items():
        classes, loose = walk.entries(os.path.join(top, name))
        used = _with_classes_of_train(walk, split, top, split_folders, classes, collected)
        _list_split(walk, split, top, name, used, loose, collected)
    for label, names in below.items():
        for split, name in names.items():
            collected.add(list(walk.images(os.path.join(top, label, name))), split, label)
    if below:
        text = f"splits are below the classes, as in {escape(next(iter(below)))}/train"
        collected.notes.append(Note("source", text))
    if below or split_folders:
        beside = ", ".join(split_folders.values()) or "the class folders"
        collected.notes += _notes_on_loose_files([*files, *walk.system_files.get(top, [])], top, beside)
    else:
        _list_split(walk, "", top, "", folders, files, collected)
    notes = [*collected.notes, *_notes_on_folders(folders, split_folders, bool(below)), *_notes_on_files(walk)]
    if not collected.paths and (tables := [name for name in files if name.lower().endswith(TABLE_SUFFIXES)]):
        paths = [escape(os.path.join(walk.root, top, name)) for name in tables]
        notes.append(Note("source", f"for the classes of a table, name {first_few(paths, 2)}"))
    store, stamp = open_files(collected.paths)
    return Listing(
        name=walk.root,
        store=store,
        splits=tuple(collected.splits),
        labels=tuple(collected.labels),
        stamp=stamp,
        unreadable=tuple(walk.unreadable),
        notes=tuple(notes),
    )


def _notes_on_files(walk: FolderWalk) -> list[Note]:
    """Return notes on files that are not images, and on folders of the system."""
    notes = []
    if walk.not_images:
        examples = first_few([*map(escape, walk.not_images)], 3)
        noun = counted(len(walk.not_images), "file that is not an image", "files that are not images")
        notes.append(Note("unused", f"not used: {noun} ({examples})"))
    if folders := [path for path in walk.system_folders if not walk.is_empty(path)]:
        names = first_few(sorted({escape(os.path.basename(path)) for path in folders}), 3)
        notes.append(Note("unused", f"not used: {len(folders):,} folders that the system or a NAS created ({names})"))
    return notes


@dataclass
class _Images:
    """The images listed so far, and notes on their folders."""

    paths: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def add(self, paths: Sequence[str], split: str, labels: str | Sequence[str]) -> None:
        self.paths += paths
        self.splits += [split] * len(paths)
        self.labels += [labels] * len(paths) if isinstance(labels, str) else labels


def _list_split(
    walk: FolderWalk, split: str, top: str, name: str, classes: Sequence[str], files: Sequence[str], collected: _Images
) -> None:
    """Add the images of one split: those in its class folders, and ImageNet's validation images outside of them."""
    folder = os.path.join(top, name)
    empty: list[str] = []
    nested: list[str] = []
    for label in classes:
        images = list(walk.images(os.path.join(folder, label)))
        collected.add(images, split, label)
        inside = sorted({os.path.dirname(path) for path in images} - {os.path.join(folder, label)})
        nested += inside if len(inside) > 1 else []
        if not images:
            empty.append(os.path.join(name, escape(label)))
    if empty:
        collected.notes.append(Note("unused", f"not used: folders without images: {first_few(empty)}", split))
    if nested:
        places = first_few([*map(escape, nested)], 3)
        text = f"images in subfolders of class folders have the class of the upper folder: {places}"
        collected.notes.append(Note("classes", text, split))
    wnids = {file: wnid for file in files if (wnid := validation_wnid(file))}
    # ImageNet's validation images usually serve as the test split
    collected.add([os.path.join(folder, file) for file in wnids], split or "test", list(wnids.values()))
    where = escape(folder) or "the folder itself"
    if wnids:
        text = f"{len(wnids):,} images in {where}: classes taken from ImageNet's validation list, by file name"
        collected.notes.append(Note("source", text, split))
    if unsorted := [escape(file) for file in files if _has_image_suffix(file) and file not in wnids]:
        example = os.path.join(escape(folder), "NAME")
        text = (
            f"not used: {len(unsorted):,} images in {where} outside of class folders ({first_few(unsorted, 2)}); "
            f"put the images of each class in a folder {example}"
        )
        collected.notes.append(Note("unused", text, split))
    loose = [file for file in files if not _has_image_suffix(file) and file not in wnids]
    loose += walk.system_files.get(folder.rstrip(os.sep), [])
    collected.notes += _notes_on_loose_files(loose, name, "the class folders")


def _notes_on_loose_files(files: Sequence[str], folder: str, beside: str) -> list[Note]:
    """Return a note on files that lie beside class or split folders, if there are any."""
    names = sorted(escape(os.path.join(folder, file)) for file in files)
    noun = "file" if len(names) == 1 else "files"
    return [Note("unused", f"not used: {len(names):,} {noun} beside {beside} ({first_few(names, 3)})")] if names else []


def _with_classes_of_train(
    walk: FolderWalk, split: str, top: str, split_folders: Mapping[str, str], classes: Sequence[str], collected: _Images
) -> Sequence[str]:
    """Return the class folders of a split without those that only hold unlabelled images; these are noted.

    Raises:
        ValueError: several folders, none of which is a class of train.
    """
    if split == "train" or "train" not in split_folders:
        return classes
    trained = walk.entries(os.path.join(top, split_folders["train"]))[0]
    known = set(map(class_key, trained))
    known |= {key.lstrip("0") for key in known if key.isdecimal()}
    new = [name for name in classes if not {class_key(name), class_key(name).lstrip("0")} & known]
    if not trained or not new:
        return classes
    unlabelled = [name for name in new if "".join(filter(str.isalpha, name.lower())) in UNLABELLED]
    folder = escape(split_folders[split])
    if len(new) == len(classes) and new != unlabelled:
        if len(new) > 1:
            raise ValueError(
                f"{walk.root}: {folder} has the classes {first_few([*map(escape, new)])}, but "
                f"{escape(split_folders['train'])} has {first_few([*map(escape, trained)])}; give the class "
                "folders of all splits the same names"
            )
        unlabelled = new
    for name in unlabelled:
        count = sum(1 for _ in walk.images(os.path.join(top, split_folders[split], name)))
        text = (
            f"not used: {count:,} images in {folder}/{escape(name)}, which is not a class of train; put images of a "
            f"class {escape(trained[0])} in {folder}/{escape(trained[0])}, or classify them with `zoo predict`"
        )
        collected.notes.append(Note("unused", text, split))
    return [name for name in classes if name not in unlabelled]


def _notes_on_folders(folders: Sequence[str], split_folders: Mapping[str, str], below: bool) -> list[Note]:
    """Return notes on folders that may have been misunderstood: splits taken for classes, and folders beside splits."""
    if split_folders:
        others = [escape(name) for name in folders if name not in split_folders.values()]
        text = f"not used: folders beside {', '.join(split_folders.values())}: {first_few(others)}"
        return [Note("unused", text)] if others else []
    like_splits = [escape(name) for name in folders if canonical_split(name)]
    if not like_splits or below:
        return []
    others = [escape(name) for name in folders if not canonical_split(name)]
    text = (
        f"{first_few([*map(repr, others)], 3)}: not a split name, so {first_few([*map(repr, like_splits)])} is a class"
        "; if the folders are splits, name each of them train, validation or test"
    )
    return [Note("classes", text)]


def find_split_folders(walk: FolderWalk, top: str, folders: Sequence[str]) -> dict[str, str]:
    """Return {split: folder}, or {} if the folders are classes.

    The folders are splits if all have names of splits, or if one is named train and has folders in it.

    Raises:
        ValueError: two folders for one split, or a misspelt split.
    """
    named = [(canonical_split(name), name) for name in folders if canonical_split(name)]
    has_train = any(split == "train" and walk.entries(os.path.join(top, name))[0] for split, name in named)
    are_splits = has_train or (bool(named) and len(named) == len(folders))
    if misspelt := _misspelt_splits(walk, top, folders, are_splits):
        raise ValueError(f"{walk.root}: {describe_misspelt_split(misspelt[0])}")
    if not are_splits:
        return {}
    split_folders: dict[str, str] = {}
    for split, name in named:
        if split in split_folders:
            raise ValueError(f"{walk.root}: {split_folders[split]} and {name} are both named {split}; keep one of them")
        split_folders[split] = name
    return split_folders


def _misspelt_splits(walk: FolderWalk, top: str, folders: Sequence[str], are_splits: bool) -> list[str]:
    """Return the folders that seem to be misspelt splits.

    Beside split folders, a similar name suffices, because the folder would be ignored. Otherwise the folders must have
    class folders in common, which classes do not: rain, snow and hail are weather.
    """
    similar = [name for name in folders if similar_split(name)]
    if are_splits or not similar:
        return similar
    inside = {name: set(walk.entries(os.path.join(top, name))[0]) for name in folders}
    like_splits = [name for name in folders if canonical_split(name) or name in similar]
    others = set().union(*(inside[name] for name in folders if name not in like_splits))
    return [
        name
        for name in similar
        if inside[name] and not inside[name] & others and len(like_splits) > 1
        and not any(inside[other] and not inside[name] & inside[other] for other in like_splits)
    ]  # fmt: skip


def is_split_below_class(walk: FolderWalk, folder: str) -> bool:
    """Return True if a class folder has folders of train and of another split, perhaps misspelt."""
    splits = {canonical_split(name) or similar_split(name) for name in walk.entries(folder)[0]} - {""}
    return "train" in splits and len(splits) > 1


def splits_below_classes(walk: FolderWalk, top: str, folders: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return {class: {split: folder}} for folders such as cat/train and cat/test, or {} for other folders.

    Raises:
        ValueError: some classes have such folders, others do not, or a class has two folders for one split.
    """
    split = [name for name in folders if is_split_below_class(walk, os.path.join(top, name))]
    if not split:
        return {}
    first = os.path.join(top, split[0])
    train = next((name for name in walk.entries(first)[0] if canonical_split(name) == "train"), "")
    if train and len(walk.entries(os.path.join(first, train))[0]) > 1:
        raise ValueError(
            f"{walk.root}: {escape(split[0])} has splits with class folders, so it is a data set of its own; name "
            f"{escape(os.path.join(walk.root, first))}"
        )
    result: dict[str, dict[str, str]] = {}
    for label in folders:
        inside, files = walk.entries(os.path.join(top, label))
        names = {canonical_split(name): name for name in inside}
        example = f"{escape(split[0])} has {' and '.join(map(escape, walk.entries(os.path.join(top, split[0]))[0]))}"
        where = f"{walk.root}: {example}, but {escape(label)}"
        if misspelt := [name for name in inside if similar_split(name)]:
            raise ValueError(f"{where} has {misspelt[0]}; {describe_misspelt_split(misspelt[0])}")
        if "" in names or any(map(_has_image_suffix, files)):
            raise ValueError(f"{where} has images outside of such folders; sort the images of all classes alike")
        if len(names) < len(inside):
            raise ValueError(f"{where} has two folders for one split; keep one of them")
        result[label] = names
    return result
