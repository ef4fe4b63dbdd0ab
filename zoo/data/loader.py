"""Batches. Which records global batch n holds is a pure function of (seed, n).

Training reads an endless stream: epoch after epoch, each in its own order, cut into full batches without regard to
where an epoch ends. Nothing depends on workers, devices or processes, so a run can be continued at any step and a
process can take its rows of each batch.

What does not fit in memory is decoded by threads: Pillow lets go of the interpreter while it decodes and resizes, so
they run side by side, and share the batch they write into. Who does which piece is left to chance, what comes of it is
not: every batch is laid out before any piece of it is begun.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache, partial
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from zoo.data.augment.host_crop import Crop, read_crop
from zoo.data.dataset import ArraySplit, EncodedSplit, Split
from zoo.data.images.polarity import InvertedSplit
from zoo.data.images.preprocess import Preprocess, images_to_input
from zoo.data.images.tta import VIEWS, check_views, images_to_views
from zoo.data.threads import Pieces, prefetch, run_all

CACHE_BYTES = 2**31  # bytes of fitted pixels up to which a split is fitted once and kept
PIECE = 8  # encoded images that a thread decodes in a row


class Batch(TypedDict):
    """image uint8 [B, H, W, C], label int32 [B], weight float32 [B]; weight 0 marks padding, in evaluation only."""

    image: NDArray[np.uint8]
    label: NDArray[np.int32]
    weight: NDArray[np.float32]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_records: int) -> NDArray[np.int64]:
    """The order of an epoch. Raw random bits are sorted, because NumPy promises to keep those but not `permutation`."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_records)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(
    seed: int, step: int, batch_size: int, num_records: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The records of global batch `step`, and the epoch each of them belongs to.

    Over an epoch each record occurs once. A batch may run across the end of an epoch, and, where it is larger than the
    data set, across several.

    Args:
        seed: not negative.
        step: 0, 1, ….
        batch_size: of the global batch, over all processes.
        num_records: N.

    Returns:
        indices int64 [batch_size] in 0..N-1, and epochs int64 [batch_size].

    Raises:
        ValueError: no records, no batch, or a negative seed or step.
    """
    if num_records < 1:
        raise ValueError("there are no records to make batches of")
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must not be negative: seed {seed}, step {step}")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, places = np.divmod(positions, num_records)
    parts = [
        _permutation(seed, int(epoch), num_records)[places[epochs == epoch]]
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    return np.concatenate(parts), epochs


def train_batches(
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    crop: Crop | None = None,
    workers: int | None = None,
) -> Generator[Batch]:
    """Endless full batches from `start_step` on. All weights are 1.

    A split that is small once fitted is fitted once, and batches are gathers from it; of a larger one, batches are read
    and fitted one by one, a few ahead, by threads that end when the iterator is closed. So is a split whose crops
    the host makes.

    Args:
        split: the records. `read` may be called by several threads at once.
        preprocess: what the model sees of an image.
        batch_size: of the global batch.
        seed: of the order, with the step, and of the crops, with epoch and record.
        start_step: the step at which to continue.
        shard: (rank, count) of this process; it gets rows rank * B / count … of each global batch of B.
        crop: the crop to cut from the encoded images, as `place_augmentation` decided; None leaves crops to the device.
        workers: threads that read ahead; 0: none, a batch is made when it is asked for; None: one per processor. They
            change nothing but the speed.

    Raises:
        ValueError: no records, or a batch that cannot be divided among the processes. While iterating: a record that
            can no longer be read, by name.
    """
    rows = _rows(batch_size, shard)
    batch_indices(seed, start_step, batch_size, len(split))  # complains now, rather than at the first batch
    labels = np.asarray(split.labels, np.int32)
    images = None if crop else _fitted(split, preprocess, workers)

    def gathered(kept: NDArray[np.uint8]) -> Generator[Batch]:
        step = start_step
        while True:
            indices = batch_indices(seed, step, batch_size, len(labels))[0][rows]
            yield {"image": kept[indices], "label": labels[indices], "weight": np.ones(len(indices), np.float32)}
            step += 1

    def planned() -> Iterator[tuple[Batch, Pieces]]:
        step = start_step
        while True:
            indices, epochs = (part[rows] for part in batch_indices(seed, step, batch_size, len(labels)))
            batch = _empty(labels[indices], len(indices), preprocess)
            yield batch, _pieces(split, preprocess, indices, batch["image"], crop, seed, epochs)
            step += 1

    return gathered(images) if images is not None else prefetch(planned(), workers)


def eval_batches(
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
    tta: str = "",
) -> Generator[Batch]:
    """Every record once, in order, in batches of full size: the last one is padded with zeros of weight 0.

    Every process yields the same number of batches, whatever falls to it.

    Args:
        split, preprocess, batch_size, shard, workers: as in `train_batches`.
        tta: a name of VIEWS: the batch's "image" is then uint8 [B, V, H, W, C], V views of each record.

    Raises:
        ValueError: no records, views that the preprocessing does not allow, or a batch that cannot be divided among the
            processes. While iterating: a record that can no longer be read, by name; none is ever left out.
    """
    rows = _rows(batch_size, shard)
    if not len(split):
        raise ValueError("there are no records to evaluate")
    if tta:
        check_views(tta, preprocess)
    labels = np.asarray(split.labels, np.int32)
    images = None if tta else _fitted(split, preprocess, workers)

    def planned() -> Iterator[tuple[Batch, Pieces]]:
        for first in range(0, len(labels), batch_size):
            indices = np.arange(*(min(first + edge, len(labels)) for edge in (rows.start, rows.stop)))
            batch = _empty(labels[indices], rows.stop - rows.start, preprocess, tta)
            if images is None:
                yield batch, _pieces(split, preprocess, indices, batch["image"], tta=tta)
            else:
                batch["image"][: len(indices)] = images[indices]
                yield batch, []

    return prefetch(planned(), workers if images is None else 0)


def prefetch_to_device(batches: Generator[Batch], put: Callable[[Batch], Any] | None = None) -> Generator[Any]:
    """The same batches on the device, the next one already under way there while one is used.

    Args:
        batches: closed when this is.
        put: takes a batch to the device without waiting; jax.device_put by default.
    """
    import jax

    put = put or jax.device_put
    with contextlib.closing(batches):
        late = None
        for batch in batches:
            now = put(batch)
            if late is not None:
                yield late
            late = now
        if late is not None:
            yield late


# --- making batches ---------------------------------------------------------------------------------------------------


def _empty(labels: NDArray[np.int32], size: int, preprocess: Preprocess, tta: str = "") -> Batch:
    """A batch of `size` rows, the first of which have these labels; its pixels are all zero."""
    views = (VIEWS[tta].num_views,) if tta else ()
    shape = (size, *views, *preprocess.input_shape)
    label = np.zeros(size, np.int32)
    label[: len(labels)] = labels
    weight = (np.arange(size) < len(labels)).astype(np.float32)
    return {"image": np.zeros(shape, np.uint8), "label": label, "weight": weight}


def _pieces(
    split: Split,
    preprocess: Preprocess,
    indices: NDArray[np.int64],
    out: NDArray[np.uint8],
    crop: Crop | None = None,
    seed: int = 0,
    epochs: NDArray[np.int64] | None = None,
    tta: str = "",
) -> Pieces:
    """Functions that together write the images of these records into the first rows of `out`."""

    def fit(start: int, stop: int) -> None:
        images = split.read(indices[start:stop])
        out[start:stop] = images_to_views(images, preprocess, tta) if tta else images_to_input(images, preprocess)

    def cut(start: int, stop: int) -> None:
        assert isinstance(split, EncodedSplit) and crop is not None and epochs is not None
        for row, data in zip(range(start, stop), split.encoded(indices[start:stop]), strict=True):
            record = int(indices[row])
            try:
                out[row] = read_crop(data, preprocess, seed, int(epochs[row]), record, crop)
            except ValueError as error:
                raise ValueError(f"{split.name(record)}{str(error).removeprefix('image')}") from None

    inside = split.split if isinstance(split, InvertedSplit) else split
    size = PIECE if isinstance(inside, EncodedSplit) else 1024
    starts = range(0, len(indices), size)
    return [partial(cut if crop else fit, start, min(start + size, len(indices))) for start in starts]


def _rows(batch_size: int, shard: tuple[int, int]) -> slice:
    rank, count = shard
    if not 0 <= rank < count:
        raise ValueError(f"shard (rank, count) = {shard}: rank must be in 0..count-1")
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    if batch_size % count:
        below = batch_size // count * count
        choice = f"{below} or {below + count}" if below else f"{count}"
        raise ValueError(
            f"batch size {batch_size} cannot be divided among {count} processes; a multiple of {count} can ({choice})"
        )
    share = batch_size // count
    return slice(rank * share, (rank + 1) * share)


_fitted_before: weakref.WeakKeyDictionary[Any, tuple[Preprocess, NDArray[np.uint8]]] = weakref.WeakKeyDictionary()


def _fitted(split: Split, preprocess: Preprocess, workers: int | None) -> NDArray[np.uint8] | None:
    """All images of a split fitted, if that is small; remembered, since a split is evaluated after every epoch."""
    if len(split) * math.prod(preprocess.input_shape) > CACHE_BYTES:
        return None
    try:
        known = _fitted_before.get(split)
    except TypeError:  # somebody's own split that cannot be hashed or referred to weakly: fitted anew each time
        known = None
    if known is not None and known[0] == preprocess:
        return known[1]
    if isinstance(split, ArraySplit):
        images = images_to_input(split.images, preprocess)
    else:
        images = np.empty((len(split), *preprocess.input_shape), np.uint8)
        run_all(_pieces(split, preprocess, np.arange(len(split)), images), workers, "decoding images")
    with contextlib.suppress(TypeError):
        _fitted_before[split] = (preprocess, images)
    return images
