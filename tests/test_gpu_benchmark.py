"""`python -m benchmarks.gpu` in small, on a CPU: every piece ends and writes its results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_piece_writes_its_results(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in gpu.PIECES}
    assert all(each["complete"] for each in results.values()), done.stdout + done.stderr
    assert all(results[name]["rows"] for name in gpu.PIECES if name != "devices")
    assert all(row["ok"] for row in results["correctness"]["rows"])
    assert all(row["images_per_second"] > 0 for row in results["small"]["rows"])
    assert all(row["zoo"] > 0 for row in results["speed"]["rows"]) and results["devices"]["devices"]
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert "done" not in again.stdout.partition("##")[0], "finished pieces are left out"


def test_wheels_are_what_another_machine_lacks():
    everything = gpu.missing_packages(set())
    assert {"jax", "flax", "numpy", "rich"} <= {name.partition("==")[0] for name in everything}
    here = {name.partition("==")[0] for name in everything} - {"platformdirs"}
    assert [name.partition("==")[0] for name in gpu.missing_packages({name.upper() for name in here})] == [
        "platformdirs"
    ]
