"""The 1000 classes of ILSVRC 2012-2017: imagenet.tsv has their wnids, in order, and WordNet's first word for each.

The validation images are distributed as one flat folder; their classes are in an official list, of which TensorFlow
Datasets installs a copy. Two pairs of classes share their first word; they are named "crane bird" and "maillot tank
suit" to tell them apart.
"""

import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

VALIDATION_IMAGE = r"ILSVRC2012_val_(\d{8})\.JPEG"
VALIDATION_LIST = "datasets/imagenet2012/validation_labels.txt"  # in tensorflow_datasets; one wnid per line


@lru_cache
def wnids() -> dict[str, str]:
    """Return {wnid: word} for the 1000 classes, in the usual order of the labels."""
    lines = Path(__file__).with_name("imagenet.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def class_names() -> tuple[str, ...]:
    """Return the words of the 1000 classes, in the order of the labels."""
    return tuple(wnids().values())


def words_of(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the words for these wnids, or None unless all names are wnids of the 1000 classes."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in names) or not set(names) <= set(wnids()):
        return None
    return tuple(wnids()[name] for name in names)


@lru_cache
def _validation_list() -> tuple[str, ...]:
    """Return the wnid of each validation image, in order, or () if TensorFlow Datasets does not have the list."""
    package = importlib.util.find_spec("tensorflow_datasets")  # does not import it, which would take seconds
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, VALIDATION_LIST)
        if file.is_file():
            return tuple(file.read_text(encoding="ascii").split())
    return ()


def validation_wnid(name: str) -> str:
    """Return the wnid of a validation image by its file name, ILSVRC2012_val_00000001.JPEG etc.; "" for other names."""
    match = re.fullmatch(VALIDATION_IMAGE, name)
    number = int(match[1]) if match else 0
    return _validation_list()[number - 1] if 0 < number <= len(_validation_list()) else ""
