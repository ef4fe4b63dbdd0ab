"""The 1000 classes of ILSVRC 2012-2017: imagenet.tsv has their wnids, in order, and WordNet's first word for each.

Two pairs share their first word; "crane bird" and "maillot tank suit" keep them apart.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path


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
