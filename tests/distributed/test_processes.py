"""Several processes on one machine: detected, started, stopped, killed; their results are those of one process."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from zoo.commands import UNFINISHED_EXIT
from zoo.distributed import launch, processes
from zoo.training import run
from zoo.trees import flatten

TRAIN = shlex.split(
    "train --model mlp --data digits --epochs 6 --set widths=(32,) --augment flip --save-steps 4 --quiet"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1",), "belong together"),
        (("", 2, 0), "belong together"),
        (("host:1", 2), "belong together"),
        (("host", 2, 0), "HOST:PORT"),
        (("host:1", 2, 2), "--process 2"),
        (("host:1", 2, -1), "--process -1"),
        ((":1", 2, 0), "HOST:PORT"),
        (("host:", 2, 0), "HOST:PORT"),
    ],
)
def test_incomplete_or_wrong_addresses_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.initialize(*arguments)


def test_a_single_process_needs_no_collectives():
    processes.initialize("none")
    assert processes.is_primary() and not processes.is_multiprocess()
    assert processes.all_reduce_max(15, True) == processes.PeriodicMax()(3, 15, True) == (15, True)
    assert processes.run_on_primary(lambda: "result") == "result"
    tree = {"array": jax.numpy.arange(3), "number": 5}
    gathered = processes.gather_to_host(tree)
    assert isinstance(gathered["array"], np.ndarray) and gathered["array"].tolist() == [0, 1, 2]


@pytest.fixture
def two_processes(monkeypatch):
    """Pretend to be process `rank` of two; the collectives are replaced one by one."""

    def pretend(rank, **collectives):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: rank)
        for name, function in collectives.items():
            monkeypatch.setattr(multihost_utils, name, function)

    return pretend


def test_flags_are_compared(two_processes):
    two_processes(0, process_allgather=lambda flags: np.stack([flags, [5, 0, -7]]))
    assert processes.all_reduce_max(3, True, -9) == (5, 1, -7)


@pytest.mark.parametrize(
    ("own_seconds", "other_seconds", "compared"),
    [
        (0.01, 0.001, [1, 2, 10, 18]),  # every eight steps: a comparison waits for the device
        (0.001, 0.3, [1, 2, 5, 8, 11, 14, 17, 20]),  # the slower process decides
        (1.5, 0.001, [*range(1, 21)]),
    ],
)
def test_slow_steps_are_compared_more_often(two_processes, monkeypatch, own_seconds, other_seconds, compared):
    now, steps = [0.0], []
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])

    def process_allgather(flags):
        steps.append(step)
        return np.stack([flags, [0, round(1000 * other_seconds)]])

    two_processes(0, process_allgather=process_allgather)
    periodic = processes.PeriodicMax()
    for step in range(1, 21):
        now[0] += own_seconds
        assert periodic(step, 9) == ((9,) if steps[-1:] == [step] else (0,))
    assert steps == compared


def test_the_primary_process_computes_for_all(two_processes):
    sent = []
    two_processes(0, broadcast_one_to_all=lambda array: sent.append(array) or array)
    assert processes.run_on_primary(lambda: {"steps": [1, 2]}) == {"steps": [1, 2]}
    with pytest.raises(OSError, match="disk full"):
        processes.run_on_primary(fail)
    assert [int(sent[0]), int(sent[2])] == [len(sent[1]), len(sent[3])]
    for messages, expected in ((sent[:2], {"steps": [1, 2]}), (sent[2:], None)):
        received = iter(messages)
        two_processes(1, broadcast_one_to_all=lambda array, received=received: next(received))
        if expected:
            assert processes.run_on_primary(fail) == expected  # not called in the other process
        else:
            with pytest.raises(ValueError, match="the disk full"):
                processes.run_on_primary(fail)
    assert not processes.is_primary() and processes.is_multiprocess()


class KeyValueStore:
    """Stands in for JAX's coordinator."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def blocking_key_value_get(self, key, timeout):
        deadline = time.monotonic() + 10
        while key not in self.values and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.values[key]

    def key_value_delete(self, key):
        del self.values[key]


class OwnCounter:
    """Counts for every thread by itself."""

    def __init__(self, own):
        self.own = own

    def __next__(self):
        return next(self.own.counter)


def test_values_are_exchanged_without_the_devices(monkeypatch):
    """In threads which pretend to be processes; what all have read is deleted."""
    own, store = threading.local(), KeyValueStore()
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: own.index)
    monkeypatch.setattr(processes.watch, "coordinator", lambda: store)
    monkeypatch.setattr(processes, "_exchanges", OwnCounter(own))
    received = {}

    def work(index):
        own.index, own.counter = index, itertools.count()
        try:
            received[index] = [processes.exchange(f"step {turn}", [turn, index]) for turn in range(3)]
            processes.exchange("step 4" if index else "step 5", None)
        except RuntimeError as error:
            received[index].append(str(error))

    group = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in group:
        thread.start()
    for thread in group:
        thread.join()
    expected = [[[turn, index] for index in range(3)] for turn in range(3)]
    assert received[0] == [*expected, "process 1 is at step 4, this one at step 5"]
    assert received[1] == received[2] == [*expected, "process 0 is at step 5, this one at step 4"]
    assert all(key.rpartition("/")[2] in "23" for key in store.values)


def fail():
    raise OSError("the disk full")


def test_processes_without_a_shared_folder_are_told_before_they_train(two_processes, tmp_path, monkeypatch):
    """By all of them: also the one that sees the file raises."""
    monkeypatch.setattr(processes, "VISIBLE_SECONDS", 0.0)
    seen, unseen = tmp_path / "config.json", tmp_path / "elsewhere" / "config.json"
    seen.touch()
    for index, own, other in ((0, seen, 1), (1, unseen, 0)):
        two_processes(index, process_allgather=lambda flags, other=other: np.stack([flags, [other]]))
        with pytest.raises(ValueError, match=r"process 1 does not see .*config\.json.*share this"):
            processes.require_visible(own, "share this")
    two_processes(1, process_allgather=lambda flags: np.stack([flags, [0]]))
    processes.require_visible(seen, "share this")


@pytest.mark.slow
def test_a_failed_process_ends_the_others(tmp_path):
    """Exit code and error line are those of the failed process, in all. JAX alone would wait five minutes at exit."""
    code = (
        "import os; from zoo import cli; from zoo.training import loop\n"
        "def fail(*args): raise OSError('the disk is full')\n"
        "if os.environ['ZOO_PROCESS'] == '1': loop.Trainer.process_metrics = fail\n"
        f"cli.run({[*TRAIN, '--workdir', str(tmp_path / 'run')]!r})"
    )
    port, began = launch.find_free_port(), time.monotonic()
    group = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment(port, number, 4), stderr=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    assert launch.wait_for_all(group) == 2
    said = [process.communicate()[1] for process in group]
    assert [process.returncode for process in group] == [2, 2, 2, 2], said
    assert all("the disk is full" in text for text in said) and time.monotonic() - began < 120
    assert all("process 1 " in said[number] for number in (0, 2, 3))


def environment(port, number, count=2):
    own = {"ZOO_COORDINATOR": f"127.0.0.1:{port}", "ZOO_PROCESSES": str(count), "ZOO_PROCESS": str(number)}
    return {**os.environ, **own, "ZOO_MESH": "", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "then"), [("killed", 1), ("stopped", 1), ("killed", 2)])
def test_two_interrupted_processes_are_resumed(tmp_path, how, then):
    """By one process or two, with the curve of an uninterrupted one. A signal to one stops both at the same step."""
    from zoo import cli

    folder, port = tmp_path / "run", launch.find_free_port()
    command = [sys.executable, "-m", "zoo.cli", *TRAIN, "--workdir", str(folder)]
    both = [
        subprocess.Popen(command, env=environment(port, number), stderr=subprocess.PIPE, text=True) for number in (0, 1)
    ]
    deadline = time.monotonic() + 300
    while not list(folder.glob("state/step_*")) and time.monotonic() < deadline:
        assert both[0].poll() is None, both[0].stderr.read()
        time.sleep(0.05)
    if how == "killed":
        for process in both:
            process.kill()
    else:
        both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in both]
    code = -signal.SIGKILL if how == "killed" else UNFINISHED_EXIT
    assert [process.returncode for process in both] == [code, code], said
    assert not (folder / "results.json").exists()
    if then == 1:
        assert cli.main([*TRAIN, "--workdir", str(folder)]) == 0
    else:
        port = launch.find_free_port()
        again = [subprocess.Popen(command, env=environment(port, number)) for number in (0, 1)]
        assert [process.wait(timeout=120) for process in again] == [0, 0]
    assert cli.main([*TRAIN, "--workdir", str(tmp_path / "alone")]) == 0
    resumed, alone = rows(folder), rows(tmp_path / "alone")
    assert len(resumed) == len(alone) == 6
    for one, other in zip(resumed, alone, strict=True):
        assert {**one, "best": 0} == pytest.approx({**other, "best": 0}, rel=5e-3, abs=1e-4)


RESIDUAL = shlex.split(
    "train --model resnet20 --set blocks=(1,) --set width=16 --data digits --limit 256 --epochs 2 "
    "--set eval_every_epochs=1 --set warmup_epochs=0 --set learning_rate=0.02"
)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2", "fsdp=2"])
def test_launched_processes_share_batch_statistics_and_shard_parameters(tmp_path, mesh, capfd, monkeypatch):
    """Through `zoo launch`, with batch norm: curve and checkpoint are those of one process."""
    from zoo import checkpoint, cli

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    here, there = [*RESIDUAL, "--workdir", str(tmp_path / "alone")], ["--workdir", str(tmp_path / "launched")]
    assert cli.main(["launch", "--processes", "2", "--", *RESIDUAL, "--mesh", mesh, *there]) == 0
    said = [line for line in capfd.readouterr().out.splitlines() if "[Gloo]" not in line]  # which no flag silences
    assert any(mesh in line for line in said) and not any(line.startswith("[1] ") for line in said)
    assert cli.main([*here, "--mesh", "data=1"]) == 0
    found, alone = rows(tmp_path / "launched"), rows(tmp_path / "alone")
    assert len(found) == len(alone) == 2
    for one, other in zip(found, alone, strict=True):
        assert {**one, "best": 0} == pytest.approx({**other, "best": 0}, rel=5e-3, abs=1e-3)
    first, second = (
        flatten(checkpoint.load_checkpoint(tmp_path / name / run.BEST)[1]) for name in ("alone", "launched")
    )
    assert first.keys() == second.keys() and any(path.startswith("batch_stats/") for path in first)
    for path, leaf in first.items():
        assert second[path] == pytest.approx(leaf, rel=2e-2, abs=2e-3), path


@pytest.mark.slow
@pytest.mark.parametrize(("count", "mesh"), [(4, "data=4"), (8, "data=8"), (8, "fsdp=8")])
def test_the_curve_of_many_processes_is_that_of_one(tmp_path, count, mesh, monkeypatch):
    """Loss and accuracy of every epoch, within 0.5 % and 0.001."""
    from zoo import cli

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    launched = [*TRAIN, "--no-report", "--mesh", mesh, "--workdir", str(tmp_path / "launched")]
    assert cli.main(["launch", "-n", str(count), "--", *launched]) == 0
    assert cli.main([*TRAIN, "--no-report", "--mesh", "data=1", "--workdir", str(tmp_path / "alone")]) == 0
    found, alone = rows(tmp_path / "launched"), rows(tmp_path / "alone")
    assert len(found) == len(alone) == 6
    for one, other in zip(found, alone, strict=True):
        print({name: abs(one[name] - other[name]) for name in ("train_loss", "validation_loss")})
        assert {**one, "best": 0} == pytest.approx({**other, "best": 0}, rel=5e-3, abs=1e-3)


@pytest.mark.slow
def test_processes_with_different_configurations_do_not_train(tmp_path):
    port = launch.find_free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "zoo.cli", *TRAIN, "--workdir", str(tmp_path / "run"), "--seed", str(number)],
            env=environment(port, number), stderr=subprocess.PIPE, text=True,
        )
        for number in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert "recipe.seed is 1, not 0" in said[1] and not (tmp_path / "run").exists()
