"""Batches. Which records global batch n holds is a pure function of (seed, n).

Training reads an endless stream: epoch after epoch, each in its own order, cut into full batches without regard to
where an epoch ends. Nothing depends on workers, devices or processes, so a run can be continued at any step and a
process can take its rows of each batch.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from zoo.data.preprocess import Preprocess, fit_images
from zoo.data.sources import ArraySplit, Split

FIT_ONCE = 2**31  # bytes of fitted pixels up to which a split is fitted once and kept
READ_AHEAD = 2  # batches


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
) -> Iterator[Batch]:
    """Endless full batches from `start_step` on. All weights are 1.

    A split that is small once fitted is fitted once, and batches are gathers from it; of a larger one, batches are read
    and fitted one by one, a few ahead in a thread, which ends when the iterator is closed.

    Args:
        split: the records.
        preprocess: what the model sees of an image.
        batch_size: of the global batch.
        seed: of the order, with the step.
        start_step: the step at which to continue.
        shard: (rank, count) of this process; it gets rows rank * B / count … of each global batch of B.

    Raises:
        ValueError: no records, or a batch that cannot be divided among the processes.
    """
    rows = _rows(batch_size, shard)
    batch_indices(seed, start_step, batch_size, len(split))  # complains now, rather than at the first batch
    labels = np.asarray(split.labels, np.int32)
    images = _fitted(split, preprocess)

    def batches() -> Iterator[Batch]:
        step = start_step
        while True:
            indices = batch_indices(seed, step, batch_size, len(labels))[0][rows]
            pixels = fit_images(split.read(indices), preprocess) if images is None else images[indices]
            yield {"image": pixels, "label": labels[indices], "weight": np.ones(len(indices), np.float32)}
            step += 1

    return batches() if images is not None else _read_ahead(batches)


def eval_batches(
    split: Split, preprocess: Preprocess, *, batch_size: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every record once, in order, in batches of full size: the last one is padded with zeros of weight 0.

    Every process yields the same number of batches, whatever falls to it.

    Args:
        split, preprocess, batch_size, shard: as in `train_batches`.

    Raises:
        ValueError: no records, or a batch that cannot be divided among the processes.
    """
    rows = _rows(batch_size, shard)
    if not len(split):
        raise ValueError("there are no records to evaluate")
    labels = np.asarray(split.labels, np.int32)
    images = _fitted(split, preprocess)

    def batches() -> Iterator[Batch]:
        for first in range(0, len(labels), batch_size):
            start, stop = (min(first + edge, len(labels)) for edge in (rows.start, rows.stop))
            if images is None:
                pixels = fit_images(split.read(np.arange(start, stop)), preprocess)
            else:
                pixels = images[start:stop]
            yield _padded(pixels, labels[start:stop], rows.stop - rows.start, preprocess)

    return batches() if images is not None else _read_ahead(batches)


def _padded(images: NDArray[np.uint8], labels: NDArray[np.int32], size: int, preprocess: Preprocess) -> Batch:
    count = len(labels)
    weight = (np.arange(size) < count).astype(np.float32)
    if count == size:
        return {"image": images, "label": labels, "weight": weight}
    pixels = np.zeros((size, *preprocess.size, preprocess.num_channels), np.uint8)
    pixels[:count] = images
    label = np.zeros(size, np.int32)
    label[:count] = labels
    return {"image": pixels, "label": label, "weight": weight}


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


def _fitted(split: Split, preprocess: Preprocess) -> NDArray[np.uint8] | None:
    """All images of a split fitted, if that is small; remembered, since a split is evaluated after every epoch."""
    height, width = preprocess.size
    if len(split) * height * width * preprocess.num_channels > FIT_ONCE:
        return None
    try:
        known = _fitted_before.get(split)
    except TypeError:  # somebody's own split that cannot be hashed or referred to weakly: fitted anew each time
        known = None
    if known is not None and known[0] == preprocess:
        return known[1]
    if isinstance(split, ArraySplit):
        images = fit_images(split.images, preprocess)
    else:
        images = np.empty((len(split), height, width, preprocess.num_channels), np.uint8)
        for start in range(0, len(split), 1024):
            stop = min(start + 1024, len(split))
            images[start:stop] = fit_images(split.read(np.arange(start, stop)), preprocess)
    with contextlib.suppress(TypeError):
        _fitted_before[split] = (preprocess, images)
    return images


def _read_ahead(batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    """The same batches, made by a thread that is `READ_AHEAD` batches ahead. Its exceptions are raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(READ_AHEAD)
    closed = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches():
                if not put(batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="zoo-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
