import dataclasses
from pathlib import Path

import numpy as np
import pytest
from photos import folder_of

from zoo import cli
from zoo.cache import cache_folder
from zoo.data.images.decode import read_image
from zoo.data.images.preprocess import Preprocess
from zoo.data.inspect.contact_sheet import augmented_images, augmented_sheet, contact_sheet
from zoo.data.sources import ArraySplit, Dataset


def test_contact_sheet_and_augmented_sheet(tmp_path, capsys, monkeypatch):
    folder_of(tmp_path / "photos", {"cat": 8, "dog": 8}, size=(80, 100))
    monkeypatch.chdir(tmp_path)
    words = ["data", "photos", "--sheet", "all.png", "--augmented", "made.png", "--image-size", "32"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "try: zoo train --data photos --init torchvision:resnet18" in out
    assert "made.png (resized_crop(area=0.6); flip)" in out
    sheet, made = read_image("all.png"), read_image("made.png")
    assert sheet.shape[2] == made.shape[2] == 3 and made.shape[0] > sheet.shape[0] > 200
    first, second = made[58:136, 4:100], made[58:136, 104:200]
    assert np.abs(first.astype(int) - second).mean() > 5  # the second column is augmented
    for n in range(8):  # every column has a name above it, the first line says what is done
        assert made[22:40, 4 + 100 * n : 100 + 100 * n].min() < 128
    assert made[4:22].min() < 128


def test_small_photographs_are_augmented_as_the_suggested_command_does(tmp_path, capsys, monkeypatch):
    folder_of(tmp_path / "small", {"cat": 4, "dog": 4}, size=(40, 40))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "small", "--augmented", "made.png"]) == 0
    out = capsys.readouterr().out
    assert "--init resnet20-cifar10" in out and "made.png (pad_crop(pad=4); flip)" in out


def test_unnamed_sheets_are_written_to_the_cache(tmp_path, capsys, monkeypatch):
    """People have contact-sheet.png and augmented.png of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("contact-sheet.png", "augmented.png"):
        Path(name).write_bytes(b"mine")
    assert cli.main(["data", "digits", "--augmented", "--augment", "flip", "--data-dir", "my data"]) == 0
    out = capsys.readouterr().out
    assert "try: zoo train --data digits" in out and out.rstrip().endswith("--data-dir 'my data'")
    for what in ("contact sheet: ", "augmented: "):
        (line,) = [line for line in out.splitlines() if line.startswith(what)]
        place = Path(line.removeprefix(what).split(" (")[0])
        assert place.is_relative_to(cache_folder()) and read_image(place).shape[1] == 804
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "contact-sheet.png": b"mine",
        "augmented.png": b"mine",
    }


def test_an_unwritable_cache_skips_the_unnamed_sheet(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert cli.main(["data", "digits"]) == 0
    out, err = capsys.readouterr()
    assert "contact sheet: not written (" in err and "--sheet FILE.png" in err and "try: zoo train" in out


@pytest.mark.parametrize("words", [["--sheet", "a.jpg"], ["--sheet", "no/such/a.png"], ["--augmented", "."]])
def test_invalid_sheet_names_are_refused_before_any_work(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "digits", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1


COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def coloured(counts, size=(8, 8), channels=3):
    """A data set with one split per entry, in which class k has counts[k] images of one colour each."""
    splits = {}
    for name, numbers in counts.items():
        labels = np.repeat(np.arange(len(numbers), dtype=np.int32), numbers)
        images = np.stack([np.full((*size, channels), COLOURS[k % 3][:channels], np.uint8) for k in labels])
        splits[name] = ArraySplit(images, labels)
    return Dataset("mine", splits, tuple(f"class {k}" for k in range(len(numbers))))


def cells(path, top=22, step=118):
    """The colour at the centre of each picture of a sheet, by row; white cells are empty."""
    sheet = read_image(path)
    rows = (sheet.shape[0] - 4) // step
    return [[tuple(sheet[top + step * n + 48, 52 + 100 * m].tolist()) for m in range(8)] for n in range(rows)]


def test_a_contact_sheet_has_a_row_per_class_of_the_first_split(tmp_path):
    contact_sheet(coloured({"train": [10, 0, 3], "test": [9, 9, 9]}), tmp_path / "a.png")
    red, blue, white = COLOURS[0], COLOURS[2], (255, 255, 255)
    assert cells(tmp_path / "a.png") == [[red] * 8, [blue] * 3 + [white] * 5]


def test_names_are_written_as_on_other_pictures(tmp_path, monkeypatch):
    """Pillow's own font has boxes for most letters beyond English ones."""
    seen = []
    monkeypatch.setattr("zoo.data.inspect.contact_sheet.write_text", lambda draw, place, text, *more: seen.append(text))
    dataset = dataclasses.replace(coloured({"train": [1, 1]}), class_names=("W\u00fcrfel", "\u4e09\u89d2"))
    contact_sheet(dataset, tmp_path / "a.png")
    assert [text.split()[0] for text in seen] == ["W\u00fcrfel", "\u4e09\u89d2"]


@pytest.mark.parametrize("classes, rows", [(12, range(12)), (13, range(12)), (36, range(0, 36, 3))])
def test_at_most_twelve_classes_evenly_spaced(classes, rows, tmp_path):
    contact_sheet(coloured({"train": [1] * classes}), tmp_path / "a.png")
    assert [row[0] for row in cells(tmp_path / "a.png")] == [COLOURS[k % 3] for k in rows]


def test_classes_without_images_take_no_row(tmp_path):
    """The data may have some of a model's classes, anywhere among them."""
    split = coloured({"train": [2, 2, 2]}).splits["train"]
    dataset = Dataset("mine", {"train": split.relabel(split.labels * 7 + 3)}, tuple(f"class {k}" for k in range(40)))
    contact_sheet(dataset, tmp_path / "a.png")
    assert [row[0] for row in cells(tmp_path / "a.png")] == list(COLOURS)
    preprocess = Preprocess((8, 8), (8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    labels, images = augmented_images(dataset, preprocess, [], rows=2, columns=2)
    assert labels.tolist() == [3, 10] and images.shape == (2, 2, 8, 8, 3)


@pytest.mark.parametrize(
    "size, expected", [((8, 4), (96, 48)), ((192, 384), (48, 96)), ((1, 400), (1, 96)), ((96, 96), (96, 96))]
)
def test_pictures_are_scaled_to_the_longer_side(size, expected, tmp_path):
    contact_sheet(coloured({"train": [1, 1]}, size), tmp_path / "a.png")
    red = (read_image(tmp_path / "a.png")[22:118, 4:100] == COLOURS[0]).all(-1)
    assert (red.any(1).sum(), red.any(0).sum()) == expected
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert rows[0] == (96 - expected[0]) // 2 and columns[0] == (96 - expected[1]) // 2  # centred


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_the_augmented_sheet_shows_colours_as_in_the_file(channels, tmp_path):
    mean, std = (0.0,) * 3, (1.0,) * 3
    preprocess = Preprocess((8, 8), (8, 8), channels=channels, mean=mean, std=std)
    augmented_sheet(coloured({"train": [9, 2]}), preprocess, [], tmp_path / "a.png")
    rows = cells(tmp_path / "a.png", top=58)
    assert rows == [[COLOURS[0]] * 8] * 6 + [[COLOURS[1]] * 8] * 2  # at most twelve images, shared by the classes
    grey = Preprocess((8, 8), (8, 8), channels="L", mean=(0.0,), std=(1.0,))
    augmented_sheet(coloured({"train": [1, 1]}, channels=1), grey, [], tmp_path / "grey.png")
    assert cells(tmp_path / "grey.png", top=58)[0] == [(255, 255, 255)] * 8


def test_colours_are_augmented_alike_in_any_order_of_channels():
    """Operations weigh red, green and blue; a model of BGR images sees the same forms, in its order."""
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    dataset = Dataset("mine", {"train": ArraySplit(images, np.arange(2, dtype=np.int32))}, ("a", "b"))
    rgb = Preprocess((8, 8), (8, 8), mean=(0.1, 0.5, 0.9), std=(1.0,) * 3)
    bgr = dataclasses.replace(rgb, channels="BGR", mean=rgb.mean[::-1])
    ops = ["cutout(size=4)", "pca_noise(1)"]
    (_, one), (_, two) = (augmented_images(dataset, preprocess, ops, columns=2) for preprocess in (rgb, bgr))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_augmentation_is_that_of_the_recipe_and_differs_by_epoch(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    dataset = Dataset("mine", {"train": ArraySplit(images, np.arange(2, dtype=np.int32))}, ("a", "b"))
    preprocess = Preprocess((8, 8), (8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    augmented_sheet(dataset, preprocess, ["pad_crop(pad=4)"], tmp_path / "a.png")
    sheet = read_image(tmp_path / "a.png")
    row = [sheet[58:154, 4 + 100 * m : 100 + 100 * m] for m in range(8)]
    np.testing.assert_array_equal(row[0], images[0].repeat(12, 0).repeat(12, 1))
    assert len({picture.tobytes() for picture in row}) > 5
