"""The 1000 classes of ILSVRC 2012-2017: imagenet.tsv has their wnids, in order, and WordNet's first word for each.

The validation images come as one flat folder, in which nothing says their classes but the official list of them; the
copy of it that TensorFlow Datasets installs is read.

Two pairs share their first word; "crane bird" and "maillot tank suit" keep them apart.
"""

import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

VALIDATION_IMAGE = r"ILSVRC2012_val_(\d{8})\.JPEG"
VALIDATION_LIST = "datasets/imagenet2012/validation_labels.txt"  # in tensorflow_datasets: a wnid a line


@lru_cache
def wnids() -> dict[str, str]:
    """wnid -> word, 1000 of them, in the order in which everybody numbers the classes."""
    lines = Path(__file__).with_name("imagenet.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def class_names() -> tuple[str, ...]:
    """The words, class 0 first."""
    return tuple(wnids().values())


def words_of(names: Sequence[str]) -> tuple[str, ...] | None:
    """The words of wnids; None unless all names are wnids of the 1000 classes."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in names) or not set(names) <= set(wnids()):
        return None
    return tuple(wnids()[name] for name in names)


@lru_cache
def _validation_list() -> tuple[str, ...]:
    """The wnid of each validation image, the first one's first; () where TensorFlow Datasets does not bring it."""
    found = importlib.util.find_spec("tensorflow_datasets")  # finding is no importing, which takes seconds
    for place in (found and found.submodule_search_locations) or ():
        file = Path(place, VALIDATION_LIST)
        if file.is_file():
            return tuple(file.read_text(encoding="ascii").split())
    return ()


def validation_wnid(name: str) -> str:
    """The wnid of a validation image by its file's name, such as ILSVRC2012_val_00000001.JPEG; "" for other names."""
    match = re.fullmatch(VALIDATION_IMAGE, name)
    number = int(match[1]) if match else 0
    return _validation_list()[number - 1] if 0 < number <= len(_validation_list()) else ""
