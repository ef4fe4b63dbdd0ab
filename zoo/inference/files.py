"""Prediction for many image files."""

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from zoo.addresses import AddressPath, is_address, parse_address
from zoo.data.images.decode import read_image
from zoo.data.images.tta import VIEWS
from zoo.data.sources.folders import FolderWalk
from zoo.data.sources.remote import images_at
from zoo.data.threads import DecodeTask, prefetch
from zoo.inference.evaluate import prediction_batch
from zoo.inference.predict import Checkpoint, Prediction, classify, preprocess_image
from zoo.stores import objects
from zoo.text import error_line

GROUP = 32  # largest number of files that are read, and then classified, at a time
GROUP_BYTES = 2**28  # of the inputs of such a group


def image_files(names: Sequence[str]) -> tuple[list[PurePath], list[str], list[PurePath]]:
    """Return the images among files, folders and addresses, in the order given.

    Returns:
        The images; a line for every unreadable folder; and the files in the folders that are not images.

    Raises:
        FileNotFoundError: for a name that does not exist.
        ValueError: for a folder without images.
    """
    files: list[PurePath] = []
    problems: list[str] = []
    others: list[PurePath] = []
    for name in names:
        path: PurePath = Path(name)
        if is_address(name):
            files += images_at(parse_address(name))
        elif Path(name).is_dir():
            walk = FolderWalk(name)
            inside = [path / image for image in walk.images("")]
            if not inside and not walk.unreadable:
                raise ValueError(f"{path}: has no images")
            files += sorted(inside)
            problems += [f"{path}{os.sep}{fault}" for fault in walk.unreadable]
            others += [path / file for file in walk.not_images]
        elif Path(name).exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return list(dict.fromkeys(files)), problems, list(dict.fromkeys(others))


def predict_files(
    checkpoint: Checkpoint, files: Sequence[PurePath], top: int, tta: str, problems: list[str]
) -> Iterator[tuple[PurePath, Prediction]]:
    """Classify image files, yielding (file, its Prediction) in order. Threads read ahead.

    Args:
        checkpoint: a checkpoint with a head.
        files: the image files, as `image_files` returns them.
        top: number of (class, probability) pairs per image.
        tta: name in VIEWS for test-time augmentation, or "".
        problems: receives a line for every file that cannot be read; these files are skipped.
    """
    preprocess = checkpoint.card.preprocess
    views = VIEWS[tta].num_views if tta else 1
    group_size = min(GROUP, max(GROUP_BYTES // (views * math.prod(preprocess.input_shape)), 1))
    size = prediction_batch(len(files), group_size)  # the same for all groups, so that one compilation serves them

    def read(file: PurePath, images: dict[PurePath, Any]) -> None:
        try:
            source = objects.read(str(file)) if isinstance(file, AddressPath) else Path(file)
            images[file] = preprocess_image(read_image(source, preprocess.white), preprocess, tta)
        except (ValueError, OSError) as error:
            line = error_line(error)
            images[file] = f"{file}: {line}" if isinstance(file, AddressPath) and str(file) not in line else line

    def tasks() -> Iterator[tuple[dict[PurePath, Any], list[DecodeTask]]]:
        for start in range(0, len(files), group_size):
            images: dict[PurePath, Any] = {}
            yield images, [partial(read, file, images) for file in files[start : start + group_size]]

    for number, images in enumerate(prefetch(tasks(), None)):
        group = files[number * group_size : (number + 1) * group_size]
        problems += [images[file] for file in group if isinstance(images[file], str)]
        readable = [file for file in group if not isinstance(images[file], str)]
        pixels = [images[file] for file in readable]
        answers = classify(checkpoint.model, checkpoint.variables, checkpoint.card, pixels, top, size)
        yield from zip(readable, answers, strict=True)
