"""The folder of a run: its configuration and identity, name and lock, progress, logs."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from zoo.checkpoint import save_state
from zoo.training import run
from zoo.training.recipe import OMITTED_DEFAULTS, Recipe
from zoo.training.run import Logs, Progress, RunConfig

RECIPE = Recipe(epochs=3, batch_size=12)
CONFIG = RunConfig(
    "mlp", {"widths": (3,), "dropout": 0.1}, "tfds:mnist", RECIPE, 7, "f" * 64, "/data", "start", "a" * 64
)


def change(**fields):
    return dataclasses.replace(CONFIG, **fields)


def recipe(**fields):
    return change(recipe=dataclasses.replace(RECIPE, **fields))


# --- configuration and identity ---------------------------------------------------------------------------------------


def test_a_configuration_survives_json():
    again = run.config_from_json(json.loads(json.dumps(CONFIG.to_json())), "here")
    assert again == change(fields={"widths": [3], "dropout": 0.1}) and again.identity() == CONFIG.identity()
    alone = change(init=None, init_digest=None)
    assert run.config_from_json(json.loads(json.dumps(alone.to_json())), "here").init is None


def test_the_identity_is_everything_that_changes_the_result():
    identity = CONFIG.identity()
    assert identity["model"] == "mlp" and identity["model.widths"] == [3] and identity["model.dropout"] == 0.1
    assert (identity["data.source"], identity["data.limit"], identity["data.fingerprint"]) == (
        "tfds:mnist",
        7,
        "f" * 64,
    )
    assert identity["init"] == "a" * 64 and identity["recipe.epochs"] == 3
    recipe_fields = {f"recipe.{field.name}" for field in dataclasses.fields(Recipe)} - {"recipe.source"}
    later = {f"recipe.{field}" for field in OMITTED_DEFAULTS}
    assert {key for key in identity if key.startswith("recipe.")} == recipe_fields - later
    assert recipe(ema_every=2).identity()["recipe.ema_every"] == 2
    assert "init" not in change(init=None, init_digest=None).identity()


@pytest.mark.parametrize(
    "other",
    [change(model="lenet5"), change(fields={"widths": (4,), "dropout": 0.1}), change(data="digits"), change(limit=0),
     change(fingerprint="0" * 64), change(init_digest="b" * 64), recipe(seed=1), recipe(micro_batch=6)],
    ids=lambda config: "",
)  # fmt: skip
def test_another_identity_has_another_name(other):
    assert other.identity() != CONFIG.identity() and other.default_name() != CONFIG.default_name()


@pytest.mark.parametrize("other", [change(data_dir=None), change(init="elsewhere"), recipe(source="a book")])
def test_places_and_sources_are_not_part_of_the_identity(other):
    assert other.identity() == CONFIG.identity() and other.default_name() == CONFIG.default_name()


@pytest.mark.parametrize(
    ("data", "name"),
    [("tfds:mnist", "mlp-mnist-"), ("digits", "mlp-digits-"), ("hf:user/My Data", "mlp-user-my-data-"),
     ("類", "mlp-data-"), ("tfds:a:b", "mlp-a-b-")],
)  # fmt: skip
def test_default_names(data, name):
    assert re.fullmatch(f"{name}[0-9a-f]{{8}}", change(data=data).default_name())


def test_the_default_name_of_a_file_is_that_of_the_file(tmp_path):
    (tmp_path / "Photos 2.tar").touch()
    assert change(data=str(tmp_path / "Photos 2.tar")).default_name().startswith("mlp-photos-2-")
    assert str(run.run_folder(None, CONFIG)) == f"runs/{CONFIG.default_name()}"
    assert run.run_folder(tmp_path, CONFIG) == tmp_path


@pytest.mark.parametrize(
    ("change_json", "named"),
    [(lambda data: data.pop("model"), "model"), (lambda data: data["data"].pop("limit"), "limit"),
     (lambda data: data["recipe"].update(colour=1), "colour"), (lambda data: data.update(format=99), "99"),
     (lambda data: data.update(model=3), "here")],
    ids=["no model", "no limit", "unknown recipe field", "newer format", "another type"],
)  # fmt: skip
def test_what_is_not_a_configuration_is_named(change_json, named):
    data = json.loads(json.dumps(CONFIG.to_json()))
    change_json(data)
    with pytest.raises(ValueError, match=named) as caught:
        run.config_from_json(data, "here/config.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="here"):
        run.config_from_json([], "here")


def test_reading_a_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        run.read_config(tmp_path)
    (tmp_path / run.CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"config\.json.*JSON"):
        run.read_config(tmp_path)
    (tmp_path / run.CONFIG).write_text(json.dumps(CONFIG.to_json()))
    assert run.read_config(tmp_path) == run.read_config(tmp_path / run.CONFIG)


def test_differences():
    lines = run.differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": None})
    assert lines == ["b is 4, not 2", "c is absent, not 3"]  # None equals an absent key


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_new_folder_records_command_and_versions(tmp_path):
    folder = run.open_folder(tmp_path / "a" / "run", CONFIG, "zoo train")
    assert [path.name for path in folder.iterdir()] == [run.CONFIG]
    made_with = json.loads((folder / run.CONFIG).read_text())["made_with"]
    assert made_with["command"] == "zoo train" and made_with["versions"]["numpy"] == np.__version__
    assert made_with["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(made_with["versions"]) == {
        "python",
        "jax-model-zoo",
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    }
    before = (folder / run.CONFIG).read_bytes()
    assert run.open_folder(folder, CONFIG, "another command") == folder
    assert (folder / run.CONFIG).read_bytes() == before


@pytest.mark.parametrize(("old", "new"), [("zoo train", "zoo trait"), ("numpy", "numpx"), ('"git"', '"gis"')])
def test_a_damaged_record_of_the_command_is_refused(tmp_path, old, new):
    run.open_folder(tmp_path, CONFIG, "zoo train")
    whole = (tmp_path / run.CONFIG).read_text()
    origin = run.read_origin(tmp_path)
    assert set(origin) == {"command", "git", "versions"}
    (tmp_path / run.CONFIG).write_text(whole.replace(old, new))
    for read in (lambda: run.read_origin(tmp_path), lambda: run.open_folder(tmp_path, CONFIG, "")):
        with pytest.raises(ValueError, match=r"config\.json: 'made_with' .* has changed"):
            read()
    data = json.loads(whole)
    del data["made_with"]["sha256"]  # a run of an earlier version, or one whose owner edited it
    (tmp_path / run.CONFIG).write_text(json.dumps(data))
    assert run.read_origin(tmp_path) == origin


@pytest.mark.parametrize("leftover", [f".{run.CONFIG}.tmp", run.LOCK])
def test_a_folder_left_before_its_configuration_was_written_is_used(tmp_path, leftover):
    (tmp_path / leftover).touch()
    run.open_folder(tmp_path, CONFIG, "")
    assert run.read_config(tmp_path).model == "mlp"


def test_a_file_or_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path / "notes.txt", tmp_path):
        with pytest.raises(ValueError, match=r"--workdir") as caught:
            run.open_folder(path, CONFIG, "")
        assert str(path) in str(caught.value)
    assert not (tmp_path / run.CONFIG).exists()


def test_another_run_in_the_folder_is_refused_with_its_differences(tmp_path):
    run.open_folder(tmp_path, CONFIG, "")
    with pytest.raises(
        ValueError, match=r"recipe\.learning_rate is 0\.001, not 0\.5; recipe\.seed is 0, not 1"
    ) as caught:
        run.open_folder(tmp_path, recipe(seed=1, learning_rate=0.5), "")
    assert "--init" not in str(caught.value)
    assert f"`zoo train --config {tmp_path / run.CONFIG} --workdir {tmp_path}` resumes it" in str(caught.value)
    (tmp_path / run.BEST).mkdir()
    with pytest.raises(ValueError, match=rf"--init {tmp_path / run.BEST}"):
        run.open_folder(tmp_path, recipe(seed=1), "")


def test_a_message_lists_a_few_differences_shortly(tmp_path):
    run.open_folder(tmp_path, CONFIG, "")
    other = dataclasses.replace(CONFIG, model="resnet50", data="p" * 300, fingerprint="f" * 64)
    with pytest.raises(ValueError) as caught:
        run.open_folder(tmp_path, dataclasses.replace(other, recipe=Recipe(seed=3, epochs=7, patience=4)), "")
    message = str(caught.value)
    assert message.count(", not ") == run.MAX_DIFFERENCES and "other differences" in message
    assert message.index("model is") < message.index("data.source is") and "--workdir" in message
    assert len(message) < 500 + len(str(tmp_path))


def test_changed_data_are_told_in_words(tmp_path):
    run.open_folder(tmp_path, CONFIG, "")
    with pytest.raises(ValueError, match=r"holds another run: the images or labels of the data differ\. Choose"):
        run.open_folder(tmp_path, change(fingerprint="0" * 64), "")
    with pytest.raises(ValueError, match="it started from another checkpoint"):
        run.open_folder(tmp_path, change(init_digest="b" * 64), "")


def test_the_same_data_may_be_named_by_another_path(tmp_path, monkeypatch):
    """A run is resumed from another folder, or with `./photos` for `photos`; other data of that name are refused."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    run.open_folder(tmp_path / "run", change(data="photos"), "")
    for path in ("./photos", str(tmp_path / "photos"), f"../{tmp_path.name}/photos/"):
        run.open_folder(tmp_path / "run", change(data=path), "")
    with pytest.raises(ValueError, match="labels of the data differ"):
        run.open_folder(tmp_path / "run", change(data="./photos", fingerprint="0" * 64), "")
    (tmp_path / "other" / "photos").mkdir(parents=True)
    (tmp_path / "other" / "link").symlink_to(tmp_path / "photos")
    for other in ("images", "other/photos"):  # a test split may differ, which the fingerprint leaves out
        with pytest.raises(ValueError, match=rf"data\.source is photos, not {other}"):
            run.open_folder(tmp_path / "run", change(data=other), "")
    run.open_folder(tmp_path / "run", change(data="other/link"), "")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.open_folder(tmp_path / "run", change(data="../other/link"), "")


def test_the_state_folder_of_format_1_is_renamed(tmp_path):
    run.open_folder(tmp_path, CONFIG, "")
    (tmp_path / "checkpoints" / "step_5").mkdir(parents=True)
    assert run.has_saved_state(tmp_path)
    run.upgrade_folder(tmp_path)
    assert (tmp_path / "state" / "step_5").exists() and not (tmp_path / "checkpoints").exists()
    (tmp_path / "checkpoints").mkdir()
    run.upgrade_folder(tmp_path)  # both: the newer one stays
    assert (tmp_path / "state" / "step_5").exists() and (tmp_path / "checkpoints").exists()


def test_one_process_at_a_time(tmp_path):
    with run.lock_folder(tmp_path), pytest.raises(ValueError, match=str(tmp_path)), run.lock_folder(tmp_path):
        pass
    with run.lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("data", ["x" * 10_000, "nul\0", "../../x"])
def test_any_name_of_data_gives_a_name_of_a_run(data):
    name = dataclasses.replace(CONFIG, data=data).default_name()
    assert name.startswith(f"{CONFIG.model}-") and "/" not in name and name.isprintable()


def test_the_micro_batch_may_change_until_a_state_is_saved(tmp_path):
    assert run.recorded_micro_batch(tmp_path) is None
    run.open_folder(tmp_path, CONFIG, "zoo train")
    assert run.recorded_micro_batch(tmp_path) is None
    run.require_same_run(tmp_path, recipe(micro_batch=6))
    with pytest.raises(ValueError, match=r"recipe\.seed"):
        run.require_same_run(tmp_path, recipe(micro_batch=6, seed=1))
    before = (tmp_path / run.CONFIG).stat().st_mtime_ns
    run.record_micro_batch(tmp_path, 0)
    assert (tmp_path / run.CONFIG).stat().st_mtime_ns == before
    run.record_micro_batch(tmp_path, 6)
    assert run.read_config(tmp_path).recipe == recipe(micro_batch=6).recipe
    assert json.loads((tmp_path / run.CONFIG).read_text())["made_with"]["command"] == "zoo train"
    assert run.recorded_micro_batch(tmp_path) == 6
    save_state(tmp_path / run.STATE, 1, {"w": np.zeros(1)}, {})
    run.require_same_run(tmp_path, recipe(micro_batch=6))
    with pytest.raises(ValueError, match=r"recipe\.micro_batch is 6, not 0"):
        run.require_same_run(tmp_path, CONFIG)


def test_a_run_that_has_begun_without_micro_batches_keeps_none(tmp_path):
    run.open_folder(tmp_path, CONFIG, "")
    save_state(tmp_path / run.STATE, 1, {"w": np.zeros(1)}, {})
    assert run.recorded_micro_batch(tmp_path) == 0


def test_a_finished_run_without_state_has_its_micro_batch(tmp_path):
    run.open_folder(tmp_path, CONFIG, "")
    (tmp_path / run.RESULTS).write_text('{"stopped": "all steps done", "best_step": 3}')
    with pytest.raises(ValueError, match=r"recipe\.micro_batch"):
        run.require_same_run(tmp_path, recipe(micro_batch=6))


def test_timing(tmp_path):
    run.append_timing(tmp_path, 0, 30, 8, 12.04)
    run.append_timing(tmp_path, 30, 30, 8, 0.0)
    first, second = (json.loads(line) for line in (tmp_path / run.TIMING).read_text().splitlines())
    assert (first["steps"], first["seconds"], first["images_per_second"]) == ([0, 30], 12.0, 19.9)
    assert re.fullmatch(r"cpu, \d+ cores", first["device"]) and second["images_per_second"] == 0


# --- progress and logs ------------------------------------------------------------------------------------------------


def test_progress_survives_json():
    progress = Progress(5, [{"step": 4}], 4, [0.5, -1.0], 2, {"loss": 3.0}, "done")
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress
    format1 = {key: value for key, value in progress.to_json().items() if key != "evals_without_improvement"}
    assert Progress.from_json({**format1, "stale": 2}) == progress
    assert Progress() == Progress(0, [], 0, None, 0, {}, "")


ROWS = [
    {"step": n, "epoch": n / 2, "learning_rate": 0.5, "train_loss": 1.0 / n, "validation_macro_f1": 0.25, "best": True,
     "validation_roc_auc": None}
    for n in (1, 2, 3)
]  # fmt: skip


def tensorboard_events(folder):
    """Return [(step, tag, value)] of the events in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted(folder.glob("events.out.*")):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            events += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[12 + length + 4 :]
    return events


def test_logs(tmp_path):
    logs = Logs(tmp_path, [])
    for row in ROWS:
        logs.add(row)
    logs.close()
    assert run.read_history(tmp_path) == ROWS
    assert tensorboard_events(tmp_path)[:3] == [(1, "learning_rate", 0.5), (1, "loss/train", 1.0),
                                                (1, "macro_f1/validation", 0.25)]  # fmt: skip
    assert {tag for _, tag, _ in tensorboard_events(tmp_path)} == {"learning_rate", "loss/train", "macro_f1/validation"}
    Logs(tmp_path, ROWS[:2]).close()  # resumed from a state before the last row
    assert run.read_history(tmp_path) == ROWS[:2]


def test_a_resumed_run_removes_later_events(tmp_path, monkeypatch):
    import tensorboardX

    purged = []
    writer = tensorboardX.SummaryWriter
    monkeypatch.setattr(
        tensorboardX,
        "SummaryWriter",
        lambda folder, **more: purged.append(more["purge_step"]) or writer(folder, **more),
    )
    for rows in ([], ROWS[:2]):
        logs = Logs(tmp_path, rows)
        logs.add(ROWS[2])
        logs.close()
    assert purged == [0, 3]


def test_the_revision_of_the_code(monkeypatch):
    for changed, expected in (("", "abc"), (" M run.py\n", "abc+changes")):

        def git(words, changed=changed, **options):
            return subprocess.CompletedProcess(words, 0, "abc\n" if "rev-parse" in words else changed, "")

        monkeypatch.setattr(run.subprocess, "run", git)
        assert run.git_revision() == expected

    def missing(words, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(run.subprocess, "run", missing)
    assert run.git_revision() is None
