import itertools
import threading
import time
import tracemalloc

import numpy as np
import pytest
from photos import folder_of

from zoo.data import loader
from zoo.data.augment.host_crop import Crop, place_augmentation, read_crop
from zoo.data.images.preprocess import Preprocess, images_to_input
from zoo.data.images.tta import images_to_views
from zoo.data.loader import (
    batch_indices,
    eval_batches,
    nearest_multiples,
    prefetch_to_device,
    repeated_indices,
    train_batches,
)
from zoo.data.sources import ArraySplit, open_dataset

PLAIN = Preprocess((2, 3), (2, 3), channels="L", mean=(0.0,), std=(1.0,))


def numbered(count):
    """A split whose record i has i in every pixel and as its label."""
    labels = np.arange(count, dtype=np.int32)
    return ArraySplit(np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (count, 2, 3, 1)), labels)


class Slow:
    """The records of `numbered` as a list. `read` counts its calls and fails for the records in `bad`."""

    def __init__(self, count, bad=()):
        self.inner, self.bad, self.reads, self.threads = numbered(count), set(bad), 0, set()
        self.labels = self.inner.labels

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        self.reads += 1
        self.threads.add(threading.current_thread())
        if self.bad & set(np.asarray(indices).tolist()):
            raise ValueError("photo.jpg: truncated")
        return list(self.inner.read(indices))


@pytest.fixture
def streaming(monkeypatch):
    monkeypatch.setattr(loader, "CACHE_BYTES", 0)


def take(batches, count):
    got = list(itertools.islice(batches, count))
    batches.close()
    return got


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for key in ("image", "label", "weight"):
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10, 11, 25])
@pytest.mark.parametrize("num_records", [1, 2, 7, 10])
def test_every_epoch_holds_each_record_once(num_records, batch_size):
    epochs = 4
    steps = -(-epochs * num_records // batch_size)
    parts = [batch_indices(3, step, batch_size, num_records) for step in range(steps)]
    assert all(i.shape == e.shape == (batch_size,) and i.dtype == e.dtype == np.int64 for i, e in parts)
    indices, epoch = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert np.array_equal(epoch, np.arange(len(epoch)) // num_records)
    for number in range(epochs):
        assert sorted(indices[epoch == number]) == list(range(num_records))


def test_the_stream_does_not_depend_on_the_batch_size():
    def stream(batch_size):
        return np.concatenate([batch_indices(0, step, batch_size, 13)[0] for step in range(60 // batch_size)])

    for batch_size in (1, 2, 4, 15, 30):
        assert np.array_equal(stream(batch_size), stream(60))


def test_each_epoch_and_seed_has_its_own_order():
    orders = {tuple(batch_indices(seed, epoch, 50, 50)[0]) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_order_is_uniform():
    """Every record comes first about equally often; chi-square of 9 degrees of freedom below its 99.9 % quantile."""
    first = np.bincount([batch_indices(seed, 0, 1, 10)[0][0] for seed in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9


def test_order_is_pinned():
    """Runs are continued and repeated by this order; it may change with a new major version only."""
    assert batch_indices(0, 0, 10, 10)[0].tolist() == PINNED
    assert batch_indices(2**40, 2**33, 4, 1000)[0].tolist() == PINNED_FAR


PINNED = [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
PINNED_FAR = [659, 538, 39, 311]


@pytest.mark.parametrize("arguments", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)])
def test_invalid_positions(arguments):
    with pytest.raises(ValueError, match=r"must|no records"):
        batch_indices(*arguments)


def test_the_order_of_an_epoch_is_computed_once(monkeypatch):
    calls = []
    original = loader.np.argsort
    monkeypatch.setattr(loader.np, "argsort", lambda *a, **k: calls.append(1) or original(*a, **k))
    loader._permutation.cache_clear()
    for step in range(30):
        batch_indices(0, step, 7, 70)
    assert len(calls) == 3


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23])
@pytest.mark.parametrize("start", [0, 1, 2, 9])
def test_training_resumes_at_any_step(start, batch_size):
    split = numbered(10)
    whole = take(train_batches(split, PLAIN, batch_size=batch_size, seed=1), 14)
    same(take(train_batches(split, PLAIN, batch_size=batch_size, seed=1, start_step=start), 14 - start), whole[start:])


def test_a_batch_has_the_records_of_its_indices():
    split = numbered(10)
    for step, batch in enumerate(take(train_batches(split, PLAIN, batch_size=4, seed=5), 8)):
        indices, _ = batch_indices(5, step, 4, 10)
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (4, 2, 3, 1)
        assert batch["label"].dtype == np.int32 and batch["weight"].dtype == np.float32
        np.testing.assert_array_equal(batch["label"], indices)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], indices)
        assert (batch["weight"] == 1).all()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_shards_are_the_rows_of_the_global_batch(count):
    split = numbered(10)
    whole = take(train_batches(split, PLAIN, batch_size=6, seed=1), 5)
    parts = [take(train_batches(split, PLAIN, batch_size=6, seed=1, shard=(r, count)), 5) for r in range(count)]
    joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    same(joined, whole)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_streaming_gives_the_same_batches(start, shard, streaming, monkeypatch):
    slow = take(train_batches(Slow(10), PLAIN, batch_size=4, seed=1, start_step=start, shard=shard), 8)
    read = take(train_batches(numbered(10), PLAIN, batch_size=4, seed=1, start_step=start, shard=shard), 8)
    monkeypatch.undo()
    kept = take(train_batches(numbered(10), PLAIN, batch_size=4, seed=1, start_step=start, shard=shard), 8)
    same(slow, kept)
    same(read, kept)


def test_images_are_preprocessed():
    split = numbered(6)
    wide = Preprocess((4, 4), (4, 4), channels="RGB", mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = next(train_batches(split, wide, batch_size=6, seed=0))
    np.testing.assert_array_equal(batch["image"], images_to_input(split.images[batch["label"]], wide))


def test_a_small_split_is_preprocessed_once(monkeypatch):
    split = Slow(10)
    take(train_batches(split, PLAIN, batch_size=5, seed=0), 20)
    take(eval_batches(split, PLAIN, batch_size=5), 2)
    assert split.reads == 1
    take(eval_batches(split, Preprocess((4, 4), (4, 4), channels="L", mean=(0.0,), std=(1.0,)), batch_size=5), 2)
    assert split.reads == 2


def test_an_unhashable_split():
    class Unhashable(Slow):
        __hash__ = None

    assert len(take(train_batches(Unhashable(4), PLAIN, batch_size=2, seed=0), 3)) == 3


def test_arguments_are_checked_before_the_first_batch():
    with pytest.raises(ValueError, match="no records"):
        train_batches(numbered(0), PLAIN, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="no records"):
        eval_batches(numbered(0), PLAIN, batch_size=2)
    for make in (
        lambda **k: train_batches(numbered(9), PLAIN, seed=0, **k),
        lambda **k: eval_batches(numbered(9), PLAIN, **k),
    ):
        with pytest.raises(ValueError, match="8 or 12"):
            make(batch_size=10, shard=(0, 4))
        with pytest.raises(ValueError, match=r"size 3 .* 4 processes; use 4$"):
            make(batch_size=3, shard=(0, 4))
        with pytest.raises(ValueError, match="rank"):
            make(batch_size=4, shard=(4, 4))
        with pytest.raises(ValueError, match="at least 1"):
            make(batch_size=0)


# --- the threads that read ahead -------------------------------------------------------------------------------------


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("zoo-loader")]


def test_threads_start_with_the_first_batch_and_end_with_close(streaming):
    split = Slow(10)
    batches = train_batches(split, PLAIN, batch_size=2, seed=0)
    assert not readers()
    next(batches)
    assert readers() and split.threads <= set(readers())
    batches.close()
    assert not readers()


def test_threads_work_only_a_few_batches_ahead(streaming):
    split = Slow(10)
    batches = train_batches(split, PLAIN, batch_size=2, seed=0, workers=1)
    next(batches)
    deadline = time.monotonic() + 5
    while split.reads < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert split.reads == 3  # one taken, two ready
    batches.close()


def test_errors_of_threads_reach_the_consumer(streaming):
    bad = batch_indices(0, 3, 2, 10)[0].tolist()  # fails by record, not by call, so that no other thread can be first
    batches = train_batches(Slow(10, bad), PLAIN, batch_size=2, seed=0)
    for _ in range(3):
        next(batches)
    with pytest.raises(ValueError, match="truncated"):
        next(batches)
    assert not readers()
    with pytest.raises(ValueError, match="truncated"):
        list(eval_batches(Slow(10, bad=[0]), PLAIN, batch_size=2))


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 6])
@pytest.mark.parametrize("stream", [False, True])
def test_every_record_counts_once_at_every_batch_size(count, stream, monkeypatch):
    if stream:
        monkeypatch.setattr(loader, "CACHE_BYTES", 0)
    split = Slow(count)
    for batch_size in range(1, count + 4):
        for shards in (s for s in (1, 2, 3) if batch_size % s == 0):
            parts = [list(eval_batches(split, PLAIN, batch_size=batch_size, shard=(r, shards))) for r in range(shards)]
            assert {len(part) for part in parts} == {-(-count // batch_size)}
            seen = []
            for step in zip(*parts, strict=True):
                for batch in step:
                    assert batch["image"].shape == (batch_size // shards, 2, 3, 1)
                    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
                    assert batch["weight"].dtype == np.float32
                    real = batch["weight"] == 1
                    np.testing.assert_array_equal(batch["image"][real][:, 0, 0, 0], batch["label"][real])
                    assert not batch["image"][~real].any() and not batch["label"][~real].any()
                    assert not batch["weight"][~real].any()
                    seen += batch["label"][real].tolist()
            assert seen == list(range(count))


# --- encoded images, larger than what the model sees ------------------------------------------------------------------

SEEN = Preprocess((16, 20), (16, 20))
CROPPED = ("resized_crop", "flip")
LAYOUT = {"train/a": 6, "train/b": 7, "test/a": 5, "test/b": 4}  # one of train is held out for validation


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return folder_of(
        tmp_path_factory.mktemp("photographs"), {"train/a": 6, "train/b": 7, "test/a": 5, "test/b": 4}, suffix="jpg"
    )


@pytest.mark.parametrize("crop", [None, Crop()])
def test_batches_do_not_depend_on_the_number_of_workers(photographs, crop, streaming):
    split = open_dataset(photographs).splits["train"]
    given = {"batch_size": 4, "seed": 3, "crop": crop}
    whole = take(train_batches(split, SEEN, workers=0, **given), 12)
    for workers in (0, 1, 4):
        for start in (0, 2, 5):  # 12 records are an epoch of three batches
            same(
                take(train_batches(split, SEEN, workers=workers, start_step=start, **given), 12 - start), whole[start:]
            )
    halves = [take(train_batches(split, SEEN, workers=2, shard=(rank, 2), **given), 12) for rank in (0, 1)]
    same([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves, strict=True)], whole)


def test_crops_are_cut_from_the_files_by_epoch_and_seed(photographs):
    split = open_dataset(photographs).splits["train"]
    count = len(split)

    def first(seed, epoch):
        """The images of an epoch by record."""
        order = batch_indices(seed, epoch, count, count)[0]
        (batch,) = take(train_batches(split, SEEN, batch_size=count, seed=seed, start_step=epoch, crop=Crop()), 1)
        for record, image in zip(order.tolist(), batch["image"], strict=True):
            crop = read_crop(split.encoded([record])[0], SEEN, seed, epoch, record, Crop())
            np.testing.assert_array_equal(image, crop)
        return batch["image"][np.argsort(order)]

    images = [first(0, 0), first(0, 1), first(1, 0)]
    for one, other in itertools.combinations(images, 2):
        assert (one != other).any(axis=(1, 2, 3)).all()


def test_images_of_the_models_size_are_cropped_on_the_device(tmp_path):
    split = open_dataset(
        folder_of(tmp_path, {"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 2}, size=(16, 20))
    ).splits["train"]
    (plain,) = take(train_batches(split, SEEN, batch_size=10, seed=0), 1)
    same(
        take(
            train_batches(split, SEEN, batch_size=10, seed=0, crop=place_augmentation(split, SEEN, CROPPED).host_crop),
            1,
        ),
        [plain],
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_of_files_is_exact_at_every_batch_size(photographs, stream, workers, monkeypatch):
    if stream:
        monkeypatch.setattr(loader, "CACHE_BYTES", 0)
    split = open_dataset(photographs).splits["test"]
    images = images_to_input(split.read(np.arange(len(split))), SEEN)
    for batch_size in (1, 2, 4, 9, 16):
        for shards in (s for s in (1, 2) if batch_size % s == 0):
            parts = [
                eval_batches(split, SEEN, batch_size=batch_size, shard=(r, shards), workers=workers)
                for r in range(shards)
            ]
            rows = [part for step in zip(*parts, strict=True) for part in step]
            real = np.concatenate([part["weight"] for part in rows]) == 1
            np.testing.assert_array_equal(np.concatenate([part["image"] for part in rows])[real], images)
            np.testing.assert_array_equal(np.concatenate([part["label"] for part in rows])[real], split.labels)


def test_evaluation_views(photographs):
    split = open_dataset(photographs).splits["test"]
    views = images_to_views(split.read(np.arange(len(split))), SEEN, "ten-crop")
    for batch_size, workers in ((1, 0), (4, 3), (9, 1)):
        parts = list(eval_batches(split, SEEN, batch_size=batch_size, workers=workers, tta="ten-crop"))
        assert all(part["image"].shape == (batch_size, 10, 16, 20, 3) for part in parts)
        real = np.concatenate([part["weight"] for part in parts]) == 1
        np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts])[real], views)
    drawn = Preprocess((2, 3), (2, 3), channels="L", polarity="light-on-dark", mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match="'flip'"):
        eval_batches(numbered(3), drawn, batch_size=2, tta="flip")


@pytest.mark.parametrize("crop", [None, Crop()])
def test_a_file_damaged_after_the_scan_raises_with_its_name(tmp_path, crop, streaming):
    folder_of(tmp_path, LAYOUT, suffix="jpg")
    dataset = open_dataset(tmp_path)
    for part in ("train", "test"):
        path = tmp_path / part / "a" / "1.jpg"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"train.a.1\.jpg: damaged"):
        take(train_batches(dataset.splits["train"], SEEN, batch_size=4, seed=0, crop=crop), 6)
    with pytest.raises(ValueError, match=r"test.a.1\.jpg: damaged"):
        list(eval_batches(dataset.splits["test"], SEEN, batch_size=4))
    assert not readers()


def test_memory_does_not_grow_over_epochs(photographs, streaming):
    """What thirty further epochs leave behind is less than a few of their sixty batches."""
    split = open_dataset(photographs).splits["train"]
    batches = train_batches(split, SEEN, batch_size=6, seed=0, crop=Crop(), workers=2)
    tracemalloc.start()
    try:
        for _ in range(10):
            next(batches)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(30 * len(split) // 6):
            next(batches)
        assert tracemalloc.get_traced_memory()[0] - before < 10 * 6 * 16 * 20 * 3
    finally:
        tracemalloc.stop()
        batches.close()


def test_prefetch_to_device_is_one_batch_ahead():
    split, asked = numbered(10), []
    plain = take(train_batches(split, PLAIN, batch_size=4, seed=5), 4)
    there = prefetch_to_device(
        train_batches(split, PLAIN, batch_size=4, seed=5), lambda batch: asked.append(1) or batch
    )
    assert next(there)["label"].tolist() == plain[0]["label"].tolist() and len(asked) == 2
    same([plain[0], *take(there, 3)], plain)
    kept = list(prefetch_to_device(eval_batches(split, PLAIN, batch_size=4)))
    assert sum(float(batch["weight"].sum()) for batch in kept) == 10


@pytest.mark.parametrize("extra, cached", [(0, True), (-1, False)])
def test_a_split_is_cached_up_to_a_number_of_bytes(extra, cached, monkeypatch):
    """Ten images of 2 x 3 in grey are 60 bytes, and 180 in RGB."""
    wide = Preprocess((2, 3), (2, 3), channels="RGB", mean=(0.0,) * 3, std=(1.0,) * 3)
    for preprocess, size in ((PLAIN, 60), (wide, 180)):
        monkeypatch.setattr(loader, "CACHE_BYTES", size + extra)
        split = Slow(10)
        take(train_batches(split, preprocess, batch_size=10, seed=0, workers=0), 3)
        assert split.reads == (1 if cached else 3)


def test_the_cache_size_is_pinned():
    assert loader.CACHE_BYTES == 2**31


def test_the_last_batch_is_padded_with_zeros_for_every_process():
    parts = [list(eval_batches(numbered(3), PLAIN, batch_size=8, shard=(rank, 2))) for rank in (0, 1)]
    assert [len(part) for part in parts] == [1, 1]
    assert parts[0][0]["weight"].tolist() == [1, 1, 1, 0] and parts[1][0]["weight"].tolist() == [0, 0, 0, 0]
    assert parts[0][0]["label"].tolist() == [0, 1, 2, 0] and not parts[1][0]["image"].any()


@pytest.mark.parametrize(
    "size, count, expected", [(8, 4, ""), (10, 4, "8 or 12"), (3, 4, "4"), (5, 4, "4 or 8"), (0, 4, ""), (7, 1, "")]
)
def test_nearest_multiples(size, count, expected):
    assert nearest_multiples(size, count) == expected


@pytest.mark.parametrize("shard", [(-1, 2), (2, 2), (1, 1), (0, 0)])
def test_ranks_are_checked(shard):
    with pytest.raises(ValueError, match=r"shard \(rank, count\)"):
        train_batches(numbered(4), PLAIN, batch_size=4, seed=0, shard=shard)


def test_large_splits_are_read_in_chunks(streaming):
    """Images in memory are preprocessed 1,024 at a time, encoded ones a few at a time per thread."""
    sizes = []

    class Recording(Slow):
        def read(self, indices):
            sizes.append(len(indices))
            return super().read(indices)

    take(train_batches(Recording(1500), PLAIN, batch_size=1030, seed=0, workers=0), 1)
    assert sizes == [1024, 6]
    sizes.clear()
    Recording.read_chunk = 400
    take(eval_batches(Recording(1500), PLAIN, batch_size=1030, workers=0), 1)
    assert sizes == [400, 400, 230]


def test_a_cached_split_belongs_to_one_preprocessing():
    split = numbered(6)
    other = Preprocess((4, 6), (4, 6), channels="L", mean=(0.0,), std=(1.0,))
    for preprocess in (PLAIN, other, PLAIN):
        assert next(eval_batches(split, preprocess, batch_size=2))["image"].shape == (2, *preprocess.size, 1)


def test_host_crops_use_the_record_and_its_epoch(photographs, streaming):
    """A batch across the end of an epoch: each image has the crop of its own epoch."""
    split = open_dataset(photographs).splits["train"]
    count = len(split)
    (batch,) = take(train_batches(split, SEEN, batch_size=count + 4, seed=5, crop=Crop(), workers=2), 1)
    indices, epochs = batch_indices(5, 0, count + 4, count)
    assert set(epochs.tolist()) == {0, 1}
    for row, (record, epoch) in enumerate(zip(indices.tolist(), epochs.tolist(), strict=True)):
        crop = read_crop(split.encoded([record])[0], SEEN, 5, epoch, record, Crop())
        np.testing.assert_array_equal(batch["image"][row], crop)


# --- repeated augmentation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_records", "batch_size", "repeats"), [(12, 6, 3), (10, 8, 2), (7, 5, 4), (5, 16, 3)])
def test_an_epoch_of_repeated_augmentation(num_records, batch_size, repeats):
    """As many examples as ever, of the first records of the epoch's order, each with copies 0, 1, ..."""
    epochs = 3
    steps = -(-epochs * num_records // batch_size)
    parts = [repeated_indices(3, step, batch_size, num_records, repeats) for step in range(steps)]
    records, epoch, copies = (np.concatenate(part) for part in zip(*parts, strict=True))
    for number in range(epochs - 1):
        order = batch_indices(3, 0, num_records, num_records)[0]
        if number:
            order = np.concatenate([batch_indices(3, step, 1, num_records)[0] for step in
                                    range(number * num_records, (number + 1) * num_records)])  # fmt: skip
        expected = sorted((order[place // repeats], place % repeats) for place in range(num_records))
        mine = epoch == number
        assert sorted(zip(records[mine].tolist(), copies[mine].tolist(), strict=True)) == expected


def test_neighbours_in_a_batch_of_copies_are_different_images():
    records, _, copies = repeated_indices(0, 0, 24, 1000, 3)
    assert copies.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert records[:8].tolist() == records[8:16].tolist() == records[16:].tolist() and len(set(records)) == 8
    assert all(a != b for a, b in itertools.pairwise(records))


def test_without_repeats_the_batches_are_the_same():
    for step in range(4):
        indices, epochs, copies = repeated_indices(1, step, 7, 10, 1)
        assert np.array_equal((indices, epochs), batch_indices(1, step, 7, 10)) and not copies.any()
    same(take(train_batches(numbered(9), PLAIN, batch_size=4, seed=0), 3),
         take(train_batches(numbered(9), PLAIN, batch_size=4, seed=0, repeats=1), 3))  # fmt: skip


def test_repeated_batches_in_memory_and_streamed(monkeypatch):
    def batches(split):
        return take(train_batches(split, PLAIN, batch_size=6, seed=2, repeats=2), 3)

    in_memory = batches(numbered(9))
    monkeypatch.setattr(loader, "CACHE_BYTES", 0)
    same(in_memory, batches(numbered(9)))
    assert in_memory[0]["label"].tolist() == in_memory[0]["image"][:, 0, 0, 0].tolist()
    assert in_memory[0]["label"][:3].tolist() == in_memory[0]["label"][3:].tolist()


def test_host_crops_of_copies_differ(tmp_path):
    split = open_dataset(folder_of(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1})).splits["train"]
    preprocess = Preprocess((16, 16), (16, 16))
    (batch,) = take(train_batches(split, preprocess, batch_size=4, seed=0, crop=Crop(), repeats=2), 1)
    assert batch["label"][:2].tolist() == batch["label"][2:].tolist()
    assert (batch["image"][:2] != batch["image"][2:]).any((1, 2, 3)).all()
