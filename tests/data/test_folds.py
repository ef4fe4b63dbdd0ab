"""Folds of a cross-validation: who is tested when, and what stays together."""

import csv

import numpy as np
import pytest
from helpers import assert_one_line, random_images
from PIL import Image

from zoo.data.dataset import content_keys
from zoo.data.folds import Fold, as_cross_validated, assign_folds, choose_group_column, connected_parts, take_fold
from zoo.data.sources import from_arrays, open_dataset
from zoo.data.splits import record_columns, record_name


def keys_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(16) for _ in range(count)]


def all_folds(dataset, count, group=""):
    return [take_fold(dataset, Fold(index, count, group)) for index in range(1, count + 1)]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(4))
def test_every_image_is_tested_once_and_never_trained_on_in_that_fold(count, seed):
    """Random data with duplicates, some under two labels."""
    rng = np.random.default_rng(seed)
    images, labels = random_images(90, 5, 4)
    labels = rng.permutation(np.arange(90) % (2 + seed))
    copies = rng.integers(0, 90, 20)
    images, labels = np.concatenate([images, images[copies]]), np.concatenate([labels, labels[copies]])
    labels[-1] = (labels[-1] + 1) % 2  # a contradiction
    dataset = from_arrays((images, labels), test=random_images(8, 5, 4, classes=2) if seed % 2 else None)
    total = sum(len(split) for split in dataset.splits.values())
    tested = []
    for fold in all_folds(dataset, count):
        keys = {name: content_keys(split) for name, split in fold.splits.items()}
        assert list(keys) == ["train", "validation", "test"] and sum(map(len, keys.values())) == total
        sets = {name: set(part) for name, part in keys.items()}
        assert not sets["train"] & sets["test"] and not sets["validation"] & sets["test"]
        assert not sets["train"] & sets["validation"] and sets["validation"]
        assert set(fold.splits["train"].labels.tolist()) == set(range(dataset.num_classes))
        tested += keys["test"]
    everything = [key for split in dataset.splits.values() for key in content_keys(split)]
    assert sorted(tested) == sorted(everything)


@pytest.mark.parametrize("counts", [(30, 30), (50, 7, 11), (6, 5), (100, 20)])
def test_folds_are_stratified_and_do_not_depend_on_the_order(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    keys = keys_of(len(labels))
    folds = assign_folds(connected_parts(keys), keys, labels, 5, grouped=False)
    table = np.array([[((folds == fold) & (labels == k)).sum() for fold in range(5)] for k in range(len(counts))])
    assert (table.max(1) - table.min(1) <= 1).all() and table.sum(0).max() - table.sum(0).min() <= len(counts)
    order = np.random.default_rng(3).permutation(len(labels))
    shuffled = [keys[i] for i in order]
    again = assign_folds(connected_parts(shuffled), shuffled, labels[order], 5, grouped=False)
    assert np.array_equal(again, folds[order])


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_even_through_shared_images(seed):
    rng = np.random.default_rng(seed)
    groups = [f"p{number}" if number < 18 else "" for number in rng.integers(0, 20, 120)]
    keys, labels = keys_of(120, seed), rng.integers(0, 3, 120)
    keys[7] = keys[50]  # one image of two patients
    groups[7], groups[50] = "p0", "p1"
    parts = connected_parts(keys, groups)
    assert parts[7] == parts[50] and len(set(parts)) == 17 + groups.count("")
    folds = assign_folds(parts, keys, labels, 4, grouped=True)
    for name in set(groups) - {"", "p0", "p1"}:
        assert len({folds[i] for i in range(120) if groups[i] == name}) == 1
    assert len({folds[i] for i in range(120) if groups[i] in ("p0", "p1")}) == 1
    assert set(folds) == {0, 1, 2, 3}
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 30  # of 120: groups are spread
    order = rng.permutation(120)
    again = connected_parts([keys[i] for i in order], [groups[i] for i in order])
    again = assign_folds(again, [keys[i] for i in order], labels[order], 4, grouped=True)
    assert np.array_equal(again, folds[order])


def write_table(folder, columns, count=24, classes=2, name="table.csv"):
    """Write a table of images with further columns: name -> function of the row number."""
    images = random_images(count, 6, 5)[0]
    with open(folder / name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *columns])
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", f"class {i % classes}", *(cell(i) for cell in columns.values())])
    return open_dataset(folder / name)


def test_the_group_column_of_a_table(tmp_path):
    dataset = write_table(tmp_path, {"patient_id": lambda i: f"p{i // 3}", "age": lambda i: i})
    assert choose_group_column(dataset) == "patient_id" and choose_group_column(dataset, "none") == ""
    assert choose_group_column(dataset, "age") == "age"
    with pytest.raises(ValueError) as error:
        choose_group_column(dataset, "patient")
    assert_one_line(error, "--group patient", "did you mean patient_id?")
    for split in dataset.splits.values():  # the cells follow the records
        names = [int(record_name(split, i).removesuffix(".png")) for i in range(len(split))]
        assert record_columns(split)["patient_id"] == [f"p{i // 3}" for i in names]
    tested = []
    for fold in all_folds(dataset, 4, "patient_id"):
        patients = {name: set(record_columns(split)["patient_id"]) for name, split in fold.splits.items()}
        assert not patients["train"] & patients["test"] and not patients["validation"] & patients["test"]
        assert not patients["train"] & patients["validation"]
        assert any("patient_id stay together (8 groups)" in note for note in fold.notes)
        tested += sorted(patients["test"])
    assert sorted(tested) == [f"p{i}" for i in range(8)]


def test_json_lines_have_group_columns_too(tmp_path):
    write_table(tmp_path, {}, 12)
    rows = [f'{{"path": "{i}.png", "label": "{i % 2}", "Subject": {i // 2}, "box": [1, 2]}}' for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    dataset = open_dataset(tmp_path / "rows.jsonl")
    assert choose_group_column(dataset) == "Subject"
    assert set(record_columns(dataset.splits["test"])) == {"Subject"}


def test_ambiguous_and_missing_columns(tmp_path):
    two = write_table(tmp_path, {"patient": lambda i: i, "Group": lambda i: i})
    with pytest.raises(ValueError) as error:
        choose_group_column(two)
    assert_one_line(error, "patient and Group", "--group none")
    arrays = from_arrays(random_images(30))
    assert choose_group_column(arrays) == ""
    with pytest.raises(ValueError) as error:
        choose_group_column(arrays, "patient")
    assert_one_line(error, "--group patient", "table")


def test_too_few_images_or_groups(tmp_path):
    dataset = from_arrays((random_images(13)[0], [0] * 10 + [1] * 3))
    with pytest.raises(ValueError) as error:
        take_fold(dataset, Fold(1, 4))
    assert_one_line(error, "4 folds", "'1' has 3", "--folds 3")
    assert len(take_fold(dataset, Fold(1, 3)).splits["test"]) in (4, 5)
    images = random_images(12)[0]
    images[11] = images[10]  # the second class has two different images
    with pytest.raises(ValueError) as error:
        take_fold(from_arrays((images, [0] * 9 + [1] * 3)), Fold(1, 3))
    assert_one_line(error, "'1' has 2", "--folds 2")
    table = write_table(
        tmp_path, {"patient": lambda i: i % 3, "site": lambda i: i % 2, "blank": lambda i: "" if i % 5 else "nan"}
    )
    with pytest.raises(ValueError) as error:
        take_fold(table, Fold(1, 4, "patient"))
    assert_one_line(error, "'patient' has 3 groups", "--folds 3", "--group none")
    with pytest.raises(ValueError) as error:
        take_fold(table, Fold(1, 2, "site"))  # each class has a site of its own
    assert_one_line(error, "'class 0'", "one group", "--group none")
    assert len(take_fold(table, Fold(2, 4, "blank")).splits["test"]) == 6  # images without a group are by themselves


def test_the_splits_of_the_data_are_pooled_and_named():
    images, labels = random_images(60, classes=2)
    dataset = from_arrays((images[:40], labels[:40]), test=(images[40:], labels[40:]))
    fold = take_fold(dataset, Fold(2, 5))
    assert any("pooled" in note and "test 20" in note for note in fold.notes)
    assert sum(len(split) for split in fold.splits.values()) == 60 and len(fold.splits["test"]) == 12
    assert not any(note.kind == "held_out" for note in fold.notes)
    assert not any("pooled" in note for note in take_fold(from_arrays((images, labels)), Fold(1, 5)).notes)


def test_a_fold_is_recorded_as_text():
    for fold in (Fold(1, 5), Fold(10, 10, "patient")):
        assert Fold.from_json({"source": "x", **fold.to_json()}) == fold
    assert Fold.from_json({"source": "x"}) is None
    for wrong in ("0/5", "6/5", "1/1", "1", "a/b", 3, ["1/5"], "1/5\n"):
        with pytest.raises(ValueError, match="fold such as"):
            Fold.from_json({"fold": wrong})
    dataset = from_arrays(random_images(40, classes=2))
    assert as_cross_validated(dataset, {}) is dataset
    again = as_cross_validated(dataset, {"fold": "2/4", "limit": 6})
    assert sum(len(split) for split in again.splits.values()) == 6 + 4 + 6
