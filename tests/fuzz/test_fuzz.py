"""The quick form: every reader with a few damaged files, chosen by hypothesis, and the contract's own checks."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import contract, mutations, options
from fuzz.readers import NOT_ALL_ACCEPTED, READERS

#: Inputs of readers that take long; the others get EXAMPLES.
SLOW = {
    "card, whole network": 3,
    "exported card": 3,
    "arrays of Orbax": 4,
    "state of Orbax": 4,
    "card": 6,
    "manifest": 6,
}
EXAMPLES = 12
#: Readers of archives and HDF5 files, which record when they were written.
WITH_TIMES = ("pth (zip)", "h5", "weights.h5", "keras", "npz", "npy in npz", "features", "idx.gz")
#: Readers that start JAX and Orbax for every input; -m slow and the program check them.
LONG_FORM = ("card, whole network", "arrays of Orbax", "state of Orbax")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The only folder that a reader may write."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG_FORM else name for name in READERS]
)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, tmp_path, cache):
    reader = READERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on formats that it will drop
        for number, files in enumerate(reader.seeds()):
            folder = tmp_path / f"seed{number}"
            contract.write_files(folder, files)
            if name not in NOT_ALL_ACCEPTED:
                reader.read(folder)  # also imports what is imported late
    count = 0

    @settings(
        max_examples=SLOW.get(name, EXAMPLES), derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def run(rng):
        nonlocal count
        count += 1
        folder = tmp_path / f"input{count}"
        contract.write_files(folder, reader.example(rng))
        outcome = contract.check(reader.read, folder, reader.max_bytes, cache)
        assert not outcome.faults, f"{folder}: {outcome}"

    run()


def test_an_input_depends_on_its_number_alone():
    warnings.simplefilter("ignore")  # Pillow's, on formats that it will drop
    for name, reader in READERS.items():
        first, again, *others = (reader.example(Random(f"0/{name}/{number}")) for number in (1, 1, *range(2, 9)))
        if name not in WITH_TIMES:
            assert first == again
        assert any(first != other for other in others)


# --- the contract notices what it forbids -----------------------------------------------------------------------------


def _write(folder):
    (folder.parent / "canary").write_text("x")


def _multi_line(folder):
    raise ValueError(f"{folder}: two\nlines")


def _nameless(folder):
    raise ValueError("is damaged")


def _terminal(folder):
    raise ValueError(f"{folder}: \x1b[2J")


def _long(folder):
    raise ValueError(f"{folder}: {'x' * 5000}")


FORBIDDEN = {
    "writes": (_write, "open"),
    "runs a program": (lambda folder: subprocess.run([sys.executable, "-c", ""], check=True), "subprocess.Popen"),
    "runs a command": (lambda folder: os.system("true"), "os.system"),
    "runs code": (lambda folder: exec("1 + 1"), "exec"),
    "imports": (lambda folder: __import__("antigravity_of_a_stranger"), "imports antigravity_of_a_stranger"),
    "removes": (lambda folder: (folder / "weights.bin").unlink(), "os.remove"),
    "wrong exception": (lambda folder: {}["x"], "KeyError"),
    "no memory": (lambda folder: np.ones(2**25).sum(), "needs more than"),
    "two lines": (_multi_line, "not one printable line"),
    "terminal": (_terminal, "not one printable line"),
    "nameless": (_nameless, "does not name the file"),
    "long": (_long, "longer than"),
    "warning": (lambda folder: warnings.warn("odd", stacklevel=1), "warns: UserWarning"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_contract_notices(what, tmp_path):
    read, fault = FORBIDDEN[what]
    if what == "no memory" and not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc")
    folder = tmp_path / "box"
    contract.write_files(folder, {"weights.bin": b"x"})
    outcome = contract.check(read, folder, 2**26, tmp_path / "cache")
    assert any(fault in line for line in outcome.faults), outcome


def test_the_contract_notices_a_reader_without_end(tmp_path):
    contract.write_files(tmp_path / "box", {"weights.bin": b"x"})

    def read(folder):
        try:
            while True:
                time.sleep(0.001)
        except Exception as error:  # the alarm is no Exception, so a reader cannot take it for its own
            raise ValueError(f"{folder}: is damaged") from error

    outcome = contract.check(read, tmp_path / "box", 2**30, tmp_path / "cache", seconds=0.05)
    assert outcome.faults == ["takes longer than 0.05 s"]


def test_the_contract_accepts_a_result_and_a_refusal(tmp_path):
    contract.write_files(tmp_path / "box", {"weights.bin": b"x"})

    def refuse(folder):
        raise ValueError(f"{folder / 'weights.bin'}: is damaged")

    assert contract.check(
        lambda folder: (folder / "weights.bin").read_bytes(), tmp_path / "box", 2**26, tmp_path
    ).accepted
    refused = contract.check(refuse, tmp_path / "box", 2**26, tmp_path)
    assert not refused.accepted and not refused.faults and refused.message.endswith("is damaged")


def test_bytes_are_damaged():
    rng, data = Random(0), bytes(range(200))
    changed = [mutations.damage_bytes(rng, data) for _ in range(200)]
    assert sum(part != data for part in changed) > 180 and {len(part) for part in changed} > {200}


# --- absurd values of options -----------------------------------------------------------------------------------------


def test_every_command_has_a_line_for_absurd_values():
    from zoo import cli

    assert set(options.BASES) == set(cli.COMMANDS)


@pytest.mark.slow
def test_absurd_values_of_options_end_in_one_line():
    words = [sys.executable, "-m", "tests.fuzz.options", "--sample", "8", "--seed", "5"]
    done = subprocess.run(words, cwd=options.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "8 command lines" in done.stdout, done.stdout + done.stderr
