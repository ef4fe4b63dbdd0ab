"""Names in people's data: splits and their misspellings, spellings of one class, joined labels, files of systems."""

import unicodedata

import pytest
from helpers import assert_one_line

from zoo.data.sources.names import (
    SYSTEM_FOLDERS,
    check_joined_labels,
    clean_class_name,
    describe_misspelt_split,
    is_system_file,
    is_system_folder,
    similar_split,
    system_folder_in,
    unify_class_names,
)


@pytest.mark.parametrize(
    "split, words",
    {
        "train": ["trian", "tarin", "tran", "Trainn", "trainning", "trian_set", "trai"],
        "validation": ["vald", "vlaid", "validaton", "Validate", "valdation", "vali"],
        "test": ["tets", "tset", "tests", "tesst", "Tets-Images"],
        "": ["train", "val", "test", "cat", "dog", "dv", "te", "train2", "test_1", "horse", "extra", "", "12"],
    }.items(),
)
def test_misspelt_splits(split, words):
    assert {word: similar_split(word) for word in words} == dict.fromkeys(words, split)


def test_the_question_after_a_misspelt_split():
    assert describe_misspelt_split("trian") == "'trian' is not a split name. Did you mean 'train'?"
    assert describe_misspelt_split("cat\n") == "'cat\\\\n' is not a split name. Use train, val or test."


def test_folders_and_files_of_systems():
    """Synology DSM (@eaDir, #recycle), QNAP (@Recycle, @Recently-Snapshot), Windows, ext4 (lost+found), macOS."""
    folders = ["@eaDir", "#recycle", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "System Volume Information"]
    folders += ["lost+found", "__MACOSX", ".ipynb_checkpoints", ".Trash-1000", ".@__thumb", "RECYCLER", "#snapshot"]
    assert all(map(is_system_folder, folders)) and all(name == name.lower() for name in SYSTEM_FOLDERS)
    assert not any(map(is_system_folder, ["cat", "recycled", "recycler", "tmp", "images", "@home", "thumbs", "macosx"]))
    assert all(map(is_system_file, ["Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", "._1.png", ".DS_Store"]))
    assert not any(map(is_system_file, ["thumbs.png", "icon.png", "1.db.png"]))
    assert system_folder_in("cat/@eaDir/1.png/SYNO.jpg") == "@eaDir" and system_folder_in("./cat/@eaDir") == ""


@pytest.mark.parametrize(
    "labels, names",
    [
        (["cat", "Cat", "cat", "dog"], ["cat", "cat", "cat", "dog"]),  # the usual spelling wins
        (["CAT", "CAT", "cat", "dog"], ["CAT", "CAT", "CAT", "dog"]),
        (["Dog", "dog"], ["Dog", "Dog"]),  # as often: the first in order
        ([" cat", "cat ", "cat", "dog"], ["cat", "cat", "cat", "dog"]),
        (["black bear", "black  bear", "black\u00a0bear"], ["black bear"] * 3),
        (["caf\u00e9", "cafe\u0301", "CAFÉ"], ["café"] * 3),
        (["\u200bcat", "cat\ufeff", "cat"], ["cat"] * 3),
        (["ﬁsh", "fish", "fish"], ["fish"] * 3),
        (["Straße", "STRASSE", "Straße"], ["Straße"] * 3),
        (["1", "01", "1", "2"], ["1", "1", "1", "2"]),
        (["1.0", "2.0", "10.0"], ["1", "2", "10"]),
        (["1", "1.0", "0"], ["1", "1", "0"]),
        (["0", "00", "0"], ["0", "0", "0"]),
        (["01", "02", "10"], ["01", "02", "10"]),  # nothing to join
        (["1", "01", "cat"], ["1", "01", "cat"]),  # not numbers
        (["A", "a", "B", "b"], ["A", "a", "B", "b"]),  # letters
        (["1.5", "1.50"], ["1.5", "1.50"]),
    ],
)
def test_spellings_of_one_class(labels, names):
    classes, notes = unify_class_names(labels)
    assert [classes[label] for label in labels] == names
    cleaned = {unicodedata.normalize("NFC", label) for label in labels}
    differs = len(set(names)) < len(cleaned) or any("." in x and x.endswith(".0") for x in labels)
    assert bool(notes) == (differs or "A" in labels)
    assert all(note.kind == "classes" for note in notes)


def test_notes_on_joined_spellings():
    (note,) = unify_class_names(["Cat", "cat", "cat", "dog"])[1]
    assert str(note).startswith("spellings of one class: 'Cat' and 'cat' are 'cat'")
    (note,) = unify_class_names(["A", "a", "b"])[1]
    assert "A and a" in str(note) and "different" in str(note)


def test_class_names_are_printable():
    assert clean_class_name("a\nb\x1b[31m") == "a\\nb\\x1b[31m" and clean_class_name("e\u0301\t x ") == "é x"


@pytest.mark.parametrize(
    "names, label",
    [
        (["cat|dog", "cat", "dog"], "cat|dog"),
        (["cat|dog", "dog|bird", "bird|cat"], "bird|cat"),
        (["cat;dog", "cat"], "cat;dog"),
        (["cat,dog", "cat", "dog"], "cat,dog"),
        (["cat, dog", "dog, bird", "bird, cat"], "bird, cat"),
        (["0 1", "0", "1", "2"], "0 1"),
        (["['cat', 'dog']", "['cat']"], "['cat', 'dog']"),
        (["[0, 1]", "[1]"], "[0, 1]"),
    ],
)
def test_labels_that_join_classes(names, label):
    with pytest.raises(ValueError) as caught:
        check_joined_labels(names, "t.csv")
    assert_one_line(caught, f"t.csv: the label {label!r}", "one")


@pytest.mark.parametrize(
    "names",
    [
        ["Smith, John", "Smith, Jane", "Doe, Ann"],
        ["Panthera leo", "Panthera tigris", "Felis catus"],
        ["cat|dog", "bird"],
        ["golden_retriever", "golden_eagle"],
        ["1", "2", "12"],
        ["t-shirt", "shirt", "dress"],
        [],
    ],
)
def test_names_with_separators(names):
    assert check_joined_labels(names, "x") == []


@pytest.mark.parametrize("label", ["cat dog", "cat_dog", "cat & dog", "cat and dog", "cat-dog", "cat/dog"])
def test_names_that_may_join_classes_are_noted(label):
    (note,) = check_joined_labels(["cat", label, "dog"], "x")
    assert note.kind == "classes" and repr(label) in str(note) and "'cat' and 'dog'" in str(note)
