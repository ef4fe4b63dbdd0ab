"""Photographs that tests write: smooth in places and busy in others, so that JPEG and resizing have something to do."""

import io

import numpy as np
from PIL import Image


def photo(height, width, seed=0):
    """uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(1, 6, (3, 2)) * np.pi
    phase = rng.uniform(0, 6, 3)
    colours = [np.sin(waves[c, 0] * y + phase[c]) * np.cos(waves[c, 1] * x + c) for c in range(3)]
    return np.clip(128 + 100 * np.stack(colours, -1) + rng.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8)


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def folder_of(root, layout, size=(24, 32), suffix="png"):
    """Write root/<folder>/<n>.<suffix> for {folder: count}; every photograph is another. Returns root."""
    seed = 0
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            data = encoded(photo(*size, seed=seed), {"jpg": "JPEG"}.get(suffix, suffix.upper()))
            (root / folder / f"{n}.{suffix}").write_bytes(data)
            seed += 1
    return root
