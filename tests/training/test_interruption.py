"""Signals while a run compiles, evaluates, waits and reports: saved or left in time, and resumed with the same bits."""

import dataclasses
import os
import signal
import threading
import time

import pytest
from helpers import make_plan, run_bits, train

from zoo import checkpoint
from zoo.commands import interruption as commands
from zoo.data.sources import from_arrays
from zoo.training import interruption, loop, report, run
from zoo.training.interruption import Caught, InterruptedRunError, catch_signals
from zoo.training.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=20, learning_rate=0.01, ema=0.9, monitor="loss")
MODEL = {"fields": {"widths": (8,), "image_size": 8}, "quiet": True}


def arrays():
    import numpy as np

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    return (rng.integers(0, 120, (400, 8, 8)) + 40 * labels[:, None, None]).astype(np.uint8), labels


class Left(BaseException):
    """Raised in place of ending the process."""


@pytest.fixture
def sent(monkeypatch):
    """Return a function that sends a signal once an attribute of a module is called for the n-th time."""

    def send(owner, name, number, signum=signal.SIGTERM):
        original, left = getattr(owner, name), [number]

        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signum)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    return send


@pytest.mark.parametrize(("evaluation", "batch"), [pytest.param(2, 2, marks=pytest.mark.slow), (4, 1)])
def test_an_evaluation_is_interrupted_saved_and_repeated(tmp_path, monkeypatch, sent, batch, evaluation):
    """The evaluation after the last step too: the run is then resumed without another step."""
    monkeypatch.setattr(loop.Plan, "eval_batch_size", 16)  # several batches per evaluation
    dataset, folder = from_arrays(arrays(), name="made"), tmp_path / "run"
    train("mlp", dataset, RECIPE, workdir=tmp_path / "alone", **MODEL)
    batches = len(dataset.splits["validation"]) // 16 + 1
    with monkeypatch.context() as patch:
        original, left = report.evaluate_split, [(evaluation - 1) * batches + batch]

        def evaluate_split(*arguments, check=lambda done: None, **options):
            def count(done):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                check(done)

            return original(*arguments, check=count, **options)

        patch.setattr(report, "evaluate_split", evaluate_split)
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            train("mlp", dataset, RECIPE, workdir=folder, **MODEL)
    progress = checkpoint.read_progress(checkpoint.latest_save(folder / run.STATE))
    assert progress["evaluation_due"] and len(progress["history"]) == evaluation - 1
    train("mlp", dataset, RECIPE, workdir=folder, **MODEL)
    assert run_bits(folder) == run_bits(tmp_path / "alone")
    assert "evaluation_due" not in checkpoint.read_progress(checkpoint.latest_save(folder / run.STATE))


@pytest.mark.slow
def test_an_evaluation_between_two_phases_is_repeated(tmp_path, monkeypatch, sent):
    """At the step where the optimiser starts anew, it is saved as it was before."""
    recipe = dataclasses.replace(RECIPE, freeze=("body",), unfreeze_at=2.0)
    dataset, folder = from_arrays(arrays(), name="made"), tmp_path / "run"
    train("mlp", dataset, recipe, workdir=tmp_path / "alone", **MODEL)
    plan = make_plan("mlp", dataset, recipe, workdir=folder, fields=MODEL["fields"])
    assert len(plan.segments) == 2 and plan.is_eval_step(plan.segments[0].stop)
    with monkeypatch.context():
        sent(report, "evaluate_split", 2)
        with pytest.raises(InterruptedRunError, match=f"step {plan.segments[0].stop} "):
            train("mlp", dataset, recipe, workdir=folder, **MODEL)
        monkeypatch.undo()
    train("mlp", dataset, recipe, workdir=folder, **MODEL)
    assert run_bits(folder) == run_bits(tmp_path / "alone")


@pytest.fixture
def leaving():
    """Return (caught signals that may end the process, where they did); the process goes on."""
    left = []

    def leave(signum, doing):
        left.append((signum, doing))
        if threading.current_thread() is threading.main_thread():
            raise Left

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it
    try:
        with catch_signals(lambda *about: None, leave) as caught:
            yield caught, left
    finally:
        signal.signal(signal.SIGHUP, before)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("signum", [s for s in interruption.SIGNALS if s != signal.SIGINT])
def test_a_process_ends_at_once_where_nothing_is_unsaved(leaving, signum):
    """Also if it never returns to Python: the signal is read by a thread."""
    caught, left = leaving
    with caught.nothing_unsaved("compiling"):
        os.kill(os.getpid(), signum)
        wait_for(lambda: left)
    assert left[0] == (signum, "compiling")


def test_a_signal_before_such_a_block_ends_the_process_at_its_start(leaving):
    caught, left = leaving
    caught.append(signal.SIGTERM)
    with pytest.raises(Left), caught.nothing_unsaved("compiling"):
        pytest.fail("entered")
    assert left == [(signal.SIGTERM, "compiling")] and caught.doing == ""


def test_a_step_that_does_not_end_is_left_after_a_while_but_no_save(leaving, monkeypatch):
    caught, left = leaving
    caught.allowed = 0.3
    with caught.saving():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.8)
        assert not left and caught == [signal.SIGTERM]
    wait_for(lambda: left)
    assert left[0][0] == signal.SIGTERM and "step" in left[0][1]


def test_a_run_that_was_saved_after_a_signal_ends_once(tmp_path, leaving, sent):
    """Not also as interrupted in the enclosing block, in which nothing is unsaved, if ending takes long."""
    caught, left = leaving
    plan = make_plan(
        "mlp", from_arrays(arrays(), name="made"), RECIPE, workdir=tmp_path / "run", fields=MODEL["fields"]
    )
    sent(report, "evaluate_split", 2)
    with caught.nothing_unsaved("starting"):
        with pytest.raises(InterruptedRunError):
            loop.fit(plan, quiet=True, caught=caught)
        time.sleep(3 * interruption.POLL_SECONDS)
    assert not left


def test_blocks_are_nested():
    caught = Caught(lambda *about: None)
    with caught.nothing_unsaved("starting"):
        with caught.at_work():
            assert caught.doing == "" and caught.allowed == interruption.LEAVE_SECONDS
            with caught.nothing_unsaved("compiling", 3):
                assert (caught.doing, caught.allowed) == ("compiling", 3)
            assert caught.doing == ""
        assert (caught.doing, caught.allowed) == ("starting", 0)


def test_handlers_can_be_installed_again(leaving):
    caught, _ = leaving
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as JAX replaces it
    caught.install()
    with caught.saving():
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]


def test_no_compilation_begins_with_an_unsaved_step(tmp_path, monkeypatch):
    """With several phases: whenever the loop compiles, the newest save is that of its step."""
    recipe = dataclasses.replace(RECIPE, freeze=("body",), unfreeze_at=1.5)
    plan = make_plan(
        "mlp", from_arrays(arrays(), name="made"), recipe, workdir=tmp_path / "run", fields=MODEL["fields"]
    )
    compiled, original = [], loop.compile_segment

    def compile_segment(plan, segment, state, say):
        save = checkpoint.latest_save(plan.folder / run.STATE)
        compiled.append((segment.start, int(save.name[5:]) if save else 0))
        return original(plan, segment, state, say)

    monkeypatch.setattr(loop, "compile_segment", compile_segment)
    monkeypatch.setattr(loop, "precompile_largest", lambda plan, say: None)
    loop.fit(plan, quiet=True, caught=Caught(lambda *about: None))
    assert compiled == [(0, 0), (plan.segments[1].start, plan.segments[1].start)]


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), *((getattr(signal, n), 75) for n in ("SIGUSR1", "SIGHUP"))],
)
def test_schedulers_are_told_to_try_again(signum, code):
    assert commands.exit_code(signum) == code
