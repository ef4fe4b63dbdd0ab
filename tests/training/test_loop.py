"""The training loop: the same bits however often a run is killed, selection by the validation split alone, saves."""

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_plan, run_bits, train

from zoo import checkpoint
from zoo.data.dataset import limited
from zoo.data.sources import from_arrays
from zoo.distributed import watch
from zoo.inference.metrics import Metrics
from zoo.training import interruption, loop, run
from zoo.training import recipe as training_recipe
from zoo.training.display import Display
from zoo.training.recipe import Recipe
from zoo.training.run import Progress
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
    """Return a validation split with mostly wrong labels: its loss falls for a while, then rises."""
    images, labels = arrays(60, seed=1)
    return images, np.where(np.arange(60) % 5 < 3, (labels + 1) % 3, labels)


def dataset(test_seed=2, validation=None):
    validation = validation or misleading()
    return from_arrays(arrays(), validation=validation, test=arrays(60, seed=test_seed), name="made")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    fitted = train("mlp", dataset(), RECIPE, workdir=folder, save_steps=5, **MODEL)
    return fitted, run_bits(folder)


def test_the_files_of_a_finished_run(uninterrupted):
    fitted, _ = uninterrupted
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
    # The kills below must also strike while early stopping counts, when the best is older than the newest state.
    assert json.loads((fitted.workdir / "results.json").read_text())["stopped"].startswith(
        "no improvement of loss in 3"
    )
    assert [row["best"] for row in fitted.history][-3:] == [False] * 3
    assert len(list((fitted.workdir / "state").iterdir())) <= 2


class Killed(BaseException):
    """Stands in for SIGKILL: the disk stays as it is at that moment."""


#: Calls before and after which a kill may strike: within a save, between arrays and card, between two renames.
EVENTS = {
    "zoo.checkpoint.run_state": ("write_json", "write_shards", "write_manifest", "replace_folder", "remove_folder"),
    "zoo.checkpoint.format": ("write_json", "write_arrays", "write_manifest", "replace_folder", "remove_folder"),
    "zoo.checkpoint.manifest": ("file_sha256",),
    "zoo.training.loop": ("Trainer.process_metrics", "Trainer.validate", "Trainer.save"),
    "zoo.training.report": ("save_best", "finish"),
    "zoo.training.run": ("Logs.add", "write_atomically"),
    "pathlib": ("Path.rename", "Path.replace"),
}


def instrument(patch, strike):
    """Call `strike` before and after every call of EVENTS."""
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
    """Before the first save nothing can be resumed, but the same command must start again."""
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
def test_killed_at_many_moments_and_resumed(tmp_path, monkeypatch, uninterrupted, number_of_events, lives):
    """In this process: an uncaught exception at seeded calls, several times in one run."""
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
    assert deaths, number_of_events
    assert run_bits(folder) == uninterrupted[1]


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
    """Train in a child process that is killed at the given event (0: not killed) and return its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, __file__, str(folder), str(moment)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_killed_by_a_signal_and_resumed(tmp_path, uninterrupted, number_of_events):
    folder = tmp_path / "run"
    assert in_a_child(folder, random.Random(7).randrange(number_of_events // 3, number_of_events)) == -signal.SIGKILL
    assert in_a_child(folder, 0) == 0
    assert run_bits(folder) == uninterrupted[1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_killed_by_a_signal_at_twenty_moments(tmp_path, uninterrupted, number_of_events, moment):
    """Twenty seeded moments over the whole run, each in its own run, which is then resumed."""
    folder = tmp_path / "run"
    at = random.Random(moment).randrange(1 + number_of_events * moment // 20, 1 + number_of_events * (moment + 1) // 20)
    assert in_a_child(folder, at) == -signal.SIGKILL
    while in_a_child(folder, 0):
        pass
    assert run_bits(folder) == uninterrupted[1]


def signal_at(patch, step, signum):
    """Send a signal to this process once the metrics of `step` are read."""
    process = loop.Trainer.process_metrics

    def process_then_signal(trainer, number, metrics):
        process(trainer, number, metrics)
        if number == step:
            os.kill(os.getpid(), signum)

    patch.setattr(loop.Trainer, "process_metrics", process_then_signal)


@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(signum, marks=[] if signum in (signal.SIGINT, signal.SIGTERM) else [pytest.mark.slow])
        for signum in interruption.SIGNALS
    ],
)
def test_a_signal_saves_the_state(tmp_path, monkeypatch, capsys, uninterrupted, signum, request):
    before = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL  # `nohup` ignores SIGHUP
    request.addfinalizer(functools.partial(signal.signal, signum, signal.signal(signum, before)))
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, 13, signum)
        with pytest.raises(loop.InterruptedRunError, match=f"of 68 .{signal.Signals(signum).name}") as stop:
            train("mlp", dataset(), RECIPE, workdir=folder, **MODEL)
    assert stop.value.signum == signum
    assert signal.getsignal(signum) is before
    step = int(checkpoint.latest_save(folder / run.STATE).name.removeprefix("step_"))
    assert 13 <= step <= 15 and f"step {step} " in str(stop.value)
    train("mlp", dataset(), RECIPE, workdir=folder, **{**MODEL, "quiet": False})
    assert f"Resuming at step {step} of 68" in capsys.readouterr().out
    assert run_bits(folder)["metrics"] == uninterrupted[1]["metrics"]


def test_an_interrupted_run_holds_its_best_checkpoint_so_far(tmp_path, monkeypatch):
    """Past the third evaluation at step 23, each better than the one before: best/ is not that of the first save."""
    folder, recipe = tmp_path / "run", dataclasses.replace(RECIPE, monitor="last")
    signal_at(monkeypatch, 24, signal.SIGTERM)
    with pytest.raises(loop.InterruptedRunError):
        train("mlp", dataset(), recipe, workdir=folder, save_steps=5, **MODEL)
    save = checkpoint.latest_save(folder / run.STATE)
    arrays, progress = checkpoint.read_arrays_of(save), json.loads((save / "progress.json").read_text())
    card, best = checkpoint.load_checkpoint(folder / run.BEST)
    assert [(row["step"], row["best"]) for row in progress["history"]] == [(8, True), (15, True), (23, True)]
    assert card.metrics["step"] == progress["best_step"] == 23
    assert card.metrics["validation"]["loss"] == progress["history"][-1]["validation_loss"]
    assert all(np.array_equal(leaf, flatten(best)[path]) for path, leaf in flatten(arrays["best"]).items())


def test_the_first_signal_is_recorded_its_echo_ignored_and_a_later_one_handled(monkeypatch):
    """`timeout` and schedulers signal a process and then its group, within moments."""
    handled = []
    before = {signum: signal.signal(signum, lambda *about: handled.append("before")) for signum in interruption.SIGNALS}
    try:
        for second, expected in ((None, "before"), (lambda *about: handled.append("second"), "second")):
            handled.clear()
            with interruption.catch_signals(second) as caught:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                assert caught == [signal.SIGTERM] and not handled
                with monkeypatch.context() as patch:
                    patch.setattr(interruption, "GRACE_SECONDS", 0.0)
                    os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat it while the state is saved
                    assert not handled
                    os.kill(os.getpid(), signal.SIGINT)
                assert caught == [signal.SIGTERM] and handled == [expected]
            if second is None:
                os.kill(os.getpid(), signal.SIGINT)
                assert handled == [expected, "before"]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX")
def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.catch_signals() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not caught and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_results_that_are_damaged_are_written_again(tmp_path, uninterrupted, content):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[0].workdir, folder)
    (folder / run.RESULTS).write_bytes(content)
    assert not run.is_finished(folder)
    if not content:
        train("mlp", dataset(), RECIPE, workdir=folder, **MODEL)
        assert run.is_finished(folder) and run_bits(folder)["results"] == uninterrupted[1]["results"]


def test_outside_the_main_thread_no_signal_is_caught():
    before, inside = signal.getsignal(signal.SIGINT), []

    def enter():
        with interruption.catch_signals() as caught:
            inside.append((caught, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [([], before)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_steps": 4}, [4, 8, 12, 15]),
        ({"save_steps": 0}, [15]),
        pytest.param({"save_seconds": 0.0}, None, marks=pytest.mark.slow),
    ],
)
def test_saves(tmp_path, monkeypatch, options, expected):
    """Every `save_steps` steps, `save_seconds` after the last save unless it is still being written, and after the last
    step; the two newest stay."""
    steps = []
    save_state = checkpoint.save_state

    def record(folder, step, arrays, progress, **options):
        steps.append(step)
        return save_state(folder, step, arrays, progress, **options)

    monkeypatch.setattr(checkpoint, "save_state", record)
    recipe = dataclasses.replace(RECIPE, epochs=2, patience=0)
    train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL, **options)
    assert steps == (expected or sorted(set(steps))) and len(steps) > 2 * (expected is None) and steps[-1] == 15
    kept = sorted(path.name for path in (tmp_path / "run" / "state").iterdir())
    assert kept == [f"step_{step:09d}" for step in steps[-2:]]


def test_training_metrics_are_those_since_the_last_evaluation(uninterrupted, tmp_path, monkeypatch):
    seen = {}
    process = loop.Trainer.process_metrics

    def record(trainer, step, metrics):
        seen[step] = (float(metrics["loss"]), int(metrics["top1"]))
        process(trainer, step, metrics)

    monkeypatch.setattr(loop.Trainer, "process_metrics", record)
    recipe = dataclasses.replace(RECIPE, epochs=2, patience=0)
    rows = train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL).history
    assert [row["step"] for row in rows] == [8, 15]
    for row, steps in zip(rows, (range(1, 9), range(9, 16)), strict=True):
        losses, correct = zip(*(seen[step] for step in steps), strict=True)
        assert row["train_loss"] == pytest.approx(np.mean(losses))
        assert row["train_accuracy"] == pytest.approx(sum(correct) / (20 * len(steps)))


def test_a_finished_run_is_not_trained_again(uninterrupted, capsys):
    fitted, before = uninterrupted
    again = train("mlp", dataset(), RECIPE, workdir=fitted.workdir, **{**MODEL, "quiet": False})
    assert "This run is finished" in capsys.readouterr().out
    assert run_bits(fitted.workdir) == before and again.history == fitted.history


def test_the_test_split_changes_nothing_but_its_own_result(tmp_path, uninterrupted):
    other = train("mlp", dataset(test_seed=99), RECIPE, workdir=tmp_path / "run", save_steps=5, **MODEL)
    actual, expected = run_bits(other.workdir), uninterrupted[1]
    for part in ("state", "best", "metrics", "progress"):
        assert actual[part] == expected[part]
    assert actual["card"].metrics["step"] == expected["card"].metrics["step"]
    assert actual["results"] != expected["results"]


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_keeps_the_best(tmp_path, patience):
    """The validation labels are the training labels moved by one: the better it trains, the worse it validates."""
    images, labels = arrays(60, seed=1)
    wrong = dataset(validation=(images, (labels + 1) % 3))
    recipe = Recipe(epochs=50, batch_size=50, learning_rate=0.01, patience=patience, monitor="accuracy")
    fitted = train("mlp", wrong, recipe, workdir=tmp_path / "run", **MODEL)
    scores = [(row["validation_accuracy"], -row["validation_loss"]) for row in fitted.history]
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    assert len(scores) < 50 and len(scores) == best + 1 + patience
    assert [row["best"] for row in fitted.history[best:]] == [True] + [False] * patience
    assert fitted.card.metrics["step"] == fitted.history[best]["step"]
    assert fitted.card.metrics["validation"]["accuracy"] == scores[best][0]
    results = json.loads((tmp_path / "run" / run.RESULTS).read_text())
    assert results["stopped"] == f"no improvement of accuracy in {patience} evaluations"


def test_an_equal_score_is_no_improvement(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "monitor_score", lambda metrics, monitor, step: [0.5])
    recipe = Recipe(epochs=5, batch_size=50, patience=2)
    rows = train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL).history
    assert [row["best"] for row in rows] == [True, False, False]


def test_other_processes_may_wait_for_the_final_evaluation(tmp_path, monkeypatch):
    """It may take longer than --hang-timeout, and would again in every resumed run."""
    state = SimpleNamespace(steps=0, doing="step 9", exempt=0)
    monkeypatch.setattr(watch, "_watch", state)
    finished = []
    monkeypatch.setattr(loop.report, "finish", lambda *about: finished.append((state.doing, state.exempt)))
    monkeypatch.setattr(loop, "resume", lambda plan, say: ({}, {}, Progress(stopped="all steps done")))
    monkeypatch.setattr(loop, "Trainer", lambda *about: SimpleNamespace(best={}))
    monkeypatch.setattr(loop.processes, "is_primary", lambda: False)
    plan = SimpleNamespace(precompiled=object(), first_state=dict, shard_state=dict)
    loop.train(plan, SimpleNamespace(say=print), 60.0, 0, None, interruption.Caught())
    assert finished == [("evaluating the finished training", 1)]
    assert (state.doing, state.exempt) == ("step 9", 0)


def some_metrics(**changes):
    values = {"examples": 10, "loss": 0.5, "accuracy": 0.8, "top5": 1.0, "macro_precision": 0.7, "macro_recall": 0.7,
              "macro_f1": 0.7, "roc_auc": 0.9, "ece": 0.1, "per_class": (), "confusion": []}  # fmt: skip
    return Metrics(**{**values, **changes})


@pytest.mark.parametrize("monitor", ["loss", "accuracy", "macro_f1", "roc_auc"])
def test_the_monitored_metric_selects_and_ties_go_to_the_lower_loss(monitor):
    metrics = some_metrics()
    better = dataclasses.replace(metrics, **{monitor: 0.4 if monitor == "loss" else 0.95, "ece": 0.9})
    assert loop.monitor_score(better, monitor, 1) > loop.monitor_score(metrics, monitor, 1)
    lower_loss = dataclasses.replace(metrics, loss=0.4)
    assert loop.monitor_score(lower_loss, monitor, 1) > loop.monitor_score(metrics, monitor, 1)


def test_the_last_evaluation_is_selected_with_monitor_last():
    worse = some_metrics(loss=9.0, accuracy=0.0)
    assert loop.monitor_score(worse, "last", 2) > loop.monitor_score(some_metrics(), "last", 1)


def test_a_metric_that_cannot_be_computed_is_an_error():
    with pytest.raises(ValueError, match=r"monitor=roc_auc.*one class"):
        loop.monitor_score(some_metrics(roc_auc=None, notes=("all examples are of one class",)), "roc_auc", 1)
    assert loop.monitor_score(some_metrics(roc_auc=0.0), "roc_auc", 1) == [0.0, -0.5]


@pytest.mark.parametrize(("batch_size", "epochs"), [(20, 30), (0, 1)])
def test_divergence_ends_the_run_unsaved(tmp_path, monkeypatch, batch_size, epochs):
    """Also if the very last update ruins the parameters, which no training loss shows any more."""
    monkeypatch.setattr(training_recipe, "MAX_NUMBER", 1e39)
    recipe = Recipe(epochs=epochs, batch_size=batch_size, optimizer="sgd", schedule="constant", learning_rate=1e38)
    with pytest.raises(loop.DivergenceError, match=r"at step \d+ with learning rate 1e\+38.*--learning-rate") as error:
        train("mlp", dataset(), recipe, workdir=tmp_path / "run", **MODEL)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "best").exists() and not list((tmp_path / "run").glob("state/*"))


@pytest.mark.parametrize("name", ["loss", "objective", "update"])
def test_a_metric_that_is_not_finite_is_named_with_its_step(tmp_path, name):
    recipe = dataclasses.replace(RECIPE, schedule="linear")
    plan = make_plan("mlp", dataset(), recipe, fields=MODEL["fields"], workdir=tmp_path)
    trainer = loop.Trainer(plan, Display(68, 20, 9, quiet=True), None, None, {}, Progress())
    metrics = {"loss": 0.5, "objective": 0.5, "update": 0.1, "top1": 3, "examples": 20}
    trainer.process_metrics(1, metrics)
    assert trainer.progress.sums == {"loss": 10.0, "top1": 3, "examples": 20}
    rate = plan.learning_rate(33)
    with pytest.raises(loop.DivergenceError, match=rf"the {name} is nan at step 34 with learning rate {rate:.3g};"):
        trainer.process_metrics(34, {**metrics, name: float("nan")})


def test_another_configuration_in_the_same_folder_is_refused(uninterrupted):
    folder = uninterrupted[0].workdir
    other = dataclasses.replace(RECIPE, seed=1, learning_rate=0.02)
    with pytest.raises(ValueError, match=r"recipe\.learning_rate is 0\.01, not 0\.02; recipe\.seed is 0, not 1"):
        train("mlp", dataset(), other, workdir=folder, **MODEL)
    with pytest.raises(ValueError, match=r"recipe\.epochs is 9, not 12.*--init .*best"):
        train("mlp", dataset(), dataclasses.replace(RECIPE, epochs=12), workdir=folder, **MODEL)


def test_other_data_of_the_same_name_is_another_run(uninterrupted):
    other = from_arrays(arrays(seed=5), validation=misleading(), test=arrays(60, seed=2), name="made")
    with pytest.raises(ValueError, match="the images or labels of the data differ"):
        train("mlp", other, RECIPE, workdir=uninterrupted[0].workdir, **MODEL)
    first, second = (make_plan("mlp", data, RECIPE, fields=MODEL["fields"]).config for data in (dataset(), other))
    assert first.default_name() != second.default_name()


def test_one_process_at_a_time_in_a_folder(uninterrupted):
    folder = uninterrupted[0].workdir
    with run.lock_folder(folder), pytest.raises(ValueError, match=str(folder)):
        train("mlp", dataset(), RECIPE, workdir=folder, **MODEL)


def test_a_limit_takes_evenly_spaced_records():
    whole = dataset()
    few = limited(whole, 10)
    assert {name: len(split) for name, split in few.splits.items()} == {"train": 10, "validation": 10, "test": 10}
    images = whole.splits["train"].read(np.arange(len(whole.splits["train"])))
    assert np.array_equal(few.splits["train"].read(np.array([0, 9])), images[[0, -1]])
    assert limited(whole, 10**6).splits["test"] is whole.splits["test"]


@pytest.mark.slow
def test_a_full_batch_in_micro_batches_trains_like_the_full_batch(tmp_path):
    """150 images in micro-batches of 40, the last of 30: the same curve and variables."""
    recipe = Recipe(epochs=3, batch_size=0, optimizer="momentum", learning_rate=0.05, l2=1e-3)
    fields = {"widths": (16,), "image_size": 8}
    whole, split = (
        train("mlp", dataset(), dataclasses.replace(recipe, micro_batch=size), fields=fields, quiet=True,
              workdir=tmp_path / f"{size}")
        for size in (0, 40)
    )  # fmt: skip
    assert [row["step"] for row in split.history] == [1, 2, 3]
    for row, expected in zip(split.history, whole.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for leaf, expected in zip(flatten(split.variables).values(), flatten(whole.variables).values(), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-5)
