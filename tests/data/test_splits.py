"""A split of the user's own, with nothing but labels, a length and read, works wherever a built-in split does."""

import numpy as np
import pytest
from photos import encoded, folder_of, photo
from PIL import Image

import zoo
from zoo.data.augment.host_crop import Crop, place_augmentation
from zoo.data.dataset import Dataset, all_splits, create_missing_splits, limited, with_classes
from zoo.data.images.preprocess import Preprocess
from zoo.data.inspect import contact_sheet, survey
from zoo.data.loader import eval_batches, train_batches
from zoo.data.sources import ArraySplit, EncodedSplit, Split, from_arrays, open_dataset
from zoo.data.splits import (
    JoinedSplit,
    SubsetSplit,
    content_keys,
    encoded_reader,
    image_sizes,
    images_in_memory,
    join,
    read_chunk,
    record_name,
    relabel,
    subset,
    white_level,
    with_white,
)
from zoo.training.recipe import Recipe


class MySplit:
    """The least that a split can be. `labels` is a plain list, and `read` takes integers only."""

    def __init__(self, images, labels):
        self.pictures, self.labels = images, labels

    def __len__(self):
        return len(self.pictures)

    def read(self, indices):
        return [self.pictures[int(i)] for i in indices]


def images_of(count, size=(6, 5), classes=2, seed=0):
    """Random images with a bright stripe whose place shows the class, and their labels."""
    labels = np.arange(count, dtype=np.int32) % classes
    images = np.random.default_rng(seed).integers(0, 100, (count, *size, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label] = 255
    return images, labels


def my_dataset(counts, names=("a", "b"), **options):
    splits = {}
    for seed, (name, count) in enumerate(counts.items()):
        images, labels = images_of(count, seed=seed, classes=len(names), **options)
        splits[name] = MySplit(list(images), labels.tolist())
    return Dataset("mine", splits, names)


def same_records(split, images, labels):
    assert len(split) == len(images) and np.asarray(split.labels).tolist() == list(labels)
    read = split.read(np.arange(len(split)))
    assert len(read) == len(images)
    for actual, expected in zip(read, images, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_custom_split_is_a_split():
    assert isinstance(MySplit([], []), Split)
    split = MySplit(*images_of(3))
    assert record_name(split, 2) == "record 2" and read_chunk(split) == 1024
    assert encoded_reader(split) is None and image_sizes(split) is None and images_in_memory(split) is None


def test_limited_takes_evenly_spaced_records_of_each_split():
    dataset = my_dataset({"train": 11, "test": 3})
    few = limited(dataset, 5)
    images = dataset.splits["train"].pictures
    same_records(few.splits["train"], [images[i] for i in (0, 2, 5, 8, 10)], [0, 0, 1, 0, 0])
    assert few.splits["test"] is dataset.splits["test"]
    assert limited(few, 2).splits["train"].read([1])[0].tolist() == images[10].tolist()
    assert len(limited(dataset, 3).splits["test"]) == 3 and len(limited(dataset, 11).splits["train"]) == 11


def test_classes_are_matched_by_name_and_by_number():
    dataset = my_dataset({"train": 6})
    images = dataset.splits["train"].pictures
    matched = with_classes(dataset, ["b", "c", "a"])
    same_records(matched.splits["train"], images, [2, 0] * 3)
    assert matched.class_names == ("b", "c", "a") and matched.splits["train"].labels.dtype == np.int32
    same_records(with_classes(matched, ["a", "b", "c"]).splits["train"], images, [0, 1] * 3)
    numbered = my_dataset({"train": 6}, names=("0", "1"))
    same_records(with_classes(numbered, ["cat", "dog"]).splits["train"], images, [0, 1] * 3)


def test_all_splits_as_one():
    dataset = my_dataset({"train": 4, "validation": 2, "test": 3})
    whole = all_splits(dataset)
    images = [image for split in dataset.splits.values() for image in split.pictures]
    same_records(whole, images, [0, 1, 0, 1, 0, 1, 0, 1, 0])
    for wanted in ([8, 0, 5], [], [4, 4]):
        assert [image.tolist() for image in whole.read(wanted)] == [images[i].tolist() for i in wanted]
    assert [record_name(whole, i) for i in (0, 3, 4, 5, 6, 8)] == [f"record {i}" for i in (0, 3, 0, 1, 0, 2)]
    assert all_splits(my_dataset({"test": 3})).labels == [0, 1, 0]


def test_missing_splits_are_held_out_as_of_arrays():
    """The choice depends on content, so any form of the same images gives the same splits and fingerprint."""
    images, labels = images_of(40)
    arrays = from_arrays((images, labels), class_names=["a", "b"], name="mine")
    splits, notes = create_missing_splits({"train": MySplit(list(images), labels.tolist())})
    assert [(note.kind, note.split, str(note)) for note in notes] == [
        ("held_out", "test", "no test split: 8 of 40 records are held out of train by content"),
        ("held_out", "validation", "no validation split: 4 of 40 records are held out of train by content"),
    ]
    assert list(splits) == ["train", "validation", "test"]
    for name, split in splits.items():
        same_records(split, arrays.splits[name].images, arrays.splits[name].labels.tolist())
        assert content_keys(split) == content_keys(arrays.splits[name])
    again = Dataset("mine", create_missing_splits({"train": MySplit(images, labels)})[0], ("a", "b"))
    assert again.fingerprint() == Dataset("mine", splits, ("a", "b")).fingerprint() != arrays.fingerprint()


def test_fingerprint_depends_on_every_record_even_far_behind(monkeypatch):
    monkeypatch.setattr("zoo.data.splits.HASH_CHUNK", 3)
    dataset = my_dataset({"train": 8})
    prints = {dataset.fingerprint()}
    for record in range(8):
        images = [image.copy() for image in dataset.splits["train"].pictures]
        images[record][0, 0] ^= 1
        prints.add(
            Dataset("mine", {"train": MySplit(images, dataset.splits["train"].labels)}, ("a", "b")).fingerprint()
        )
    assert len(prints) == 9


@pytest.mark.parametrize("stream", [False, True])
def test_batches_of_training_and_evaluation(stream, monkeypatch):
    if stream:
        monkeypatch.setattr("zoo.data.loader.CACHE_BYTES", 0)
    images, labels = images_of(10)
    preprocess = Preprocess((6, 5), (6, 5), channels="L", mean=(0.0,), std=(1.0,))
    dataset = with_classes(
        limited(Dataset("mine", {"train": MySplit(list(images), labels)}, ("a", "b")), 9), ("b", "a")
    )
    expected = from_arrays((images, labels), validation=(images, labels), class_names=["a", "b"])
    expected = with_classes(limited(expected, 9), ("b", "a"))
    for make in (
        lambda split: next(train_batches(split, preprocess, batch_size=7, seed=3, workers=2)),
        lambda split: next(eval_batches(split, preprocess, batch_size=16)),
    ):
        actual, wanted = make(dataset.splits["train"]), make(expected.splits["train"])
        for key in wanted:
            np.testing.assert_array_equal(actual[key], wanted[key])
    with pytest.raises(ValueError, match="host crops need encoded images"):
        train_batches(dataset.splits["train"], preprocess, batch_size=2, seed=0, crop=Crop())


def test_fit_evaluate_and_survey(tmp_path):
    dataset = my_dataset({"train": 40, "validation": 10, "test": 12}, size=(6, 6))
    recipe = Recipe(optimizer="adam", learning_rate=0.01, batch_size=20, epochs=2)
    run = zoo.fit(
        "mlp", dataset, recipe, fields={"widths": (8,), "image_size": 6}, workdir=tmp_path, quiet=True, limit=30
    )
    arrays = Dataset(
        "mine",
        {name: ArraySplit(np.stack(s.pictures), np.array(s.labels, np.int32)) for name, s in dataset.splits.items()},
        ("a", "b"),
    )
    same_run = zoo.fit(
        "mlp", arrays, recipe, fields={"widths": (8,), "image_size": 6}, workdir=tmp_path / "b", quiet=True, limit=30
    )
    for split in ("test", "all"):
        result = zoo.evaluate(run, dataset, split)
        assert result == zoo.evaluate(same_run, arrays, split)
        assert result["examples"] == {"test": 12, "all": 62}[split]
    figures = survey.survey(dataset)
    assert figures["splits"] == {"train": 40, "validation": 10, "test": 12} and figures["sizes"] == {}
    assert figures["classes"] == {
        "a": {"train": 20, "validation": 5, "test": 6},
        "b": {"train": 20, "validation": 5, "test": 6},
    }
    contact_sheet.contact_sheet(dataset, tmp_path / "sheet.png")
    contact_sheet.augmented_sheet(dataset, run.card.preprocess, ["affine(shift=1)"], tmp_path / "augmented.png")
    assert (tmp_path / "sheet.png").exists() and (tmp_path / "augmented.png").exists()


# --- optional capabilities --------------------------------------------------------------------------------------------


def test_wrappers_pass_on_what_the_split_can_do(tmp_path):
    """A split with encoded files, but without subset and relabel, keeps names, keys, sizes and host crops."""
    inner = open_dataset(folder_of(tmp_path, {"train/a": 5, "train/b": 4, "test/a": 1})).splits["test"]

    class Encoded(MySplit):
        read_chunk = 3

        def name(self, index):
            return f"photo {index}"

        def content_keys(self):
            return [bytes([i]) for i in range(len(self))]

        def image_sizes(self):
            return np.array([[20, 30 + i] for i in range(len(self))], np.int32)

        def encoded_reader(self):
            return lambda indices: [encoded(self.pictures[int(i)]) for i in indices]

    pictures = [photo(20, 30 + i, seed=i) for i in range(6)]
    split = Encoded(pictures, np.arange(6, dtype=np.int32) % 2)
    odd = subset(split, split.labels == 1)
    for part in (odd, relabel(odd, np.zeros(3, np.int32)), subset(relabel(split, split.labels), split.labels == 1)):
        assert [record_name(part, i) for i in range(3)] == ["photo 1", "photo 3", "photo 5"]
        assert content_keys(part) == [b"\1", b"\3", b"\5"] and read_chunk(part) == 3
        assert image_sizes(part).tolist() == [[20, 31], [20, 33], [20, 35]]
        assert encoded_reader(part)([2, 0]) == [encoded(pictures[5]), encoded(pictures[1])]
        assert place_augmentation(part, Preprocess((8, 8), (8, 8)), ["resized_crop"]).host_crop == Crop()
    mixed = join([odd, inner])
    assert isinstance(mixed, JoinedSplit) and read_chunk(mixed) == 3
    assert record_name(mixed, 3) == inner.name(0) and content_keys(mixed)[3] == content_keys(inner)[0]


def test_built_in_splits_stay_of_their_kind(tmp_path):
    images, labels = images_of(6)
    arrays = ArraySplit(images, labels)
    part = subset(arrays, labels == 1)
    assert isinstance(part, ArraySplit) and isinstance(relabel(part, part.labels), ArraySplit)
    np.testing.assert_array_equal(images_in_memory(part), images[1::2])
    assert image_sizes(part).tolist() == [[6, 5]] * 3
    files = open_dataset(folder_of(tmp_path, {"a": 8, "b": 8})).splits
    train = files["train"]
    part = subset(train, np.arange(len(train)) % 2 == 1)
    assert isinstance(part, EncodedSplit) and content_keys(part) == train.keys[1::2]
    assert part.sizes.tolist() == train.sizes[1::2].tolist() and part.labels.tolist() == train.labels[1::2].tolist()
    assert [part.name(i) for i in range(len(part))] == [train.name(i) for i in range(1, len(train), 2)]
    whole = join(list(files.values()))
    assert isinstance(whole, EncodedSplit) and len(whole.sizes) == len(whole.keys) == len(whole) == 16
    assert isinstance(join([arrays, arrays]), ArraySplit)
    wide = ArraySplit(np.zeros((2, 3, 9, 1), np.uint8), np.zeros(2, np.int32))
    assert [image.shape for image in join([arrays, wide]).read([5, 6])] == [(6, 5, 1), (3, 9, 1)]
    assert image_sizes(join([arrays, wide])).tolist() == [[6, 5]] * 6 + [[3, 9]] * 2
    unknown = EncodedSplit(train.store, train.records, train.labels, train.keys)
    assert join([unknown, files["test"]]).sizes is None and image_sizes(subset(unknown, train.labels == 0)) is None


def test_the_value_of_white_survives_what_is_done_with_splits(tmp_path):
    """16-bit files of 12 bits, limited, matched by class and joined: 4095 becomes 255, and 2048 128 (127.53)."""
    for n in range(12):
        path = tmp_path / ("train" if n < 9 else "test") / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[0, 2048, 4095 - n]], np.uint16)).save(path)
    dataset = open_dataset(tmp_path)
    whole = all_splits(with_classes(limited(dataset, 5), ["b", "a"]))
    assert white_level(whole) == 4095 and {tuple(image.ravel()) for image in whole.read(np.arange(len(whole)))} <= {
        (0, 128, 254), (0, 128, 255)
    }  # fmt: skip
    assert white_level(subset(whole, whole.labels == 0)) == 4095
    (image,) = with_white(whole, 65535.0).read([0])
    assert image.ravel().tolist() == [0, 8, 16]
    shown = SubsetSplit(whole, np.arange(2), whole.labels[:2])
    assert white_level(shown) == 4095 and white_level(with_white(shown, 65535.0)) == 65535
    joined = JoinedSplit((whole, shown), np.concatenate([whole.labels, shown.labels]))
    assert with_white(joined, 65535.0).read([len(whole)])[0].ravel().tolist() == [0, 8, 16]
    arrays = ArraySplit(np.zeros((3, 2, 2, 1), np.uint8), np.arange(3), 1.0)
    assert white_level(join([arrays, arrays])) == white_level(subset(arrays, arrays.labels > 0)) == 1
    assert with_white(arrays, 4095.0) is arrays


def test_joined_splits_keep_what_all_of_them_know(tmp_path):
    """Splits that cannot be one array or one store: folds of them crop and scale as the splits do."""
    one, two = (
        open_dataset(folder_of(tmp_path / name, {"a": 8, "b": 8}, size=size)).splits["train"]
        for name, size in (("one", (40, 50)), ("two", (60, 40)))
    )
    joined = join([one, two])
    records = np.array([len(one), 1, len(one) + 3])
    assert isinstance(joined, JoinedSplit)
    assert encoded_reader(joined)(records) == [*two.encoded([0]), *one.encoded([1]), *two.encoded([3])]
    assert image_sizes(joined).tolist() == [[40, 50]] * len(one) + [[60, 40]] * len(two)
    part = subset(joined, np.arange(len(joined)) > 2)
    assert place_augmentation(part, Preprocess((32, 32), (32, 32)), ["resized_crop"]).host_crop == Crop()
    arrays = [ArraySplit(np.zeros((3, 2, width, 1), np.uint8), np.arange(3), 4095.0) for width in (2, 3)]
    assert white_level(join(arrays)) == white_level(subset(join(arrays), np.arange(6) > 2)) == 4095
    mixed = join([one, arrays[0]])
    assert encoded_reader(mixed) is None and image_sizes(mixed).tolist()[-1] == [2, 2]
    assert image_sizes(join([one, MySplit(*images_of(3))])) is None
