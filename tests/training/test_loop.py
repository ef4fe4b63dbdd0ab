"""The loop: runs end with the same bits however often they are killed, and choose by the validation split alone."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers import make_plan, train

from zoo import checkpoint
from zoo.data.dataset import limited
from zoo.data.sources import from_arrays
from zoo.inference.metrics import Metrics
from zoo.training import loop, report, run
from zoo.training.recipe import Recipe
from zoo.trees import flatten

RECIPE = Recipe(
    epochs=9, batch_size=20, learning_rate=0.01, augment=("shift(pixels=1)", "mixup(alpha=0.2)"), ema=0.9, patience=3,
    monitor="loss", clip_norm=1.0, weight_decay=0.01,
)  # fmt: skip
MODEL = {"fields": {"widths": (16,), "image_size": 8, "dropout": 0.2}, "quiet": True}


def arrays(count=150, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    images = rng.integers(0, 120, (count, 8, 8)) + 40 * labels[:, None, None]
    return images.astype(np.uint8), labels


def misleading():
    """A validation split most of whose labels are wrong: the loss on it falls for a while, then rises."""
    images, labels = arrays(60, seed=1)
    return images, np.where(np.arange(60) % 5 < 3, (labels + 1) % 3, labels)


def dataset(test_seed=2, validation=None):
    validation = validation or misleading()
    return from_arrays(arrays(), validation=validation, test=arrays(60, seed=test_seed), name="made")


def outcome(folder: Path):
    """Everything that must be the same bits: whole state, best checkpoint, logs, results."""
    commit = checkpoint.latest_save(folder / run.STATE)
    arrays = {**flatten(checkpoint.format.read_arrays(commit / checkpoint.manifest.ARRAYS))}
    card, best = checkpoint.load_checkpoint(folder / run.BEST)
    return {
        "state": {path: (leaf.dtype.str, leaf.shape, leaf.tobytes()) for path, leaf in arrays.items()},
        "progress": (commit / checkpoint.run_state.PROGRESS).read_bytes(),
        "best": {path: leaf.tobytes() for path, leaf in flatten(best).items()},
        "card": card,
        "metrics": (folder / run.METRICS).read_bytes(),
        "results": (folder / run.RESULTS).read_bytes(),
        "pictures": [(folder / name).read_bytes() for name in ("curves.png", "confusion.png")],
    }


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    fitted = train("mlp", dataset(), RECIPE, workdir=folder, save_steps=5, **MODEL)
    return fitted, outcome(folder)


def test_a_run_holds_what_it_should(left_alone):
    fitted, _ = left_alone
    names = {path.name for path in fitted.workdir.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "results.json",
        "curves.png",
        "confusion.png",
        "state",
        "best",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = json.loads((fitted.workdir / "config.json").read_text())
    assert {"model", "data", "recipe", "made_with"} <= set(config)
    assert {"versions", "command", "git"} <= set(config["made_with"])
    assert run.read_config(fitted.workdir).recipe == RECIPE
    assert fitted.card.metrics["step"] in [row["step"] for row in fitted.history if row["best"]]
    assert set(fitted.card.metrics) == {"step", "validation", "test"}
    assert fitted.card.command == config["made_with"]["command"] and fitted.card.versions["git"]
    # The kills below must strike while early stopping counts, and where the best is older than the newest state.
    assert json.loads((fitted.workdir / "results.json").read_text())["stopped"].startswith(
        "no improvement of loss in 3"
    )
    assert [row["best"] for row in fitted.history][-3:] == [False] * 3
    assert len(list((fitted.workdir / "state").iterdir())) <= 2


class Killed(BaseException):
    """Stands in for SIGKILL: whatever is on disk stays as it is."""


#: Calls between which a kill may strike; inside a save, between arrays and card, between the two renames.
EVENTS = {
    "zoo.checkpoint.run_state": ("write_json", "write_arrays", "write_manifest", "replace_folder", "remove_folder"),
    "zoo.checkpoint.format": ("write_json", "write_arrays", "write_manifest", "replace_folder", "remove_folder"),
    "zoo.checkpoint.manifest": ("file_sha256",),
    "zoo.training.loop": ("Trainer.process_metrics", "Trainer.validate", "Trainer.save"),
    "zoo.training.report": ("save_best", "finish"),
    "zoo.training.run": ("Logs.add", "write_atomically"),
    "pathlib": ("Path.rename", "Path.replace"),
}


def instrument(patch, strike):
    """Call strike() before and after every call of EVENTS."""
    import importlib

    for module, names in EVENTS.items():
        for name in names:
            owner = importlib.import_module(module)
            *holder, attribute = name.split(".")
            for part in holder:
                owner = getattr(owner, part)
            original = getattr(owner, attribute)

            def wrapped(*args, original=original, **kwargs):
                strike()
                result = original(*args, **kwargs)
                strike()
                return result

            patch(owner, attribute, wrapped)


@pytest.fixture(scope="module")
def number_of_events(tmp_path_factory):
    count = [0]
    with pytest.MonkeyPatch.context() as patch:
        instrument(patch.setattr, lambda: count.__setitem__(0, count[0] + 1))
        folder = tmp_path_factory.mktemp("runs") / "counted"
        train("mlp", dataset(), RECIPE, workdir=folder, save_steps=5, **MODEL)
    return count[0]


def test_killed_at_every_moment_of_the_start(tmp_path, monkeypatch):
    """Before the first commit there is nothing to go on from, but the same command must start again."""
    recipe = Recipe(epochs=1, batch_size=75)
    for moment in range(1, 9):
        left = [moment]

        def strike(left=left):
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        with monkeypatch.context() as patch:
            instrument(patch.setattr, strike)
            with pytest.raises(Killed):
                train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL)
    assert train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL).history


@pytest.mark.parametrize("lives", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_stopped_dead_at_many_moments_and_started_again(tmp_path, monkeypatch, left_alone, number_of_events, lives):
    """In this process: an exception that nobody catches, at seeded calls, several times in one run."""
    rng, folder = random.Random(lives), tmp_path / "run"
    deaths = 0
    for _ in range(lives):
        left = [rng.randrange(1, number_of_events)]

        def strike(left=left):
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        with monkeypatch.context() as patch:
            instrument(patch.setattr, strike)
            try:
                train("mlp", dataset(), RECIPE, workdir=folder, save_steps=5, **MODEL)
                break
            except Killed:
                deaths += 1
    train("mlp", dataset(), RECIPE, workdir=folder, save_steps=5, **MODEL)
    assert deaths and outcome(folder) == left_alone[1]


CHILD = textwrap.dedent("""
    import importlib.util, os, signal, sys
    here, folder, moment = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("test_loop", here)
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    left = [int(moment)]
    def strike():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    tests.instrument(setattr, strike)
    tests.train("mlp", tests.dataset(), tests.RECIPE, workdir=folder, save_steps=5, **tests.MODEL)
""")


def in_a_child(folder, moment):
    """Train in a process of its own that is killed at the moment-th event (0: left alone). Returns its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, __file__, str(folder), str(moment)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_killed_by_a_signal_and_started_again(tmp_path, left_alone, number_of_events):
    folder = tmp_path / "run"
    assert in_a_child(folder, random.Random(7).randrange(number_of_events // 3, number_of_events)) == -signal.SIGKILL
    assert in_a_child(folder, 0) == 0
    assert outcome(folder) == left_alone[1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_killed_by_a_signal_at_twenty_moments(tmp_path, left_alone, number_of_events, moment):
    """Twenty seeded moments, spread over the whole run, each in a run of its own, then started again."""
    folder = tmp_path / "run"
    at = random.Random(moment).randrange(1 + number_of_events * moment // 20, 1 + number_of_events * (moment + 1) // 20)
    assert in_a_child(folder, at) == -signal.SIGKILL
    while in_a_child(folder, 0):
        pass
    assert outcome(folder) == left_alone[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_where(tmp_path, monkeypatch, left_alone, signum):
    settle = loop.Trainer.process_metrics

    def settle_then_signal(self, step, report):
        settle(self, step, report)
        if step == 13:
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "process_metrics", settle_then_signal)
        with pytest.raises(loop.InterruptedRunError, match="saved at step") as stop:
            train("mlp", dataset(), RECIPE, workdir=tmp_path / "run", **MODEL)
    assert stop.value.signum == signum and signal.getsignal(signum) is before
    assert int(checkpoint.latest_save(tmp_path / "run" / "state").name[5:]) >= 13
    train("mlp", dataset(), RECIPE, workdir=tmp_path / "run", **MODEL)
    assert outcome(tmp_path / "run")["metrics"] == left_alone[1]["metrics"]


def test_a_finished_run_says_so_and_stays_as_it_is(left_alone, capsys):
    fitted, before = left_alone
    again = train("mlp", dataset(), RECIPE, workdir=fitted.workdir, **{**MODEL, "quiet": False})
    assert "finished" in capsys.readouterr().out
    assert outcome(fitted.workdir) == before and again.history == fitted.history


def test_the_test_split_changes_nothing_but_its_own_result(tmp_path, left_alone):
    other = train("mlp", dataset(test_seed=99), RECIPE, workdir=tmp_path / "run", save_steps=5, **MODEL)
    mine, theirs = outcome(other.workdir), left_alone[1]
    for part in ("state", "best", "metrics", "progress"):
        assert mine[part] == theirs[part]
    assert mine["card"].metrics["step"] == theirs["card"].metrics["step"]
    assert mine["results"] != theirs["results"]


def test_early_stopping_stops_and_restores_the_best(tmp_path):
    """The validation labels are the training labels moved by one: the better it trains, the worse it validates."""
    images, labels = arrays(60, seed=1)
    wrong = dataset(validation=(images, (labels + 1) % 3))
    recipe = Recipe(epochs=50, batch_size=50, learning_rate=0.01, patience=3, monitor="accuracy")
    fitted = train("mlp", wrong, recipe, workdir=tmp_path / "run", **MODEL)
    accuracies = [row["validation_accuracy"] for row in fitted.history]
    best = int(np.argmax(accuracies))
    assert len(accuracies) < 50 and len(accuracies) == best + 1 + 3
    assert fitted.card.metrics["step"] == fitted.history[best]["step"]
    assert fitted.card.metrics["validation"]["accuracy"] == accuracies[best]


@pytest.mark.parametrize("monitor", ["loss", "accuracy", "macro_f1", "roc_auc"])
def test_what_is_monitored_chooses(monitor):
    result = some_metrics()
    better = dataclasses.replace(result, **{monitor: 0.4 if monitor == "loss" else 0.95})
    assert loop.monitor_score(better, monitor, 1) > loop.monitor_score(result, monitor, 1)
    lower_loss = dataclasses.replace(result, loss=0.4)  # breaks ties
    assert loop.monitor_score(lower_loss, monitor, 1) > loop.monitor_score(result, monitor, 1)


def test_the_last_evaluation_is_chosen_whatever_its_metrics():
    worse = dataclasses.replace(some_metrics(), loss=9.0, accuracy=0.0)
    assert loop.monitor_score(worse, "last", 2) > loop.monitor_score(some_metrics(), "last", 1)


def some_metrics(**changes):
    values = {"examples": 10, "loss": 0.5, "accuracy": 0.8, "top5": 1.0, "macro_precision": 0.7, "macro_recall": 0.7,
              "macro_f1": 0.7, "roc_auc": 0.9, "ece": 0.1, "per_class": (), "confusion": []}  # fmt: skip
    return Metrics(**{**values, **changes})


def test_a_score_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"monitor=roc_auc.*one class"):
        loop.monitor_score(some_metrics(roc_auc=None, notes=("all examples are of one class",)), "roc_auc", 1)


@pytest.mark.parametrize(("batch_size", "epochs"), [(20, 30), (0, 1)])
def test_what_is_not_finite_stops_in_words_and_is_not_saved(tmp_path, batch_size, epochs):
    """Also where the very last update ruins the parameters, which no training loss sees any more."""
    recipe = Recipe(epochs=epochs, batch_size=batch_size, optimizer="sgd", schedule="constant", learning_rate=1e38)
    with pytest.raises(loop.DivergenceError, match=r"at step \d+ with learning rate 1e\+38; try a lower") as error:
        train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "best").exists() and not list((tmp_path / "run").glob("checkpoints/*"))


def test_another_configuration_in_the_same_folder_is_refused(left_alone):
    folder = left_alone[0].workdir
    other = dataclasses.replace(RECIPE, seed=1, learning_rate=0.02)
    with pytest.raises(ValueError, match=r"recipe\.learning_rate is 0\.01, not 0\.02; recipe\.seed is 0, not 1"):
        train("mlp", dataset(), other, workdir=folder, **MODEL)


def test_other_data_of_the_same_name_is_another_run(left_alone):
    other = from_arrays(arrays(seed=5), validation=misleading(), test=arrays(60, seed=2), name="made")
    with pytest.raises(ValueError, match=r"holds another run: data\.fingerprint is"):
        train("mlp", other, RECIPE, workdir=left_alone[0].workdir, **MODEL)
    ours, theirs = (make_plan("mlp", data, RECIPE, fields=MODEL["fields"]).config for data in (dataset(), other))
    assert ours.default_name() != theirs.default_name()


def test_one_process_at_a_time_in_a_folder(left_alone):
    folder = left_alone[0].workdir
    with run.lock_folder(folder), pytest.raises(ValueError, match="another process is training"):
        train("mlp", dataset(), RECIPE, workdir=folder, **MODEL)


def test_default_names_differ_by_what_changes_the_result():
    config = run.RunConfig("mlp", {"widths": (3,)}, "tfds:mnist", RECIPE)
    assert config.default_name().startswith("mlp-mnist-")
    assert dataclasses.replace(config, data_dir="/elsewhere").default_name() == config.default_name()
    for change in ({"limit": 5}, {"recipe": dataclasses.replace(RECIPE, seed=1)}, {"fields": {"widths": (4,)}}):
        assert dataclasses.replace(config, **change).default_name() != config.default_name()


def test_a_limit_takes_records_at_even_distances():
    whole = dataset()
    few = limited(whole, 10)
    assert {name: len(split) for name, split in few.splits.items()} == {"train": 10, "validation": 10, "test": 10}
    images = whole.splits["train"].read(np.arange(len(whole.splits["train"])))
    assert np.array_equal(few.splits["train"].read(np.array([0, 9])), images[[0, -1]])
    assert limited(whole, 10**6).splits["test"] is whole.splits["test"]


def test_what_small_data_makes_of_a_recipe_is_said(tmp_path):
    data = dataset()
    job = make_plan("mlp", data, dataclasses.replace(RECIPE, batch_size=10**6, min_epoch_steps=7))
    said: list[str] = []
    report.describe(job, said.append)
    count = len(data.splits["train"])
    assert job.batch_size == count
    assert any(f"batch size {count:,} instead of 1,000,000" in line for line in said)
    assert any("an epoch has 7 steps" in line and "--set min_epoch_steps=0" in line for line in said)


def test_a_finished_run_is_trained_further_from_its_checkpoint(left_alone):
    folder = left_alone[0].workdir
    with pytest.raises(ValueError, match=r"recipe\.epochs is 9, not 12.*--init .*best"):
        train("mlp", dataset(), dataclasses.replace(RECIPE, epochs=12), workdir=folder, **MODEL)


def test_a_full_batch_in_pieces(tmp_path):
    """The training split at once, in pieces that do not divide it."""
    recipe = Recipe(epochs=1, batch_size=0, micro_batch=40, optimizer="sgd", learning_rate=1e-3)
    fitted = train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL)
    assert [row["step"] for row in fitted.history] == [1]
