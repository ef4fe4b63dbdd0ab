"""The manifest: every difference between files and their hashes is named."""

import json

import pytest

from zoo.checkpoint import CorruptCheckpointError, manifest


@pytest.fixture
def folder(tmp_path):
    """A folder with a manifest of one file beside the arrays and two among them."""
    for name, data in (("card.json", b"{}"), ("arrays/x", b"xyz"), ("arrays/d/y", b"")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    manifest.write_manifest(tmp_path)
    return tmp_path


def test_an_intact_folder_has_no_problems(folder):
    assert manifest.manifest_problems(folder) == []
    manifest.check_manifest(folder)
    content = json.loads((folder / "manifest.json").read_text())
    assert set(content["files"]) == {"card.json", "arrays/x", "arrays/d/y"} and content["format"] == 2
    assert content["files"]["arrays/x"] == {
        "bytes": 3,
        "sha256": "3608bca1e44ea6c4d268eb6db02260269892c0b42b86bbf1e77a6fa16c3c9282",  # sha256sum of "xyz"
    }


def test_every_difference_is_named(folder):
    (folder / "arrays" / "x").write_bytes(b"xyZ")
    (folder / "arrays" / "d" / "y").unlink()
    (folder / "arrays" / "d" / "z").write_bytes(b"")
    (folder / "card.json").write_bytes(b"{} ")
    (folder / "notes.txt").write_text("files beside the arrays are not checked")
    lines = manifest.manifest_problems(folder)
    assert [line.split()[0] for line in lines] == ["arrays/d/y", "arrays/x", "card.json", "arrays/d/z"]
    assert "missing" in lines[0] and "sha256" in lines[1] and "3 bytes instead of 2" in lines[2]
    with pytest.raises(CorruptCheckpointError) as error:
        manifest.check_manifest(folder)
    assert all(line in str(error.value) for line in lines) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": {}}', b"\xff", b'{"files": 3, "format": 2}'])
def test_a_manifest_that_was_not_written_is_corrupt(content, folder):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.json"):
        manifest.manifest_problems(folder)


def test_even_white_space_in_a_manifest_is_noticed(folder):
    file = folder / "manifest.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.json"):
        manifest.check_manifest(folder)
    file.unlink()
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.json is missing"):
        manifest.check_manifest(folder)


@pytest.mark.parametrize(("version", "advice"), [(3, "upgrade"), (0, "not a known"), ("2", "not a known")])
def test_only_formats_1_and_2_are_read(version, advice):
    manifest.require_readable(1, "card")
    manifest.require_readable(2, "card")
    with pytest.raises(ValueError, match=rf"card: format version {version}.*{advice}") as error:
        manifest.require_readable(version, "card")
    assert not isinstance(error.value, CorruptCheckpointError)
