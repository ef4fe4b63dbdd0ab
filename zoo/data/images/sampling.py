"""Images of a split to measure statistics on."""

from functools import partial

import numpy as np

from zoo.data.images.decode import Uint8
from zoo.data.images.geometry import resize_geometry
from zoo.data.images.resample import SMALL_IMAGE, resize_image
from zoo.data.splits import Split, image_sizes
from zoo.data.threads import run_all

SAMPLE_SIZE = 10_000  # records
SAMPLE_PIXELS = 2**32  # of a sample, resized to the input: fewer records are read for very large inputs
SAMPLE_BYTES = 2**31  # of shrunk photographs


def sample_images(split: Split, cover: tuple[int, int], limit: int = SAMPLE_SIZE) -> Uint8 | list[Uint8]:
    """Read an evenly spaced sample of a split.

    Args:
        split: the records.
        cover: (height, width) in pixels. Larger images are shrunk until they just cover it, so that many fit in memory.
        limit: largest number of images; a tenth of it for photographs.

    Returns:
        uint8 [n, H, W, C], or a list of [H, W, C] if sizes differ or images were shrunk.
    """
    affordable = max(min(SAMPLE_PIXELS // (cover[0] * cover[1]), len(split)), 1)
    first = split.read(np.arange(min(1, len(split))))
    sizes = image_sizes(split)
    area = first[0].size if sizes is None else float(np.median(sizes.prod(axis=1)))
    if isinstance(first, np.ndarray) or area <= SMALL_IMAGE:
        count = min(limit, affordable)
        return split.read(np.arange(count) * len(split) // count)
    shrunk_bytes = min(area, cover[0] * cover[1]) * first[0].shape[-1]
    count = min(limit // 10, affordable, max(int(SAMPLE_BYTES // shrunk_bytes), 1))
    records = np.arange(count) * len(split) // count
    images: list[Uint8] = [first[0]] * count

    def read(start: int) -> None:
        for i in range(start, min(start + 8, count)):
            (image,) = split.read(records[i : i + 1])
            scaled, _ = resize_geometry((image.shape[0], image.shape[1]), cover, "crop", cover)
            images[i] = image if scaled[0] >= image.shape[0] else resize_image(image, scaled, "bilinear")

    run_all([partial(read, start) for start in range(0, count, 8)], None, "measuring images")
    return images
