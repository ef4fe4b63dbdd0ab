"""Images of a split to measure statistics on."""

from functools import partial

import numpy as np

from zoo.data.images.decode import Uint8
from zoo.data.images.geometry import resize_geometry
from zoo.data.images.resample import SMALL_IMAGE, resize_image
from zoo.data.splits import Split, image_sizes
from zoo.data.threads import run_all

SAMPLE_SIZE = 10_000  # records


def sample_images(split: Split, cover: tuple[int, int], limit: int = SAMPLE_SIZE) -> Uint8 | list[Uint8]:
    """Read an evenly spaced sample of a split.

    Args:
        split: the records.
        cover: (height, width) in pixels. Larger images are shrunk until they just cover it, so that many fit in memory.
        limit: largest number of images; a tenth of it for photographs.

    Returns:
        uint8 [n, H, W, C], or a list of [H, W, C] if sizes differ or images were shrunk.
    """
    first = split.read(np.arange(min(1, len(split))))
    sizes = image_sizes(split)
    area = first[0].size if sizes is None else float(np.median(sizes.prod(axis=1)))
    if isinstance(first, np.ndarray) or area <= SMALL_IMAGE:
        count = min(limit, len(split))
        return split.read(np.arange(count) * len(split) // count)
    count = min(limit // 10, len(split))
    records = np.arange(count) * len(split) // count
    images: list[Uint8] = [first[0]] * count

    def read(start: int) -> None:
        for i in range(start, min(start + 8, count)):
            (image,) = split.read(records[i : i + 1])
            scaled, _ = resize_geometry((image.shape[0], image.shape[1]), cover, "crop", cover)
            images[i] = image if scaled[0] >= image.shape[0] else resize_image(image, scaled, "bilinear")

    run_all([partial(read, start) for start in range(0, count, 8)], None, "measuring images")
    return images
