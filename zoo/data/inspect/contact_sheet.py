"""Contact sheets: pictures of the images of each class, and of the result of augmentation."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.augment.host_crop import place_augmentation, read_crop
from zoo.data.dataset import Dataset, Labels
from zoo.data.images.decode import Uint8
from zoo.data.images.preprocess import Preprocess, image_to_input
from zoo.data.inspect.grid import thumbnail, write_text
from zoo.data.splits import encoded_reader
from zoo.files import atomic_writer

COLUMNS, ROWS = 8, 12  # pictures
SIDE, GAP, LINE = 96, 4, 18  # pixels: longer side of a picture, space between pictures, height of a line of text
TEXT_SIZE = 11  # pixels
HEADING_WIDTH = 120  # characters per line


def contact_sheet(dataset: Dataset, path: Path) -> None:
    """Draw the first images of up to 12 classes that the first split has, one row per class, and save them as PNG."""
    split = next(iter(dataset.splits.values()))
    labels = np.asarray(split.labels)
    rows, titles = [], []
    for k in _chosen_classes(labels):
        members = np.flatnonzero(labels == k)
        rows.append([_thumbnail(image) for image in split.read(members[:COLUMNS])])
        titles.append(f"{dataset.class_names[k]} ({len(members):,})")
    _draw(rows, titles, path)


def augmented_sheet(dataset: Dataset, preprocess: Preprocess, augment: Sequence[str], path: Path) -> None:
    """Draw up to 12 train images, each beside its augmented form in seven epochs, and save them as PNG.

    The augmentation runs on host and device as it does in training. A heading names the operations, and each row its
    class.
    """
    labels, images = augmented_images(dataset, preprocess, augment)
    rows = [[_thumbnail(image) for image in row] for row in images]
    heading = f"augmentation: {'; '.join(augment) or 'none'}"
    titles = [dataset.class_names[label] for label in labels]
    _draw(rows, titles, path, heading, ["original", *(f"epoch {epoch}" for epoch in range(1, COLUMNS))])


def augmented_images(
    dataset: Dataset, preprocess: Preprocess, augment: Sequence[str], rows: int = ROWS, columns: int = COLUMNS
) -> tuple[Any, Uint8]:
    """Return train images of up to `rows` classes that train has, and their augmented forms, as training makes them.

    Args:
        dataset: the data.
        preprocess: preprocessing of training.
        augment: the operations.
        rows: maximum number of images.
        columns: number of forms, the original first and then one for each epoch.

    Returns:
        (labels int [n], images uint8 [n, columns, H, W, C], RGB or grey).
    """
    import jax
    import jax.numpy as jnp

    from zoo.data.augment.ops import augment as apply

    split = dataset.splits["train"]
    labels = np.asarray(split.labels)
    classes = _chosen_classes(labels, rows)
    members = [np.flatnonzero(labels == k)[: rows // len(classes)] for k in classes]
    records = np.concatenate(members).tolist()
    crop, on_device = place_augmentation(split, preprocess, augment)
    read_encoded = encoded_reader(split)
    plain = np.stack([image_to_input(image, preprocess) for image in split.read(np.array(records))])
    targets = jax.nn.one_hot(labels[records], dataset.num_classes)
    forms = [plain]
    for epoch in range(columns - 1):
        images = plain
        if crop is not None and read_encoded is not None:
            files = zip(records, read_encoded(np.array(records)), strict=True)
            images = np.stack([read_crop(data, preprocess, 0, epoch, record, crop) for record, data in files])
        augmented, _ = apply(
            on_device, jax.random.key(epoch), jnp.arange(len(images)),
            jnp.asarray(images, jnp.float32), targets, fill=jnp.asarray(preprocess.fill, jnp.float32),
            channels=preprocess.channels,
        )  # fmt: skip
        forms.append(np.clip(np.rint(np.asarray(augmented)), 0, 255).astype(np.uint8))
    stacked = np.stack(forms, axis=1)
    return labels[records], stacked[..., ::-1] if preprocess.channels == "BGR" else stacked


def _chosen_classes(labels: Labels, limit: int = ROWS) -> list[int]:
    """Return up to `limit` of the classes that have images, evenly spaced."""
    present = np.unique(labels).tolist()
    count = min(limit, len(present))
    return [present[i * len(present) // count] for i in range(count)]


def _thumbnail(image: Uint8) -> Any:
    return thumbnail(image, SIDE, SIDE)


def _draw(
    rows: Sequence[Sequence[Any]], titles: Sequence[str], path: Path, heading: str = "", columns: Sequence[str] = ()
) -> None:
    """Draw rows of pictures, each with a title above it, under a heading and the names of the columns."""
    from PIL import Image, ImageDraw

    step = SIDE + GAP
    lines = textwrap.wrap(heading, HEADING_WIDTH)
    head = GAP + (len(lines) + bool(columns)) * LINE
    sheet = Image.new("RGB", (COLUMNS * step + GAP, head + len(rows) * (step + LINE)), "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str) -> None:
        write_text(draw, (left, top), text, "black", TEXT_SIZE)

    for n, line in enumerate(lines):
        write(GAP, GAP + n * LINE, line)
    for column, name in enumerate(columns):
        write(column * step + GAP, head - LINE, name)
    for n, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = head + n * (step + LINE)
        write(GAP, top, title)
        for column, picture in enumerate(row):
            left = column * step + GAP + (SIDE - picture.width) // 2
            sheet.paste(picture, (left, top + LINE + (SIDE - picture.height) // 2))
    with atomic_writer(Path(path), durable=False) as stream:
        sheet.save(stream, "PNG")
