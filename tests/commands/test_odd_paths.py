"""Pipes, sockets, devices and link loops in place of a file, for every command and option: one line, and no waiting."""

import os
import signal

import pytest
from helpers import run_command

COMMANDS = [
    "eval CKPT --data ODD", "eval ODD --data digits", "predict CKPT ODD", "predict ODD x.png", "train --data ODD",
    "train --init ODD --data digits", "train --config ODD", "import ODD -o out", "import FILE --classes ODD -o out",
    "info ODD", "verify ODD", "export ODD --to safetensors -o x.safetensors", "probe ODD --data digits", "data ODD",
    "features ODD --data digits -o x.npz", "features CKPT --data ODD -o x.npz", "probe CKPT --data ODD",
]  # fmt: skip
#: Commands that take a suffix for a kind of file.
SUFFIXES = {".npz": ["probe ODD", "data ODD"], ".csv": ["data ODD"], ".tar": ["data ODD"],
            ".safetensors": ["import ODD -o out", "eval ODD --data digits"]}  # fmt: skip
CASES = [(command, "") for command in COMMANDS] + [(c, suffix) for suffix, cs in SUFFIXES.items() for c in cs]


@pytest.fixture
def no_waiting():
    """End a test that waits for a pipe."""

    def alarm(signum, frame):
        raise AssertionError("waits for a pipe or reads a device")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file of a small network, as another project would write it."""
    import numpy as np
    from safetensors.numpy import save_file

    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({"a": np.ones(3, np.float32)}, file)
    return file


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
@pytest.mark.parametrize(("command", "suffix"), CASES)
def test_an_odd_path_gets_one_line(command, suffix, kind, weights, tmp_path, monkeypatch, capsys, no_waiting):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / f"odd{suffix}"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else odd.name)
    words = {"ODD": odd, "CKPT": "lenet5-mnist", "FILE": weights}
    code, _, err = run_command(capsys, *(words.get(word, word) for word in command.split()))
    assert code == 2 and err.count("\n") == 1 and odd.name in err and "Traceback" not in err
    assert set(os.listdir(tmp_path)) <= {odd.name, "runs"}
