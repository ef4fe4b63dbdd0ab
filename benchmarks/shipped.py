"""The checkpoints in checkpoints/: how each is trained, and the table of them.

    python -m benchmarks.shipped lenet5-mnist …   # trains it under runs/shipped, takes its best checkpoint
    python -m benchmarks.shipped --table          # writes checkpoints/README.md from the cards

The data lie, or are linked to, under runs/data: tfds (TensorFlow Datasets' folder), fashion-mnist (its IDX files, and
classes.txt with the names), cifar10 (a folder of class folders). Names are relative, so that a card's command is one
that others can type.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import hardware
from zoo import checkpoint
from zoo.training import run

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints"
RUNS = ROOT / "runs" / "shipped"
DATA = ROOT / "runs" / "data"
TIMES = ROOT / "benchmarks" / "results" / "shipped.json"

#: name -> what `zoo train` is given, in the folder of the data. Recipes were settled on validation splits alone.
CHECKPOINTS: dict[str, str] = {
    "lenet5-mnist": "--model lenet5 --data tfds:mnist --data-dir tfds",
    "lenet5-fashion-mnist": "--model lenet5 --data fashion-mnist --recipe mnist --augment flip --epochs 30",
    "alexnet-fashion-mnist": "--model alexnet_small --data fashion-mnist --set width=0.25 --image-size 28",
    "googlenet-fashion-mnist": "--model googlenet_bn_small --data fashion-mnist --set width=0.25 --image-size 28",
    "resnet20-fashion-mnist": "--model resnet20 --data fashion-mnist --image-size 28 --epochs 15",
    "resnet20-cifar10": "--model resnet20 --data cifar10 --epochs 15",
}


def train(name: str) -> None:
    """Train a checkpoint, or go on with it, and put the best of it into checkpoints/, with hardware and time."""
    folder = RUNS / name
    words = [*shlex.split(CHECKPOINTS[name]), "--workdir", os.path.relpath(folder, DATA)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "zoo.cli", "train", *words], check=True, cwd=DATA, env=environment)
    lives = [json.loads(line) for line in (folder / run.TIMING).read_text().splitlines()]
    SHIPPED.mkdir(exist_ok=True)
    destination = SHIPPED / name
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(folder / run.BEST, destination)
    rows = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    seconds = round(sum(life["seconds"] for life in lives))
    rows[name] = {"seconds": seconds, "hardware": hardware()}
    TIMES.write_text(json.dumps({key: rows[key] for key in CHECKPOINTS if key in rows}, indent=1) + "\n")


def table() -> str:
    """checkpoints/README.md: a row per checkpoint, out of its card."""
    times = json.loads(TIMES.read_text())
    lines = [
        "# Checkpoints of this project",
        "",
        "Each folder is a checkpoint that `zoo.load(NAME)`, `zoo predict NAME`, `zoo eval NAME`, `zoo info NAME` and",
        "`zoo train --init NAME` take by its name, from a copy of the repository and from an installed wheel alike.",
        "`card.json` says what it is, how it was trained and what it reaches; `zoo verify NAME` checks every file and",
        "every leaf.",
        "",
        "| name | parameters | size | validation | test | time | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in CHECKPOINTS:
        if name not in times:
            continue
        card = checkpoint.read_card(SHIPPED / name)
        count = sum(math.prod(row["shape"]) for row in card.leaves if row["path"].startswith("params/"))
        size = sum(file.stat().st_size for file in (SHIPPED / name).rglob("*") if file.is_file()) / 1e6
        validation, test = (f"{100 * card.metrics[split]['accuracy']:.2f} %" for split in ("validation", "test"))
        minutes = f"{times[name]['seconds'] / 60:.0f} min"
        command = f"zoo train {CHECKPOINTS[name]}"
        lines.append(f"| {name} | {count:,} | {size:.1f} MB | {validation} | {test} | {minutes} | `{command}` |")
    hardware = "; ".join(sorted({row["hardware"] for row in times.values()}))
    lines += [
        "",
        "Accuracy: one run each (seed 0), single crop, the checkpoint chosen on the validation split, the test split",
        f"opened once. Hardware: {hardware}, which had other work at the same time: the times are upper bounds.",
        "`fashion-mnist` and `cifar10` are folders: Fashion-MNIST's IDX files, and CIFAR-10 as JPEG files of quality",
        "75 in class folders. Made by `python -m benchmarks.shipped --table`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CHECKPOINTS)}")
    parser.add_argument("--table", action="store_true", help="write checkpoints/README.md")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(CHECKPOINTS))
    if unknown:
        parser.error(f"no checkpoint is called {', '.join(unknown)}; there are {', '.join(CHECKPOINTS)}")
    for name in options.names:
        train(name)
    if options.table:
        (SHIPPED / "README.md").write_text(table())


if __name__ == "__main__":
    main()
