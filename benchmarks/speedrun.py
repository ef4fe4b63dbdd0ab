"""Race to an accuracy on CIFAR-10 in a few minutes: the recipe `speed-run` against airbench in PyTorch.

    python -m benchmarks.speedrun --data CIFAR --minutes 10 --airbench legacy/airbench94.py --peer ENV/bin/python
    python -m benchmarks.speedrun --data CIFAR --minutes 40 --seed 1      # this project alone

CIFAR is a folder of class folders under train/ and test/; airbench94.py is from a copy of the repository
KellerJordan/cifar10-airbench. It runs as it is, on the processor in float32 (speedrun_peer.py), for as many epochs as
fit into the time on this machine. This project trains with `zoo train`, with the options in OPTIONS, and its time is
that of the whole command: imports, compilation, decoding, validation and the checkpoint. It holds 5,000 images out for
validation, on which the recipe was chosen; airbench trains on all 50,000, as it comes. Every race is added to
benchmarks/results/speedrun.json, and docs/speed.md is written anew.
"""

import argparse
import json
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

#: minutes -> options of `zoo train` that end within them on two cores.
OPTIONS = {
    10: "--model resnet9 --set width=16 --recipe speed-run",
    40: "--model resnet9 --set width=32 --recipe speed-run --epochs 24",
}


def race_zoo(data: str, minutes: int, seed: int) -> dict[str, Any]:
    """Train with `zoo train` and evaluate with the views of airbench's first level (both mirror images)."""
    with tempfile.TemporaryDirectory() as temporary:
        workdir = f"{temporary}/run"
        words = f"{OPTIONS[minutes]} --data {data} --seed {seed} --no-report --workdir {workdir}".split()
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "zoo.cli", "train", *words], cwd=ROOT, check=True)
        seconds = time.perf_counter() - begun
        results = json.loads(Path(workdir, "results.json").read_text())
        answer = subprocess.run(
            [sys.executable, "-m", "zoo.cli", "eval", f"{workdir}/best", "--data", data, "--tta", "flip", "--json"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
    return {
        "command": f"zoo train {OPTIONS[minutes]} --data cifar10 --seed {seed}",
        "seconds": round(seconds), "validation": results["validation"]["accuracy"],
        "test": results["test"]["accuracy"], "test, two views": json.loads(answer.stdout)["accuracy"],
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
    on = next(iter(rows.values()))["hardware"]
    lines = [
        f"## Accuracy after so many minutes, CIFAR-10, {on}",
        "",
        "`zoo train --recipe speed-run` against airbench (airbench94.py, its network and settings, in float32) in",
        "PyTorch, one after the other on the idle machine. The time is that of the whole command here, and of the",
        "training steps alone there; 45,000 images here, 50,000 there. Test split: two mirrored views here (one in",
        "brackets), six views there. CIFAR-10 as JPEG files of quality 75. Made by `python -m benchmarks.speedrun`.",
        "",
        "| minutes | command | seconds | test accuracy | airbench: epochs | seconds with evaluation | test accuracy |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for minutes, row in rows.items():
        ours, theirs = row["zoo"], row.get("airbench", {})
        accuracy = f"{100 * ours['test, two views']:.2f} % ({100 * ours['test']:.2f})"
        other = f"{100 * theirs['test, six views']:.2f} %" if theirs else ""
        lines.append(
            f"| {minutes.split()[0]} | `{ours['command']}` | {ours['seconds']} | {accuracy} | "
            f"{theirs.get('epochs', '')} | {theirs.get('seconds with evaluation', '')} | {other} |"
        )
    return lines


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
