"""The quick form of the fault tests: a few of them, in one program. `-m faults` is the long form.

A program of its own, because a process that has used JAX must not fork.
"""

import os
import subprocess
import sys

import pytest

from faults import damage, kills, modes, programs


def run(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(programs.ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", "--folder", str(folder), *words],
        cwd=programs.ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_few_faults(tmp_path):
    """Kinds of damage and a signal during a save. test_loop.py kills a training."""
    done = run(tmp_path, "damage", "endings", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 0" in done.stdout and "signals: 0 faults" in done.stdout
    assert "15 kinds of damage" in done.stdout and "6 kinds of damage" in done.stdout


@pytest.mark.faults
@pytest.mark.parametrize("mode", modes.MODES)
def test_kill_storm(tmp_path, mode):
    done = run(tmp_path, "kills", "--mode", mode)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("part", ["damage", "endings"])
def test_other_faults(tmp_path, part):
    done = run(tmp_path, part)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fault_is_found(tmp_path):
    """The comparisons can fail: a changed file that nothing checks is reported."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(bytes(range(200)))
    want = (folder / "a").read_bytes()

    def check(name):
        return "harmless" if (folder / name).read_bytes() == want else "silently different"

    results, faults = damage.damage_each(folder, 20, check)
    assert results["silently different"] == len(faults) >= 15 and (folder / "a").read_bytes() == want
    assert damage.one_line(ValueError("folder/a: bad"), folder) == "noticed"
    assert damage.one_line(ValueError("folder/a:\nbad"), folder).startswith("bad error")
    assert damage.one_line(KeyError("folder"), folder).startswith("bad error")
    assert damage.one_line(ValueError("bad"), folder).startswith("unnamed")
    (folder / "results.json").write_text("{")
    (folder / ".x.tmp").touch()
    assert kills.half_written(folder) and programs.leftovers(folder) == [".x.tmp"]
