import gzip
import hashlib
import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from zoo.data import dataset as dataset_module
from zoo.data.augment.host_crop import Crop, read_crop
from zoo.data.dataset import with_classes
from zoo.data.images.preprocess import Preprocess
from zoo.data.loader import batch_indices, train_batches
from zoo.data.sources import tfds as tfds_module
from zoo.data.sources.open import ArraySplit, Dataset, Split, from_arrays, held_out, open_dataset, record_keys


def pictures(count, *shape, classes=3):
    """Random uint8 images, all different, and labels of every class."""
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, *(shape or (6, 5))), np.uint8)
    return images, np.arange(count) % classes


def as_set(split):
    return {image.tobytes() for image in split.read(np.arange(len(split)))}


def one_line(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# --- holding out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 10, 33, 80])
def test_held_out_is_stratified_and_of_the_size_asked_for(count):
    images, labels = pictures(100, classes=4)
    labels[:30] = 0
    mask = held_out(record_keys(images), labels, count)
    sizes = np.bincount(labels)
    assert mask.sum() == max(count, 4)
    if count >= 4:
        assert np.abs(np.bincount(labels[mask], minlength=4) - sizes * count / 100).max() < 1


def test_held_out_depends_on_content_and_not_on_order_or_neighbours():
    images, labels = pictures(90)
    keys = record_keys(images)
    mask = held_out(keys, labels, 20)
    order = np.random.default_rng(1).permutation(90)
    assert np.array_equal(held_out([keys[i] for i in order], labels[order], 20), mask[order])
    assert np.array_equal(held_out(keys, labels + 7, 20), mask)


def test_identical_images_stay_on_one_side():
    images, labels = pictures(30)
    images, labels = np.concatenate([images] * 4), np.concatenate([labels, labels, labels, (labels + 1) % 3])
    keys = record_keys(images)
    mask = held_out(keys, labels, 24)
    assert mask.any() and not {k for k, m in zip(keys, mask, strict=True) if m} & {
        k for k, m in zip(keys, mask, strict=True) if not m
    }


def test_a_class_with_one_image_stays_in_training():
    images, _ = pictures(12)
    labels = np.array([0] * 6 + [1] * 5 + [2])
    mask = held_out(record_keys(images), labels, 3)
    assert not mask[11] and mask[:6].any() and mask[6:11].any()
    assert not held_out([b"same"] * 6, np.zeros(6, int), 3).any()


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_never_change():
    """The hashes are those of the split and pixels that all published figures for `digits` belong to."""
    dataset = open_dataset("digits")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 1258,
        "validation": 180,
        "test": 359,
    }
    assert dataset.class_names == tuple("0123456789")
    for split in dataset.splits.values():
        assert isinstance(split, Split)
        assert split.images.dtype == np.uint8 and split.images.shape[1:] == (8, 8, 1) and split.labels.dtype == np.int32
        assert split.images.max() == 255 and split.images.min() == 0
        counts = np.bincount(split.labels, minlength=10)
        assert counts.min() >= 0.95 * len(split) / 10 - 1 and counts.max() <= 1.05 * len(split) / 10 + 1
    parts = [as_set(split) for split in dataset.splits.values()]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert dataset.fingerprint() == DIGITS
    test = dataset.splits["test"]
    assert hashlib.sha256(test.labels.astype("<i4").tobytes() + test.images.tobytes()).hexdigest() == DIGITS_TEST


DIGITS = "d5298d261950794f5c5886417992e467f3cb4d7072a5dd1703659de64e021917"
DIGITS_TEST = "fa966b8731b003051e3d09ed7ec9f085178990c0c8ddcd7dd8cccb2b2f29bb63"


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_fingerprint_sees_train_and_validation_and_never_test():
    def made(**changed):
        parts = {"train": pictures(9), "validation": pictures(6), "test": pictures(12), **changed}
        return from_arrays(**parts).fingerprint()

    def touched(count, pixel=0, label=0):
        images, labels = pictures(count)
        images[0, 0, 0] ^= pixel
        labels = np.roll(labels, label)
        return images, labels

    assert made() == made(test=pictures(15)) == made(test=None)
    assert made() == made(test=touched(12, pixel=1, label=1))
    others = [
        made(train=touched(9, pixel=1)),
        made(train=touched(9, label=1)),
        made(validation=touched(6, pixel=1)),
        made(validation=touched(6, label=1)),
        made(class_names=["a", "b", "c"]),
        made(
            train=(pictures(9)[0].reshape(9, 5, 6), pictures(9)[1]),
            validation=(pictures(6)[0].reshape(6, 5, 6), pictures(6)[1]),
        ),
    ]
    assert len({made(), *others}) == len(others) + 1


def test_fingerprint_of_images_of_differing_sizes():
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


# --- arrays and .npz --------------------------------------------------------------------------------------------------


def test_all_splits_given():
    dataset = from_arrays(pictures(9), pictures(6), pictures(12), name="mine")
    assert list(dataset.splits) == ["train", "validation", "test"] and dataset.name == "mine" and not dataset.notes
    for name, count in (("train", 9), ("validation", 6), ("test", 12)):
        np.testing.assert_array_equal(dataset.splits[name].images[..., 0], pictures(count)[0])
        np.testing.assert_array_equal(dataset.splits[name].labels, pictures(count)[1])
    assert dataset.class_names == ("0", "1", "2") and dataset.num_classes == 3


def test_missing_splits_are_held_out_of_train_and_said():
    alone = from_arrays(pictures(100))
    assert {name: len(split) for name, split in alone.splits.items()} == {"train": 70, "validation": 10, "test": 20}
    assert len(alone.notes) == 2 and "20 of 100" in alone.notes[0] and "10 of 100" in alone.notes[1]
    assert set.union(*map(as_set, alone.splits.values())) == {image.tobytes() for image in pictures(100)[0]}
    tested = from_arrays(pictures(100), test=pictures(30))
    assert {name: len(split) for name, split in tested.splits.items()} == {"train": 90, "validation": 10, "test": 30}
    chosen = from_arrays(pictures(100), validation=pictures(30))
    assert {name: len(split) for name, split in chosen.splits.items()} == {"train": 100, "validation": 30}


def test_at_most_5000_are_held_out_for_validation(monkeypatch):
    monkeypatch.setattr(dataset_module, "VALIDATION_LIMIT", 7)
    assert len(from_arrays(pictures(100), test=pictures(30)).splits["validation"]) == 7


def test_too_little_to_hold_out():
    with pytest.raises(ValueError, match="too little data"):
        from_arrays((np.full((2, 3, 3), 200, np.uint8), [0, 1]))


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
def test_images_of_every_usual_form(shape, values):
    x, y = pictures(12, 6, 5, 3)
    change, channels = SHAPES[shape]
    given = VALUES[values](change(x))
    split = from_arrays((given, y), validation=(given, y)).splits["train"]
    assert split.images.dtype == np.uint8 and split.images.shape == (12, 6, 5, channels)
    np.testing.assert_array_equal(split.images, x[..., :channels])


def test_two_valued_images_become_black_and_white():
    x, y = pictures(12)
    for given in (x > 127, (x > 127).astype(np.uint8), (x > 127).astype(float)):
        dataset = from_arrays((given, y), validation=(given, y))
        np.testing.assert_array_equal(dataset.splits["train"].images[..., 0], (x > 127) * np.uint8(255))
    dim = from_arrays((x // 16, y), validation=(x // 16, y))
    np.testing.assert_array_equal(dim.splits["train"].images[..., 0], x // 16)
    assert "15 of 255" in dim.notes[0]


def test_rgba_is_composited():
    x, y = pictures(12, 6, 5, 4)
    x[..., 3] = 255
    x[:, 0, 0, 3] = 0
    images = from_arrays((x, y), validation=(x, y)).splits["train"].images
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
def test_labels_of_every_usual_form(form):
    x, y = pictures(12)
    dataset = from_arrays((x, LABELS[form](y)), validation=(x, LABELS[form](y)))
    np.testing.assert_array_equal(dataset.splits["train"].labels, y)
    assert dataset.splits["train"].labels.dtype == np.int32 and dataset.class_names == ("0", "1", "2")
    assert not dataset.notes


@pytest.mark.parametrize(
    "values", [[1, 2, 3], [-1, 0, 1], [0, 10, 700], ["ape", "bee", "cow"], [b"ape", b"bee", b"cow"], [5, 50, 500]]
)
def test_other_labels_are_sorted_into_classes_and_it_is_said(values):
    x, y = pictures(12)
    labels = np.array(values)[2 - y]
    dataset = from_arrays((x, labels), validation=(x, labels))
    np.testing.assert_array_equal(dataset.splits["train"].labels, 2 - y)
    assert dataset.class_names == tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values)
    assert "sorted order" in dataset.notes[0] and f"{dataset.class_names[2]} -> 2" in dataset.notes[0]


def test_class_names():
    x, y = pictures(12)
    named = from_arrays((x, y), validation=(x, y), class_names=["ape", "bee", "cow", "dog"])
    assert named.class_names == ("ape", "bee", "cow", "dog") and not named.notes
    words = np.array(["dog", "ape", "cow"])[y]
    by_name = from_arrays((x, words), validation=(x, words), class_names=["ape", "bee", "cow", "dog"])
    np.testing.assert_array_equal(by_name.splits["train"].labels, np.array([3, 0, 2])[y])


def test_object_labels_from_a_list_of_words():
    x, y = pictures(12)
    words = np.array(["a", "b", "c"], object)[y]
    assert from_arrays((x, words), validation=(x, words)).class_names == ("a", "b", "c")


X, Y = pictures(12)
WRONG = {
    "lengths": ((X, Y[:-1]), "12 images but 11 labels"),
    "not a pair": (X, "pair"),
    "flattened": ((X.reshape(12, 30), Y), "reshape"),
    "5 dimensions": ((X[None, None], Y), "shape"),
    "channels": ((pictures(12, 6, 5, 2)[0], Y), "channels come last"),
    "ambiguous": ((pictures(12, 3, 5, 3)[0], Y), "first or last"),
    "empty": ((X[:0], Y[:0]), "empty"),
    "nan": ((np.where(X > 250, np.nan, X), Y), "not finite"),
    "inf": ((np.where(X > 250, np.inf, X), Y), "not finite"),
    "range -1..1": ((X / 127.5 - 1, Y), "range from -1 to"),
    "range 0..16": ((X / 16.0, Y), "range from 0 to 15"),
    "range 0..65535": ((X.astype(np.uint16) * 257, Y), "0..255 or 0..1 is needed"),
    "text": ((X.astype(str), Y), "numbers"),
    "ragged": ((np.array([np.zeros((2, 2)), np.zeros((3, 2))] * 6, object), Y), "rectangular"),
    "single class": ((X, Y * 0), "at least two classes"),
    "fractions": ((X, Y + 0.5), "fractions"),
    "nan labels": ((X, np.full(12, np.nan)), "NaN"),
    "several classes": ((X, np.ones((12, 3))), "one-hot"),
    "labels of two dimensions": ((X, np.arange(24).reshape(12, 2)), "one-hot"),
    "labels of three dimensions": ((X, Y[:, None, None] + np.zeros((1, 2, 2), int)), "one-hot"),
    "labels of a strange type": ((X, Y.astype(complex)), "integers or strings"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arrays_are_named(what):
    pair, expected = WRONG[what]
    with pytest.raises(ValueError, match=r"^mine: (train|the train)") as caught:
        from_arrays(pair, validation=(X, Y), name="mine")
    one_line(caught, expected)


def test_splits_must_agree():
    with pytest.raises(ValueError, match="channels"):
        from_arrays((X, Y), validation=pictures(12, 6, 5, 3))
    with pytest.raises(ValueError, match=r"range.*train 0..255, test 0..1"):
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
    "train, validation, test",
    [
        ("x_train y_train", None, "x_test y_test"),
        ("X_train y_train", "X_val y_val", "X_test y_test"),
        ("train_images train_labels", "val_images val_labels", "test_images test_labels"),
        ("images labels", None, None),
        ("x y", None, None),
        ("X y", None, None),
    ],
)
def test_npz_of_every_spelling(train, validation, test, tmp_path):
    arrays, counts = {}, {}
    for split, (keys, count) in {"train": (train, 60), "validation": (validation, 12), "test": (test, 15)}.items():
        if keys:
            arrays |= dict(zip(keys.split(), pictures(count), strict=True))
            counts[split] = count
    np.savez_compressed(tmp_path / "mine.npz", **arrays, class_names=["ape", "bee", "cow"], extra=3)
    dataset = open_dataset(str(tmp_path / "mine.npz"))
    assert dataset.class_names == ("ape", "bee", "cow") and "not used: extra" in dataset.notes
    for split, count in counts.items():
        if split != "train":
            np.testing.assert_array_equal(dataset.splits[split].images[..., 0], pictures(count)[0])
    assert sum(len(split) for split in dataset.splits.values()) == sum(counts.values())


def test_npz_with_a_test_split_only(tmp_path):
    np.savez(tmp_path / "t.npz", x_test=X, y_test=Y)
    assert list(open_dataset(tmp_path / "t.npz").splits) == ["test"]


def save(path, **arrays):
    np.savez(path, **arrays)
    return path.read_bytes()


def flipped(data, place=None):
    place = len(data) // 3 if place is None else place
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


NPZ_WRONG = {
    "text": (lambda p: b"hello", "is not an .npz file"),
    "nothing": (lambda p: b"", "not a whole .npz"),
    "a pickle": (lambda p: pickle.dumps({"x": X}), "is not an .npz file"),
    "one array": (lambda p: (np.save(p.with_suffix(".npy"), X), p.with_suffix(".npy").read_bytes())[1], "single array"),
    "cut off": (lambda p: save(p, x=X, y=Y)[:-40], "not a whole .npz"),
    "a flipped bit": (lambda p: flipped(save(p, x=X, y=Y)), ""),
    "other names": (lambda p: save(p, foo=X, bar=Y), "holds foo, bar; expected x_train"),
    "labels missing": (lambda p: save(p, x_train=X), "holds x_train; expected"),
    "objects": (lambda p: save(p, x=X, y=np.array([object, 1, "a"] * 4, object)), "array y holds Python objects"),
    "lengths": (lambda p: save(p, x=X, y=Y[1:]), "12 images but 11 labels"),
}


@pytest.mark.parametrize("what", NPZ_WRONG)
def test_wrong_npz_files(what, tmp_path):
    make, expected = NPZ_WRONG[what]
    path = tmp_path / "mine.npz"
    path.write_bytes(make(path))
    with pytest.raises(ValueError, match=r"mine\.npz") as caught:
        open_dataset(path)
    one_line(caught, str(path), expected)


def test_npz_member_that_is_no_array(tmp_path):
    path = tmp_path / "mine.npz"
    save(path, y=Y)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x", b"text")
    with pytest.raises(ValueError, match="array x is damaged"):
        open_dataset(path)


# --- IDX folders ------------------------------------------------------------------------------------------------------


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_folder(folder, separator="-", packed=False, splits=(("train", 60), ("t10k", 15))):
    for split, count in splits:
        for kind, array in zip(("images", "labels"), pictures(count), strict=True):
            name = f"{split}-{kind}{separator}idx{array.ndim}-ubyte" + (".gz" if packed else "")
            data = idx(array)
            (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_folders(separator, packed, tmp_path):
    dataset = open_dataset(str(idx_folder(tmp_path, separator, packed)))
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 54, "validation": 6, "test": 15}
    np.testing.assert_array_equal(dataset.splits["test"].images[..., 0], pictures(15)[0])
    np.testing.assert_array_equal(dataset.splits["test"].labels, pictures(15)[1])
    assert "6 of 60" in dataset.notes[0]
    plain = from_arrays(pictures(60), test=pictures(15))
    assert dataset.fingerprint() == plain.fingerprint()


def test_idx_folder_with_names(tmp_path):
    folder = idx_folder(tmp_path)
    count = open_dataset(folder).num_classes
    (folder / "classes.txt").write_text("\n".join("abcdefghij"[:count]) + "\n")
    dataset = open_dataset(folder)
    assert dataset.class_names == tuple("abcdefghij"[:count])
    (folder / "classes.txt").unlink()
    numbered = with_classes(open_dataset(folder), dataset.class_names)
    assert numbered.class_names == dataset.class_names and "only numbered" in numbered.notes[-1]
    np.testing.assert_array_equal(numbered.splits["test"].labels, dataset.splits["test"].labels)


def test_idx_folder_with_one_split(tmp_path):
    assert set(open_dataset(idx_folder(tmp_path, splits=[("train", 60)])).splits) == {"train", "validation", "test"}
    (tmp_path / "b").mkdir()
    assert set(open_dataset(idx_folder(tmp_path / "b", splits=[("t10k", 60)])).splits) == {"test"}


IDX_WRONG = {
    "magic": (lambda d: b"\0\0\x0d" + d[3:], "not an IDX file"),
    "dimensions": (lambda d: idx(pictures(60)[1]), "not an IDX file of 3-dimensional"),
    "cut off": (lambda d: d[:-1], "cut off"),
    "cut off in the header": (lambda d: d[:9], "cut off within its header"),
    "empty": (lambda d: b"", "not an IDX file"),
    "too long": (lambda d: d + b"\0", "longer than it should be"),
    "huge header": (lambda d: d[:4] + b"\xff" * 12 + d[16:], "cut off"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", IDX_WRONG)
def test_damaged_idx_files_are_named(what, packed, tmp_path):
    change, expected = IDX_WRONG[what]
    idx_folder(tmp_path, packed=packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    data = change(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ValueError, match="train-images") as caught:
        open_dataset(tmp_path)
    one_line(caught, str(path), expected)


def test_damaged_gzip_and_missing_partner(tmp_path):
    path = idx_folder(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for data in (whole[:100], b"hello", whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged") as caught:
            open_dataset(tmp_path)
        one_line(caught, str(path))
    path.unlink()
    with pytest.raises(ValueError, match="but no images"):
        open_dataset(tmp_path)


def test_idx_counts_must_agree(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(pictures(14)[1]))
    with pytest.raises(ValueError, match="test has 15 images but 14 labels"):
        open_dataset(tmp_path)


# --- TFDS -------------------------------------------------------------------------------------------------------------


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


def prepare(
    folder, splits, shape=(6, 5, 1), features=None, supervised=("image", "label"), labels=("ape", "bee", "cow")
):
    """Prepare a data set `tiny` by TFDS's own builder, which needs no TensorFlow for images that are files already."""
    tfds = pytest.importorskip("tensorflow_datasets")
    columns = features or {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(names=labels)}

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = folder

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(columns), supervised_keys=supervised
                )

            def _split_generators(self, dl_manager):
                return {name: self._generate_examples(*pair) for name, pair in splits.items()}

            def _generate_examples(self, images, labels):
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    row = {"image": png(image), "label": int(label), "second": png(image)}
                    yield i, {key: value for key, value in row.items() if key in columns}

    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return folder / "tiny" / "1.0.0"


def by_content(split):
    images = split.read(np.arange(len(split)))
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, split.labels, strict=True))


def test_tfds_in_memory(tmp_path, capsys):
    prepare(tmp_path, {"train": pictures(60), "test": pictures(15), "extra": pictures(3)})
    capsys.readouterr()
    dataset = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 54, "validation": 6, "test": 15}
    assert dataset.class_names == ("ape", "bee", "cow") and dataset.name == "tfds:tiny"
    assert dataset.notes[0] == "not used: extra" and "6 of 60" in dataset.notes[1]
    assert all(isinstance(split, ArraySplit) for split in dataset.splits.values())
    x, y = pictures(15)
    assert by_content(dataset.splits["test"]) == sorted((a.tobytes(), int(b)) for a, b in zip(x, y, strict=True))
    assert capsys.readouterr().out == ""
    again = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert again.fingerprint() == dataset.fingerprint()


def test_tfds_cache_is_used_and_made_anew_when_damaged_or_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = prepare(tmp_path, {"train": pictures(60), "test": pictures(15)})
    first = open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint()
    stored = sorted((tmp_path / "cache" / "jax-model-zoo" / "data").iterdir())
    assert len(stored) == 2 and all(path.suffix == ".npz" for path in stored)
    decoded = []
    monkeypatch.setattr(
        dataset_module, "read_image", lambda data: decoded.append(1) or pytest.fail("was not in the cache")
    )
    assert open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint() == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for damage in (flipped, lambda data: data[:50], lambda data: b""):
        for path in stored:
            path.write_bytes(damage(path.read_bytes()))
        assert open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint() == first
    times = [path.stat().st_mtime_ns for path in stored]
    (folder / "features.json").write_text((folder / "features.json").read_text() + " ")
    assert open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint() == first
    assert [path.stat().st_mtime_ns for path in stored] == times and len(list(stored[0].parent.iterdir())) == 4


def test_tfds_without_a_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(tmp_path, {"train": pictures(60)})
    assert len(open_dataset("tfds:tiny", data_dir=tmp_path).splits["train"]) == 42


@pytest.mark.parametrize("why", ["larger than memory", "of differing sizes"])
def test_tfds_read_on_demand(why, tmp_path, monkeypatch):
    if why == "larger than memory":
        monkeypatch.setattr(tfds_module, "IN_MEMORY", 100)
    x, y = pictures(60)
    images = [image[: 3 + i % 4] for i, image in enumerate(x)] if why == "of differing sizes" else list(x)
    shape = (None, None, 1) if why == "of differing sizes" else (6, 5, 1)
    prepare(tmp_path, {"train": (images, y)}, shape=shape)
    dataset = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 42, "validation": 6, "test": 12}
    assert sorted(record for split in dataset.splits.values() for record in by_content(split)) == sorted(
        (a.tobytes(), int(b)) for a, b in zip(images, y, strict=True)
    )
    split = dataset.splits["train"]
    assert isinstance(split, Split) and split.read([]) == []
    backwards = split.read(np.arange(len(split))[::-1])
    assert all(np.array_equal(a, b) for a, b in zip(backwards[::-1], split.read(range(len(split))), strict=True))
    assert open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint() == dataset.fingerprint()


def test_tfds_photographs_are_cut_on_the_host(tmp_path):
    x, y = pictures(60)
    images = [np.tile(image[: 3 + i % 4], (8, 8)) for i, image in enumerate(x)]
    prepare(tmp_path, {"train": (images, y)}, shape=(None, None, 1))
    split = open_dataset("tfds:tiny", data_dir=tmp_path).splits["train"]
    seen = Preprocess((10, 12), (10, 12), channels="L", mean=(0.5,), std=(0.5,))
    got = train_batches(split, seen, batch_size=6, seed=1, crop=Crop(), workers=3)
    indices, epochs = batch_indices(1, 0, 6, len(split))
    expected = [
        read_crop(split.encoded([i])[0], seen, 1, int(epoch), int(i), Crop())
        for i, epoch in zip(indices, epochs, strict=True)
    ]
    np.testing.assert_array_equal(next(got)["image"], np.stack(expected))
    got.close()


def test_tfds_validation_takes_the_place_of_a_test_without_labels(tmp_path):
    test = pictures(15)[0], np.full(15, -1)
    prepare(tmp_path, {"train": pictures(60), "validation": pictures(9), "test": test})
    dataset = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 54, "validation": 6, "test": 9}
    assert any("not public" in note for note in dataset.notes)


def test_tfds_with_a_test_split_only(tmp_path):
    prepare(tmp_path, {"test": pictures(15)})
    assert list(open_dataset("tfds:tiny", data_dir=tmp_path).splits) == ["test"]


def test_tfds_features_are_found_or_refused(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    image, label = tfds.features.Image(shape=(6, 5, 1)), tfds.features.ClassLabel(num_classes=3)
    prepare(tmp_path / "a", {"train": pictures(60)}, features={"image": image, "label": label}, supervised=None)
    assert open_dataset("tfds:tiny", data_dir=tmp_path / "a").class_names == ("0", "1", "2")
    two = {"image": image, "second": tfds.features.Image(shape=(6, 5, 1)), "label": label}
    prepare(tmp_path / "b", {"train": pictures(60)}, features=two)
    assert len(open_dataset("tfds:tiny", data_dir=tmp_path / "b").splits["train"]) == 42
    prepare(tmp_path / "c", {"train": pictures(60)}, features=two, supervised=None)
    with pytest.raises(ValueError, match=r"one class each \(images: image, second; classes: label\)"):
        open_dataset("tfds:tiny", data_dir=tmp_path / "c")
    prepare(tmp_path / "d", {"train": pictures(60)}, features={"image": image}, supervised=None)
    with pytest.raises(ValueError, match="classes: none"):
        open_dataset("tfds:tiny", data_dir=tmp_path / "d")


def test_tfds_in_a_format_without_random_access(tmp_path):
    folder = prepare(tmp_path, {"train": pictures(60)})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(
        ValueError, match="as tfrecord, which cannot be read at random; run: tfds convert_format"
    ) as caught:
        open_dataset("tfds:tiny", data_dir=tmp_path)
    one_line(caught, str(folder))


@pytest.mark.parametrize(
    "damage", [lambda data: flipped(data, data.index(b"IDAT")), lambda data: data[:-20], lambda data: b""]
)
def test_tfds_damaged_records(damage, tmp_path):
    folder = prepare(tmp_path, {"train": pictures(60)})
    (file,) = folder.glob("*.array_record*")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"^tfds:tiny train: records cannot be read") as caught:
        open_dataset("tfds:tiny", data_dir=tmp_path)
    one_line(caught)


def test_tfds_names_and_configurations(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    for name, expected in {
        "mnits": r"no such data set in TFDS \(did you mean .*mnist",
        "mnist/large": "no configuration 'large'",
        "emnist/leters": "did you mean letters",
        "mnist:9.9.9": "only: 3.0.1",
        "imdb_reviews": "images: none",
        "a b": "Parsing",
    }.items():
        with pytest.raises(ValueError, match=expected) as caught:
            open_dataset(f"tfds:{name}", data_dir=tmp_path)
        one_line(caught, f"tfds:{name}: ")


def test_tfds_preparation_needs_tensorflow_or_the_network(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    import importlib.util
    import socket

    find = importlib.util.find_spec
    missing = {"tensorflow"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a))
    with pytest.raises(
        ValueError, match=r"not prepared in .*mnist.*pip install 'jax-model-zoo\[tfds-prepare\]'"
    ) as caught:
        open_dataset("tfds:mnist", data_dir=tmp_path)
    one_line(caught)

    def offline(*arguments, **options):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ValueError, match=r"beans.*googleapis.com cannot be reached") as caught:
        open_dataset("tfds:beans", data_dir=tmp_path)
    one_line(caught)


class Unprepared:
    """A builder whose preparation fails in a given way."""

    data_path, url_infos = "somewhere/tiny/1.0.0", None

    def __init__(self, error):
        self.error = error

    def download_and_prepare(self, **options):
        assert options == {"file_format": "array_record"}
        raise self.error


def chained(outer, inner):
    try:
        raise outer from inner
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            chained(RuntimeError("In <Image>:\nmore"), ModuleNotFoundError("No module named 'tensorflow'")),
            "tfds-prepare",
        ),
        (chained(RuntimeError("download failed"), ConnectionResetError("reset")), "could not be downloaded"),
        (
            AssertionError("Manual directory x does not exist.\nMore lines"),
            "AssertionError: Manual directory x does not",
        ),
    ],
)
def test_tfds_preparation_that_fails_is_one_line(error, expected):
    with pytest.raises(ValueError, match=r"^tfds:tiny: ") as caught:
        tfds_module._prepare(Unprepared(error), "tiny")
    one_line(caught, expected)


def test_classes_are_matched_by_name():
    dataset = from_arrays(pictures(30), class_names=["a", "b", "c"])
    found = with_classes(dataset, ["c", "x", "a", "b"])
    for name, split in dataset.splits.items():
        assert found.splits[name].labels.tolist() == [[2, 3, 0][label] for label in split.labels]
        assert np.array_equal(found.splits[name].images, split.images)
    assert found.class_names == ("c", "x", "a", "b") and "3 of the model's 4" in found.notes[-1]
    assert with_classes(dataset, ("a", "b", "c")) is dataset
    with pytest.raises(ValueError) as caught:
        with_classes(dataset, ["a", "b", "z"])
    one_line(caught, "its classes c are not among the checkpoint's (a, b, z)")


# --- what is understood -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, error, expected",
    [
        ("digts", ValueError, "did you mean digits"),
        ("tdfs:mnist", ValueError, "did you mean tfds"),
        ("nonsense", ValueError, "understood are digits, tfds:NAME"),
        ("", ValueError, "understood are"),
        ("tfds:", ValueError, "tfds:mnist"),
        ("gone.npz", FileNotFoundError, "no such file"),
        ("some/folder", FileNotFoundError, "no such file"),
    ],
)
def test_what_is_not_understood(spec, error, expected):
    with pytest.raises(error) as caught:
        open_dataset(spec)
    one_line(caught, expected)


def test_folders_and_files_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match="neither one of class folders"):
        open_dataset(tmp_path)
    (tmp_path / "table.doc").write_text("a,b")
    with pytest.raises(ValueError, match=r"table\.doc: is not a file that is understood"):
        open_dataset(tmp_path / "table.doc")
