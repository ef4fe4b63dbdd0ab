"""Sketches of sets of images, small enough for a checkpoint's card, that tell whether other images are among them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.data.splits import Split, content_keys, images_in_memory, known_keys, record_keys

TRAINED_ON = "trained_on"  # entry of a card's `data`
SIZE = 256  # hashes kept
HASH_BYTES = 8
SAMPLE = 2_000  # records read of a split that must be read to hash it
MIN_SHARE = 0.01  # a smaller shared part is not worth a remark: most data sets repeat a few images


@dataclass(frozen=True)
class ContentSketch:
    """The smallest hashes of a set of images (a bottom-k sketch, Broder 1997).

    The part of other images that is in the set is estimated from their hashes that are not above the largest one kept.
    It is exact for sets of up to SIZE images.

    Attributes:
        images: number of different images in the set.
        hashes: the smallest hashes, ascending, HASH_BYTES bytes each.
    """

    images: int
    hashes: tuple[bytes, ...]

    @classmethod
    def from_keys(cls, keys: Iterable[bytes]) -> ContentSketch:
        """Return the sketch of a set of images from a hash of each one's content."""
        distinct = sorted({key[:HASH_BYTES] for key in keys})
        return cls(len(distinct), tuple(distinct[:SIZE]))

    @property
    def is_complete(self) -> bool:
        """True if the hash of every image is kept."""
        return len(self.hashes) == self.images

    def merge(self, other: ContentSketch) -> ContentSketch:
        """Return the sketch of the images of either set. Its number of images counts shared ones twice if estimated."""
        ends = [sketch.hashes[-1] for sketch in (self, other) if not sketch.is_complete]
        union = sorted({*self.hashes, *other.hashes})
        kept = tuple(value for value in union if all(value <= end for end in ends))[:SIZE]
        if self.is_complete and other.is_complete:
            return ContentSketch(len(union), kept)
        return ContentSketch(max(self.images + other.images, len(kept) + 1), kept)

    def shared(self, keys: Sequence[bytes]) -> tuple[float, bool]:
        """Return the estimated share of images, given by their hashes, that are in the set, and True if it is exact."""
        members = set(self.hashes)
        short = [key[:HASH_BYTES] for key in keys]
        counted = short if self.is_complete else [key for key in short if members and key <= self.hashes[-1]]
        return (sum(key in members for key in counted) / len(counted) if counted else 0.0), self.is_complete

    def to_json(self) -> dict[str, Any]:
        """Return the sketch as plain values for JSON."""
        return {"images": self.images, "hashes": base64.b64encode(b"".join(self.hashes)).decode()}

    @classmethod
    def from_json(cls, data: Any) -> ContentSketch | None:
        """Return the sketch that `to_json` wrote, or None for anything else."""
        if not isinstance(data, dict) or not isinstance(text := data.get("hashes"), str):
            return None
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return None
        hashes = tuple(raw[i : i + HASH_BYTES] for i in range(0, len(raw), HASH_BYTES))
        images = data.get("images")
        if not isinstance(images, int) or isinstance(images, bool) or images < len(hashes) or len(raw) % HASH_BYTES:
            return None
        if images and not hashes:
            return None
        return cls(images, hashes)


def sketch_of(split: Split) -> ContentSketch:
    """Return the sketch of the images of a split."""
    return ContentSketch.from_keys(content_keys(split))


def describe_shared(sketch: ContentSketch, split: Split, verb: str) -> str:
    """Return a sentence if images of a split are in the set of a sketch, "" if fewer than one in a hundred are.

    Args:
        sketch: of the images that were trained on.
        split: the images that are evaluated.
        verb: what happened to the images, such as "were trained on".
    """
    if known_keys(split) is not None or images_in_memory(split) is not None:
        keys = content_keys(split)
    else:
        indices = np.unique(np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).round().astype(np.int64))
        keys = record_keys(split.read(indices))
    share, is_exact = sketch.shared(keys)
    if share < MIN_SHARE:
        return ""
    part = "All" if share == 1 and is_exact else f"{'' if is_exact else 'About '}{100 * share:.0f} %"
    return f"{part} of these images {verb}, so the accuracy does not show how the model does on new images."
