"""Checking every image of a data set once, in parallel: size, format, content hash, and faults.

The result is cached under a stamp of the files' names, sizes and times, so that the next start is fast. It is not
cached if an error may be temporary, such as a failure of the network or of memory, which no stamp shows.
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
from zoo.data.images.decode import exif_orientation, open_image, to_pixels
from zoo.data.images.levels import OVERSHOOT, PixelRangeError, kind_of_mode, value_range
from zoo.data.splits import Store
from zoo.data.threads import run_all
from zoo.text import first_line

CHUNK = 64  # records per task


@dataclass(frozen=True, eq=False)
class Scan:
    """The result of checking N images.

    Attributes:
        sizes: int32 [N, 2], (height, width) after EXIF orientation; zeros for unreadable images.
        kinds: format and mode of each image, such as "JPEG RGB"; "" for unreadable images.
        keys: BLAKE2b hash of each image's bytes; zeros if they could not be fetched.
        reasons: why an image is unreadable, by record number.
        ranges: float64 [N, 2], (smallest, largest) value of 16-bit, 32-bit and float images; zeros for others.
    """

    sizes: NDArray[np.int32]
    kinds: tuple[str, ...]
    keys: tuple[bytes, ...]
    reasons: dict[int, str]
    ranges: NDArray[np.float64] | None = None


def examine(data: bytes) -> tuple[tuple[int, int], str, tuple[float, float]]:
    """Decode an image to its end and return its size, kind and range.

    Returns:
        (height, width) after EXIF orientation; format and mode, such as "JPEG RGB"; and (smallest, largest) value of
        16-bit, 32-bit and float images, else (0, 0).

    Raises:
        ValueError: an unreadable image, with the messages of `read_image`.
    """
    with open_image(data) as image:
        kind = f"{image.format} {image.mode}"
        width, height = image.size
        if exif_orientation(image) >= 5:
            width, height = height, width
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            # Decoding at an eighth of the size is faster and still reads every coefficient, so damage is noticed.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return (height, width), kind, (0.0, 0.0)
        if kind_of_mode(image.mode, image.format) is None:
            to_pixels(image)
            return (height, width), kind, (0.0, 0.0)
        low, peak = value_range(np.asarray(image))
        if low < -OVERSHOOT * max(peak, 1.0):  # the data set decides which value is white
            raise PixelRangeError(f"pixel values range from {low:g} to {peak:g}; they must not be negative")
        return (height, width), kind, (low, peak)


def is_temporary(error: BaseException) -> bool:
    """Return True if an error may be due to the system at that moment and not to the image."""
    return any(isinstance(e, OSError | MemoryError) for e in (error, error.__cause__))


def scan(store: Store, count: int, stamp: str, workers: int | None = None) -> Scan:
    """Check records 0..count-1 of a store, or return the cached result.

    Args:
        store: the encoded images.
        count: number of records.
        stamp: cache key, which must change with the name, size or time of any file.
        workers: number of threads; one per processor if None. It affects speed only.
    """
    temporary: list[int] = []  # records that may be readable next time

    def check_all() -> dict[str, NDArray[np.generic]]:
        sizes, hashes = np.zeros((count, 2), np.int32), np.zeros((count, 16), np.uint8)
        ranges = np.zeros((count, 2), np.float64)
        kinds, reasons = [""] * count, {}

        def check_chunk(start: int) -> None:
            for record in range(start, min(start + CHUNK, count)):
                try:
                    (data,) = store.fetch([record])
                except (ValueError, OSError, MemoryError) as error:
                    reasons[record] = first_line(error).removeprefix(f"{store.name(record)}: ")
                    temporary.extend([record] if is_temporary(error) else [])
                    continue
                hashes[record] = np.frombuffer(blake2b(data, digest_size=16).digest(), np.uint8)
                try:
                    sizes[record], kinds[record], ranges[record] = examine(data)
                except ValueError as error:
                    reasons[record] = first_line(error).removeprefix("image: ")
                    temporary.extend([record] if is_temporary(error) else [])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about images that it reads
            tasks = [partial(check_chunk, start) for start in range(0, count, CHUNK)]
            run_all(tasks, workers, "checking images")
        names = sorted(set(kinds))
        numbers = {kind: number for number, kind in enumerate(names)}
        text = json.dumps({"kinds": names, "reasons": {str(k): reasons[k] for k in sorted(reasons)}})
        return {
            "sizes": sizes,
            "hashes": hashes,
            "ranges": ranges,
            "kinds": np.array([numbers[kind] for kind in kinds], np.int16),
            "about": np.frombuffer(text.encode(), np.uint8),
        }

    import PIL

    arrays = cached(f"scan-4-{PIL.__version__}-{stamp}", check_all, cacheable=lambda: not temporary)
    texts = json.loads(arrays["about"].tobytes())
    reasons = {int(record): reason for record, reason in texts["reasons"].items()}
    hashes = arrays["hashes"].tobytes()
    return Scan(
        sizes=arrays["sizes"],
        kinds=tuple(texts["kinds"][kind] for kind in arrays["kinds"].tolist()),
        keys=tuple(hashes[16 * i : 16 * i + 16] for i in range(count)),
        reasons=reasons,
        ranges=arrays["ranges"],
    )
