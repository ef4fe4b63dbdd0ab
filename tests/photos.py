"""Images, image files and preprocessings for tests."""

import io

import numpy as np
from PIL import Image

from zoo.data.images.preprocess import Preprocess


def photo(height, width, seed=0):
    """Return a noisy photograph, uint8 [height, width, 3], with both smooth and detailed parts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(1, 6, (3, 2)) * np.pi
    phase = rng.uniform(0, 6, 3)
    colours = [np.sin(waves[c, 0] * y + phase[c]) * np.cos(waves[c, 1] * x + c) for c in range(3)]
    return np.clip(128 + 100 * np.stack(colours, -1) + rng.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8)


def scene(height=20, width=30):
    """Return a smooth RGB image [height, width, 3] with four different corners."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / (width - 1), 255 * y / (height - 1), 255 - 255 * x / (width - 1)], -1).astype(np.uint8)


def stroke(size=24):
    """Return an L in white on black [size, size, 1], which no flip or quarter turn maps to itself."""
    image = np.zeros((size, size, 1), np.uint8)
    image[size // 6 : -size // 6, size // 3 : size // 3 + 3] = 255
    image[-size // 6 - 3 : -size // 6, size // 3 : -size // 5] = 255
    return image


def preprocess_of(size, resize=None, channels="L", **fields):
    """Return a Preprocess for grey images, with `resize` equal to `size` by default."""
    count = len(channels)
    fields = {"mean": (0.5,) * count, "std": (0.25,) * count, **fields}
    return Preprocess(size=size, resize=resize or size, channels=channels, **fields)


def encoded(image, file_format="PNG", **options):
    """Encode an array or a PIL image; returns the bytes of the file."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation):
    """Return EXIF data with this orientation, 1 to 8."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def folder_of(root, layout, size=(24, 32), suffix="png"):
    """Write root/<folder>/<n>.<suffix> for {folder: count}; all photographs differ. Returns root."""
    seed = 0
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            data = encoded(photo(*size, seed=seed), {"jpg": "JPEG"}.get(suffix, suffix.upper()))
            (root / folder / f"{n}.{suffix}").write_bytes(data)
            seed += 1
    return root
