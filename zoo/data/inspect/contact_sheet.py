"""Contact sheets: what the images of each class look like, and what augmentation makes of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.augment.host_crop import place_augmentation, read_crop
from zoo.data.dataset import Dataset, EncodedSplit
from zoo.data.images.decode import Uint8
from zoo.data.images.preprocess import Preprocess, image_to_input

COLUMNS, ROWS, SIDE, GAP, TEXT = 8, 12, 96, 4, 18  # pictures, pictures, pixels, pixels, pixels
LETTERS = 120  # of a heading that fit into a line


def contact_sheet(dataset: Dataset, path: Path) -> None:
    """Draw the first images of up to 12 classes of the first split, a row for each class, as a PNG."""
    split = next(iter(dataset.splits.values()))
    rows, titles = [], []
    for k in _chosen_classes(dataset):
        members = np.flatnonzero(split.labels == k)
        if len(members):
            rows.append([_thumbnail(image) for image in split.read(members[:COLUMNS])])
            titles.append(f"{dataset.class_names[k]} ({len(members):,})")
    _draw(rows, titles, path)


def augmented_sheet(dataset: Dataset, preprocess: Preprocess, augment: Sequence[str], path: Path) -> None:
    """Draw up to 12 images of the train split, each followed by seven that training may make of it, as a PNG.

    The functions are those of training, on the host and on the device; the columns are seven epochs. A line above them
    says what is done, and each row its class.
    """
    import jax
    import jax.numpy as jnp

    from zoo.data.augment.ops import augment as apply

    split = dataset.splits["train"]
    classes = _chosen_classes(dataset)
    members = [np.flatnonzero(split.labels == k)[: ROWS // len(classes)] for k in classes]
    records = np.concatenate(members).tolist()
    crop, on_device = place_augmentation(split, preprocess, augment)
    plain = np.stack([image_to_input(image, preprocess) for image in split.read(np.array(records))])
    targets = jax.nn.one_hot(split.labels[records], dataset.num_classes)
    columns = [plain]
    for epoch in range(COLUMNS - 1):
        images = plain
        if crop is not None and isinstance(split, EncodedSplit):
            files = zip(records, split.encoded(np.array(records)), strict=True)
            images = np.stack([read_crop(data, preprocess, 0, epoch, record, crop) for record, data in files])
        made, _ = apply(
            on_device, jax.random.key(epoch), jnp.arange(len(images)),
            jnp.asarray(images, jnp.float32), targets, fill=jnp.asarray(preprocess.fill, jnp.float32),
        )  # fmt: skip
        columns.append(np.clip(np.rint(np.asarray(made)), 0, 255).astype(np.uint8))
    if preprocess.channels == "BGR":
        columns = [column[..., ::-1] for column in columns]
    rows = [[_thumbnail(column[n]) for column in columns] for n in range(len(records))]
    heading = f"augmentation: {'; '.join(augment) or 'none'}"
    titles = [dataset.class_names[split.labels[record]] for record in records]
    _draw(rows, titles, path, heading, ["as it is", *(f"epoch {epoch}" for epoch in range(1, COLUMNS))])


def _chosen_classes(dataset: Dataset) -> list[int]:
    """Up to 12 classes, evenly over all of them."""
    count = min(ROWS, dataset.num_classes)
    return [i * dataset.num_classes // count for i in range(count)]


def _thumbnail(image: Uint8) -> Any:
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)


def _draw(
    rows: Sequence[Sequence[Any]], titles: Sequence[str], path: Path, heading: str = "", columns: Sequence[str] = ()
) -> None:
    """Draw rows of pictures, each under its title, below a heading and the names of the columns."""
    from PIL import Image, ImageDraw

    step = SIDE + GAP
    lines = textwrap.wrap(heading, LETTERS)
    head = GAP + (len(lines) + bool(columns)) * TEXT
    sheet = Image.new("RGB", (COLUMNS * step + GAP, head + len(rows) * (step + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str) -> None:
        try:
            draw.text((left, top), text, fill="black")
        except UnicodeEncodeError:  # Pillow was built without a font that has more than Latin letters
            draw.text((left, top), text.encode("ascii", "replace").decode(), fill="black")

    for n, line in enumerate(lines):
        write(GAP, GAP + n * TEXT, line)
    for column, name in enumerate(columns):
        write(column * step + GAP, head - TEXT, name)
    for n, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = head + n * (step + TEXT)
        write(GAP, top, title)
        for column, picture in enumerate(row):
            left = column * step + GAP + (SIDE - picture.width) // 2
            sheet.paste(picture, (left, top + TEXT + (SIDE - picture.height) // 2))
    sheet.save(path)
