import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hostile import BAD, GOOD_FORMS, hostile_folder
from photos import encoded, folder_of, photo

from zoo import cli
from zoo.cache import cache_folder
from zoo.data.images.decode import read_image
from zoo.data.sources import listing, scan
from zoo.data.sources.open import list_source, open_dataset


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs a system with links and pipes")
    root = tmp_path_factory.mktemp("hostile")
    return root, hostile_folder(root, 60)


def test_every_fault_is_named_and_the_good_ones_are_kept(hostile, tmp_path, monkeypatch, capfd):
    check_hostile(*hostile, tmp_path, monkeypatch, capfd)


@pytest.mark.slow
def test_every_fault_among_five_thousand(tmp_path, monkeypatch, capfd):
    count = hostile_folder(tmp_path / "photos", 4_500)
    check_hostile(tmp_path / "photos", count, tmp_path, monkeypatch, capfd)


def check_hostile(root, count, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", str(root), "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    lines = found["left_out"]
    assert len(lines) == len(BAD)
    for path, reason in BAD.items():
        (line,) = [line for line in lines if line.startswith(f"{path}: ")]
        assert reason in line, line
    assert sum(found["splits"].values()) == count and err == ""
    assert set(found["classes"]) == {"cat", "dog", "wolf"} and found["classes"]["wolf"]["train"] == 1
    assert len(found["leaks"]) == 1 and "test/cat/leaked.png = train/cat/0.png" in found["leaks"][0]
    assert found["wrongly_named"] == ["train/cat/really a.jpg: is PNG"]
    assert any("no images" in note for note in found["notes"]) and any("readme.txt" in note for note in found["notes"])
    assert found["sizes"]["smallest"] == [1, 1] and [16, 12, 1] in found["sizes"]["common"]  # the one that is turned
    assert found["kinds"].keys() >= {"JPEG CMYK", "PNG RGB", "GIF P", "WEBP RGB"}
    assert Path(found["contact_sheet"]).stat().st_size > 1000 and not (tmp_path / "contact-sheet.png").exists()
    assert len(out.splitlines()) > 20 and all(line.isprintable() for line in out.splitlines())


def test_what_is_good_is_read_as_it_always_is(hostile):
    root, count = hostile
    dataset = open_dataset(root)
    assert sum(map(len, dataset.splits.values())) == count
    seen = set()
    for split in dataset.splits.values():
        for i, image in enumerate(split.read(np.arange(len(split)))):
            path = root / split.store.names[split.records[i]]
            np.testing.assert_array_equal(image, read_image(path))
            assert tuple(split.sizes[i]) == image.shape[:2]
            seen.add(path.name)
    assert seen >= set(GOOD_FORMS)


def test_what_is_said_is_bounded_and_the_whole_list_is_written(hostile, capsys):
    root, _ = hostile
    lines = listing.describe_left_out(open_dataset(root))
    assert len(lines) == 12 and f"{len(BAD):,} images" in lines[0]
    place = lines[-1].rsplit(" ", 1)[1]
    with open(place, encoding="utf-8") as file:
        assert len(file.read().splitlines()) == len(BAD)


def test_a_scan_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    folder_of(tmp_path / "photos", {"cat": 5, "dog": 5})
    looked = []
    original = scan.examine
    monkeypatch.setattr(scan, "examine", lambda data: looked.append(1) or original(data))
    first = open_dataset(tmp_path / "photos")
    assert len(looked) == 10
    assert open_dataset(tmp_path / "photos").fingerprint() == first.fingerprint() and len(looked) == 10
    (tmp_path / "photos" / "cat" / "0.png").write_bytes(b"")
    again = open_dataset(tmp_path / "photos")
    assert len(looked) > 10 and again.left_out == ("cat/0.png: empty file (0 bytes)",)


@pytest.mark.parametrize(
    "module, name, error, said",
    [
        (os, "open", OSError(errno.EMFILE, "Too many open files"), "cannot be read (Too many open files)"),
        (listing.FileStore, "_read", MemoryError(), "MemoryError"),
        (scan, "to_pixels", MemoryError(), "does not fit in memory"),
    ],
)
def test_what_may_pass_is_not_remembered(module, name, error, said, tmp_path, monkeypatch):
    root = folder_of(tmp_path / "photos", {"cat": 5, "dog": 5})
    source = list_source(root)

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        assert set(source.scan(0).reasons.values()) == {said}
    assert not source.scan(0).reasons


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_threads_changes_nothing(workers, tmp_path):
    folder_of(tmp_path, {"cat": 70, "dog": 70})
    (tmp_path / "cat" / "3.png").write_bytes(b"no")
    source = list_source(tmp_path)
    one = scan.scan(source.store, 140, f"alone-{workers}", 0)
    other = scan.scan(source.store, 140, f"together-{workers}", workers)
    assert one.keys == other.keys and one.kinds == other.kinds and one.reasons == other.reasons and one.reasons
    np.testing.assert_array_equal(one.sizes, other.sizes)


def test_the_same_image_under_two_classes_and_twice_in_one(tmp_path, capsys, monkeypatch):
    root = folder_of(tmp_path / "photos", {"train/cat": 6, "train/dog": 6, "test/cat": 2, "test/dog": 2})
    data = encoded(photo(20, 20, seed=99))
    for path in ("train/cat/x.png", "train/dog/x.png", "train/dog/y.png"):
        (root / path).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "photos", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["repeated"] == 2 and not found["leaks"]
    assert len(found["contradictions"]) == 2 and "train/cat/x.png" in found["contradictions"][0]


def test_the_sheets_of_the_command(tmp_path, capsys, monkeypatch):
    folder_of(tmp_path / "photos", {"cat": 8, "dog": 8}, size=(80, 100))
    monkeypatch.chdir(tmp_path)
    words = ["data", "photos", "--sheet", "all.png", "--augmented", "made.png", "--image-size", "32"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "try: zoo train --data photos --model resnet18 --image-size 128" in out
    assert "made.png (resized_crop; flip)" in out
    sheet, made = read_image("all.png"), read_image("made.png")
    assert sheet.shape[2] == made.shape[2] == 3 and made.shape[0] > sheet.shape[0] > 200
    first, second = made[58:136, 4:100], made[58:136, 104:200]
    assert np.abs(first.astype(int) - second).mean() > 5  # the second column is augmented
    for n in range(8):  # every column has a name above it, the first line says what is done
        assert made[22:40, 4 + 100 * n : 100 + 100 * n].min() < 128
    assert made[4:22].min() < 128


def test_sheets_that_nobody_named_lie_in_the_cache(tmp_path, capsys, monkeypatch):
    """People have contact-sheet.png and augmented.png of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("contact-sheet.png", "augmented.png"):
        Path(name).write_bytes(b"mine")
    assert cli.main(["data", "digits", "--augmented", "--augment", "flip"]) == 0
    out = capsys.readouterr().out
    for what in ("contact sheet: ", "augmented: "):
        (line,) = [line for line in out.splitlines() if line.startswith(what)]
        place = Path(line.removeprefix(what).split(" (")[0])
        assert place.is_relative_to(cache_folder()) and read_image(place).shape[1] == 804
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "contact-sheet.png": b"mine",
        "augmented.png": b"mine",
    }


def test_a_sheet_that_nobody_asked_for_may_be_impossible(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert cli.main(["data", "digits"]) == 0
    out = capsys.readouterr().out
    assert "contact sheet: not drawn (" in out and "--sheet FILE.png says where" in out and "try: zoo train" in out


def test_data_of_other_kinds(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"] == {"train": 1257, "validation": 180, "test": 360} or sum(found["splits"].values()) == 1797
    assert found["sizes"]["common"] == [[8, 8, 1797]] and found["command"] == "zoo train --data digits --model lenet5"
    assert cli.main(["data", "digits"]) == 0
    assert "1,797 images, 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--sheet", "a.jpg"], ["--sheet", "no/such/a.png"], ["--augmented", "."]])
def test_where_it_cannot_draw_is_said_before_the_work(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "digits", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
