import shlex
import zipfile

import numpy as np
import pytest
from helpers import assert_one_line
from photos import folder_of

from zoo.data.sources import Dataset, open_dataset
from zoo.data.sources.listing import Listing
from zoo.data.sources.open import SUPPORTED, open_source


@pytest.mark.parametrize(
    "spec, error, expected",
    [
        ("digts", ValueError, "did you mean digits"),
        ("tdfs:mnist", ValueError, "did you mean tfds"),
        ("nonsense", ValueError, "'nonsense'"),
        ("", ValueError, "tfds:NAME"),
        ("tfds:", ValueError, "tfds:mnist"),
        ("gone.npz", FileNotFoundError, "no such file"),
        ("some/folder", FileNotFoundError, "no such file"),
    ],
)
def test_unknown_data(spec, error, expected):
    with pytest.raises(error) as caught:
        open_dataset(spec)
    assert_one_line(caught, expected)


def test_unsupported_folders_and_files(tmp_path):
    with pytest.raises(ValueError, match="class folders"):
        open_dataset(tmp_path)
    (tmp_path / "table.doc").write_text("a,b")
    with pytest.raises(ValueError, match=r"table\.doc: "):
        open_dataset(tmp_path / "table.doc")


@pytest.mark.parametrize(
    "spec, hint",
    [
        ("digist", "did you mean digits"),
        ("hff:a-long-name-of-a-data-set", "did you mean hf:"),
        ("tdfs:a-long-name-of-a-data-set", "did you mean tfds:"),
        ("phtos", "did you mean photos"),
        ("zzzzzz", ""),
    ],
)
def test_hints_name_keywords_and_local_files(spec, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / ".zzzzzx").mkdir()
    with pytest.raises(ValueError) as caught:
        open_dataset(spec)
    assert_one_line(caught, repr(spec), hint, SUPPORTED)
    assert ("did you mean" in str(caught.value)) == bool(hint)


@pytest.mark.parametrize("spec", ["a.xy", "a.abcdef", "folder/name", "a.csv", "train-0.tar", "none.npz"])
def test_paths_that_do_not_exist(spec):
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(spec)
    assert_one_line(caught, f"{spec}: no such file or folder")


@pytest.mark.parametrize("spec", ["a.x", "a.abcdefg", "name"])
def test_names_that_are_not_paths(spec):
    with pytest.raises(ValueError) as caught:
        open_dataset(spec)
    assert_one_line(caught, repr(spec))


def test_the_first_source_that_recognises_the_data_opens_it(tmp_path):
    """Files and folders called like a keyword, and a folder that is of several kinds."""
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "digits")
    assert len(open_dataset("digits").class_names) == 10
    for scheme in ("tfds:", "hf:"):
        with pytest.raises(ValueError) as caught:
            open_dataset(scheme)
        assert_one_line(caught, repr(scheme), f"{scheme}NAME")
    root = folder_of(tmp_path / "mixed", {"a": 12, "b": 12})
    assert isinstance(open_source(root), Listing) and open_source(root).name == str(root)
    (root / "train-0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="tar"):
        open_source(root)
    images = np.zeros((20, 4, 4, 1), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None] * 12
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(20) % 2)
    (tmp_path / "a.npz").rename(tmp_path / "UPPER.NPZ")
    assert isinstance(open_source(tmp_path / "UPPER.NPZ"), Dataset)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "photos", {"a": 12, "b": 12})
    assert open_dataset("~/photos").class_names == ("a", "b")


def test_public_names():
    import zoo.data.sources as sources

    for name in ("open_dataset", "from_arrays", "Dataset", "Split", "ArraySplit", "EncodedSplit"):
        assert name in sources.__all__ and hasattr(sources, name)


@pytest.mark.parametrize("name, command", [("a.zip", "unzip"), ("a b.ZIP", "unzip"), ("a", "unzip"), ("a.7z", "7z x"),
                                           ("a.RAR", "unrar x")])  # fmt: skip
def test_the_command_that_unpacks_an_archive_is_given_for_it_and_for_its_folder(name, command, tmp_path):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("cat/0.png", b"")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError) as caught:
            open_source(path)
        assert_one_line(caught, f"{path}: ", f"{command} {shlex.quote(str(tmp_path / name))}")
