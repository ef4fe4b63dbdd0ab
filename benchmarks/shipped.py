"""Train the checkpoints in checkpoints/, and write their table.

    python -m benchmarks.shipped lenet5-mnist …   # trains it under runs/shipped, takes its best checkpoint
    python -m benchmarks.shipped --calibrate NAME …   # fits its temperature on the validation split of its run
    python -m benchmarks.shipped --readme NAME …  # writes its README.md anew, from its card
    python -m benchmarks.shipped --table          # writes checkpoints/README.md from the cards

The data must be under runs/data, or linked there: tfds (the folder of TensorFlow Datasets), fashion-mnist (its IDX
files, and classes.txt with the names) and cifar10 (a folder of class folders). Names are relative, so that others can
type the command in a card.
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import zoo
from benchmarks.machine import hardware
from zoo import checkpoint
from zoo.checkpoint.format import write_card
from zoo.checkpoint.manifest import MANIFEST, write_manifest
from zoo.checkpoint.schema import to_plain_json
from zoo.training import run

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints"
RUNS = ROOT / "runs" / "shipped"
DATA = ROOT / "runs" / "data"
TIMES = ROOT / "benchmarks" / "results" / "shipped.json"

#: Licence of the shipped weights, which is that of the repository.
LICENCE = "Apache-2.0"

#: name -> arguments of `zoo train` in the folder of the data. Recipes were chosen on validation splits only.
CHECKPOINTS: dict[str, str] = {
    "lenet5-mnist": "--model lenet5 --data tfds:mnist --data-dir tfds",
    "lenet5-fashion-mnist": "--model lenet5 --data fashion-mnist --recipe mnist --augment flip --epochs 30",
    "alexnet-fashion-mnist": (
        "--model alexnet_small --data fashion-mnist --set width=0.25 --image-size 28 --epochs 40 --set ema=0.999 "
        "--augment 'pad_crop(pad=2),flip,random_erasing(p=0.25)'"
    ),
    "googlenet-fashion-mnist": "--model googlenet_bn_small --data fashion-mnist --set width=0.25 --image-size 28",
    "resnet20-fashion-mnist": (
        "--model resnet20 --data fashion-mnist --image-size 28 --epochs 60 "
        "--augment 'pad_crop(pad=2),flip,random_erasing(p=0.25)'"
    ),
    "resnet20-cifar10": "--model resnet20 --data cifar10 --epochs 50",
}


def train(name: str) -> None:
    """Train a checkpoint, or resume it, and copy the best one into checkpoints/, recording hardware and time."""
    folder = RUNS / name
    words = [*shlex.split(CHECKPOINTS[name]), "--workdir", os.path.relpath(folder, DATA)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "zoo.cli", "train", *words], check=True, cwd=DATA, env=environment)
    lives = [json.loads(line) for line in (folder / run.TIMING).read_text().splitlines()]
    SHIPPED.mkdir(exist_ok=True)
    destination = SHIPPED / name
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(folder / run.BEST, destination)
    rewrite_readme(name)
    rows = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    seconds = round(sum(life["seconds"] for life in lives))
    rows[name] = {"seconds": seconds, "hardware": hardware()}
    TIMES.write_text(json.dumps({key: rows[key] for key in CHECKPOINTS if key in rows}, indent=1) + "\n")


def calibrate(name: str) -> None:
    """Fit the calibration of a checkpoint from before cards had one, as training does; only its card changes.

    Raises:
        ValueError: if the validation split is not that of its run: the accuracy differs from the card's.
    """
    from zoo.data.dataset import with_classes
    from zoo.data.images.measure import as_trained
    from zoo.data.sources import open_dataset
    from zoo.inference.evaluate import evaluate, evaluate_and_calibrate

    loaded = zoo.load(SHIPPED / name)
    card, preprocess = loaded.card, loaded.card.preprocess
    source = card.data["source"]
    data = open_dataset(source if ":" in source else DATA / source, DATA / "tfds" if ":" in source else None)
    data = as_trained(with_classes(data, card.classes), preprocess)
    arguments = (preprocess, card.classes)
    validation, calibration, reason = evaluate_and_calibrate(
        loaded.model, loaded.variables, data.splits["validation"], *arguments, "validation"
    )
    if validation.accuracy != card.metrics["validation"]["accuracy"] or reason:
        raise ValueError(f"{name}: {reason or 'the validation split is not that of its run'}")
    test = evaluate(loaded.model, loaded.variables, data.splits["test"], *arguments, calibration=calibration)
    metrics = dict(card.metrics)
    for split, result in (("validation", validation), ("test", test)):
        values = result.to_json()
        changed = {key: values[key] for key in ("loss", "roc_auc", "ece", "uncalibrated", "unlike_training")}
        metrics[split] = metrics[split] | changed
        before = result.uncalibrated or {}
        change = f"ECE {before['ece']:.4f} -> {result.ece:.4f}, loss {before['loss']:.4f} -> {result.loss:.4f}"
        print(f"{name} {split}: {change}")
    print(
        f"{name}: temperature {calibration.temperature:.4f} on {calibration.examples:,} validation images", flush=True
    )
    _rewrite(name, dataclasses.replace(card, metrics=metrics, calibration=calibration))


def rewrite_readme(name: str) -> None:
    """Write the README.md of a checkpoint anew, as this version of the zoo does. Its card states the licence."""
    _rewrite(name, dataclasses.replace(checkpoint.read_card(SHIPPED / name), licence=LICENCE))


def _rewrite(name: str, card: checkpoint.Card) -> None:
    (SHIPPED / name / MANIFEST).unlink()
    write_card(SHIPPED / name, to_plain_json(card.to_json(), name))
    write_manifest(SHIPPED / name)


def table() -> str:
    """Return checkpoints/README.md, with a row per checkpoint from its card."""
    times = json.loads(TIMES.read_text())
    lines = [
        "# Shipped checkpoints",
        "",
        "Each folder is a checkpoint. `zoo.load(NAME)`, `zoo predict NAME IMAGE`, `zoo eval NAME`, `zoo info NAME`",
        "and `zoo train --init NAME` find it by its name, in a copy of the repository and in an installed wheel.",
        "`card.json` holds its model, training and results. `zoo verify NAME` checks every file and every leaf.",
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
        "Accuracy: one run each (seed 0), single crop, the checkpoint chosen on the validation split; the test",
        f"split was evaluated once. Hardware: {hardware}, shared with other work, so times are upper bounds.",
        "`fashion-mnist` is the folder of Fashion-MNIST's IDX files, and `cifar10` one of CIFAR-10 as JPEG files of",
        "quality 75 in class folders. Made by `python -m benchmarks.shipped --table`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"names among {', '.join(CHECKPOINTS)}")
    parser.add_argument("--calibrate", action="store_true", help="fit the calibration instead of training")
    parser.add_argument("--readme", action="store_true", help="write the README.md anew instead of training")
    parser.add_argument("--table", action="store_true", help="write checkpoints/README.md")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(CHECKPOINTS))
    if unknown:
        parser.error(f"unknown checkpoint {', '.join(unknown)}; choose from {', '.join(CHECKPOINTS)}")
    for name in options.names:
        (calibrate if options.calibrate else rewrite_readme if options.readme else train)(name)
    if options.table:
        (SHIPPED / "README.md").write_text(table())


if __name__ == "__main__":
    main()
