"""Runs in an object store, in fsspec's memory file system: killed at any write, resumed on another machine."""

import json
import shutil

import numpy as np
import pytest
from helpers import assert_one_line, flip_bit, killed_after, run_bits, train

import zoo
from zoo.checkpoint.manifest import CorruptCheckpointError, check_manifest, write_manifest
from zoo.checkpoint.run_state import latest_save
from zoo.data.sources import from_arrays
from zoo.stores import folders, lease, objects
from zoo.stores.objects import StoreError
from zoo.training import report, run_store
from zoo.training.recipe import Recipe
from zoo.training.run import is_finished
from zoo.training.run_store import UnmirroredRunError, open_store

ROOT = "memory://runs"
ADDRESS = f"{ROOT}/run"
RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.01)
MODEL = {"fields": {"widths": (8,), "image_size": 8}, "quiet": True, "save_steps": 4}


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.0)
    for name in objects.listing(ROOT):
        objects.remove(f"{ROOT}/{name}")


def save(folder, step):
    """Write the files of a run as they are after a save at a step."""
    for part, name in ((folder / "state" / f"step_{step:09d}", "progress.json"), (folder / "best", "card.json")):
        for old in part.glob("*"):
            old.unlink()
        part.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(str(step))
        write_manifest(part)
    (folder / "metrics.jsonl").write_text("".join(f"{number}\n" for number in range(step + 1)))


def begin(folder):
    (folder / "config.json").write_text("{}")


def fetched(tmp_path, number, warn=pytest.fail):
    """Return what another machine gets of the run: (newest step, step of best, rows)."""
    folder = tmp_path / f"machine{number}"
    with open_store(ADDRESS, folder, lambda line: None if "in use by" in line else warn(line)):
        newest = latest_save(folder / "state")
        if newest is None:
            return None
        check_manifest(newest)
        best = None
        if (folder / "best").exists():
            check_manifest(folder / "best")
            best = int((folder / "best" / "card.json").read_text())
        metrics = folder / "metrics.jsonl"
        return (
            int((newest / "progress.json").read_text()),
            best,
            len(metrics.read_text().split()) if metrics.exists() else 0,
        )


def test_killed_at_any_write_the_store_has_a_whole_save(tmp_path, monkeypatch):
    seen = []
    for count in range(0, 400, 5):
        for name in objects.listing(ROOT):
            objects.remove(f"{ROOT}/{name}")
        folder, step = tmp_path / f"run{count}", 0
        with killed_after(monkeypatch, count) as left, open_store(ADDRESS, folder, print) as store:
            begin(folder)
            store.push()
            for step in (1, 2, 3, 4):
                save(folder, step)
                store.push()
        result = fetched(tmp_path, count)
        if result is None:
            assert step <= 1
        else:
            newest, best, rows = result
            assert newest in (step, step - 1)
            assert best in (newest, newest - 1) or (best is None and newest == 1)
            assert rows <= step + 1
        seen.append(result and result[0])
        if left[0] >= 0:
            break
    assert {None, 1, 2, 3, 4} == set(seen)
    saves = {name.split("/")[1] for name in objects.listing(ADDRESS) if name.startswith("state/")}
    assert saves == {"step_000000003", "step_000000004"}


def finish(folder):
    """Write the files of a run at its end."""
    save(folder, 2)
    for name in ("confusion.png", "timing.jsonl"):
        (folder / name).write_text(name)
    (folder / "results.json").write_text('{"stopped": "all steps done", "best_step": 2}')


@pytest.mark.parametrize("machine", ["same", "other"])
def test_what_a_killed_push_left_out_is_written_by_the_next(machine, tmp_path, monkeypatch):
    for count in range(0, 100, 2):
        for name in objects.listing(ROOT):
            objects.remove(f"{ROOT}/{name}")
        folder = tmp_path / f"run{count}"
        with open_store(ADDRESS, folder, print) as store:
            begin(folder)
            save(folder, 1)
            store.push()
        with killed_after(monkeypatch, count) as left, open_store(ADDRESS, folder, print) as store:
            finish(folder)
            store.push()
        folder = folder if machine == "same" else tmp_path / f"other{count}"
        with open_store(ADDRESS, folder, lambda line: None) as store:
            if not is_finished(folder):
                finish(folder)
            store.push()
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert {"config.json", "metrics.jsonl", "results.json", "timing.jsonl"} < set(files)
        assert all(objects.read(f"{ADDRESS}/{name}") == content for name, content in files.items()), count
        fetched(tmp_path, count)
        if left[0] >= 0:
            break
    assert 10 < count < 98


def test_a_deleted_working_folder_is_fetched_again(tmp_path):
    folder = stored(tmp_path)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    with open_store(ADDRESS, folder, pytest.fail):
        again = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert {name: again.get(name) for name in files if "step_000000001" not in name.parts} == {
            name: content for name, content in files.items() if "step_000000001" not in name.parts
        }


def stored(tmp_path):
    """Store a run with two saves."""
    folder = tmp_path / "first"
    with open_store(ADDRESS, folder, print) as store:
        begin(folder)
        for step in (1, 2):
            save(folder, step)
            store.push()
    return folder


def test_damage_of_every_object_is_noticed(tmp_path):
    stored(tmp_path)
    for number, name in enumerate(sorted(objects.listing(ADDRESS))):
        if name.startswith(lease.FOLDER):
            continue
        raw, said = objects.read(f"{ADDRESS}/{name}"), []
        objects.write(f"{ADDRESS}/{name}", flip_bit(raw))
        try:
            newest, _, _ = fetched(tmp_path, number, said.append)
            assert newest == (1 if name.startswith("state/step_000000002") else 2)
            used = not name.startswith("state/step_000000001")
        except CorruptCheckpointError as error:
            said, used = [str(error)], True
            assert name in ("config.json", "files.json")
        assert len(said) == used, name
        assert all(name in line.replace(": damaged: ", "/") and "\n" not in line for line in said)
        objects.write(f"{ADDRESS}/{name}", raw)


def test_a_save_that_the_store_did_not_take_is_used_on_this_machine(tmp_path, monkeypatch):
    folder = stored(tmp_path)

    def fail(file, address):
        raise StoreError(f"{address}: cannot be written (503); tried for 120 s")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UnmirroredRunError) as caught,
        open_store(ADDRESS, folder, print) as store,
    ):
        patch.setattr(objects, "upload", fail)
        save(folder, 3)
        store.push()
    assert_one_line(caught, "503", "step 3", str(folder))
    assert fetched(tmp_path, 1)[0] == 2
    with open_store(ADDRESS, folder, print) as store:
        assert latest_save(folder / "state").name == "step_000000003"
        store.push()
    assert fetched(tmp_path, 2)[0] == 3


def test_a_run_that_another_machine_took_further_is_fetched(tmp_path):
    folder = stored(tmp_path)
    other = tmp_path / "other"
    with open_store(ADDRESS, other, print) as store:
        save(other, 3)
        store.push()
    with open_store(ADDRESS, folder, pytest.fail):
        assert latest_save(folder / "state").name == "step_000000003"
        assert (folder / "metrics.jsonl").read_text() == "0\n1\n2\n3\n"
        assert (folder / "best" / "card.json").read_text() == "3"


def test_a_run_that_was_deleted_from_the_store_begins_anew(tmp_path):
    folder = stored(tmp_path)
    for name in objects.listing(ADDRESS):
        objects.remove(f"{ADDRESS}/{name}")
    with open_store(ADDRESS, folder, pytest.fail):
        assert not list(folder.iterdir())


def test_something_else_at_the_address_is_refused(tmp_path):
    objects.write(f"{ADDRESS}/photo.png", b"1")
    with pytest.raises(ValueError) as caught, open_store(ADDRESS, tmp_path / "run", print):
        pass
    assert_one_line(caught, ADDRESS, "not a run")


def test_one_process_at_a_time(tmp_path):
    with (
        open_store(ADDRESS, tmp_path / "run", print),
        pytest.raises(ValueError, match="another process"),
        open_store(ADDRESS, tmp_path / "run", print),
    ):
        pass


def arrays():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    return (rng.integers(0, 120, (120, 8, 8)) + 40 * labels[:, None, None]).astype(np.uint8), labels


def test_a_run_killed_and_resumed_on_another_machine_has_the_bits_of_one_on_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "draw_figures", lambda plan, say: None)
    local = train("mlp", from_arrays(arrays()), RECIPE, workdir=tmp_path / "local", **MODEL)
    with killed_after(monkeypatch, 60) as left:
        train("mlp", from_arrays(arrays()), RECIPE, workdir=ADDRESS, **MODEL)
    assert left[0] < 0
    assert objects.listing(f"{ADDRESS}/state")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine2"))
    train("mlp", from_arrays(arrays()), RECIPE, workdir=ADDRESS, **{**MODEL, "quiet": False})
    said = capsys.readouterr().out
    assert "Resuming at step" in said
    assert f"checkpoint: {ADDRESS}/best" in said
    assert str(tmp_path) not in said
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine3"))
    again = train("mlp", from_arrays(arrays()), RECIPE, workdir=ADDRESS, **{**MODEL, "quiet": False})
    assert f"This run is finished: {ADDRESS}" in capsys.readouterr().out
    assert not (again.workdir / "state").exists(), "a finished run needs none, and caches stay small"
    names = objects.listing(f"{ADDRESS}/state")
    folders.download_files(f"{ADDRESS}/state", names, again.workdir / "state")
    assert run_bits(again.workdir) == run_bits(local.workdir)
    results = json.loads(objects.read(f"{ADDRESS}/results.json"))
    assert results == json.loads((local.workdir / "results.json").read_text())
    with pytest.raises(ValueError) as caught:
        train(
            "mlp",
            from_arrays(arrays()),
            RECIPE,
            workdir=ADDRESS,
            **{**MODEL, "fields": {"widths": (9,), "image_size": 8}},
        )
    assert_one_line(caught, f"{ADDRESS} holds another run", f"--init {ADDRESS}/best")


@pytest.mark.slow
def test_folds(tmp_path):
    options = {"workdir": ADDRESS, "epochs": 1, "quiet": True, "fields": MODEL["fields"]}
    result = zoo.cross_validate("mlp", arrays(), folds=2, **options)
    assert {"fold1", "fold2", "summary.json"} == {name.split("/")[0] for name in objects.listing(ADDRESS)}
    assert json.loads(objects.read(f"{ADDRESS}/summary.json"))["accuracies"] == list(result.accuracies)
    with pytest.raises(ValueError, match=r"holds the folds .* use zoo\.cross_validate"):
        zoo.fit("mlp", arrays(), **options)
    assert run_store.recorded_micro_batch(f"{ADDRESS}/fold1") == 0
    assert run_store.recorded_micro_batch(f"{ADDRESS}/none") is None


def test_the_working_folder_depends_on_address_and_endpoint(monkeypatch):
    folder = run_store.working_folder("s3://b/my run")
    assert folder.name.startswith("my-run-")
    assert folder != run_store.working_folder("gs://b/my run")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert folder != run_store.working_folder("s3://b/my run")
