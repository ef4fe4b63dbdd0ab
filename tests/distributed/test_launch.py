"""`zoo launch`: each process's share of the machine, exit codes, and mistakes on the command line."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import run_command

from zoo.distributed import environments, launch


def child(code):
    """Start a short Python program."""
    return subprocess.Popen([sys.executable, "-S", "-c", code])


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(launch, "processors", lambda: 8)
    monkeypatch.setattr(environments, "_gpu_files", lambda: [f"/dev/nvidia{i}" for i in range(4)])


def test_threads_and_gpus_are_divided_evenly(four_gpus):
    shares = [launch.environment_share({"HOME": "/home/me"}, number, 2) for number in (0, 1)]
    assert [share["PJRT_NPROC"] for share in shares] == ["4", "4"]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0,1", "2,3"]
    assert all(share["HOME"] == "/home/me" for share in shares)
    assert launch.environment_share({"CUDA_VISIBLE_DEVICES": "5,7"}, 1, 2)["CUDA_VISIBLE_DEVICES"] == "7"
    assert launch.environment_share({"JAX_PLATFORMS": "gpu,cpu"}, 3, 4)["CUDA_VISIBLE_DEVICES"] == "3"
    with pytest.raises(ValueError, match=r"4 GPUs .* 3 processes.*--processes"):
        launch.environment_share({}, 0, 3)


def test_every_process_has_at_least_one_thread(four_gpus):
    assert launch.environment_share({"JAX_PLATFORMS": "cpu"}, 0, 9)["PJRT_NPROC"] == "1"


def test_no_gpus_are_assigned_on_cpu_or_if_none_are_visible(four_gpus):
    assert "CUDA_VISIBLE_DEVICES" not in launch.environment_share({"JAX_PLATFORMS": "cpu"}, 0, 2)
    assert launch.environment_share({"CUDA_VISIBLE_DEVICES": "-1"}, 0, 3)["CUDA_VISIBLE_DEVICES"] == "-1"
    assert launch.environment_share({"JAX_PLATFORMS": ""}, 1, 2)["CUDA_VISIBLE_DEVICES"] == "2,3"  # set to nothing
    assert launch.environment_share({"CUDA_VISIBLE_DEVICES": ""}, 0, 3)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_highest_exit_code_is_returned():
    assert launch.wait_for_all([child("pass"), child("pass")]) == 0
    failed = [child("raise SystemExit(4)"), child("raise SystemExit(3)")]
    assert [process.wait() for process in failed] == [4, 3]
    assert launch.wait_for_all([*failed, child("import time; time.sleep(0.2)")]) == 4


@pytest.mark.parametrize("failing", [0, 1])
def test_processes_that_outlive_a_failed_one_are_terminated(monkeypatch, failing):
    """The exit code is that of the failed process: 128 + 9 if it was killed."""
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.2)
    waiting = child("import time; time.sleep(60)")
    children = [waiting]
    children.insert(failing, child("import os; os.kill(os.getpid(), 9)"))
    assert launch.wait_for_all(children) == 137
    assert waiting.returncode == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    stubborn = child(code)
    assert launch.wait_for_all([stubborn, child("raise SystemExit(2)")]) == 2
    assert stubborn.returncode == -signal.SIGKILL


def test_a_terminated_process_has_time_to_save(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    code = "import signal, sys, time\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.4), sys.exit(0))); time.sleep(60)"
    saving = child(code)
    assert launch.wait_for_all([saving, child("raise SystemExit(2)")]) == 2
    assert saving.returncode == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--processes", "2", "--", "eval", "x"), "train"),
        (("--processes", "2"), "train"),
        (("--processes", "0", "--", "train"), "--processes 0"),
    ],
)
def test_mistakes_are_one_line(words, named, capsys):
    code, _, err = run_command(capsys, "launch", *words)
    assert code == 2 and named in err and err.count("\n") == 1


def test_the_command_and_the_number_of_processes_reach_the_launcher(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(launch, "launch", lambda command, processes: calls.append((command, processes)) or 3)
    code, _, _ = run_command(capsys, "launch", "--processes", "2", "--", "train", "--model", "mlp", "--epochs", "3")
    assert code == 3 and calls == [(["train", "--model", "mlp", "--epochs", "3"], 2)]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_lost_terminal_ends_no_training_under_nohup(before):
    original = signal.signal(signal.SIGHUP, before)
    try:
        with launch._forward_signals([]):
            assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) == (before == signal.SIG_IGN)
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, original)


def test_each_process_knows_its_number_and_the_coordinator(monkeypatch, capfd):
    """With a stub in place of Python: process 0 writes to the terminal, the output of process 1 is numbered."""
    code = 'import os; print("|".join(os.environ[f"ZOO_{name}"] for name in '
    code += '("COORDINATOR", "PROCESSES", "PROCESS", "LOCAL_PROCESSES", "LAUNCHED")), '
    code += "os.getsid(0) == os.getpid(), flush=True)"
    original = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda words, **options: original([sys.executable, "-S", "-c", code], **options)
    )
    monkeypatch.setattr(launch, "find_free_port", lambda: 4321)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    handler = signal.getsignal(signal.SIGTERM)
    assert launch.launch(["train"], 2) == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "127.0.0.1:4321|2|0|2|launch --processes 2 -- True",
        "[1] 127.0.0.1:4321|2|1|2|launch --processes 2 -- True",
    ]
    assert "ZOO_PROCESS" not in os.environ
