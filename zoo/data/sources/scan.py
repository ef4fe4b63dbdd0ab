"""Looking at every image of a data set once, in parallel: size, kind, hash of the content, and what is wrong with it.

What was found is kept in the cache under a stamp of the files' names, sizes and times, so that the next start is quick;
not so if anything failed that may pass, such as a network's or the memory's failure, which no stamp shows.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from zoo.cache import cached
from zoo.data.dataset import Store, first_line
from zoo.data.images.decode import exif_orientation, open_image, to_pixels
from zoo.data.threads import run_all

CHUNK = 64  # records per piece of work


@dataclass(frozen=True, eq=False)
class Scan:
    """What was found in N images.

    Attributes:
        sizes: int32 [N, 2], (height, width) as a person sees them; zeros where the image cannot be read.
        kinds: format and mode of each, such as "JPEG RGB"; "" where it cannot be read.
        keys: blake2b of each one's bytes; zeros of what could not even be fetched.
        reasons: what is wrong, by number of the image.
    """

    sizes: NDArray[np.int32]
    kinds: tuple[str, ...]
    keys: tuple[bytes, ...]
    reasons: dict[int, str]


def examine(data: bytes) -> tuple[tuple[int, int], str]:
    """(height, width) and kind of an image that was decoded to its end.

    Raises:
        ValueError: as `read_image` does, about "image".
    """
    with open_image(data) as image:
        kind = f"{image.format} {image.mode}"
        width, height = image.size
        if exif_orientation(image) >= 5:
            width, height = height, width
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            # At an eighth of the size: every coefficient is read all the same, so what is missing is noticed.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
        else:
            image.load()
            to_pixels(image)
        return (height, width), kind


def may_pass(error: BaseException) -> bool:
    """Whether an error says something about the moment, and nothing about the image."""
    return any(isinstance(each, OSError | MemoryError) for each in (error, error.__cause__))


def scan(store: Store, count: int, stamp: str, workers: int | None = None) -> Scan:
    """Examine records 0..count-1, or remember what was found before.

    Args:
        store: where they lie.
        count: how many.
        stamp: names what was looked at in the cache: another file, or another size or time of one, has another.
        workers: threads; by default one per processor. They change nothing but the speed.
    """

    passing: list[int] = []  # records that may be readable the next time

    def look() -> dict[str, NDArray[np.generic]]:
        sizes, hashes = np.zeros((count, 2), np.int32), np.zeros((count, 16), np.uint8)
        kinds, reasons = [""] * count, {}

        def some(start: int) -> None:
            for record in range(start, min(start + CHUNK, count)):
                try:
                    (data,) = store.fetch([record])
                except (ValueError, OSError, MemoryError) as error:
                    reasons[record] = first_line(error).removeprefix(f"{store.name(record)}: ")
                    passing.extend([record] if may_pass(error) else [])
                    continue
                hashes[record] = np.frombuffer(blake2b(data, digest_size=16).digest(), np.uint8)
                try:
                    sizes[record], kinds[record] = examine(data)
                except ValueError as error:
                    reasons[record] = first_line(error).removeprefix("image: ")
                    passing.extend([record] if may_pass(error) else [])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on what it reads all the same
            run_all([partial(some, start) for start in range(0, count, CHUNK)], workers, "looking at every image")
        names = sorted(set(kinds))
        place = {kind: number for number, kind in enumerate(names)}
        about = json.dumps({"kinds": names, "reasons": {str(k): reasons[k] for k in sorted(reasons)}})
        return {
            "sizes": sizes,
            "hashes": hashes,
            "kinds": np.array([place[kind] for kind in kinds], np.int16),
            "about": np.frombuffer(about.encode(), np.uint8),
        }

    import PIL

    found = cached(f"scan-2-{PIL.__version__}-{stamp}", look, lasting=lambda: not passing)
    about = json.loads(found["about"].tobytes())
    reasons = {int(record): reason for record, reason in about["reasons"].items()}
    hashes = found["hashes"].tobytes()
    return Scan(
        sizes=found["sizes"],
        kinds=tuple(about["kinds"][kind] for kind in found["kinds"].tolist()),
        keys=tuple(hashes[16 * i : 16 * i + 16] for i in range(count)),
        reasons=reasons,
    )
