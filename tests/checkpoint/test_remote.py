"""Checkpoints in an object store, in fsspec's memory file system."""

import shutil
import threading

import numpy as np
import pytest
from helpers import assert_one_line, flip_bit, killed_after, run_command
from photos import encoded, photo

import zoo
from zoo.checkpoint import remote
from zoo.checkpoint.manifest import CorruptCheckpointError, manifest_problems
from zoo.pretrained.names import shipped_folder
from zoo.stores import folders, objects
from zoo.stores.objects import StoreError
from zoo.trees import flatten

ROOT = "memory://checkpoints"
ADDRESS = f"{ROOT}/run/best"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    for name in objects.listing(ROOT):
        objects.remove(f"{ROOT}/{name}")


@pytest.fixture
def stored():
    folders.upload_folder(shipped_folder() / "lenet5-mnist", ADDRESS, remote.MANIFEST)


def test_saved_and_loaded_with_the_same_bits(tmp_path):
    checkpoint = zoo.load("lenet5-mnist")
    card = checkpoint.card
    for _ in range(2):  # the second replaces the first
        zoo.save(ADDRESS, checkpoint.model, checkpoint.variables, card.classes, card.preprocess, source="made")
    loaded = zoo.load(ADDRESS)
    assert loaded.card.source == "made"
    want, have = (flatten(value.variables) for value in (checkpoint, loaded))
    assert all(np.array_equal(want[path], have[path]) for path in want)
    assert folders.top_level(objects.listing(f"{ROOT}/run")) == ["best"]


def test_commands(stored, capsys):
    outputs = []
    for words in (["verify", ADDRESS], ["info", ADDRESS]):
        code, out, _ = run_command(capsys, *words)
        assert code == 0
        outputs.append(out)
    assert "61,706 parameters" in outputs[1]
    objects.write(f"{ROOT}/images/7.png", encoded(photo(28, 28, seed=0)))
    code, out, _ = run_command(capsys, "predict", ADDRESS, f"{ROOT}/images", f"{ROOT}/images/7.png")
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith(f"{ROOT}/images/7.png  ")
    code, _, err = run_command(capsys, "predict", ADDRESS, f"{ROOT}/images/8.png")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{ROOT}/images/8.png" in err
    code, _, err = run_command(capsys, "verify", f"{ROOT}/run")
    assert code == 2
    assert f"did you mean {ADDRESS}?" in err
    objects.write(f"{ROOT}/run/config.json", b"{}")  # the folder of a run stands for its best checkpoint
    assert run_command(capsys, "verify", f"{ROOT}/run")[0] == 0
    objects.write(f"{ROOT}/begun/config.json", b"{}")
    assert "no best checkpoint yet" in run_command(capsys, "info", f"{ROOT}/begun")[2]
    for address in (f"{ROOT}/none", "https://x/y", "az://b/x"):
        code, out, err = run_command(capsys, "info", address)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert address in err


def test_of_several_that_load_at_once_one_downloads(stored, monkeypatch):
    """And none deletes the copy that another one reads."""
    barrier, downloaded, results = threading.Barrier(3), [], []
    locate, download = remote._locate, objects.download

    def locate_together(address):
        barrier.wait(20)
        return locate(address)

    monkeypatch.setattr(remote, "_locate", locate_together)
    monkeypatch.setattr(objects, "download", lambda *names: [downloaded.append(names[0]), download(*names)])

    def load():
        copy = remote.fetch_checkpoint(ADDRESS)
        results.append((copy.stat().st_ino, manifest_problems(copy)))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(results[0][0], [])] * 3
    assert len(downloaded) == len(set(downloaded))


def test_downloaded_once(stored, monkeypatch):
    zoo.load(ADDRESS)
    monkeypatch.setattr(objects, "download", pytest.fail)
    zoo.load(ADDRESS)


def test_every_flipped_bit_is_named(stored, capsys):
    zoo.load(ADDRESS)  # a local copy does not hide the damage
    for name in sorted(objects.listing(ADDRESS)):
        raw = objects.read(f"{ADDRESS}/{name}")
        objects.write(f"{ADDRESS}/{name}", flip_bit(raw) if raw else b"x")
        with pytest.raises(CorruptCheckpointError) as caught:
            zoo.load(ADDRESS)
        assert_one_line(caught, ADDRESS, name)
        objects.write(f"{ADDRESS}/{name}", raw)
    assert run_command(capsys, "verify", ADDRESS)[0] == 0


def test_a_missing_or_unlisted_object_is_named(stored, capsys):
    objects.write(f"{ADDRESS}/arrays/more", b"1")
    objects.remove(f"{ADDRESS}/card.json")
    code, _, err = run_command(capsys, "verify", ADDRESS)
    assert (code, err.count("\n")) == (2, 1)
    assert "card.json is missing" in err
    assert "arrays/more is not listed" in err


def test_an_unfinished_upload_is_no_checkpoint(stored):
    objects.remove(f"{ADDRESS}/{remote.MANIFEST}")
    with pytest.raises(CorruptCheckpointError) as caught:
        zoo.load(ADDRESS)
    assert_one_line(caught, ADDRESS, remote.MANIFEST)


def test_a_checkpoint_is_read_while_it_is_replaced(stored, monkeypatch):
    """The reader downloads half of the old one; then all of the new one takes its place."""
    original = folders.download_files

    def replaced(base, names, folder):
        monkeypatch.setattr(folders, "download_files", original)
        folders.replace_folder(shipped_folder() / "lenet5-fashion-mnist", ADDRESS, remote.MANIFEST)
        original(base, names, folder)

    monkeypatch.setattr(folders, "download_files", replaced)
    assert zoo.load(ADDRESS).card == zoo.load("lenet5-fashion-mnist").card


def test_old_copies_are_deleted_when_the_cache_is_full(stored, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_STORE_CACHE", "300k")
    for _ in range(3):
        objects.write(f"{ADDRESS}/card.json", objects.read(f"{ADDRESS}/card.json"))  # another version of the object
        zoo.load(ADDRESS)
    assert len(list((tmp_path / "cache").rglob("card.json"))) == 1


def test_a_failing_store_saves_nothing_and_says_so(stored, monkeypatch):
    checkpoint = zoo.load(ADDRESS)

    def fail(file, address):
        raise StoreError(f"{address}: cannot be written (503); tried for 120 s")

    monkeypatch.setattr(objects, "upload", fail)
    with pytest.raises(StoreError) as caught:
        zoo.save(ADDRESS, checkpoint.model, checkpoint.variables, checkpoint.card.classes, checkpoint.card.preprocess)
    assert_one_line(caught, ROOT, "503")
    assert zoo.load(ADDRESS).card == checkpoint.card


@pytest.mark.parametrize("before", ["nothing", "another checkpoint"])
def test_a_save_killed_at_any_write_is_completed_by_its_repeat(before, tmp_path, monkeypatch):
    def save():
        with remote.storing(ADDRESS) as folder:
            shutil.copytree(shipped_folder() / "lenet5-mnist", folder)

    for count in range(0, 200, 3):
        for name in objects.listing(ROOT):
            objects.remove(f"{ROOT}/{name}")
        if before != "nothing":
            folders.upload_folder(shipped_folder() / "lenet5-fashion-mnist", ADDRESS, remote.MANIFEST)
        with killed_after(monkeypatch, count) as left:
            save()
        save()
        names = {path.relative_to(shipped_folder() / "lenet5-mnist").as_posix() for path in files_of("lenet5-mnist")}
        assert set(objects.listing(ADDRESS)) == names and not objects.listing(folders.staging_of(ADDRESS)), count
        if left[0] >= 0:
            break
    assert 10 < count < 190
    assert zoo.load(ADDRESS).card == zoo.load("lenet5-mnist").card


def files_of(name):
    return [path for path in (shipped_folder() / name).rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["notes.txt", "arrays/mine.npy"])
def test_something_else_is_not_replaced(name):
    objects.write(f"{ADDRESS}/{name}", b"1")
    checkpoint = zoo.load("lenet5-mnist")
    with pytest.raises(ValueError) as caught:
        zoo.save(ADDRESS, checkpoint.model, checkpoint.variables, checkpoint.card.classes, checkpoint.card.preprocess)
    assert_one_line(caught, ADDRESS, "not a checkpoint")


def test_exports(stored, capsys):
    target = f"{ROOT}/exports/net.safetensors"
    code, out, _ = run_command(capsys, "export", ADDRESS, "--to", "safetensors", "--keys", "zoo", "-o", target)
    assert code == 0
    assert out.startswith(f"{target}: lenet5")
    assert set(objects.listing(f"{ROOT}/exports")) == {"net.safetensors", "net_preprocess.py"}
    assert zoo.load(target, num_classes=10).card.model == "lenet5"
    for wrong in (f"{ROOT}/exports", f"{ROOT}/exports/net.onnx"):
        code, _, err = run_command(capsys, "export", ADDRESS, "--to", "safetensors", "-o", wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert wrong in err


@pytest.mark.parametrize("words", [    ["export", "lenet5-mnist", "--to", "safetensors", "--keys", "zoo", "-o", "az://b/x.safetensors"],
    ["sweep", "--model", "mlp", "--set", "epochs=1,2", "--workdir", "gs://b/runs"],
    ["train", "--model", "mlp", "--workdir", "https://b/run"],
    ["compare", "s3://b/run"],
    ["report", "memory://checkpoints/run", "-o", "s3://b/x.html"],
])  # fmt: skip
def test_an_address_never_becomes_a_folder(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_command(capsys, *words)
    assert (code, err.count("\n")) == (2, 1), err
    assert "://" in err
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]
