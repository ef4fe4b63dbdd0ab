"""Race to an accuracy on CIFAR-10 in a few minutes: the recipe `airbench` against airbench94.py in PyTorch.

    python -m benchmarks.speedrun --data CIFAR --minutes 10 --airbench legacy/airbench94.py --peer ENV/bin/python
    python -m benchmarks.speedrun --data CIFAR --minutes 40 --seed 1      # this project alone

CIFAR is a folder of class folders under train/ and test/; airbench94.py is from a copy of the repository
KellerJordan/cifar10-airbench. It runs as it is, on the processor in float32 (speedrun_peer.py). This project trains
with `zoo train`, with the options in OPTIONS. Both train for as many epochs as fit into the time on this machine: here
by the duration of two short trainings beforehand, there by that of a few steps. This project's time is that of the
whole command: imports, compilation, decoding, validation and the checkpoint. It holds 5,000 images out for validation,
on which the recipe was chosen; airbench trains on all 50,000, as it comes. Every race is added to
benchmarks/results/speedrun.json, and docs/speed.md is written anew.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware
from benchmarks.race import write_page
from zoo.checkpoint.manifest import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "speedrun.json"

#: minutes -> options of `zoo train`.
OPTIONS = {10: "--model airbench", 40: "--model airbench --set width=96"}
#: Epochs of the two trial runs that predict the duration.
TRIALS = (0.2, 1.2)
#: Fraction of the time to fill: the trial runs do not validate during training.
FILLED = 0.95


def train(data: str, options: str, workdir: str) -> float:
    """Train with `zoo train`, without compilations of earlier runs; return the seconds that the command took."""
    words = f"{options} --data {data} --no-report --workdir {workdir}".split()
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "zoo.cli", "train", *words], cwd=ROOT, env=environment, check=True)
        return time.perf_counter() - begun


def fitting_epochs(data: str, minutes: int) -> float:
    """Return the epochs that fit into the time on this machine, by the duration of two short trainings."""
    with tempfile.TemporaryDirectory() as folder:
        short, longer = (train(data, f"{OPTIONS[minutes]} --epochs {n}", f"{folder}/{n}") for n in TRIALS)
    an_epoch = (longer - short) / (TRIALS[1] - TRIALS[0])
    epochs = round((FILLED * 60 * minutes - short) / an_epoch + TRIALS[0], 1)
    if epochs < 1:
        raise SystemExit(f"only {epochs} epochs fit into {minutes} minutes on this machine")
    return epochs


def race_zoo(data: str, minutes: int, seed: int) -> dict[str, Any]:
    """Train with `zoo train` and evaluate with views like those of airbench."""
    options = f"{OPTIONS[minutes]} --epochs {fitting_epochs(data, minutes):g} --seed {seed}"
    with tempfile.TemporaryDirectory() as temporary:
        workdir = f"{temporary}/run"
        seconds = train(data, options, workdir)
        results = json.loads(Path(workdir, "results.json").read_text())
        answer = subprocess.run(
            [sys.executable, "-m", "zoo.cli", "eval", f"{workdir}/best", "--data", data, "--tta", "shift", "--json"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
    return {
        "command": f"zoo train {options} --data cifar10",
        "seconds": round(seconds), "validation": results["validation"]["accuracy"],
        "test": results["test"]["accuracy"], "test, six views": json.loads(answer.stdout)["accuracy"],
    }  # fmt: skip


def race_airbench(data: str, minutes: int, seed: int, script: str, python: str) -> dict[str, Any]:
    """Run airbench's script for the same time."""
    asked = json.dumps({"data": data, "seconds": 60 * minutes, "seed": seed, "script": script})
    answer = subprocess.run(
        [python, str(ROOT / "benchmarks" / "speedrun_peer.py"), asked], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(answer.stdout.strip().splitlines()[-1])


def describe(rows: dict[str, Any]) -> list[str]:
    """Return the section of docs/speed.md."""
    lines = [
        "## Accuracy after so many minutes, CIFAR-10",
        "",
        "`zoo train --model airbench` against airbench94.py in PyTorch (its network, with its author's settings, in",
        "float32), one after the other on one machine, each for as many epochs as fit. The time is that of",
        "the whole command here, of the training steps alone there; 45,000 images here, 50,000 there. Test split: six",
        "views (one in brackets); a row is one seed, its 95 % interval 0.6 points. CIFAR-10 as JPEG files of",
        "quality 75. Made by `python -m benchmarks.speedrun`.",
        "",
        "| minutes | command | seconds | test accuracy | airbench: epochs | seconds with evaluation | test accuracy | "
        "hardware |",
        "|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for minutes, row in rows.items():
        ours, theirs = row["zoo"], row.get("airbench", {})
        accuracy = f"{100 * ours['test, six views']:.2f} % ({100 * ours['test']:.2f})"
        other = f"{100 * theirs['test, six views']:.2f} %" if theirs else ""
        lines.append(
            f"| {minutes.split()[0]} | `{ours['command']}` | {ours['seconds']} | {accuracy} | "
            f"{theirs.get('epochs', '')} | {theirs.get('seconds with evaluation', '')} | {other} | {row['hardware']} |"
        )
    notes = [f"{minutes}: {row['note']}." for minutes, row in rows.items() if "note" in row]
    return [*lines, "", *notes] if notes else lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", metavar="CIFAR", required=True, help="folder with train/ and test/")
    add("--minutes", type=int, choices=list(OPTIONS), action="append", help="time of a race (default: both)")
    add("--seed", type=int, default=0, help="seed of both (default: 0)")
    add("--airbench", metavar="FILE", help="airbench94.py; without: only this project runs")
    add("--peer", metavar="PYTHON", default=sys.executable, help="a Python that has torch")
    options = parser.parse_args()
    for minutes in options.minutes or OPTIONS:
        row: dict[str, Any] = {"hardware": hardware(), "seed": options.seed}
        row["zoo"] = race_zoo(options.data, minutes, options.seed)
        if options.airbench:
            row["airbench"] = race_airbench(options.data, minutes, options.seed, options.airbench, options.peer)
        print(json.dumps(row, indent=1), flush=True)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        write_json(RESULTS, dict(sorted({**rows, f"{minutes} minutes, seed {options.seed}": row}.items())))
        write_page()


if __name__ == "__main__":
    main()
