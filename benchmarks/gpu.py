"""Measure everything that needs an accelerator, in one command: about 25 minutes on one H100.

    python -m benchmarks.gpu --peer torch=ENV/bin/python                # every piece that has no results yet
    python -m benchmarks.gpu speed profile --again                      # these pieces anew
    python -m benchmarks.gpu --tiny --output /tmp/tiny                  # every piece in small, also on a CPU
    python -m benchmarks.gpu --wheels INSTALLED.txt                     # what a machine without a network lacks
    python -m benchmarks.gpu --report                                   # the results so far, as Markdown

Each piece is a process of its own and writes PIECE.json in benchmarks/results/gpu as soon as it is done, `speed` after
every row, so that a call which is cut short loses at most one measurement and the next one goes on. Pieces start in
order of importance, and none starts when `--minutes` are over. Peers are PyTorch, torchvision and timm, in the Python
of `--peer`; without it only this project is measured.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.race import RESULTS, ROOT

OUTPUT = RESULTS / "gpu"
#: Piece -> (minutes it may take, what it measures), in order of importance.
PIECES = {
    "devices": (1, "Devices, versions and processors."),
    "correctness": (6, "One step of each family against float32 on the CPU; other layouts, bfloat16."),
    "speed": (14, "Training and inference against torchvision and timm, in bfloat16 and TF32."),
    "small": (4, "CIFAR-sized networks: pixels from the host, on the device, several steps per dispatch."),
    "profile": (3, "The kernels of a training step of ResNet-50."),
    "batches": (4, "ResNet-50 at growing batch sizes."),
    "layouts": (2, "Convolutions of ResNet-50 with channels last and first."),
    "loader": (3, "Decoding and cropping photographs on all processors."),
    "accuracy": (3, "Time to an accuracy."),
}
#: What the benchmark imports, beside the packages of the peer.
PACKAGES = (
    "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "pillow", "rich", "safetensors",
    "platformdirs", "filelock", "flatbuffers", "tensorboardX", "matplotlib",
)  # fmt: skip


def missing_packages(installed: set[str]) -> list[str]:
    """Return NAME==VERSION of what the benchmark needs, with all that it depends on, and `installed` lacks.

    Args:
        installed: names of packages, in any spelling.
    """

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    here, needed, waiting = {canonical(name) for name in installed}, {}, list(PACKAGES)
    while waiting:
        name = canonical(waiting.pop())
        if name in needed or name in here:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        needed[name] = f"{name}=={distribution.version}"
        for line in distribution.requires or ():
            if "extra ==" not in line:
                waiting.append(re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0])
    return sorted(needed.values())


def print_wheels(file: str) -> None:
    """Print the command that downloads the wheels. `file` is the other machine's `pip list --format=freeze`, or ""."""
    lines = Path(file).read_text().split() if file else []
    missing = missing_packages({re.split(r"==|@", line)[0] for line in lines})
    if not missing:
        print("Nothing is missing.")
        return
    print(f"pip download --no-deps --only-binary=:all: -d wheels {' '.join(missing)}")
    print("# There: pip install --no-deps --no-index --find-links wheels wheels/*.whl")


def run_piece(name: str, options: argparse.Namespace) -> str:
    """Run a piece in a process of its own and return "done", or why it has no results or not all."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    words = [sys.executable, "-m", "benchmarks.gpu_pieces", name, str(options.output)]
    words += ["--tiny"] * options.tiny + [f"--peer={peer}" for peer in options.peer]
    try:
        done = subprocess.run(words, env=environment, cwd=ROOT, timeout=60 * PIECES[name][0])
    except subprocess.TimeoutExpired:
        return f"stopped after {PIECES[name][0]} minutes; what it had measured is kept"
    return "done" if done.returncode == 0 else f"ended with {done.returncode}"


def report(folder: Path) -> str:
    """Return the results as Markdown."""
    lines = []
    for name, (_, about) in PIECES.items():
        file = folder / f"{name}.json"
        if not file.exists():
            continue
        lines += ["", f"## {about}", ""]
        results = json.loads(file.read_text())
        rows = results.get("rows", [])
        if not rows:
            lines += [f"- {key}: {value}" for key, value in results.items()]
            continue
        keys = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], list)))
        lines += ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
        lines += ["| " + " | ".join(str(row.get(key, "")) for key in keys) + " |" for row in rows]
    return "\n".join(lines).strip()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pieces", metavar="PIECE", nargs="*", help=f"names among {', '.join(PIECES)} (default: all)")
    add("--peer", metavar="NAME=PYTHON", action="append", default=[], help="torch, and a Python that has it")
    add("--tiny", action="store_true", help="measure in small, to test the benchmark itself")
    add("--again", action="store_true", help="measure pieces that have results again")
    add("--minutes", type=float, default=25, help="start no piece after this time (default: 25)")
    add("--output", metavar="DIR", type=Path, default=OUTPUT, help="folder of the results")
    add("--report", action="store_true", help="print the results as Markdown and do nothing else")
    add("--wheels", metavar="FILE", nargs="?", const="", help="print the command that downloads the wheels that a "
        "machine lacks; FILE is its `pip list --format=freeze`")  # fmt: skip
    options = parser.parse_args(words)
    if unknown := [name for name in options.pieces if name not in PIECES]:
        parser.error(f"unknown: {', '.join(unknown)}; pieces: {', '.join(PIECES)}")
    if options.wheels is not None:
        print_wheels(options.wheels)
        return
    if not options.report:
        options.output.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        for name in options.pieces or PIECES:
            complete = options.output / f"{name}.json"
            if not options.again and complete.exists() and json.loads(complete.read_text()).get("complete"):
                continue
            if time.monotonic() - began > 60 * options.minutes:
                print(f"{name}: left out, {options.minutes:g} minutes are over")
                continue
            if options.again:
                complete.unlink(missing_ok=True)
            start = time.monotonic()
            print(f"{name}: {PIECES[name][1]}", flush=True)
            outcome = run_piece(name, options)
            print(f"{name}: {outcome}, {time.monotonic() - start:.0f} s", flush=True)
    print(report(options.output))


if __name__ == "__main__":
    main()
