import gzip
import hashlib
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
from helpers import assert_one_line, flip_bit, random_images, split_sizes

from zoo.data.dataset import Note, with_classes
from zoo.data.sources import Split, from_arrays, npz_idx, open_dataset
from zoo.data.sources.npz_idx import idx_files


def as_set(split):
    return {image.tobytes() for image in split.read(np.arange(len(split)))}


DIGITS = "d5298d261950794f5c5886417992e467f3cb4d7072a5dd1703659de64e021917"


DIGITS_TEST = "fa966b8731b003051e3d09ed7ec9f085178990c0c8ddcd7dd8cccb2b2f29bb63"


def test_digits_are_pinned():
    """The hashes are those of the split and pixels that all published figures for `digits` belong to."""
    dataset = open_dataset("digits")
    assert split_sizes(dataset) == {
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


X, Y = random_images(12)


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
def test_npz_key_spellings(train, validation, test, tmp_path):
    arrays, counts = {}, {}
    for split, (keys, count) in {"train": (train, 60), "validation": (validation, 12), "test": (test, 15)}.items():
        if keys:
            arrays |= dict(zip(keys.split(), random_images(count), strict=True))
            counts[split] = count
    np.savez_compressed(tmp_path / "mine.npz", **arrays, class_names=["ape", "bee", "cow"], extra=3)
    dataset = open_dataset(str(tmp_path / "mine.npz"))
    assert dataset.class_names == ("ape", "bee", "cow") and Note("unused", "not used: extra") in dataset.notes
    for split, count in counts.items():
        if split != "train":
            np.testing.assert_array_equal(dataset.splits[split].images[..., 0], random_images(count)[0])
    assert sum(len(split) for split in dataset.splits.values()) == sum(counts.values())


def test_npz_class_names_may_be_bytes(tmp_path):
    np.savez(tmp_path / "b.npz", x=X, y=Y, class_names=np.array([b"ape", "Bär".encode(), b"cow"]))
    assert open_dataset(tmp_path / "b.npz").class_names == ("ape", "Bär", "cow")


def test_npz_with_a_test_split_only(tmp_path):
    np.savez(tmp_path / "t.npz", x_test=X, y_test=Y)
    assert list(open_dataset(tmp_path / "t.npz").splits) == ["test"]


def save(path, **arrays):
    np.savez(path, **arrays)
    return path.read_bytes()


NPZ_WRONG = {
    "text": (lambda p: b"hello", "is not an .npz file"),
    "nothing": (lambda p: b"", "not a complete .npz"),
    "a pickle": (lambda p: pickle.dumps({"x": X}), "is not an .npz file"),
    "one array": (lambda p: (np.save(p.with_suffix(".npy"), X), p.with_suffix(".npy").read_bytes())[1], "single array"),
    "cut off": (lambda p: save(p, x=X, y=Y)[:-40], "not a complete .npz"),
    "a flip_bit bit": (lambda p: flip_bit(save(p, x=X, y=Y)), ""),
    "other names": (lambda p: save(p, foo=X, bar=Y), "contains foo, bar; expected x_train"),
    "labels missing": (lambda p: save(p, x_train=X), "contains x_train; expected"),
    "objects": (lambda p: save(p, x=X, y=np.array([object, 1, "a"] * 4, object)), "array y contains Python objects"),
    "lengths": (lambda p: save(p, x=X, y=Y[1:]), "12 images but 11 labels"),
}


@pytest.mark.parametrize("what", NPZ_WRONG)
def test_invalid_npz_files(what, tmp_path):
    make, expected = NPZ_WRONG[what]
    path = tmp_path / "mine.npz"
    path.write_bytes(make(path))
    with pytest.raises(ValueError, match=r"mine\.npz") as caught:
        open_dataset(path)
    assert_one_line(caught, str(path), expected)


def test_npz_member_that_is_not_an_array(tmp_path):
    path = tmp_path / "mine.npz"
    save(path, y=Y)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x", b"text")
    with pytest.raises(ValueError, match="array x is damaged"):
        open_dataset(path)


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_folder(folder, separator="-", packed=False, splits=(("train", 60), ("t10k", 15))):
    for split, count in splits:
        for kind, array in zip(("images", "labels"), random_images(count), strict=True):
            name = f"{split}-{kind}{separator}idx{array.ndim}-ubyte" + (".gz" if packed else "")
            data = idx(array)
            (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_folders(separator, packed, tmp_path):
    dataset = open_dataset(str(idx_folder(tmp_path, separator, packed)))
    assert split_sizes(dataset) == {"train": 54, "validation": 6, "test": 15}
    np.testing.assert_array_equal(dataset.splits["test"].images[..., 0], random_images(15)[0])
    np.testing.assert_array_equal(dataset.splits["test"].labels, random_images(15)[1])
    assert "6 of 60" in str(dataset.notes[0])
    plain = from_arrays(random_images(60), test=random_images(15))
    assert dataset.fingerprint() == plain.fingerprint()


def test_idx_folder_with_class_names(tmp_path):
    folder = idx_folder(tmp_path)
    count = open_dataset(folder).num_classes
    (folder / "classes.txt").write_text("\n".join("abcdefghij"[:count]) + "\n")
    dataset = open_dataset(folder)
    assert dataset.class_names == tuple("abcdefghij"[:count])
    (folder / "classes.txt").unlink()
    numbered = with_classes(open_dataset(folder), dataset.class_names)
    assert numbered.class_names == dataset.class_names and numbered.notes[-1].kind == "classes"
    np.testing.assert_array_equal(numbered.splits["test"].labels, dataset.splits["test"].labels)


def test_idx_folder_with_one_split(tmp_path):
    assert set(open_dataset(idx_folder(tmp_path, splits=[("train", 60)])).splits) == {"train", "validation", "test"}
    (tmp_path / "b").mkdir()
    assert set(open_dataset(idx_folder(tmp_path / "b", splits=[("t10k", 60)])).splits) == {"test"}


IDX_WRONG = {
    "magic": (lambda d: b"\0\0\x0d" + d[3:], "not an IDX file"),
    "dimensions": (lambda d: idx(random_images(60)[1]), "00 00 08 01"),
    "cut off": (lambda d: d[:-1], "1,815 bytes instead of 1,816"),
    "cut off in the header": (lambda d: d[:9], "header"),
    "empty": (lambda d: b"", "not an IDX file"),
    "too long": (lambda d: d + b"\0", "1,817 bytes instead of 1,816"),
    "huge header": (lambda d: d[:4] + b"\xff" * 12 + d[16:], "79,228,162,458,924,105,385,300,197,3"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", IDX_WRONG)
def test_damaged_idx_files(what, packed, tmp_path):
    change, expected = IDX_WRONG[what]
    idx_folder(tmp_path, packed=packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    data = change(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ValueError, match="train-images") as caught:
        open_dataset(tmp_path)
    assert_one_line(caught, str(path), expected)


def test_damaged_gzip_and_missing_images(tmp_path):
    path = idx_folder(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for data in (whole[:100], b"hello", whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"is damaged|not an IDX file") as caught:
            open_dataset(tmp_path)
        assert_one_line(caught, str(path))
    path.unlink()
    with pytest.raises(ValueError, match="but no images"):
        open_dataset(tmp_path)


def test_idx_images_and_labels_must_be_as_many(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(random_images(14)[1]))
    with pytest.raises(ValueError, match="test has 15 images but 14 labels"):
        open_dataset(tmp_path)


def test_npz_keys_are_pinned(tmp_path):
    """Of several pairs for one split the first is used; the others are noted."""
    validation = [("x_val", "y_val"), ("x_valid", "y_valid"), ("x_validation", "y_validation"),
                  ("val_images", "val_labels"), ("validation_images", "validation_labels")]  # fmt: skip
    for n, (images, labels) in enumerate(validation):
        np.savez(tmp_path / f"{n}.npz", x=X, y=Y, **{images: X[:6], labels: Y[:6]})
        assert split_sizes(open_dataset(tmp_path / f"{n}.npz")) == {"train": 12, "validation": 6}
    np.savez(tmp_path / "both.npz", x=X, y=Y, x_train=X[:9], y_train=Y[:9], x_val=X, y_val=Y, y_test=Y)
    both = open_dataset(tmp_path / "both.npz")
    assert split_sizes(both) == {"train": 9, "validation": 12}
    assert both.notes[-1] == Note("unused", "not used: x, y, y_test")


def test_idx_prefers_uncompressed_files_and_accepts_test(tmp_path):
    idx_folder(tmp_path, packed=True)
    idx_folder(tmp_path, splits=[("train", 30)])
    (tmp_path / "train-images-idx3-ubyte.bak").write_bytes(b"not this one")
    assert split_sizes(open_dataset(tmp_path)) == {"train": 27, "validation": 3, "test": 15}
    for kind, dims in (("images", 3), ("labels", 1)):
        (tmp_path / f"t10k-{kind}-idx{dims}-ubyte.gz").rename(tmp_path / f"test-{kind}-idx{dims}-ubyte.gz")
    assert split_sizes(open_dataset(tmp_path)) == {"train": 27, "validation": 3, "test": 15}


def test_digits_without_the_file_of_the_wheel(monkeypatch):
    """load_digits of scikit-learn gives the same digits as its file."""
    fingerprint = open_dataset("digits").fingerprint()
    monkeypatch.setattr("zoo.data.sources.npz_idx.importlib.util.find_spec", lambda name: None)
    assert open_dataset("digits").fingerprint() == fingerprint == DIGITS


def test_an_array_that_does_not_fit_in_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=X, y=Y)

    def no_memory(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", no_memory)
    with pytest.raises(ValueError, match=r"a\.npz: the array x does not fit in memory"):
        open_dataset(tmp_path / "a.npz")


# --- EMNIST and other names -------------------------------------------------------------------------------------------

IDX_NAMES = {
    "": "train-images-idx3-ubyte", "emnist-letters": "emnist-letters-train-images-idx3-ubyte.gz",
    "qmnist": "qmnist-train-images-idx3-ubyte", "my.data": "my.data_train_images.idx3_ubyte",
    "A": "A-Training-Images.idx", "b": "b-test-image-idx3.gz",
}  # fmt: skip


@pytest.mark.parametrize("prefix", IDX_NAMES)
def test_idx_names(prefix, tmp_path):
    (tmp_path / IDX_NAMES[prefix]).write_bytes(b"")
    (tmp_path / "train-images.png").write_bytes(b"")
    ((name, files),) = idx_files(tmp_path).items()
    assert name == prefix and list(files) == [("test" if "test" in IDX_NAMES[prefix] else "train", "images")]


def write_idx(folder, prefix, images, labels, split="train"):
    for kind, array in (("images", images), ("labels", labels)):
        name = f"{prefix}{split}-{kind}-idx{array.ndim}-ubyte.gz"
        (folder / name).write_bytes(gzip.compress(idx(array)))


def test_emnist_pictures_are_turned_upright(tmp_path):
    """Stored by columns: pixel (row, column) of the file is (column, row) of the character. Letters are 1 to 26."""
    images, _ = random_images(52, 4, 4)
    labels = np.arange(52) % 26 + 1
    write_idx(tmp_path, "emnist-letters-", images, labels, "test")
    (tmp_path / "emnist-letters-mapping.txt").write_text("".join(f"{k} {64 + k} {96 + k}\n" for k in range(1, 27)))
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for n in (0, 17, 51):
        upright = [[images[n][column][row] for column in range(4)] for row in range(4)]
        assert dataset.splits["test"].images[n, ..., 0].tolist() == upright
    assert dataset.splits["test"].labels.tolist() == (labels - 1).tolist()
    assert any(note.kind == "images" and "upright" in note for note in dataset.notes)


def test_emnist_without_a_mapping(tmp_path):
    images, _ = random_images(130, 4, 4)
    write_idx(tmp_path, "emnist-letters-", images, np.arange(130) % 26 + 1)
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == tuple(map(str, range(1, 27)))
    for text in ("1 65\n", "x\n", "1\n", "1 99999999999\n"):
        (tmp_path / "emnist-letters-mapping.txt").write_text(text)
        with pytest.raises(ValueError) as caught:
            open_dataset(tmp_path)
        assert_one_line(caught, "emnist-letters")


def test_several_data_sets_in_one_folder(tmp_path):
    for prefix, size in (("emnist-digits-", 4), ("emnist-mnist-", 5), ("", 6)):
        write_idx(tmp_path, prefix, *random_images(30, size, size))
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path)
    assert_one_line(caught, "3 data sets", f"{tmp_path}/emnist-digits", f"{tmp_path}/emnist-mnist")
    for spec, size in (("emnist-digits", 4), ("emnist-mnist", 5), ("emnist-mnist-train-images-idx3-ubyte.gz", 5),
                       ("train-labels-idx1-ubyte.gz", 6)):  # fmt: skip
        dataset = open_dataset(tmp_path / spec)
        assert dataset.splits["train"].images.shape[1:] == (size, size, 1)
        assert any("upright" in note for note in dataset.notes) == spec.startswith("emnist")
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "emnist")


def test_two_idx_files_for_one_split(tmp_path):
    idx_folder(tmp_path)
    idx_folder(tmp_path, splits=[("test", 15)])
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path)
    assert_one_line(caught, "t10k-images-idx3-ubyte and test-images-idx3-ubyte")


def test_a_pipe_named_like_an_idx_file(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match="no class folders"):
        open_dataset(tmp_path)


def test_a_gzip_file_of_another_name(tmp_path):
    """Browsers may unpack a file and leave its name, or the other way round."""
    idx_folder(tmp_path, packed=True)
    expected = open_dataset(tmp_path).fingerprint()
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    path = path.with_name("train-labels-idx1-ubyte.gz")
    path.rename(path.with_suffix(""))
    assert open_dataset(tmp_path).fingerprint() == expected


@pytest.mark.parametrize("claim", [(2**20, 64, 64), (60, 6, 5)])
def test_gzip_bombs(claim, tmp_path):
    """4 GiB of zeros claimed, or more bytes than claimed; neither is unpacked."""
    path = idx_folder(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    header = struct.pack(">4B3I", 0, 0, 8, 3, *claim)
    block = gzip.compress(bytes(2**24))
    path.write_bytes(gzip.compress(header) + block * 256)
    begin = time.monotonic()
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path)
    assert_one_line(caught, str(path))
    assert time.monotonic() - begin < 2


def test_npz_bombs_and_damaged_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_idx, "MAX_UNPACKED", 10**6)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((20_000, 10, 10), np.uint8), y=np.arange(20_000) % 2)
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path / "a.npz")
    assert_one_line(caught, "a.npz: the array x.npy claims 2,000,128 bytes")
    save(tmp_path / "b.npz", y=Y)
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 9_018) + b"(" * 9_000 + b" " * 17 + b"\n"
    with zipfile.ZipFile(tmp_path / "b.npz", "a") as file:
        file.writestr("x.npy", header)
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path / "b.npz")
    assert_one_line(caught, "b.npz: the array x")


def test_npz_of_another_version_of_zip_or_with_text_that_is_none(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, images=random_images(12)[0], labels=np.array(list("abc") * 4))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    path.write_bytes(data[: place + 6] + bytes([255]) + data[place + 7 :])  # version needed to extract
    with pytest.raises(ValueError, match=r"d\.npz: is not a complete \.npz file") as caught:
        open_dataset(path)
    assert_one_line(caught)
    labels = np.full(12, 0x7FFFFFFF, np.uint32).view("<U1")  # beyond the last character of Unicode
    np.savez(path, images=random_images(12)[0], labels=labels)
    with pytest.raises(ValueError, match="the array labels is damaged"):
        open_dataset(path)


def test_npz_keys_are_printed_on_one_line(tmp_path):
    np.savez(tmp_path / "d.npz", **{"two\nlines\x1b[2J": np.zeros(3)})
    with pytest.raises(ValueError, match=r"contains two lines\\x1b\[2J; expected") as caught:
        open_dataset(tmp_path / "d.npz")
    assert str(caught.value).isprintable()
