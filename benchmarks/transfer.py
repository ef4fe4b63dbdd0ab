"""Compare fine-tuning, linear probes and training from scratch on a few images per class, with the default commands.

    python -m benchmarks.transfer --tfds DIR --cifar10 DIR    # measures what is missing: 54 short runs and 36 probes
    python -m benchmarks.transfer --page                      # writes docs/transfer.md from the results

Three real data sets; the network is one that is shipped and was trained on another set. Writes folders of PNG files:
10 or 50 images of each class to train on, different ones for every seed, and 100 of each class of the test split.
Every seed is reported in benchmarks/results/transfer.json, as soon as it is measured.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import FASHION
from benchmarks.machine import hardware
from zoo.checkpoint.manifest import write_json
from zoo.data.sources import open_dataset

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "transfer.json"
PAGE = ROOT / "docs" / "transfer.md"
TEST_IMAGES = 100
IMAGES = (10, 50)

#: data set -> the shipped checkpoint to start from. It was trained on other images.
CHECKPOINTS = {
    "fashion-mnist": "resnet20-cifar10",
    "mnist": "resnet20-cifar10",
    "cifar10": "resnet20-fashion-mnist",
}

#: method -> words of the command; CKPT, FOLDER, SEED and OUT are replaced.
METHODS = {
    "fine-tuned": "train --init CKPT --data FOLDER --seed SEED --workdir OUT",
    "linear probe": "probe CKPT --data FOLDER --json",
    "linear head in seconds": "train --init CKPT --data FOLDER --quick --workdir OUT",
    "from scratch": "train --model resnet20 --data FOLDER --seed SEED --workdir OUT",
}


def write_folder(folder: Path, splits: Any, images: int, seed: int) -> None:
    """Write `images` of each class to train on, drawn with the seed, and the first TEST_IMAGES of each to test on."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for name, count in (("train", images), ("test", TEST_IMAGES)):
        split = splits[name]
        labels = np.asarray(split.labels)
        for label in range(10):
            members = np.flatnonzero(labels == label)
            chosen = np.sort(rng.permutation(members)[:count]) if name == "train" else members[:count]
            (folder / name / f"class{label}").mkdir(parents=True)
            for i, pixels in zip(chosen, split.read(chosen), strict=True):
                Image.fromarray(np.asarray(pixels).squeeze()).save(folder / name / f"class{label}" / f"{i}.png")


def accuracy(method: str, filled: dict[str, str]) -> float:
    """Return the accuracy on the test split as the command reports it."""
    words = [filled.get(word, word) for word in METHODS[method].split()]
    quiet = ["--quiet", "--no-report"] if words[0] == "train" else []
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli", *words, *quiet], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"zoo {' '.join(words)}: {done.stderr.strip()}")
    if words[0] == "probe":
        return json.loads(done.stdout)["accuracy"]
    result = json.loads((Path(filled["OUT"]) / "results.json").read_text())["test"]["accuracy"]
    shutil.rmtree(filled["OUT"])
    return result


def measure(sources: dict[str, tuple[str, str | None]], seeds: int) -> None:
    """Measure what is missing in the results and write them after every figure."""
    for name, (source, data_dir) in sources.items():
        splits = None
        for images in IMAGES:
            for seed in range(seeds):
                rows = _read()
                row = rows.setdefault(f"{name}, {images} images a class", _new_row(name))
                missing = [method for method in METHODS if str(seed) not in row["methods"].get(method, {})]
                if not missing:
                    continue
                splits = splits or open_dataset(source, data_dir).splits
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary) / name
                    write_folder(folder, splits, images, seed)
                    filled = {
                        "CKPT": CHECKPOINTS[name], "FOLDER": str(folder), "SEED": str(seed),
                        "OUT": str(Path(temporary) / "run"),
                    }  # fmt: skip
                    for method in missing:
                        value = accuracy(method, filled)
                        row["methods"].setdefault(method, {})[str(seed)] = value
                        write_json(RESULTS, rows)
                        print(f"{name}, {images} images, seed {seed}, {method}: {100 * value:.2f} %", flush=True)


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _new_row(name: str) -> dict[str, Any]:
    return {
        "checkpoint": CHECKPOINTS[name], "test images": 10 * TEST_IMAGES, "hardware": hardware(), "methods": {},
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """Return docs/transfer.md."""
    lines = [
        "# A few images of a class: fine-tune, probe or train from scratch",
        "",
        "Ten classes; 10 or 50 images of each to train on, of which training holds out a tenth for validation, and",
        f"{TEST_IMAGES} of each class of the test split. `resnet20` throughout. Test accuracy, single crop, mean ±",
        "standard deviation over the seeds, each with other images.",
        "",
        f"| data | from | {' | '.join(METHODS)} | seeds |",
        f"|---|---|{'---|' * len(METHODS)}---|",
    ]
    for name, row in results.items():
        cells = []
        for method in METHODS:
            values = [100 * value for value in row["methods"].get(method, {}).values()]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} %" if len(values) > 1 else "")
        best = max(range(len(cells)), key=lambda k: float(cells[k].split()[0]) if cells[k] else 0.0)
        cells[best] = f"**{cells[best]}**"
        seeds = len(next(iter(row["methods"].values())))
        lines.append(f"| {name} | {row['checkpoint']} | {' | '.join(cells)} | {seeds} |")
    lines += ["", "| column | command |", "|---|---|"]
    lines += [f"| {method} | `zoo {words}` |" for method, words in METHODS.items()]
    machines = "; ".join(sorted({row["hardware"] for row in results.values()}))
    lines += ["", f"Hardware: {machines}. Made by `python -m benchmarks.transfer`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion", metavar="DIR", default=FASHION, help=f"IDX files (default: {FASHION})")
    parser.add_argument("--tfds", metavar="DIR", help="folder of TensorFlow Datasets, for MNIST")
    parser.add_argument("--cifar10", metavar="DIR", help="CIFAR-10 as a folder of class folders")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--page", action="store_true", help="write docs/transfer.md from the results")
    options = parser.parse_args()
    if not options.page:
        sources: dict[str, tuple[str, str | None]] = {"fashion-mnist": (options.fashion, None)}
        if options.tfds:
            sources["mnist"] = ("tfds:mnist", options.tfds)
        if options.cifar10:
            sources["cifar10"] = (options.cifar10, None)
        measure(sources, options.seeds)
    PAGE.write_text(page(_read()), encoding="utf-8")


if __name__ == "__main__":
    main()
