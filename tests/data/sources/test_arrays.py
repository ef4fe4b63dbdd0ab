import numpy as np
import pytest
from helpers import assert_one_line, random_images

from zoo.data.images.decode import decode_images
from zoo.data.sources import from_arrays
from zoo.data.sources.arrays import dataset_from_pairs, evaluation_split


def test_all_three_splits():
    dataset = from_arrays(random_images(9), random_images(6), random_images(12), name="mine")
    assert list(dataset.splits) == ["train", "validation", "test"] and dataset.name == "mine" and not dataset.notes
    for name, count in (("train", 9), ("validation", 6), ("test", 12)):
        np.testing.assert_array_equal(dataset.splits[name].images[..., 0], random_images(count)[0])
        np.testing.assert_array_equal(dataset.splits[name].labels, random_images(count)[1])
    assert dataset.class_names == ("0", "1", "2") and dataset.num_classes == 3


SHAPES = {
    "grey": (lambda x: x[..., 0], 1),
    "grey channel": (lambda x: x[..., :1], 1),
    "rgb": (lambda x: x[..., :3], 3),
    "channels first": (lambda x: x[..., :3].transpose(0, 3, 1, 2), 3),
    "grey channel first": (lambda x: x[..., :1].transpose(0, 3, 1, 2), 1),
}


VALUES = {
    "uint8": lambda x: x,
    "int64": lambda x: x.astype(np.int64),
    "float 0..255": lambda x: x.astype(np.float32),
    "float 0..1": lambda x: x / 255,
    "half 0..1": lambda x: (x / 255).astype(np.float16),
    "uint16": lambda x: x.astype(np.uint16),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("values", VALUES)
def test_image_layouts_and_types(shape, values):
    x, y = random_images(12, 6, 5, 3)
    change, channels = SHAPES[shape]
    given = VALUES[values](change(x))
    split = from_arrays((given, y), validation=(given, y)).splits["train"]
    assert split.images.dtype == np.uint8 and split.images.shape == (12, 6, 5, channels)
    np.testing.assert_array_equal(split.images, x[..., :channels])


def test_two_valued_images_become_black_and_white():
    x, y = random_images(12)
    for given in (x > 127, (x > 127).astype(np.uint8), (x > 127).astype(float)):
        dataset = from_arrays((given, y), validation=(given, y))
        np.testing.assert_array_equal(dataset.splits["train"].images[..., 0], (x > 127) * np.uint8(255))
    dim = from_arrays((x // 16, y), validation=(x // 16, y))
    np.testing.assert_array_equal(dim.splits["train"].images[..., 0], x // 16)
    assert "15 of 255" in str(dim.notes[0]) and dim.notes[0].kind == "images" and dim.notes[0].split == "train"


def test_rgba_is_composited():
    x, y = random_images(12, 6, 5, 4)
    x[..., 3] = 255
    x[:, 0, 0, 3] = 0
    dataset = from_arrays((x, y), validation=(x, y))
    assert [str(note) for note in dataset.notes if note.kind == "images"] == [
        f"{split} images: transparency is composited over white" for split in ("train", "validation")
    ]
    images = dataset.splits["train"].images
    np.testing.assert_array_equal(images[:, 1:], x[:, 1:, :, :3])
    assert np.isin(images[:, 0, 0], (0, 255)).all()


LABELS = {
    "int8": lambda y: y.astype(np.int8),
    "uint64": lambda y: y.astype(np.uint64),
    "column": lambda y: y[:, None],
    "one-hot": lambda y: np.eye(3)[y],
    "one-hot bool": lambda y: np.eye(3, dtype=bool)[y],
    "float": lambda y: y.astype(float),
    "list": lambda y: y.tolist(),
}


@pytest.mark.parametrize("form", LABELS)
def test_label_layouts_and_types(form):
    x, y = random_images(12)
    dataset = from_arrays((x, LABELS[form](y)), validation=(x, LABELS[form](y)))
    np.testing.assert_array_equal(dataset.splits["train"].labels, y)
    assert dataset.splits["train"].labels.dtype == np.int32 and dataset.class_names == ("0", "1", "2")
    shape = np.shape(LABELS[form](y))
    is_one_hot = len(shape) == 2 and shape[1] > 1
    assert ["one-hot rows of 3" in note for note in dataset.notes] == [True, True] * is_one_hot


def test_channels_first_and_scaled_floats_are_noted():
    x, y = random_images(12, 3, 8, 7)
    dataset = from_arrays((x, y), validation=(np.moveaxis(x, 1, 3), y))
    assert dataset.splits["train"].images.shape == (12, 8, 7, 3)
    (note,) = dataset.notes
    assert note.split == "train" and "(12, 3, 8, 7)" in note and "[N, channels, height, width]" in note
    notes = from_arrays((x[:, 0] / 255, y), validation=(x[:, 0] / 255, y)).notes
    assert [str(note) for note in notes] == [
        f"{k} images: floats in 0..1, scaled to 0..255" for k in ("train", "validation")
    ]
    assert [note.split for note in evaluation_split((x, np.eye(3)[y]), "012", None).notes] == ["test", "test"]


@pytest.mark.parametrize(
    "values", [[1, 2, 3], [-1, 0, 1], [0, 10, 700], ["ape", "bee", "cow"], [b"ape", b"bee", b"cow"], [5, 50, 500]]
)
def test_other_labels_are_numbered_in_sorted_order_with_a_note(values):
    x, y = random_images(12)
    labels = np.array(values)[2 - y]
    dataset = from_arrays((x, labels), validation=(x, labels))
    np.testing.assert_array_equal(dataset.splits["train"].labels, 2 - y)
    assert dataset.class_names == tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values)
    assert dataset.notes[0].kind == "classes" and f"{dataset.class_names[2]} -> 2" in str(dataset.notes[0])


def test_class_names():
    x, y = random_images(12)
    named = from_arrays((x, y), validation=(x, y), class_names=["ape", "bee", "cow", "dog"])
    assert named.class_names == ("ape", "bee", "cow", "dog") and not named.notes
    words = np.array(["dog", "ape", "cow"])[y]
    by_name = from_arrays((x, words), validation=(x, words), class_names=["ape", "bee", "cow", "dog"])
    np.testing.assert_array_equal(by_name.splits["train"].labels, np.array([3, 0, 2])[y])
    mixed = from_arrays((x, words), validation=(x, words), class_names=["dog", "ape", "cow"])
    assert [str(note) for note in mixed.notes] == [
        "labels numbered as class_names lists them: dog -> 0, ape -> 1, cow -> 2"
    ]


def test_labels_of_dtype_object():
    x, y = random_images(12)
    words = np.array(["a", "b", "c"], object)[y]
    assert from_arrays((x, words), validation=(x, words)).class_names == ("a", "b", "c")


X, Y = random_images(12)


WRONG = {
    "lengths": ((X, Y[:-1]), "12 images but 11 labels"),
    "not a pair": (X, "pair"),
    "flattened": ((X.reshape(12, 30), Y), "reshape"),
    "5 dimensions": ((X[None, None], Y), "shape"),
    "channels": ((random_images(12, 6, 5, 2)[0], Y), "(12, 6, 5, 2)"),
    "ambiguous": ((random_images(12, 3, 5, 3)[0], Y), "(12, 3, 5, 3)"),
    "empty": ((X[:0], Y[:0]), "empty"),
    "nan": ((np.where(X > 250, np.nan, X), Y), "NaN or infinity"),
    "inf": ((np.where(X > 250, np.inf, X), Y), "NaN or infinity"),
    "range -1..1": ((X / 127.5 - 1, Y), "range from -1 to"),
    "range 0..16": ((X / 16.0, Y), "range from 0 to 15"),
    "range 0..300": ((X / 0.85, Y), "range from 0 to 29"),
    "9 bits": ((X.astype(int) * 2, Y), "range from 0 to 5"),
    "text": ((X.astype(str), Y), "numbers"),
    "ragged": ((np.array([np.zeros((2, 2)), np.zeros((3, 2))] * 6, object), Y), "one size"),
    "single class": ((X, Y * 0), "at least two classes"),
    "fractions": ((X, Y + 0.5), "fractions"),
    "nan labels": ((X, np.full(12, np.nan)), "NaN"),
    "several classes": ((X, np.ones((12, 3))), "one-hot"),
    "labels of two dimensions": ((X, np.arange(24).reshape(12, 2)), "one-hot"),
    "labels of no columns": ((X, np.zeros((12, 0), int)), "empty"),
    "labels of three dimensions": ((X, Y[:, None, None] + np.zeros((1, 2, 2), int)), "one-hot"),
    "labels of a strange type": ((X, Y.astype(complex)), "integers or strings"),
    "ragged images": (([np.zeros((2, 2)), np.zeros((3, 2))] * 6, Y), "one"),
    "dates for images": ((np.zeros((12, 4, 4), "datetime64[s]"), Y), "datetime64"),
    "objects for images": ((np.full((12, 4, 4), None), Y), "objects"),
}


@pytest.mark.parametrize("what", WRONG)
def test_invalid_arrays(what):
    pair, expected = WRONG[what]
    with pytest.raises(ValueError, match=r"^mine: (train|the train)") as caught:
        from_arrays(pair, validation=(X, Y), name="mine")
    assert_one_line(caught, expected)


def test_splits_must_be_consistent():
    with pytest.raises(ValueError, match="channels"):
        from_arrays((X, Y), validation=random_images(12, 6, 5, 3))
    with pytest.raises(ValueError, match=r"train 0..255, test 0..1"):
        from_arrays((X, Y), test=(X / 255, Y))
    with pytest.raises(ValueError, match=r"test labels 7, 8 are not among the classes \(those of train\)"):
        from_arrays((X, Y), test=(X, np.where(Y == 2, Y, Y + 7)))
    with pytest.raises(ValueError, match=r"train labels 2 are not among the classes \(0..1\)"):
        from_arrays((X, Y), class_names=["a", "b"])
    with pytest.raises(ValueError, match="another type"):
        from_arrays((X, Y), test=(X, Y.astype(str)))
    with pytest.raises(ValueError, match="class_names"):
        from_arrays((X, Y), class_names=["a", "b", "a"])


@pytest.mark.parametrize(
    "values, expected, note",
    [
        ([0, 255], [0, 255], ""),
        ([0, 128], [0, 128], ""),  # wider types: from 128 on, values are taken to be 0..255
        ([0.0, 255.0], [0, 255], ""),
        ([0.0, 1.0], [0, 255], "floats in 0..1"),
        ([0.0, 0.5], [0, 128], "floats in 0..1"),
        ([0, 1], [0, 255], "two-valued"),
        ([False, True], [0, 255], "two-valued"),
    ],
)
def test_ranges_of_pixel_values(values, expected, note):
    x = np.array(values * 6)[:, None, None] * np.ones((1, 2, 2), np.array(values).dtype)
    dataset = from_arrays((x, Y), validation=(x, Y))
    assert dataset.splits["train"].images[:2, 0, 0, 0].tolist() == expected
    assert note in " ".join(map(str, dataset.notes)) and bool(dataset.notes) == bool(note)


@pytest.mark.parametrize(
    "values", [[0, 127], [0, 256], [-1, 200], [0, 2], [0.0, 1.5], [-0.06, 1.0], [0.0, 1.06], [0.0, 127.0], [0.0, 268.0]]
)
def test_ranges_of_pixel_values_that_are_refused(values):
    x = np.array(values * 6)[:, None, None] * np.ones((1, 2, 2), np.array(values).dtype)
    with pytest.raises(ValueError) as caught:
        from_arrays((x, Y), validation=(x, Y), name="mine")
    assert_one_line(caught, "mine: train images: ", f"range from {values[0]:g} to {values[1]:g}", "0..255")


@pytest.mark.parametrize("brightest, noted", [(63, True), (64, False), (2, True)])
def test_dark_bytes_are_kept_with_a_note(brightest, noted):
    x = np.zeros((12, 2, 2), np.uint8)
    x[0] = brightest
    dataset = from_arrays((x, Y), validation=(x, Y))
    assert dataset.splits["train"].images.max() == brightest
    assert [f"{brightest} of 255" in str(note) for note in dataset.notes] == [True, True] * noted


def test_large_arrays_are_scaled_in_chunks():
    x = np.random.default_rng(0).random((1025, 2, 2), np.float32)
    x[0], x[1] = 0, 1
    images = from_arrays((x, np.arange(1025) % 2), validation=(x, np.arange(1025) % 2)).splits["train"].images
    np.testing.assert_array_equal(images[..., 0], np.rint(x.astype(np.float64) * 255))


def test_bytes_with_channels_are_not_copied():
    x, y = random_images(12, 6, 5, 3)
    assert np.shares_memory(from_arrays((x, y), validation=(x, y)).splits["train"].images, x)


@pytest.mark.parametrize(
    "shape, channels",
    [
        ((12, 3, 5, 6), 3),
        ((12, 1, 5, 6), 1),
        ((12, 4, 6, 6), 3),
        ((12, 5, 6, 4), 3),
        ((12, 3, 3, 3), 3),
        ((12, 1, 1, 1), 1),
    ],
)
def test_channels_first_or_last(shape, channels):
    x, y = random_images(*shape)
    images = from_arrays((x, y), validation=(x, y)).splits["train"].images
    assert images.shape[-1] == channels
    first = shape[-1] not in (1, 3, 4)
    assert images.shape[1:3] == (shape[2:] if first else shape[1:3])
    if channels == shape[3 - 2 * first]:
        np.testing.assert_array_equal(images, x.transpose(0, 2, 3, 1) if first else x)


def test_pairs_must_be_pairs():
    for pair in ((X, Y, Y), (X,), {"x": X, "y": Y}):
        with pytest.raises(ValueError, match=r"^arrays: train must be a pair \(images, labels\)"):
            from_arrays(pair)
    assert len(from_arrays([X, Y], validation=[X, Y]).splits["train"]) == 12


def test_class_names_must_be_two_different_ones():
    for names in (["a"], [], ["a", "b", "b"], [1, "1"]):
        with pytest.raises(ValueError, match="class_names"):
            from_arrays((X, Y % 2), validation=(X, Y % 2), class_names=names)
    assert from_arrays((X, Y % 2), validation=(X, Y % 2), class_names=[3, 4]).class_names == ("3", "4")
    unordered = from_arrays(
        (X, np.array(["b", "a", "c"])[Y]), validation=(X, np.array(["b"] * 12)), class_names=list("bca")
    )
    assert unordered.splits["train"].labels.tolist() == [0, 2, 1] * 4


def test_labels_without_a_train_split_are_those_of_all_splits():
    dataset = dataset_from_pairs({"validation": (X, Y), "test": (X, Y + 1)}, None, "mine")
    assert dataset.class_names == ("0", "1", "2", "3") and dataset.splits["test"].labels.tolist() == (Y + 1).tolist()


def test_numbering_is_noted_with_examples():
    x, _ = random_images(24)
    for count, listed in (
        (5, "10 -> 0, 11 -> 1, 12 -> 2, 13 -> 3, 14 -> 4"),
        (6, "10 -> 0, 11 -> 1, 12 -> 2, …, 15 -> 5"),
    ):
        y = 10 + np.arange(24) % count
        (note,) = from_arrays((x, y), validation=(x, y)).notes
        assert str(note).endswith(listed)
    y = np.arange(24) % 8
    with pytest.raises(ValueError, match=r"test labels 2, 3, 4, 5, 6, … are not among"):
        from_arrays((x, y % 2), test=(x, y))
    with pytest.raises(ValueError, match=r"test labels 2, 3, 4, 5, 6 are not among"):
        from_arrays((x, y % 2), test=(x, np.minimum(y, 6)))


class NAType:
    """Like pandas.NA: comparisons give no truth value."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self):
        return "<NA>"


def objects(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    "labels, names",
    [
        (objects(*["cat", "dog"] * 6), ("cat", "dog")),
        (objects(*[b"cat", "dog"] * 6), ("cat", "dog")),
        ([b"cat", "cat", "dog", "dog"] * 3, ("cat", "dog")),
        (np.array([b"caf\xc3\xa9", b"bar"] * 6), ("bar", "caf\u00e9")),
        (objects(*[1, 2, 3] * 4), ("1", "2", "3")),
        (objects(*[np.int8(1), np.float32(2.0), 3] * 4), ("1", "2", "3")),
        ([np.array(1), np.array(0)] * 6, ("0", "1")),
        ([True, False] * 6, ("0", "1")),
        ([2**62, 2**62 + 1] * 6, (str(2**62), str(2**62 + 1))),  # not equal, as they would be as floats
        (np.array([2**63 - 1, 0] * 6, np.uint64), ("0", str(2**63 - 1))),
        (["Cat", "cat ", "dog"] * 4, ("Cat", "dog")),
        (objects(*["1", "01", "2"] * 4), ("1", "2")),
        (objects(*[1, 0] * 6)[:, None], ("0", "1")),
    ],
)
def test_labels_of_python_objects(labels, names):
    dataset = from_arrays((X, labels), validation=(X, labels))
    assert dataset.class_names == names
    keys = [str(int(v)) if not isinstance(v, str | bytes) else v for v in np.asarray(labels, object).ravel()]
    keys = [(k.decode() if isinstance(k, bytes) else k).strip().lower().lstrip("0") or "0" for k in keys]
    expected = [[name.lower() for name in names].index(key) for key in keys]
    assert dataset.splits["train"].labels.tolist() == expected


@pytest.mark.parametrize(
    "labels, part",
    [
        (["cat", 1] * 6, "text ('cat') and numbers (1)"),
        ([1, "1"] * 6, "numbers (1) and text ('1')"),
        (objects(*[b"a", 1] * 6), "text ('a') and numbers (1)"),
        ([True, 2] * 6, "truth values (True) and numbers (2)"),
        (objects("a", float("nan"), *"ab" * 5), "nan at index 1"),
        (["a", "b", None] * 4, "None at index 2"),
        (objects(NAType(), *range(11)), "<NA> at index 0"),
        (np.array(["a", "nan"] * 6), "nan at index 1"),
        (np.array(["a", "NaN"] * 6), "NaN at index 1"),
        (["a", "NaT"] * 6, "NaT at index 1"),
        (np.ma.masked_array([0, 1] * 6, [False, False, True] * 4), "4 of 12 values are masked"),
        ([0, np.ma.masked, 1] * 4, "None at index 1"),
        ([10**400, 1] * 6, "too large"),
        (["a", ""] * 6, "'' at index 1 is a missing value"),
        (["a", "<NA>"] * 6, "<NA> at index 1"),
        (objects(*[1.5, 2] * 6), "1.5"),
        (objects(*[(1, 2), (3,)] * 6), "tuple"),
        (objects(*[{}, 1] * 6), "dict"),
        (objects(*[1j] * 12), "complex"),
        (np.array([2**63, 1] * 6, np.uint64), str(2**63)),
        ([2**64, 1] * 6, str(2**64)),
        ([2**63, -1] * 6, str(2**63)),
        ([-(2**63) - 1, 1] * 6, str(-(2**63) - 1)),
        (np.array([1e300, 0] * 6), "1e+300"),
        ([1e300, 0.0] * 6, "1e+300"),
        (np.array([2.0**53, 0] * 6), "9.0072e+15"),
        (np.array([b"\xff", b"a"] * 6), "UTF-8"),
        ([[0, 1], [1]] * 6, "one array"),
        (np.array(["2020-01-01"] * 12, "datetime64[D]"), "datetime64[D]"),
        (np.zeros(12, [("a", int)]), "integers or strings"),
        ("x", "one label per image, not a str"),
        (None, "one label per image, not None"),
        (["cat|dog", "cat", "dog"] * 4, "'cat|dog' joins several classes"),
    ],
)
def test_labels_that_are_refused(labels, part):
    with pytest.raises(ValueError) as caught:
        from_arrays((X, labels), validation=(X, labels))
    assert_one_line(caught, "arrays", part)


def test_labels_in_half_precision_and_arrays_without_masked_values():
    labels = np.array([0, 2048] * 6, np.float16)
    assert from_arrays((X, labels), validation=(X, labels)).class_names == ("0", "2048")
    dataset = from_arrays((np.ma.masked_array(X), labels), validation=(X, np.ma.masked_array(labels)))
    assert dataset.class_names == ("0", "2048")
    hidden = np.ma.masked_array(X, X < 3)
    for call in (lambda: from_arrays((hidden, labels)), lambda: decode_images(hidden), lambda: decode_images([hidden])):
        with pytest.raises(ValueError, match="values are masked") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_class_names_may_be_bytes():
    assert from_arrays((X, Y), class_names=[b"a", b"b", b"c"]).class_names == ("a", "b", "c")


def test_images_of_several_sizes_in_a_list():
    with pytest.raises(ValueError) as caught:
        from_arrays(([np.zeros((4, 4)), np.zeros((5, 4))], [0, 1]))
    assert_one_line(caught, "arrays: train images: are not one array")


@pytest.mark.parametrize(
    ("peak", "dtype", "white"),
    [(1023, np.uint16, 1023), (512, np.int64, 1023), (4095, np.uint16, 4095), (2048, np.int32, 4095),
     (16383, np.uint16, 16383), (65535, np.uint16, 65535), (32768, np.uint32, 65535)],
)  # fmt: skip
def test_integers_of_more_than_8_bits_are_scaled_and_their_range_is_kept(peak, dtype, white):
    x = np.zeros((12, 2, 2), dtype)
    x[0, 0] = [1, peak]
    dataset = from_arrays((x, Y), validation=(x // 4, Y))  # a darker split has the same range
    split = dataset.splits["train"]
    assert split.white == dataset.splits["validation"].white == white
    assert split.images[0, 0, :, 0].tolist() == [round(255 / white), round(peak * 255 / white)]
    assert f"0..{white}" in dataset.notes[0] and dataset.notes[0].kind == "images"


@pytest.mark.parametrize(
    ("values", "white"),
    [([0, 255], None), ([0.0, 1.0], None), ([False, True], None), ([0, 1], 1), ([0.0, 255.0], 255), ([0, 200], None)],
)
def test_the_range_that_a_card_records(values, white):
    x = np.array(values * 6)[:, None, None] * np.ones((1, 2, 2), np.array(values).dtype)
    for given in [x, x.astype(np.uint8)] if x.dtype == int else [x]:
        assert from_arrays((given, Y), validation=(given, Y)).splits["train"].white == white


@pytest.mark.parametrize("values", [[-0.05, 1.05], [0.0, 1.0000000000000004], [-1e-17, 1.02]])
def test_floats_a_hair_outside_the_range_are_clipped(values):
    x = np.array([*values, 0.5] * 4)[:, None, None] * np.ones((1, 2, 2))
    assert from_arrays((x, Y), validation=(x, Y)).splits["train"].images[:3, 0, 0, 0].tolist() == [0, 255, 128]
    assert from_arrays((x * 255, Y), validation=(x * 255, Y)).splits["train"].images[:2, 0, 0, 0].tolist() == [0, 255]


def test_a_black_split_has_the_range_of_the_others():
    for x in (X, X / 255, X > 3, X.astype(np.uint16) * 257, X.astype(np.float32)):
        dataset = from_arrays((x, Y), validation=(x, Y), test=(x * 0, Y))
        assert not dataset.splits["test"].images.any()
