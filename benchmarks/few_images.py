"""Compare fine-tuning, the linear probe and training from scratch on a few images per class.

    python -m benchmarks.few_images CKPT      # a checkpoint, or any name that `zoo train --init` takes

Writes folders of PNG files from Fashion-MNIST: `--images` of each class to train on, different ones for every seed, and
200 of each class of its test split. Every seed is reported in benchmarks/results/few_images.json.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.accuracy import FASHION
from benchmarks.machine import hardware
from zoo.data.sources import open_dataset
from zoo.pretrained.weights import read_card

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "few_images.json"
TEST_IMAGES = 200

#: method -> words of the command; CKPT, MODEL, FOLDER, SEED and OUT are replaced.
WAYS = {
    "fine-tuned": "train --init CKPT --data FOLDER --seed SEED --workdir OUT --quiet",
    "probe, softmax": "probe CKPT --data FOLDER --json",
    "probe, linear SVM": "probe CKPT --data FOLDER --json --svm",
    "from scratch": "train --model MODEL --data FOLDER --seed SEED --workdir OUT --quiet",
    "from scratch, 50 steps an epoch": (
        "train --model MODEL --data FOLDER --seed SEED --workdir OUT --quiet --set min_epoch_steps=50"
    ),
}


def make_folder(folder: Path, fashion: str, images: int, seed: int) -> None:
    from PIL import Image

    splits = open_dataset(fashion).splits
    rng = np.random.default_rng(seed)
    for name, count in (("train", images), ("test", TEST_IMAGES)):
        split = splits[name]
        for label in range(10):
            there = np.flatnonzero(split.labels == label)
            chosen = rng.permutation(there)[:count] if name == "train" else there[:count]
            (folder / name / f"class{label}").mkdir(parents=True)
            for i in chosen:
                Image.fromarray(split.images[i].squeeze()).save(folder / name / f"class{label}" / f"{i}.png")


def accuracy(way: str, filled: dict[str, str]) -> float:
    """Return the accuracy on the test split as the command reports it."""
    words = [filled.get(word, word) for word in WAYS[way].split()]
    shutil.rmtree(filled["OUT"], ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli", *words], check=True, cwd=ROOT, capture_output=True, text=True
    )
    if words[0] == "probe":
        return json.loads(done.stdout)["accuracy"]
    return json.loads((Path(filled["OUT"]) / "results.json").read_text())["test"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT")
    parser.add_argument("--model", default="resnet20", help="model to train from scratch (default: resnet20)")
    parser.add_argument(
        "--fashion", metavar="DIR", default=FASHION, help=f"folder of Fashion-MNIST's IDX files (default: {FASHION})"
    )
    parser.add_argument("--images", type=int, default=10, help="training images per class (default: 10)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--way", action="append", choices=WAYS, help="measure only this method; earlier figures of the others stay"
    )
    options = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in options.way or WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.seeds):
            folder = Path(temporary) / f"photos{seed}"
            make_folder(folder, options.fashion, options.images, seed)
            filled = {
                "CKPT": options.checkpoint, "MODEL": options.model, "FOLDER": str(folder), "SEED": str(seed),
                "OUT": str(Path(temporary) / "run"),
            }  # fmt: skip
            for way, rows in found.items():
                rows.append(accuracy(way, filled))
                print(f"seed {seed}, {way}: {100 * rows[-1]:.2f} %", flush=True)
    table = {way: {"command": f"zoo {WAYS[way]}", "mean": statistics.mean(rows), "std": statistics.stdev(rows),
                   "seeds": rows} for way, rows in found.items()}  # fmt: skip
    about = {"checkpoint": read_card(options.checkpoint).source, "images of a class": options.images,
             "test images": 10 * TEST_IMAGES, "hardware": hardware()}  # fmt: skip
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    same = {key: known.get(key) for key in about} == about
    result = {**about, "ways": {**(known["ways"] if same else {}), **table}}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for way, row in table.items():
        print(f"{way}: {100 * row['mean']:.2f} ± {100 * row['std']:.2f} %")


if __name__ == "__main__":
    main()
