"""Paths in tables that are spelt otherwise than on this system."""

import pytest
from helpers import assert_one_line

from zoo.data.sources import paths
from zoo.data.sources.paths import resolve_paths


def files_in(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    "name, path",
    [
        ("img/0.png", "img/0.png"),
        (r"img\1.png", "img/1.png"),
        (r".\img\1.png", "img/1.png"),
        ("img/0", "img/0.png"),
        ("0", "img/0.png"),
        ("1.png", "img/1.png"),
        (r"C:\Users\me\data\img\1.png", "img/1.png"),
        ("D:/img/0", "img/0.png"),
        ("/mnt/data/img/1.png", "img/1.png"),
        ("/img/1.png", "img/1.png"),
        ("data/img/1.png", "img/1.png"),  # relative to another folder
        ("IMG/1.PNG", "img/1.png"),
        ("a.b", "deep/er/a.b.jpeg"),  # a dot, but no ending
        ("er/A.B", "deep/er/a.b.jpeg"),
        ("img/2.png", "img/2.png"),  # missing
        ("img/7", "img/7"),
        ("top", "top.png"),
        ("gone/top.png", "top.png"),
        ("img/top.png", "img/top.png"),  # img exists, so the file is missing
        ("mg/0.png", "mg/0.png"),
        ("", ""),
        ("..", ".."),
        (r"x:\elsewhere\1.png", r"x:\elsewhere\1.png"),
        ("\0", "\0"),
        ("\ud800", "\ud800"),
    ],
)
def test_spellings_of_a_path(name, path, tmp_path):
    files_in(tmp_path, "img/0.png", "img/1.png", "deep/er/a.b.jpeg", "top.png", "img/notes.txt")
    names, notes = resolve_paths(tmp_path, [name])
    assert names == [path]
    assert [note.kind for note in notes] == ([] if name == path else ["source"])


def test_the_longest_agreement_counts(tmp_path):
    files_in(tmp_path, "train/1.png", "other/train/1.png", "test/1.png")
    assert resolve_paths(tmp_path, [r"other\train\1"])[0] == ["other/train/1.png"]


@pytest.mark.parametrize("name", ["1", "1.png", r"x:\1.png"])
def test_ambiguous_paths(name, tmp_path):
    files_in(tmp_path, "train/1.png", "test/1.png")
    with pytest.raises(ValueError) as caught:
        resolve_paths(tmp_path, [name])
    assert_one_line(caught, f"{name!r} may mean test/1.png or train/1.png")


def test_two_endings_of_one_id(tmp_path):
    files_in(tmp_path, "1.png", "1.jpg")
    with pytest.raises(ValueError) as caught:
        resolve_paths(tmp_path, ["1"])
    assert_one_line(caught, "'1' may mean 1.jpg or 1.png")
    assert resolve_paths(tmp_path, ["1.jpg"])[0] == ["1.jpg"]


def test_two_names_of_one_file(tmp_path):
    files_in(tmp_path, "1.png")
    for names in (["a/1.png", "b/1.png"], ["1.png", "1"]):
        with pytest.raises(ValueError) as caught:
            resolve_paths(tmp_path, names)
        assert_one_line(caught, "both mean the file 1.png")
    assert resolve_paths(tmp_path, ["1", "1"])[0] == ["1.png", "1.png"]


def test_thumbnails_of_a_nas_are_not_meant(tmp_path):
    files_in(tmp_path, "img/1.png", "img/@eaDir/1.png", ".hidden/1.png")
    assert resolve_paths(tmp_path, ["1"])[0] == ["img/1.png"]


@pytest.mark.parametrize("file", ["{}/scan.png", "{}/first/scan.png"])
@pytest.mark.parametrize("prefix", ["", "x:\\gone\\"])
def test_a_name_is_not_compared_with_every_file_of_the_same_name(file, prefix, tmp_path, monkeypatch):
    """Tables have a hundred thousand patients, each with a file scan.png."""
    files = [file.format(f"p{n}") for n in range(20)]
    files_in(tmp_path, *files)
    read = []

    class Counted(list):
        def __iter__(self):
            read.append(len(self))
            return super().__iter__()

    index = paths._index_files
    monkeypatch.setattr(
        paths, "_index_files", lambda *args: {key: Counted(found) for key, found in index(*args).items()}
    )
    assert resolve_paths(tmp_path, [prefix + name.replace("/", "\\") for name in files])[0] == files
    assert sum(read) == len(files)
