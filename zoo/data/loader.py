"""Batches. Which records global batch n holds is a pure function of (seed, n).

Training reads an endless stream: epoch after epoch, each in its own order, cut into full batches without regard to
where an epoch ends. Nothing depends on the number of workers, devices or processes. A run can therefore be resumed at
any step, and each process can read its own rows of each batch.

Data that does not fit in memory is decoded by threads, which run in parallel because Pillow releases the interpreter
lock while it decodes and resizes. Several threads write into one batch. Every batch is laid out before its first task
begins, so the result does not depend on which thread does which task.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache, partial
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from zoo.data.augment.host_crop import Crop, ScaleCrop, read_crop
from zoo.data.images.preprocess import Preprocess, images_to_input
from zoo.data.images.tta import VIEWS, check_views, images_to_views
from zoo.data.splits import Split, encoded_reader, images_in_memory, read_chunk, record_name
from zoo.data.threads import DecodeTask, lookahead, prefetch, run_all

CACHE_BYTES = 2**31  # a split whose preprocessed images take at most this many bytes is preprocessed once and kept


class Batch(TypedDict):
    """A batch on the host: image uint8 [B, H, W, C], label int32 [B], weight float32 [B].

    Weight 0 marks padding, which occurs in evaluation only.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.int32]
    weight: NDArray[np.float32]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_records: int) -> NDArray[np.int64]:
    """Return the order of an epoch, int64 [num_records].

    Sorts raw random bits, because NumPy guarantees that these stay the same between versions, but not `permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_records)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(
    seed: int, step: int, batch_size: int, num_records: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the records of global batch `step`, and the epoch that each of them belongs to.

    Each record occurs once per epoch. A batch may run across the end of an epoch, and across several if it is larger
    than the data set.

    Args:
        seed: seed of the order, at least 0.
        step: number of the batch, from 0.
        batch_size: size of the global batch, over all processes.
        num_records: number of records in the split, N.

    Returns:
        indices int64 [batch_size] in 0..N-1, and epochs int64 [batch_size].

    Raises:
        ValueError: no records, an empty batch, or a negative seed or step.
    """
    if num_records < 1:
        raise ValueError("no records: the split is empty")
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must be at least 0, not {seed} and {step}")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, places = np.divmod(positions, num_records)
    parts = [
        _permutation(seed, int(epoch), num_records)[places[epochs == epoch]]
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    return np.concatenate(parts), epochs


def repeated_indices(
    seed: int, step: int, batch_size: int, num_records: int, repeats: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the records of global batch `step` with repeated augmentation, their epochs and the numbers of the copies.

    An epoch still has `num_records` examples, but of num_records / repeats records, each `repeats` times in succession.
    Within a batch, first copies come before second ones, so that neighbours, which mixup combines, and the rows of
    different devices are different images (timm's and torchvision's samplers give copies to different processes).

    Args:
        seed: seed of the order, at least 0.
        step: number of the batch, from 0.
        batch_size: size of the global batch, over all processes.
        num_records: number of records in the split, N.
        repeats: copies of each record.

    Returns:
        records in 0..N-1, epochs and numbers of the copies in 0..repeats-1, each int64 [batch_size].

    Raises:
        ValueError: as `batch_indices`.
    """
    indices, epochs = batch_indices(seed, step, batch_size, num_records)
    if repeats == 1:
        return indices, epochs, np.zeros_like(indices)
    places = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64) % num_records
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        rows = epochs == epoch
        indices[rows] = _permutation(seed, epoch, num_records)[places[rows] // repeats]
    copies = places % repeats
    order = np.argsort(copies, kind="stable")
    return indices[order], epochs[order], copies[order]


def train_batches(
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    crop: Crop | ScaleCrop | None = None,
    repeats: int = 1,
    workers: int | None = None,
) -> Generator[Batch]:
    """Yield full batches without end, from batch `start_step` on. All weights are 1.

    A split whose preprocessed images fit in CACHE_BYTES is preprocessed once, and its batches are gathered from memory.
    A larger split, or one whose crops are cut on the host, is read and preprocessed batch by batch. Threads work a few
    batches ahead; they end when the iterator is closed.

    Args:
        split: the records.
        preprocess: how an image becomes the model's input.
        batch_size: size of the global batch.
        seed: seed of the order (with the step) and of the crops (with epoch and record).
        start_step: first step, to resume a run.
        shard: (rank, count) of this process, which gets rows rank * B / count … of each global batch of size B.
        crop: the crop to cut from the encoded images, as decided by `place_augmentation`; None leaves it to the device.
        repeats: copies of each record in a batch, for repeated augmentation; see `repeated_indices`.
        workers: number of threads; 0 makes each batch when it is requested, None uses one thread per processor. It
            affects speed only.

    Raises:
        ValueError: no records, a batch size that is not divisible by the number of processes, or a crop for a split
            without encoded images. While iterating: a record that can no longer be read, by name.
    """
    rows = _rows(batch_size, shard)
    batch_indices(seed, start_step, batch_size, len(split))  # raises now rather than at the first batch
    if crop and encoded_reader(split) is None:
        raise ValueError("host crops need encoded images; this split has decoded ones")
    labels = np.asarray(split.labels, np.int32)
    images = None if crop else preprocessed(split, preprocess, workers)

    def gather(images: NDArray[np.uint8]) -> Generator[Batch]:
        for indices in train_indices(len(labels), batch_size, seed, start_step, shard, repeats):
            yield {"image": images[indices], "label": labels[indices], "weight": np.ones(len(indices), np.float32)}

    def planned() -> Iterator[tuple[Batch, list[DecodeTask]]]:
        step = start_step
        while True:
            drawn = repeated_indices(seed, step, batch_size, len(labels), repeats)
            indices, epochs, copies = (part[rows] for part in drawn)
            batch = _empty_batch(labels[indices], len(indices), preprocess)
            yield batch, _decode_tasks(split, preprocess, indices, batch["image"], crop, seed, (epochs, copies))
            step += 1

    return gather(images) if images is not None else prefetch(planned(), workers)


def train_indices(
    num_records: int, batch_size: int, seed: int, start_step: int = 0, shard: tuple[int, int] = (0, 1), repeats: int = 1
) -> Generator[NDArray[np.int64]]:
    """Yield the records of this process's rows of each batch of `train_batches`, from batch `start_step` on.

    Arguments as in `train_batches`; `num_records` is the number of records in the split.
    """
    rows = _rows(batch_size, shard)
    for step in itertools.count(start_step):
        yield repeated_indices(seed, step, batch_size, num_records, repeats)[0][rows]


def eval_batches(
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
    tta: str = "",
) -> Generator[Batch]:
    """Yield every record once, in order, in batches of full size; the last batch is padded with zeros of weight 0.

    Every process yields the same number of batches, even if some hold only padding.

    Args:
        split: the records.
        preprocess: how an image becomes the model's input.
        batch_size: size of the global batch.
        shard: (rank, count) of this process, as in `train_batches`.
        workers: number of threads, as in `train_batches`.
        tta: a name in VIEWS; the batch's "image" then holds V views of each record, uint8 [B, V, H, W, C].

    Raises:
        ValueError: no records, views that the preprocessing does not allow, or a batch size that is not divisible by
            the number of processes. While iterating: a record that can no longer be read, by name; none is skipped.
    """
    rows = _rows(batch_size, shard)
    if not len(split):
        raise ValueError("no records: the split to evaluate is empty")
    if tta:
        check_views(tta, preprocess)
    labels = np.asarray(split.labels, np.int32)
    images = None if tta else preprocessed(split, preprocess, workers)

    def planned() -> Iterator[tuple[Batch, list[DecodeTask]]]:
        for first in range(0, len(labels), batch_size):
            indices = np.arange(*(min(first + edge, len(labels)) for edge in (rows.start, rows.stop)))
            batch = _empty_batch(labels[indices], rows.stop - rows.start, preprocess, tta)
            if images is None:
                yield batch, _decode_tasks(split, preprocess, indices, batch["image"], tta=tta)
            else:
                batch["image"][: len(indices)] = images[indices]
                yield batch, []

    return prefetch(planned(), workers if images is None else 0)


def prefetch_to_device(batches: Generator[Batch], put: Callable[[Batch], Any] | None = None) -> Generator[Any]:
    """Transfer batches to the device, one ahead: the next transfer has started before a batch is yielded.

    Args:
        batches: batches on the host; closed when this generator is closed.
        put: starts the transfer of a batch without waiting for it; default `jax.device_put`.
    """
    import jax

    put = put or jax.device_put
    with contextlib.closing(batches):
        yield from lookahead(put(batch) for batch in batches)


# --- making batches ---------------------------------------------------------------------------------------------------


def _empty_batch(labels: NDArray[np.int32], size: int, preprocess: Preprocess, tta: str = "") -> Batch:
    """Return a batch of `size` rows with zero pixels: first one row per label, then padding of weight 0."""
    views = (VIEWS[tta].num_views,) if tta else ()
    shape = (size, *views, *preprocess.input_shape)
    label = np.zeros(size, np.int32)
    label[: len(labels)] = labels
    weight = (np.arange(size) < len(labels)).astype(np.float32)
    return {"image": np.zeros(shape, np.uint8), "label": label, "weight": weight}


def _decode_tasks(
    split: Split,
    preprocess: Preprocess,
    indices: NDArray[np.int64],
    out: NDArray[np.uint8],
    crop: Crop | ScaleCrop | None = None,
    seed: int = 0,
    occurrences: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    tta: str = "",
) -> list[DecodeTask]:
    """Return tasks that together write the images of these records into the first rows of `out`.

    `occurrences` holds the epoch and the number of the copy of each record, which decide its crop.
    """

    def preprocess_rows(start: int, stop: int) -> None:
        images = split.read(indices[start:stop])
        out[start:stop] = images_to_views(images, preprocess, tta) if tta else images_to_input(images, preprocess)

    def crop_rows(start: int, stop: int) -> None:
        assert read_encoded is not None and crop is not None and occurrences is not None
        epochs, copies = occurrences
        for row, data in zip(range(start, stop), read_encoded(indices[start:stop]), strict=True):
            record = int(indices[row])
            try:
                out[row] = read_crop(data, preprocess, seed, int(epochs[row]), record, crop, int(copies[row]))
            except ValueError as error:
                raise ValueError(f"{record_name(split, record)}{str(error).removeprefix('image')}") from None

    read_encoded = encoded_reader(split) if crop else None
    size = read_chunk(split)
    task = crop_rows if crop else preprocess_rows
    return [partial(task, start, min(start + size, len(indices))) for start in range(0, len(indices), size)]


def _rows(batch_size: int, shard: tuple[int, int]) -> slice:
    """Return the rows of the global batch that belong to process `rank` of `count`."""
    rank, count = shard
    if not 0 <= rank < count:
        raise ValueError(f"shard (rank, count) = {shard}: rank must be in 0..count-1")
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    if sizes := nearest_multiples(batch_size, count):
        raise ValueError(f"batch size {batch_size} is not divisible by {count} processes; use {sizes}")
    rows = batch_size // count
    return slice(rank * rows, (rank + 1) * rows)


def nearest_multiples(size: int, count: int) -> str:
    """Return the multiples of `count` nearest to `size`, as in "8 or 12", or "" if `size` is one itself."""
    if size % count == 0:
        return ""
    below = size // count * count
    return f"{below} or {below + count}" if below else f"{count}"


def preprocessed_bytes(split: Split, preprocess: Preprocess) -> int:
    """Return the bytes of all preprocessed images of a split."""
    return len(split) * math.prod(preprocess.input_shape)


_preprocessed_cache: weakref.WeakKeyDictionary[Any, tuple[Preprocess, NDArray[np.uint8]]] = weakref.WeakKeyDictionary()


def preprocessed(split: Split, preprocess: Preprocess, workers: int | None) -> NDArray[np.uint8] | None:
    """Return all images of a split preprocessed, or None if they take more than CACHE_BYTES.

    They are cached with the split, which is evaluated after every epoch.
    """
    if preprocessed_bytes(split, preprocess) > CACHE_BYTES:
        return None
    try:
        cached = _preprocessed_cache.get(split)
    except TypeError:  # a split that cannot be hashed or weakly referenced is preprocessed each time
        cached = None
    if cached is not None and cached[0] == preprocess:
        return cached[1]
    array = images_in_memory(split)
    if array is not None:
        images = images_to_input(array, preprocess)
    else:
        images = np.empty((len(split), *preprocess.input_shape), np.uint8)
        run_all(_decode_tasks(split, preprocess, np.arange(len(split)), images), workers, "decoding images")
    with contextlib.suppress(TypeError):
        _preprocessed_cache[split] = (preprocess, images)
    return images
