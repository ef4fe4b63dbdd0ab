import os
import shutil

import pytest
from helpers import assert_one_line, make_plan, split_sizes
from photos import encoded, folder_of, photo

from zoo.data import imagenet
from zoo.data.imagenet import class_names, wnids
from zoo.data.sources import Split, folders, open_dataset
from zoo.data.sources.folders import IMAGE_SUFFIXES, has_images
from zoo.data.sources.open import open_source


def names_of(split):
    return {split.name(i): int(split.labels[i]) for i in range(len(split))}


SPELLED = [
    ("train", "val", "test"),
    ("Training", "validation", "Testing"),
    ("train_set", "valid", "test-set"),
    ("TRAIN", "dev", "TEST"),
]


@pytest.mark.parametrize("spelled", SPELLED)
def test_split_folder_spellings(spelled, tmp_path):
    counts = {"train": (5, 6), "validation": (2, 1), "test": (1, 3)}
    pairs = list(zip(spelled, counts.values(), strict=True))
    layout = {f"{folder}/{label}": pair[k] for folder, pair in pairs for k, label in enumerate(("cat", "dog"))}
    dataset = open_dataset(folder_of(tmp_path, layout))
    assert split_sizes(dataset) == {name: sum(pair) for name, pair in counts.items()} and not dataset.notes
    assert dataset.class_names == ("cat", "dog") and isinstance(dataset.splits["train"], Split)
    for (name, pair), folder in zip(counts.items(), spelled, strict=True):
        assert names_of(dataset.splits[name]) == {
            f"{folder}/{label}/{n}.png": k for k, label in enumerate(("cat", "dog")) for n in range(pair[k])
        }


@pytest.mark.parametrize(
    "given, expected, said",
    [
        ({"": 40}, {"train": 56, "validation": 8, "test": 16}, [("held_out", "test"), ("held_out", "validation")]),
        ({"train/": 40, "test/": 5}, {"train": 72, "validation": 8, "test": 10}, [("held_out", "validation")]),
        (
            {"train/": 40, "val/": 5},
            {"train": 72, "validation": 8, "test": 10},
            [("splits", "test"), ("held_out", "validation")],
        ),
        ({"val/": 4, "test/": 5}, {"validation": 8, "test": 10}, []),
    ],
)
def test_missing_splits_are_held_out_with_a_note(given, expected, said, tmp_path):
    root = folder_of(tmp_path, {f"{part}{name}": n for part, n in given.items() for name in ("a", "b")}, size=(6, 8))
    dataset = open_dataset(root)
    assert split_sizes(dataset) == expected
    assert [(note.kind, note.split) for note in dataset.notes] == said
    for split in dataset.splits.values():
        assert abs(int((split.labels == 0).sum()) * 2 - len(split)) <= 1  # stratified
    assert open_dataset(root).fingerprint() == dataset.fingerprint()


def test_nested_hidden_and_ambiguous_folders(tmp_path):
    """In a folder of the archive's name, classes in folders of folders, a class called test, hidden things."""
    root = folder_of(tmp_path / "photos" / "photos", {"cat/old/1999": 12, "cat": 1, "dog": 12, "test": 12, ".git": 1})
    (root / "dog" / "._0.png").write_bytes(b"of another system")
    dataset = open_dataset(tmp_path / "photos")
    assert dataset.class_names == ("cat", "dog", "test") and sum(split_sizes(dataset).values()) == 37
    assert not dataset.left_out and not any(note.kind == "unused" for note in dataset.notes)


def test_a_class_called_train(tmp_path):
    dataset = open_dataset(folder_of(tmp_path, {"train": 8, "car": 8, "bus": 8}))
    assert dataset.class_names == ("bus", "car", "train")


def test_unused_folders_and_files_are_noted(tmp_path):
    folder_of(tmp_path, {"train/a": 10, "train/b": 10, "train/empty": 0, "extra/a": 3, "test": 4, "train": 2})
    notes = " | ".join(map(str, open_dataset(tmp_path).notes))
    for words in ("train/empty", "extra", "4 images in test", "2 images in train", "in a folder train/NAME"):
        assert words in notes, notes


@pytest.mark.parametrize(
    ("layout", "place", "named"),
    [
        ({"a": 10, "b": 10}, "", "beside the class folders (Thumbs.db, labels.csv, readme.txt)"),
        ({"photos/a": 10, "photos/b": 10}, "photos", "beside the class folders (Thumbs.db, labels.csv, readme.txt)"),
        ({"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 2}, "", "beside test, train (Thumbs.db, labels.csv, rea"),
        ({"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 2}, "test", "(test/Thumbs.db, test/labels.csv, test/rea"),
        ({"a/train": 9, "a/test": 2, "b/train": 9, "b/test": 2}, "", "beside the class folders (Thumbs.db, labels"),
    ],
)
def test_files_beside_the_folders_are_named_in_one_line(layout, place, named, tmp_path):
    folder_of(tmp_path, layout)
    for name in ("readme.txt", "Thumbs.db", "labels.csv", ".DS_Store"):
        (tmp_path / place / name).write_bytes(b"x")
    (note,) = (note for note in open_source(tmp_path).notes if note.kind == "unused")
    assert "not used: 3 files beside" in str(note) and named in str(note)


def test_numeric_class_names_are_ordered_by_value(tmp_path):
    folder_of(tmp_path, {f"train/{n}": 3 for n in (0, 2, 10, 9)} | {f"test/{n}": 1 for n in (0, 2, 10, 9)})
    assert open_dataset(tmp_path).class_names == ("0", "2", "9", "10")


def test_a_class_without_train_images_is_noted(tmp_path):
    folder_of(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 2, "test/new": 2})
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("a", "b", "new")
    assert any(note.kind == "classes" and "train: new" in str(note) for note in dataset.notes)


@pytest.mark.parametrize(
    "layout, said",
    [
        ({"train/a": 2, "training/a": 2}, ["train and training", "keep one"]),
        ({"": 3}, ["put the images of each class in a folder", "3 images in the folder itself", "in a folder NAME"]),
        ({"train": 3, "test": 3}, ["no image is in a class folder", "3 images in train", "in a folder train/NAME"]),
        ({"a": 0}, ["class folders"]),
    ],
)
def test_invalid_folders(layout, said, tmp_path):
    with pytest.raises(ValueError) as caught:
        open_dataset(folder_of(tmp_path, layout))
    assert_one_line(caught, *said)


def test_a_single_class_can_be_opened_but_not_trained(tmp_path):
    dataset = open_dataset(folder_of(tmp_path, {"train/a": 10, "test/a": 2}))
    with pytest.raises(ValueError) as caught:
        make_plan("lenet5", dataset)
    assert_one_line(caught, "all images are of class a")


def test_a_class_that_is_lost_because_no_image_of_it_can_be_read_is_named(tmp_path):
    folder_of(tmp_path, {"a": 10, "b": 10, "c": 0})
    (tmp_path / "c" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    notes = [str(note) for note in open_dataset(tmp_path).notes]
    assert any(note.endswith("classes without a readable image, left out: c") for note in notes), notes
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(ValueError) as caught:
        make_plan("lenet5", str(tmp_path))
    assert_one_line(caught, "all images are of class a", "the first c/phone.heic: is a heic file")


def test_several_subfolders_of_a_class_folder_are_noted(tmp_path):
    source = open_source(folder_of(tmp_path, {"set1/cat": 1, "set1/dog": 1, "set2/cat": 1}))
    assert source.labels == ("set1", "set1", "set2")
    (note,) = source.notes
    assert "subfolders" in str(note) and str(note).endswith("the upper folder: set1/cat, set1/dog")


def test_no_readable_image(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path)
    assert_one_line(caught, "none of its images can be read", "a/0.png: empty file")


def test_imagenet_wnids_become_words(tmp_path):
    folder_of(tmp_path / "ILSVRC", {f"{s}/{w}": n for s, n in (("train", 12), ("val", 3)) for w in list(wnids())[:3]})
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("tench", "goldfish", "great white shark") == class_names()[:3]
    assert split_sizes(dataset) == {"train": 32, "validation": 4, "test": 9} or split_sizes(dataset)["test"] == 9
    assert len(set(class_names())) == 1000 and list(wnids()) == sorted(wnids())


def test_imagenet_validation_images_without_class_folders(tmp_path, monkeypatch):
    """As they come out of the archive; their classes are in a list that TensorFlow Datasets brings."""
    wnid = {1: "n01751748", 2: "n09193705", 3: "n02105855", 49_999: "n10148035", 50_000: "n02437616"}
    layout = {f"train/{name}": 9 for name in wnid.values()}
    root = folder_of(tmp_path / "ILSVRC", {**layout, "val": 1}, size=(6, 8))
    for number in wnid:
        (root / "val" / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(encoded(photo(6, 8, number), "JPEG"))
    dataset = open_dataset(root)
    assert split_sizes(dataset)["test"] == 5 and dataset.num_classes == 5
    names = sorted(wnid.values())
    assert names_of(dataset.splits["test"]) == {
        f"val/ILSVRC2012_val_{number:08}.JPEG": names.index(name) for number, name in wnid.items()
    }
    assert any(note.kind == "source" and "5 images in val" in str(note) for note in dataset.notes)
    assert any(note.kind == "unused" and "1 images in val" in str(note) for note in dataset.notes)
    alone = open_dataset(root / "val")
    assert split_sizes(alone) == {"test": 5} and alone.num_classes == 5
    assert alone.class_names[0] == "sea snake"
    monkeypatch.setattr(imagenet, "_validation_list", lambda: ())
    with pytest.raises(ValueError, match="put the images of each class in a folder"):
        open_dataset(root / "val")


def test_unknown_wnids_stay_as_they_are(tmp_path):
    folder_of(tmp_path, {"n00000001": 10, "n00000002": 10})
    assert open_dataset(tmp_path).class_names == ("n00000001", "n00000002")


BEGINNINGS = {
    "JPEG": b"\xff\xd8\xff\xe0", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF89a", "BMP": b"BM", "TIFF": b"II*\0",
    "big-endian TIFF": b"MM\0*", "JPEG 2000": b"\0\0\0\x0cjP  \r\n", "WebP": b"RIFF\x10\0\0\0WEBPVP8 ",
}  # fmt: skip


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_files_without_a_suffix_that_begin_like_an_image_are_listed(kind, tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "picture").write_bytes(BEGINNINGS[kind])
    source = open_source(folder_of(tmp_path, {"a": 1}))
    assert set(source.store.names) == {"a/0.png", "a/picture", "b/picture"} and not source.notes


@pytest.mark.parametrize(
    "data",
    [
        *(encoded(photo(4, 4), name) for name in ("WEBP", "SGI", "TIFF", "BMP", "GIF")),
        *(b"\0\0\0\x18ftyp" + brand for brand in (b"avif", b"heic", b"crx ")),
        *(b"\xff\x4f\xff\x51", b"8BPS", b"qoif", b"\0\0\0\x0cJXL ", b"FUJIFILMCCD-RAW", b"IIU\0"),
    ],
)  # fmt: skip
def test_images_without_a_suffix_are_listed_so_that_unreadable_ones_are_named(data, tmp_path):
    folder_of(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "image").write_bytes(data)
    source = open_source(tmp_path)
    assert "a/image" in source.store.names and not source.notes


@pytest.mark.parametrize(
    "data", [b"", b"RIFF\x10\0\0\0WAVEfmt ", b"\0\xff\xd8\xff", b"GIF", b"text", b"\0\0\0\x18ftypmp42", b"\x01\xdb\0"]
)
def test_files_that_are_not_images_are_noted(data, tmp_path):
    folder_of(tmp_path, {"a": 2, "b": 2})
    for name in ("one", "two.txt", "three", "four"):
        (tmp_path / "a" / name).write_bytes(data)
    source = open_source(tmp_path)
    assert len(source.labels) == 4
    (note,) = source.notes
    assert note.kind == "unused" and "4 files that are not images (a/four, a/one, a/three and 1 more)" in str(note)


@pytest.mark.parametrize("inside", ["sorted/a", "sorted/train/a", "sorted/deeper/a"])
def test_files_beside_a_single_folder_are_noted(inside, tmp_path):
    """The folder stands for the one above it, whose own files are not used."""
    folder_of(tmp_path, {inside: 2, f"{inside.rpartition('/')[0]}/b": 2})
    for name in ("1.png", "2.png", "notes.txt", "Thumbs.db", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    source = open_source(tmp_path)
    assert len(source.labels) == 4
    (note,) = source.notes
    assert note.kind == "unused" and "4 files beside the folder sorted" in note and "1.png, 2.png" in note


def test_suffixes_in_any_case_and_system_files(tmp_path):
    folder_of(tmp_path, {"a": 1, "b": 1})
    for name in ("x.JPG", "y.Tif", ".hidden.png", "Thumbs.db", "desktop.ini", "._x.png"):
        (tmp_path / "a" / name).write_bytes(b"")
    (tmp_path / "__MACOSX").mkdir()
    source = open_source(tmp_path)
    assert set(source.store.names) == {"a/0.png", "a/x.JPG", "a/y.Tif", "b/0.png"} and not source.notes


def test_image_suffixes_are_pinned():
    assert {
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".avif",
        ".heic",
    } <= IMAGE_SUFFIXES
    assert not IMAGE_SUFFIXES & {".txt", ".mp4", ".npy", ".tar", ".csv", ".svg", ""}


def test_a_folder_has_images_at_any_depth(tmp_path):
    assert not has_images(tmp_path)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "notes.txt").write_text("text")
    assert not has_images(tmp_path)
    (tmp_path / "a" / "b" / "c" / "x").write_bytes(b"GIF89a")
    assert has_images(tmp_path)
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "0.png").touch()
    assert has_images(tmp_path / "loose")


@pytest.mark.parametrize(
    "layout, splits",
    [
        ({"train/a": 1, "test/a": 1}, {"train", "test"}),
        ({"train/a": 1, "extra/a": 1}, {"train"}),  # a train folder with folders in it: the others are not used
        ({"train": 2, "extra": 2}, {""}),  # without, all are classes
        ({"test/a": 1, "extra/a": 1}, {""}),
        ({"val": 2, "dev": 0, "test/a": 2}, None),  # two folders for one split
        ({"a/b/train/x": 1, "a/b/test/x": 1}, {"train", "test"}),  # single folders stand for what is in them
        ({"train/a": 2}, {"train"}),
    ],
)
def test_split_folders_and_class_folders(layout, splits, tmp_path):
    root = folder_of(tmp_path, layout)
    if splits is None:
        with pytest.raises(ValueError) as caught:
            open_source(root)
        assert_one_line(caught, f"{root}: dev and val", "validation")
    else:
        assert set(open_source(root).splits) == splits


def test_links_are_followed_unless_they_lead_back(tmp_path):
    root = folder_of(tmp_path / "root", {"a": 1, "b": 1})
    other = folder_of(tmp_path / "other", {"more": 2})
    (root / "a" / "more").symlink_to(other / "more")
    (root / "b" / "back").symlink_to(root / "b")
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "self").symlink_to("self")
    source = open_source(root)
    assert set(source.store.names) == {"a/0.png", "a/more/0.png", "a/more/1.png", "b/0.png", "b/self"}
    assert [line.split(": ")[0] for line in source.unreadable] == ["b/back", "b/up"]


@pytest.mark.parametrize(
    "name, known",
    [
        ("ILSVRC2012_val_00000001.JPEG", True),
        ("ILSVRC2012_val_00050000.JPEG", True),
        ("ILSVRC2012_val_00000000.JPEG", False),
        ("ILSVRC2012_val_00050001.JPEG", False),
        ("ILSVRC2012_val_0000001.JPEG", False),
        ("ILSVRC2012_val_00000001.jpg", False),
        ("xILSVRC2012_val_00000001.JPEG", False),
    ],
)
def test_classes_of_imagenet_validation_images(name, known):
    wnid = imagenet.validation_wnid(name)
    assert bool(wnid) == known and (not known or wnid in wnids())


def test_words_of_wnids():
    assert len(wnids()) == 1000 and imagenet.words_of(["n01443537", "n01440764"]) == ("goldfish", "tench")
    assert imagenet.words_of(tuple(wnids())) == class_names()
    for names in (["n01440764", "cat"], ["n99999999"], ["xn01440764"]):
        assert imagenet.words_of(names) is None
    assert class_names()[134] == "crane bird" and class_names()[517] == "crane"


@pytest.mark.parametrize(
    "layout, wrong, meant",
    [
        ({"trian/x": 1, "trian/y": 1, "val/x": 1, "val/y": 1}, "trian", "train"),
        ({"validaton/x": 1, "test/x": 1}, "validaton", "validation"),
        ({"train/x": 1, "vald/x": 1, "test/x": 1}, "vald", "validation"),
        ({"train/x": 1, "train/y": 1, "tets": 3}, "tets", "test"),  # unlabelled
        ({"trian/x": 1, "trian/y": 1, "vald/x": 1, "vald/y": 1}, "trian", "train"),
        ({"data/Trainning_Set/x": 1, "data/Trainning_Set/y": 1, "data/Test_Set/x": 1}, "Trainning_Set", "train"),
        ({"train/x": 2, "train/y": 2, "tests/x": 1}, "tests", "test"),
    ],
)
def test_misspelt_split_folders(layout, wrong, meant, tmp_path):
    with pytest.raises(ValueError) as caught:
        open_source(folder_of(tmp_path, layout, size=(4, 4)))
    assert_one_line(caught, f"{tmp_path}: {wrong!r} is not a split name. Did you mean {meant!r}?")


@pytest.mark.parametrize(
    "layout",
    [
        {"rain": 2, "snow": 2, "sun": 2},
        {"rain/1999": 1, "rain/2000": 1, "snow/1999": 1, "snow/2000": 1},  # subfolders that all classes have
        {"best": 1, "rest": 1, "text": 1},
        {"brain/a": 1, "heart/b": 1, "rain/c": 1},
        {"train": 2, "tram": 2, "trail": 2},  # classes
    ],
)
def test_classes_with_names_similar_to_splits(layout, tmp_path):
    source = open_source(folder_of(tmp_path, layout, size=(4, 4)))
    assert sorted(set(source.labels)) == sorted({name.split("/")[0] for name in layout}) and set(source.splits) == {""}


def test_a_split_name_among_classes_is_noted(tmp_path):
    folder_of(tmp_path, {"bus/x": 1, "car/x": 1, "cow/x": 1, "dog/x": 1, "test/x": 1})
    (note,) = open_source(tmp_path).notes
    assert note.kind == "classes" and "'bus', 'car', 'cow' and 1 more" in str(note) and "'test' is a class" in str(note)


@pytest.mark.parametrize("name", ["all", "unlabeled", "0_unlabelled", "stuff"])
def test_unlabelled_test_images_are_not_a_class(name, tmp_path):
    root = folder_of(tmp_path, {"train/cat": 10, "train/dog": 10, f"test/{name}": 6}, size=(6, 8))
    dataset = open_dataset(root)
    assert dataset.class_names == ("cat", "dog") and sum(split_sizes(dataset).values()) == 20
    (note,) = [note for note in dataset.notes if note.kind == "unused"]
    assert all(words in note for words in (f"6 images in test/{name}", "test/cat", "zoo predict"))


def test_an_unlabelled_folder_beside_the_classes_of_a_split(tmp_path):
    root = folder_of(tmp_path, {"train/a": 9, "train/b": 9, "val/a": 2, "val/b": 2, "val/unknown": 3}, size=(4, 4))
    dataset = open_dataset(root)
    assert dataset.class_names == ("a", "b") and split_sizes(dataset)["test"] == 4
    assert any("3 images in val/unknown" in note for note in dataset.notes)


def test_a_class_called_unknown(tmp_path):
    layout = {"train/cat": 9, "train/unknown": 9, "test/cat": 2, "test/unknown": 2}
    assert open_dataset(folder_of(tmp_path, layout, size=(4, 4))).class_names == ("cat", "unknown")


def test_splits_without_a_class_in_common(tmp_path):
    root = folder_of(tmp_path, {"train/cat": 2, "train/dog": 2, "test/bus": 1, "test/car": 1}, size=(4, 4))
    with pytest.raises(ValueError) as caught:
        open_source(root)
    assert_one_line(caught, f"{root}: test has the classes bus, car", "train has cat, dog")


def test_class_folders_in_another_spelling(tmp_path):
    layout = {"train/Cat": 9, "train/Dog": 9, "test/cat": 3, "test/dog ": 3}
    dataset = open_dataset(folder_of(tmp_path, layout, size=(4, 4)))
    assert dataset.class_names == ("Cat", "Dog") and split_sizes(dataset)["test"] == 6
    assert names_of(dataset.splits["test"])["test/dog /0.png"] == 1
    assert any(note.kind == "classes" and "'Cat' and 'cat'" in note for note in dataset.notes)


def test_numbered_class_folders_in_two_formats(tmp_path):
    layout = {f"train/{n}": 6 for n in range(3)} | {f"test/{n:03}": 1 for n in range(3)}
    dataset = open_dataset(folder_of(tmp_path, layout, size=(4, 4)))
    assert dataset.class_names == ("0", "1", "2") and dataset.splits["test"].labels.tolist() == [0, 1, 2]


def test_splits_below_classes(tmp_path):
    layout = {f"{label}/{split}": n for label in ("cat", "dog") for split, n in (("train", 9), ("val", 2), ("Test", 3))}
    dataset = open_dataset(folder_of(tmp_path / "data", layout, size=(4, 4)))
    assert dataset.class_names == ("cat", "dog")
    assert split_sizes(dataset) == {"train": 18, "validation": 4, "test": 6}
    assert names_of(dataset.splits["test"]) == {
        f"{label}/Test/{n}.png": k for k, label in enumerate(("cat", "dog")) for n in range(3)
    }
    assert [note.kind for note in dataset.notes] == ["source"] and "cat/train" in dataset.notes[0]


@pytest.mark.parametrize(
    "layout, parts",
    [
        ({"cat/train": 1, "cat/test": 1, "dog": 2}, ["cat has test and train, but dog has images outside"]),
        ({"cat/train": 1, "cat/test": 1, "dog/old": 2}, ["dog has images outside"]),
        ({"cat/train": 1, "cat/test": 1, "dog/trian": 2, "dog/test": 1}, ["'trian'", "Did you mean 'train'?"]),
        ({"cat/train": 1, "cat/test": 1, "dog/val": 2, "dog/dev": 1}, ["dog has two folders for one split"]),
        ({"cat/train": 1, "cat/tets": 1, "dog/train": 2, "dog/tets": 1}, ["'tets'", "Did you mean 'test'?"]),
        ({"cat/train": 1, "cat/test": 1, "cat/old": 1, "dog/train": 2}, ["cat has images outside"]),
    ],
)
def test_splits_below_some_classes(layout, parts, tmp_path):
    with pytest.raises(ValueError) as caught:
        open_source(folder_of(tmp_path, layout, size=(4, 4)))
    assert_one_line(caught, str(tmp_path), *parts)


@pytest.mark.parametrize("place", ["", "cat", "train/cat"])
@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".ipynb_checkpoints"])
def test_system_folders_are_not_read(place, name, tmp_path):
    layout = {"train/cat": 2, "train/dog": 2} if place == "train/cat" else {"cat": 2, "dog": 2}
    folder_of(tmp_path, layout, size=(4, 4))
    folder_of(tmp_path / place / name, {"0.png": 1}, size=(2, 2))
    source = open_source(tmp_path)
    assert len(source.labels) == 4 and set(source.labels) == {"cat", "dog"}
    noted = [note for note in source.notes if note.kind == "unused" and name in note]
    assert len(noted) == len(source.notes) == (not name.startswith("."))


def test_a_folder_of_loose_images_beside_a_table_names_the_table(tmp_path):
    folder_of(tmp_path, {"": 2, "images": 2}, size=(4, 4))
    (tmp_path / "labels.csv").write_text("path,label\n")
    for name in ("0.png", "1.png"):
        (tmp_path / "images" / name).rename(tmp_path / f"x{name}")
    (tmp_path / "images").rmdir()
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path)
    assert_one_line(caught, f"name {tmp_path / 'labels.csv'}")


@pytest.mark.parametrize("folder", ["/", "//", "/proc", "/proc/self", "/sys", "link"])
def test_the_root_of_the_file_system(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("/", "link")
    if not os.path.isdir(folder):
        pytest.skip(f"no {folder} here")
    with pytest.raises(ValueError) as caught:
        open_source(folder)
    assert_one_line(caught, f"{folder}: ", "name the folder")


def test_a_folder_with_few_images_among_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_OTHER_ENTRIES", 200)
    root = folder_of(tmp_path / "home", {"photos/cat": 2, "photos/dog": 1}, size=(2, 2))
    (root / "work").mkdir()
    for n in range(150):
        (root / "work" / f"{n}.txt").touch()
    assert len(open_source(root).labels) == 3
    for n in range(150, 310):
        (root / "work" / f"{n}.txt").touch()
    with pytest.raises(ValueError) as caught:
        open_source(root)
    assert_one_line(caught, f"{root}: only ", "class folders")


def test_folders_nested_too_deeply(tmp_path):
    folder_of(tmp_path, {"a/" + "x/" * 120: 1, "a": 1, "b": 1}, size=(2, 2))
    source = open_source(tmp_path)
    assert len(source.labels) == 2 and len(source.unreadable) == 1 and "100 folders deep" in source.unreadable[0]


def test_an_unreadable_system_folder(tmp_path, monkeypatch):
    """On ext4 only root may read lost+found."""
    folder_of(tmp_path, {"cat": 1, "dog": 1, "lost+found": 1}, size=(4, 4))

    list_all = os.listdir

    def listdir(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return list_all(path)

    monkeypatch.setattr(os, "listdir", listdir)
    source = open_source(tmp_path)
    assert source.labels == ("cat", "dog") and not source.notes and not source.unreadable


def test_two_data_sets_side_by_side(tmp_path):
    layout = {f"{name}/{split}/{c}": 1 for name in ("old", "new") for split in ("train", "test") for c in "ab"}
    with pytest.raises(ValueError) as caught:
        open_source(folder_of(tmp_path, layout, size=(4, 4)))
    assert_one_line(caught, "new has splits with class folders", f"; name {tmp_path / 'new'}")
    assert set(open_source(tmp_path / "new").labels) == {"a", "b"}


def test_a_run_in_the_folder_of_its_data_is_no_class(tmp_path):
    folder_of(tmp_path, {"cat": 10, "dog": 10, "runs/lenet5-1": 2})
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "runs" / "lenet5-1" / name).write_text("{}")
    source = open_dataset(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert any("folders without images: runs" in str(note) for note in source.notes)
