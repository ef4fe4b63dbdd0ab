import io
import json
import sys

import numpy as np
import pytest
from helpers import assert_one_line, flip_bit, random_images, split_sizes
from PIL import Image

from zoo.data import splits
from zoo.data.augment.host_crop import Crop, read_crop
from zoo.data.dataset import Note
from zoo.data.images.preprocess import Preprocess
from zoo.data.loader import batch_indices, train_batches
from zoo.data.sources import ArraySplit, Split, open_dataset
from zoo.data.sources import tfds as tfds_module


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
    prepare(tmp_path, {"train": random_images(60), "test": random_images(15), "extra": random_images(3)})
    capsys.readouterr()
    dataset = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert split_sizes(dataset) == {"train": 54, "validation": 6, "test": 15}
    assert dataset.class_names == ("ape", "bee", "cow") and dataset.name == "tfds:tiny"
    assert dataset.notes[0] == Note("unused", "not used: extra") and "6 of 60" in str(dataset.notes[1])
    assert all(isinstance(split, ArraySplit) for split in dataset.splits.values())
    x, y = random_images(15)
    assert by_content(dataset.splits["test"]) == sorted((a.tobytes(), int(b)) for a, b in zip(x, y, strict=True))
    assert capsys.readouterr().out == ""
    again = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert again.fingerprint() == dataset.fingerprint()


def test_tfds_cache_is_used_and_rebuilt_when_damaged_or_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = prepare(tmp_path, {"train": random_images(60), "test": random_images(15)})
    first = open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint()
    stored = sorted((tmp_path / "cache" / "jax-model-zoo" / "data").iterdir())
    assert len(stored) == 2 and all(path.suffix == ".npz" for path in stored)
    decoded = []
    monkeypatch.setattr(splits, "read_image", lambda data: decoded.append(1) or pytest.fail("was not in the cache"))
    assert open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint() == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for damage in (flip_bit, lambda data: data[:50], lambda data: b""):
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
    prepare(tmp_path, {"train": random_images(60)})
    assert len(open_dataset("tfds:tiny", data_dir=tmp_path).splits["train"]) == 42


@pytest.mark.parametrize("why", ["larger than memory", "of differing sizes"])
def test_tfds_read_on_demand(why, tmp_path, monkeypatch):
    if why == "larger than memory":
        monkeypatch.setattr(tfds_module, "IN_MEMORY_BYTES", 100)
    x, y = random_images(60)
    images = [image[: 3 + i % 4] for i, image in enumerate(x)] if why == "of differing sizes" else list(x)
    shape = (None, None, 1) if why == "of differing sizes" else (6, 5, 1)
    prepare(tmp_path, {"train": (images, y)}, shape=shape)
    dataset = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert split_sizes(dataset) == {"train": 42, "validation": 6, "test": 12}
    assert sorted(record for split in dataset.splits.values() for record in by_content(split)) == sorted(
        (a.tobytes(), int(b)) for a, b in zip(images, y, strict=True)
    )
    split = dataset.splits["train"]
    assert isinstance(split, Split) and split.read([]) == []
    backwards = split.read(np.arange(len(split))[::-1])
    assert all(np.array_equal(a, b) for a, b in zip(backwards[::-1], split.read(range(len(split))), strict=True))
    assert open_dataset("tfds:tiny", data_dir=tmp_path).fingerprint() == dataset.fingerprint()


def test_tfds_photographs_are_cropped_on_the_host(tmp_path):
    x, y = random_images(60)
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


@pytest.mark.parametrize("name", ["val", "valid"])
def test_tfds_splits_have_other_names_for_validation(name, tmp_path):
    prepare(tmp_path, {"train": random_images(60), name: random_images(9), "test": random_images(15)})
    assert split_sizes(open_dataset("tfds:tiny", data_dir=tmp_path)) == {"train": 60, "validation": 9, "test": 15}


def test_tfds_validation_replaces_a_test_split_without_labels(tmp_path):
    test = random_images(15)[0], np.full(15, -1)
    prepare(tmp_path, {"train": random_images(60), "validation": random_images(9), "test": test})
    dataset = open_dataset("tfds:tiny", data_dir=tmp_path)
    assert split_sizes(dataset) == {"train": 54, "validation": 6, "test": 9}
    assert ("unused", "test") in [(note.kind, note.split) for note in dataset.notes]


def test_tfds_with_a_test_split_only(tmp_path):
    prepare(tmp_path, {"test": random_images(15)})
    assert list(open_dataset("tfds:tiny", data_dir=tmp_path).splits) == ["test"]


def test_tfds_features(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    image, label = tfds.features.Image(shape=(6, 5, 1)), tfds.features.ClassLabel(num_classes=3)
    prepare(tmp_path / "a", {"train": random_images(60)}, features={"image": image, "label": label}, supervised=None)
    assert open_dataset("tfds:tiny", data_dir=tmp_path / "a").class_names == ("0", "1", "2")
    two = {"image": image, "second": tfds.features.Image(shape=(6, 5, 1)), "label": label}
    prepare(tmp_path / "b", {"train": random_images(60)}, features=two)
    assert len(open_dataset("tfds:tiny", data_dir=tmp_path / "b").splits["train"]) == 42
    prepare(tmp_path / "c", {"train": random_images(60)}, features=two, supervised=None)
    with pytest.raises(ValueError, match=r"\(images: image, second; classes: label\)"):
        open_dataset("tfds:tiny", data_dir=tmp_path / "c")
    prepare(tmp_path / "d", {"train": random_images(60)}, features={"image": image}, supervised=None)
    with pytest.raises(ValueError, match="classes: none"):
        open_dataset("tfds:tiny", data_dir=tmp_path / "d")


def test_tfds_in_a_format_without_random_access(tmp_path):
    folder = prepare(tmp_path, {"train": random_images(60)})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"as tfrecord, .*run: tfds convert_format") as caught:
        open_dataset("tfds:tiny", data_dir=tmp_path)
    assert_one_line(caught, str(folder))


@pytest.mark.parametrize(
    "damage", [lambda data: flip_bit(data, data.index(b"IDAT")), lambda data: data[:-20], lambda data: b""]
)
def test_tfds_damaged_records(damage, tmp_path):
    folder = prepare(tmp_path, {"train": random_images(60)})
    (file,) = folder.glob("*.array_record*")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"^tfds:tiny train: records cannot be read") as caught:
        open_dataset("tfds:tiny", data_dir=tmp_path)
    assert_one_line(caught)


def test_tfds_names_and_configurations(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    for name, expected in {
        "mnits": r"did you mean .*mnist",
        "mnist/large": "no configuration 'large'",
        "emnist/leters": "did you mean letters",
        "mnist:9.9.9": "only: 3.0.1",
        "imdb_reviews": "images: none",
        "a b": "Parsing",
    }.items():
        with pytest.raises(ValueError, match=expected) as caught:
            open_dataset(f"tfds:{name}", data_dir=tmp_path)
        assert_one_line(caught, f"tfds:{name}: ")


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
    assert_one_line(caught)

    def offline(*arguments, **options):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ValueError, match=r"beans.*googleapis.com cannot be reached") as caught:
        open_dataset("tfds:beans", data_dir=tmp_path)
    assert_one_line(caught)


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
def test_tfds_preparation_errors_are_one_line(error, expected):
    with pytest.raises(ValueError, match=r"^tfds:tiny: ") as caught:
        tfds_module._prepare(Unprepared(error), "tiny")
    assert_one_line(caught, expected)


@pytest.mark.parametrize(
    "raised, expected",
    [
        ("TypeError('Descriptors cannot be created directly')", ValueError),
        ("ImportError('no module protobuf')", ValueError),
        ("KeyboardInterrupt", KeyboardInterrupt),
    ],
)
def test_an_import_of_tfds_that_fails(raised, expected, tmp_path, monkeypatch):
    (tmp_path / "tensorflow_datasets.py").write_text(f"raise {raised}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow_datasets", raising=False)
    with pytest.raises(expected) as caught:
        open_dataset("tfds:mnist")
    if expected is ValueError:
        assert_one_line(caught, "tfds:mnist: TensorFlow Datasets cannot be imported")
