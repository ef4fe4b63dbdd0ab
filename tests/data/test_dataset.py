import numpy as np
import pytest
from helpers import assert_one_line, random_images, split_sizes
from photos import folder_of

from zoo.data import dataset as dataset_module
from zoo.data.dataset import (
    Note,
    all_splits,
    create_missing_splits,
    hold_out_mask,
    record_keys,
    with_classes,
)
from zoo.data.sources import ArraySplit, Dataset, from_arrays, open_dataset


@pytest.mark.parametrize("count", [1, 2, 10, 33, 80])
def test_hold_out_is_stratified_and_of_the_requested_size(count):
    images, labels = random_images(100, classes=4)
    labels[:30] = 0
    mask = hold_out_mask(record_keys(images), labels, count)
    sizes = np.bincount(labels)
    assert mask.sum() == max(count, 4)
    if count >= 4:
        assert np.abs(np.bincount(labels[mask], minlength=4) - sizes * count / 100).max() < 1


def test_hold_out_depends_on_content_only():
    images, labels = random_images(90)
    keys = record_keys(images)
    mask = hold_out_mask(keys, labels, 20)
    order = np.random.default_rng(1).permutation(90)
    assert np.array_equal(hold_out_mask([keys[i] for i in order], labels[order], 20), mask[order])
    assert np.array_equal(hold_out_mask(keys, labels + 7, 20), mask)


def test_identical_images_stay_on_one_side():
    images, labels = random_images(30)
    images, labels = np.concatenate([images] * 4), np.concatenate([labels, labels, labels, (labels + 1) % 3])
    keys = record_keys(images)
    mask = hold_out_mask(keys, labels, 24)
    assert mask.any() and not {k for k, m in zip(keys, mask, strict=True) if m} & {
        k for k, m in zip(keys, mask, strict=True) if not m
    }


def test_a_class_with_one_image_stays_in_training():
    images, _ = random_images(12)
    labels = np.array([0] * 6 + [1] * 5 + [2])
    mask = hold_out_mask(record_keys(images), labels, 3)
    assert not mask[11] and mask[:6].any() and mask[6:11].any()
    assert not hold_out_mask([b"same"] * 6, np.zeros(6, int), 3).any()


@pytest.mark.parametrize(
    "images",  # of each class
    [
        "ab bc",
        "abc abd",
        "ab ab",
        "aab abb",
        "bc b",
        "b bc",
        "ab bc cd",
        "abcd ab cd",
        "a a",
        "a ab b c",
        "abc ab bc d",
    ],
)
def test_images_in_several_classes_take_no_class_out_of_a_split(images):
    labels = np.array([k for k, members in enumerate(images.split()) for _ in members])
    keys = [image.encode() for members in images.split() for image in members]
    for count in range(1, len(keys)):
        mask = hold_out_mask(keys, labels, count)
        assert not {k for k, m in zip(keys, mask, strict=True) if m} & {
            k for k, m in zip(keys, mask, strict=True) if not m
        }
        for label, members in enumerate(images.split()):
            own = mask[labels == label]
            assert not own.all()  # train has every class
            assert own.any() or len(set(members)) == 1 or images == "a ab b c"  # a and b must stay in train


def test_missing_splits_are_held_out_of_train():
    alone = from_arrays(random_images(100))
    assert {name: len(split) for name, split in alone.splits.items()} == {"train": 70, "validation": 10, "test": 20}
    assert [(note.kind, note.split) for note in alone.notes] == [("held_out", "test"), ("held_out", "validation")]
    assert "20 of 100" in str(alone.notes[0]) and "10 of 100" in str(alone.notes[1])
    assert set.union(*map(as_set, alone.splits.values())) == {image.tobytes() for image in random_images(100)[0]}
    tested = from_arrays(random_images(100), test=random_images(30))
    assert {name: len(split) for name, split in tested.splits.items()} == {"train": 90, "validation": 10, "test": 30}
    chosen = from_arrays(random_images(100), validation=random_images(30))
    assert {name: len(split) for name, split in chosen.splits.items()} == {"train": 100, "validation": 30}


def test_the_hold_out_rule_is_pinned():
    """The published figures of data without splits belong to these numbers."""
    assert (dataset_module.TEST_FRACTION, dataset_module.VALIDATION_FRACTION) == (0.2, 0.1)
    assert dataset_module.MAX_VALIDATION == 5_000 and dataset_module.SPLITS == ("train", "validation", "test")


def test_at_most_5000_are_held_out_for_validation(monkeypatch):
    monkeypatch.setattr(dataset_module, "MAX_VALIDATION", 7)
    assert len(from_arrays(random_images(100), test=random_images(30)).splits["validation"]) == 7


def test_too_few_images_to_hold_out():
    with pytest.raises(ValueError, match="too little data"):
        from_arrays((np.full((2, 3, 3), 200, np.uint8) + np.arange(2, dtype=np.uint8)[:, None, None], [0, 1]))


def test_fingerprint_covers_train_and_validation_but_not_test():
    def made(**changed):
        parts = {"train": random_images(9), "validation": random_images(6), "test": random_images(12), **changed}
        return from_arrays(**parts).fingerprint()

    def touched(count, pixel=0, label=0):
        images, labels = random_images(count)
        images[0, 0, 0] ^= pixel
        labels = np.roll(labels, label)
        return images, labels

    assert made() == made(test=random_images(15)) == made(test=None)
    assert made() == made(test=touched(12, pixel=1, label=1))
    others = [
        made(train=touched(9, pixel=1)),
        made(train=touched(9, label=1)),
        made(validation=touched(6, pixel=1)),
        made(validation=touched(6, label=1)),
        made(class_names=["a", "b", "c"]),
        made(
            train=(random_images(9)[0].reshape(9, 5, 6), random_images(9)[1]),
            validation=(random_images(6)[0].reshape(6, 5, 6), random_images(6)[1]),
        ),
    ]
    assert len({made(), *others}) == len(others) + 1


def test_fingerprint_of_images_of_different_sizes():
    class Photos:
        labels = np.array([0, 1], np.int32)

        def __init__(self, *images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def read(self, indices):
            return [self.images[i] for i in indices]

    def made(*shapes):
        photos = Photos(*(np.zeros(shape, np.uint8) for shape in shapes))
        return Dataset("photos", {"train": photos}, ("a", "b")).fingerprint()

    assert made((2, 3, 1), (4, 4, 3)) == made((2, 3, 1), (4, 4, 3)) != made((3, 2, 1), (4, 4, 3))


def test_classes_are_matched_by_name():
    dataset = from_arrays(random_images(30), class_names=["a", "b", "c"])
    found = with_classes(dataset, ["c", "x", "a", "b"])
    for name, split in dataset.splits.items():
        assert found.splits[name].labels.tolist() == [[2, 3, 0][label] for label in split.labels]
        assert np.array_equal(found.splits[name].images, split.images)
    assert (
        found.class_names == ("c", "x", "a", "b")
        and found.notes[-1].kind == "classes"
        and "3 of the model's 4" in str(found.notes[-1])
    )
    assert with_classes(dataset, ("a", "b", "c")) is dataset
    with pytest.raises(ValueError) as caught:
        with_classes(dataset, ["a", "b", "z"])
    assert_one_line(caught, "arrays: ", " c ", "(it has a, b, z)")


@pytest.mark.parametrize("streamed", [False, True])
def test_all_splits_as_one(tmp_path, streamed):
    """Each record once, with its label."""
    if streamed:
        dataset = open_dataset(folder_of(tmp_path, {"a": 12, "b": 9}))
    else:
        images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
        dataset = from_arrays((images, np.arange(20) % 2), name="made")
    whole = all_splits(dataset)
    assert len(dataset.splits) == 3 and len(whole) == sum(map(len, dataset.splits.values()))
    at = 0
    for split in dataset.splits.values():
        for i in range(len(split)):
            np.testing.assert_array_equal(whole.read(np.array([at]))[0], split.read(np.array([i]))[0])
            assert whole.labels[at] == split.labels[i]
            at += 1


def as_set(split):
    return {image.tobytes() for image in split.read(np.arange(len(split)))}


def test_numbers_that_are_the_models_names_are_matched_by_name():
    """Only names that say nothing, "0", "1", …, stand for the model's classes in order."""
    images, labels = random_images(30)
    dataset = from_arrays((images, labels), class_names=["0", "1", "2"])
    matched = with_classes(dataset, ["2", "1", "0"])
    for name, split in dataset.splits.items():
        assert matched.splits[name].labels.tolist() == [2 - label for label in split.labels]
    assert matched.class_names == ("2", "1", "0")
    partly = from_arrays((images, labels), class_names=["0", "1", "2"])
    with pytest.raises(ValueError) as caught:
        with_classes(partly, ["0", "a", "b"])
    assert_one_line(caught, "arrays: ", "1, 2 (it has 0, a, b)")
    with pytest.raises(ValueError) as caught:  # other than the model's in number
        with_classes(partly, ["a", "b", "c", "d"])
    assert_one_line(caught, "0, 1, 2 (it has a, b, c, d)")
    numbered = with_classes(partly, ["a", "b", "c"])
    assert numbered.splits["train"] is partly.splits["train"] and numbered.class_names == ("a", "b", "c")


def test_long_lists_of_classes_are_cut_off_in_messages():
    images, labels = random_images(40, classes=8)
    dataset = from_arrays((images, labels), class_names=list("abcdefgh"))
    with pytest.raises(ValueError) as caught:
        with_classes(dataset, ["p", "q", "r", "s", "t"])
    assert_one_line(caught, "a, b, c, d, e and 3 more (it has p, q, r, s, t)")


def test_class_names_must_be_distinct():
    assert Dataset("mine", {}, ("a", "A")).num_classes == 2
    with pytest.raises(ValueError) as caught:
        Dataset("mine", {}, tuple("abcdaabbccdd"))
    assert_one_line(caught, "mine: ", "a, b, c;")


@pytest.mark.parametrize(
    "total, expected",
    [(30, {"train": 21, "validation": 3, "test": 6}), (24, {"train": 17, "validation": 2, "test": 5})],
)
def test_sizes_of_splits_are_rounded(total, expected):
    images, _ = random_images(total)
    dataset = from_arrays((images, np.arange(total) % 2))
    assert split_sizes(dataset) == expected and list(dataset.splits) == ["train", "validation", "test"]


def test_data_without_train_stays_as_it_is():
    splits = from_arrays(random_images(9), random_images(6), random_images(12)).splits
    for names in (["test"], ["validation"], ["validation", "test"], ["train", "validation"]):
        kept, notes = create_missing_splits({name: splits[name] for name in reversed(names)})
        assert list(kept) == names and notes == [] and all(kept[name] is splits[name] for name in names)


def test_the_largest_remainders_get_the_rest():
    """Of classes with 5, 3 and 2 records, half is 2.5, 1.5 and 1: the first two have the largest remainders."""
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    keys = [bytes([i]) for i in range(10)]
    assert np.bincount(labels[hold_out_mask(keys, labels, 5)]).tolist() == [3, 1, 1]
    assert np.flatnonzero(hold_out_mask(keys, labels, 5)).tolist() == [0, 1, 2, 5, 8]
    repeated = [b"x", b"x", b"x", b"y", b"z"]  # three copies are more than the two that are to be held out
    assert np.flatnonzero(hold_out_mask(repeated, np.zeros(5, int), 2)).tolist() == [3]
    assert np.flatnonzero(hold_out_mask([b"a", b"a", b"a", b"b"], np.zeros(4, int), 1)).tolist() == [0, 1, 2]


def test_notes_print_as_their_text():
    note = Note("held_out", "no test split: …", "test")
    assert str(note) == f"{note}" == "no test split: …" and note == Note("held_out", "no test split: …", "test")


@pytest.mark.parametrize(
    "classes, names, labels",
    [
        (("Cat", "Dog"), ("bird", "cat", "dog"), [1, 2]),
        (("cat ", "DOG"), ("dog", "cat"), [1, 0]),
        (("00", "01", "02"), ("0", "1", "2", "3"), [0, 1, 2]),
        (("cafe\u0301", "x"), ("x", "caf\u00e9"), [1, 0]),
        (("a", "B"), ("A", "B", "a"), [2, 1]),  # letters
    ],
)
def test_classes_of_a_model_in_another_spelling(classes, names, labels):
    split = ArraySplit(np.zeros((len(classes), 4, 4, 1), np.uint8), np.arange(len(classes), dtype=np.int32))
    dataset = with_classes(Dataset("mine", {"test": split}, classes), names)
    assert dataset.splits["test"].labels.tolist() == labels and dataset.class_names == names
    assert ("spelt differently" in dataset.notes[-1]) == (not set(classes) <= set(names))


@pytest.mark.parametrize(
    "classes, names", [(("A",), ("a", "b")), (("CAT",), ("cat", "Cat")), (("Cat", "CAT"), ("cat", "x"))]
)
def test_ambiguous_spellings_are_not_matched(classes, names):
    split = ArraySplit(np.zeros((len(classes), 4, 4, 1), np.uint8), np.arange(len(classes), dtype=np.int32))
    with pytest.raises(ValueError, match="classes not in the checkpoint"):
        with_classes(Dataset("mine", {"test": split}, classes), names)


def test_a_data_set_is_shown_without_its_pixels():
    dataset = from_arrays(random_images(40, classes=8), name="mine")
    assert repr(dataset) == "Dataset mine: 8 classes (0, 1, 2, 3, 4 and 3 more); train 24, validation 8, test 8"
    assert repr(dataset.splits["train"]) == "ArraySplit of 24 images of shape (6, 5, 1)"


def test_images_that_are_all_the_same_are_called_so():
    images, labels = random_images(12, classes=2)
    with pytest.raises(ValueError) as error:
        from_arrays((images[:1].repeat(12, 0), labels))
    assert_one_line(error, "all images are identical")
    with pytest.raises(ValueError) as error:  # a single picture of each class
        from_arrays((images[labels], labels))
    assert_one_line(error, "only 2 of 12 images are different")
