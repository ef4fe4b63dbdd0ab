import dataclasses
import sys
import types

import numpy as np
import pytest
from helpers import assert_one_line, split_sizes
from photos import encoded, photo

from zoo.data.dataset import Note
from zoo.data.sources import open_dataset
from zoo.data.sources.hf import find_columns
from zoo.data.sources.listing import open_listing
from zoo.data.sources.open import open_source


class Image:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    names = ("zebra", "ant")


class Table:
    """As much of datasets.Dataset as is used."""

    def __init__(self, rows, split):
        self.rows, self.split, self.features, self._fingerprint = (
            rows,
            split,
            {"image": Image(), "label": ClassLabel()},
            split,
        )

    def __getitem__(self, key):
        return [row["label"] for row in self.rows] if key == "label" else self.rows[key]

    def cast_column(self, column, feature):
        assert column == "image" and not feature.decode
        return self

    def select_columns(self, columns):
        return self


def rows(numbers):
    return [{"image": {"bytes": encoded(photo(12, 16, seed=n)), "path": None}, "label": n % 2} for n in numbers]


@pytest.fixture
def datasets(monkeypatch):
    tables = {"train": Table(rows(range(20)), "train"), "test": Table(rows(range(20, 26)), "test")}

    def load_dataset(name, config=None, cache_dir=None):
        if name != "owner/photos":
            raise FileNotFoundError(f"Dataset {name!r} doesn't exist\non the Hub")
        return dict(tables)

    module = types.SimpleNamespace(load_dataset=load_dataset, load_from_disk=None, Image=Image)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return tables


def test_hf(datasets):
    dataset = open_dataset("hf:owner/photos")
    assert split_sizes(dataset) == {"train": 18, "validation": 2, "test": 6} and dataset.class_names == ("zebra", "ant")
    test = dataset.splits["test"]
    for i, image in enumerate(test.read(np.arange(6))):
        np.testing.assert_array_equal(image, photo(12, 16, seed=20 + i))
    assert test.labels.tolist() == [0, 1] * 3 and test.name(2) == "test[2]"


def test_hf_test_split_without_labels_is_not_used(datasets):
    for row in datasets["test"].rows:
        row["label"] = -1
    dataset = open_dataset("hf:owner/photos")
    assert split_sizes(dataset) == {"train": 14, "validation": 2, "test": 4}
    assert ("unused", "test") in [(note.kind, note.split) for note in dataset.notes]


@pytest.mark.parametrize("column", ["image", "label"])
def test_hf_test_split_without_a_column_is_not_used(datasets, column):
    del datasets["test"].features[column]
    for tables in (dict(datasets), dict(reversed(datasets.items()))):  # whichever comes first
        datasets.clear()
        datasets.update(tables)
        dataset = open_dataset("hf:owner/photos")
        assert split_sizes(dataset) == {"train": 14, "validation": 2, "test": 4}
        assert Note("unused", f"not used: the test split, which has no column {column}", "test") in dataset.notes


def test_hf_class_names_are_normalised(datasets, monkeypatch):
    monkeypatch.setattr(ClassLabel, "names", ("cafe\u0301", "snow\u00a0owl"))  # a combining accent, a hard space
    dataset = open_dataset("hf:owner/photos")
    assert dataset.class_names == ("caf\u00e9", "snow owl")
    assert dataset.splits["test"].labels.tolist() == [0, 1] * 3


def test_labels_outside_of_the_sources_classes(datasets, monkeypatch):
    source = open_source("hf:owner/photos")
    with pytest.raises(ValueError) as caught:
        open_listing(dataclasses.replace(source, class_names=("ant", "bee")))
    assert_one_line(caught, "hf:owner/photos: train[0] has class zebra", "(ant, bee)")
    monkeypatch.setattr(ClassLabel, "names", ("caf\u00e9", "cafe\u0301"))
    with pytest.raises(ValueError) as caught:
        open_dataset("hf:owner/photos")
    assert_one_line(caught, "hf:owner/photos: ", "caf\u00e9")


def test_hf_errors(datasets, monkeypatch):
    with pytest.raises(ValueError) as caught:
        open_dataset("hf:nobody/nothing")
    assert_one_line(caught, "hf:nobody/nothing: ", "FileNotFoundError: Dataset 'nobody/nothing' doesn't exist")
    datasets["train"].features["depth"] = Image()
    del datasets["train"].features["label"]
    with pytest.raises(ValueError) as caught:
        open_dataset("hf:owner/photos")
    assert_one_line(caught, "one column of images and one of classes", "depth (Image)")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'jax-model-zoo\[hf\]'"):
        open_dataset("hf:owner/photos")


def test_hf_records_are_found_in_their_split(datasets, tmp_path):
    """Across the end of a split, and images that are paths instead of bytes."""
    (tmp_path / "x.png").write_bytes(b"from a file")
    datasets["test"].rows[0]["image"] = {"bytes": None, "path": str(tmp_path / "x.png")}
    datasets["test"].rows[1]["image"] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    datasets["test"].rows[2]["image"] = None
    store = open_source("hf:owner/photos").store
    assert [store.name(i) for i in (0, 19, 20, 25)] == ["train[0]", "train[19]", "test[0]", "test[5]"]
    assert store.fetch([20, 19]) == [b"from a file", encoded(photo(12, 16, seed=19))]
    for record, name in ((21, r"test\[1\]"), (22, r"test\[2\]")):
        with pytest.raises(ValueError, match=rf"^{name}: cannot be read"):
            store.fetch([record])


def test_hf_splits_by_name_and_unused_ones(datasets):
    datasets["dev"] = Table(rows(range(30, 34)), "dev")
    datasets["extra"] = Table(rows(range(40, 42)), "extra")
    dataset = open_dataset("hf:owner/photos")
    assert split_sizes(dataset) == {"train": 20, "validation": 4, "test": 6}
    assert [str(note) for note in dataset.notes] == ["not used: extra"]
    for name in ("train", "test", "dev"):
        del datasets[name]
    with pytest.raises(ValueError) as caught:
        open_dataset("hf:owner/photos")
    assert_one_line(caught, "hf:owner/photos: ", "only extra")


def test_hf_arguments(datasets, monkeypatch, tmp_path):
    calls = []
    module = sys.modules["datasets"]
    monkeypatch.setattr(module, "load_dataset", lambda *a, **options: calls.append((a, options)) or dict(datasets))
    open_source("hf:owner/photos:small", tmp_path)
    open_source("hf:owner/photos")
    assert calls == [
        (("owner/photos", "small"), {"cache_dir": str(tmp_path)}), (("owner/photos", None), {"cache_dir": None}),
    ]  # fmt: skip
    monkeypatch.setattr(module, "load_from_disk", lambda name: Table(rows(range(4)), "saved"))
    source = open_source(f"hf:{tmp_path}")
    assert set(source.splits) == {"train"} and len(source.labels) == 4


@pytest.mark.parametrize(
    "features, expected",
    [
        ({"picture": Image(), "class": None}, ("picture", "class")),
        ({"image": Image(), "mask": Image(), "label": ClassLabel(), "coarse": ClassLabel()}, ("image", "label")),
        ({"image": Image(), "fine": ClassLabel(), "labels": None}, ("image", "fine")),
        ({"image": Image(), "mask": Image()}, None),
        ({"a": Image(), "b": Image(), "label": ClassLabel()}, None),
        ({"image": Image(), "fine": ClassLabel(), "coarse": ClassLabel()}, None),
        ({"label": ClassLabel()}, None),
    ],
)
def test_hf_columns(features, expected):
    table = types.SimpleNamespace(features=features)
    if expected:
        assert find_columns(table, "x") == expected
    else:
        with pytest.raises(ValueError) as caught:
            find_columns(table, "x")
        assert_one_line(caught, "hf:x: ", *features)


def test_hf_labels_without_names(datasets):
    """Numbers or words in a plain column are the class names; a missing one makes the split unusable."""
    for table in datasets.values():
        table.features = {"image": Image(), "label": None}
    assert open_dataset("hf:owner/photos").class_names == ("0", "1")
    datasets["test"].rows[3]["label"] = None
    assert open_source("hf:owner/photos").splits == ("train",) * 20
