"""Measure everything that needs an accelerator: at most 40 minutes on one H100, in calls of at most 25 minutes.

    python -m benchmarks.gpu --peer torch=ENV/bin/python                # every piece that has no results yet
    python -m benchmarks.gpu speed profile --again                      # these pieces anew
    python -m benchmarks.gpu --tiny --output /tmp/tiny                  # every piece in small, also on a CPU
    python -m benchmarks.gpu --wheels INSTALLED.txt                     # wheels for a machine without a network
    python -m benchmarks.gpu --report                                   # the results so far, as Markdown

Each piece is a process of its own and writes PIECE.json in benchmarks/results/gpu as soon as it is done, `speed` after
every row, so that a call which is cut short loses at most one measurement and the next one goes on. Pieces start in
order of importance, and a call ends when `--minutes` are over; a peer without figures is tried again by the next call.
Peers are PyTorch, torchvision and timm, in the Python of `--peer`; without it only this project is measured. The exit
code is 0 if every piece that started is complete.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.race import RESULTS, ROOT

OUTPUT = RESULTS / "gpu"
#: Folder beside the results with the updates that `correctness` compares with.
REFERENCE = "reference"
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
#: The pieces that measure peers too.
COMPARED = ("devices", "speed", "batches", "loader")
#: What the benchmark imports, beside the packages of the peer.
PACKAGES = (
    "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "pillow", "rich", "safetensors",
    "platformdirs", "filelock", "flatbuffers", "tensorboardX", "matplotlib",
)  # fmt: skip
#: The extra of jax for the accelerator.
CUDA = "cuda13"


def canonical(name: str) -> str:
    """Return the normalised name of a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing_packages(installed: set[str]) -> list[str]:
    """Return NAME==VERSION of what the benchmark needs, with all that it depends on, and `installed` lacks.

    Args:
        installed: names of packages, in any spelling.
    """
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


def cuda_plugins(requirements: list[str]) -> list[str]:
    """Return the requirements of jax's extra CUDA beside jaxlib. They bring the plugin's other half and all of CUDA.

    Args:
        requirements: those of jax's metadata, such as 'jax-cuda13-plugin[with-cuda]>=0.9; extra == "cuda13"'.
    """
    lines = [line.partition(";") for line in requirements]
    wanted = [line.strip() for line, _, marker in lines if re.search(rf"""extra == ['"]{CUDA}['"]$""", marker)]
    return [line for line in wanted if not line.startswith("jaxlib")]


def wheel_commands(installed: set[str], python_version: str, platforms: list[str]) -> list[str]:
    """Return the commands that download the wheels which another machine lacks, [] if it has all.

    Args:
        installed: names of its packages, in any spelling.
        python_version: of its Python, such as "3.12"; "" if it is that of this one.
        platforms: tags of its platform, such as "manylinux_2_28_x86_64"; [] if it is that of this machine.
    """
    target = "".join(f" --platform {platform}" for platform in platforms)
    target += f" --python-version {python_version}" if python_version else ""
    download = f"pip download --only-binary=:all:{target} -d wheels"
    commands = []
    if missing := missing_packages(installed):
        commands.append(f"{download} --no-deps {' '.join(missing)}")
    if not {canonical(name) for name in installed} >= {f"jax-{CUDA}-plugin", f"jax-{CUDA}-pjrt"}:
        plugins = cuda_plugins(importlib.metadata.requires("jax") or [])
        commands.append(f"{download} {shlex.join(plugins)}")
    return commands


def print_wheels(options: argparse.Namespace) -> None:
    """Print what `wheel_commands` returns for the other machine, and how to install there."""
    lines = Path(options.wheels).read_text().split() if options.wheels else []
    installed = {re.split(r"==|@", line)[0] for line in lines}
    commands = wheel_commands(installed, options.python_version, options.platform)
    if not commands:
        print("Nothing is missing.")
        return
    print("\n".join(commands))
    print("# There: pip install --no-deps --no-index --find-links wheels wheels/*.whl")


def backend() -> str:
    """Return the default backend of JAX, asked in another process: this one must not hold the accelerator's memory.

    Raises:
        SystemExit: with the last line of the error, if JAX cannot start.
    """
    words = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"JAX cannot start: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return done.stdout.split()[-1]


def run_piece(name: str, options: argparse.Namespace, seconds: float) -> str:
    """Run a piece in a process of its own and return "done", or why it has no results or not all.

    Args:
        name: of the piece.
        options: of the command line.
        seconds: time after which the piece and all processes it started are killed.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    words = [sys.executable, "-m", "benchmarks.gpu_pieces", name, str(options.output)]
    words += ["--tiny"] * options.tiny + [f"--peer={peer}" for peer in options.peer]
    return run_group(words, seconds, env=environment, cwd=ROOT)


def is_complete(file: Path, peers: list[str]) -> bool:
    """Return True if the file of a piece has all results, and figures of these peers if the piece compares them."""
    results = json.loads(file.read_text()) if file.exists() else {}
    compared = peers if file.stem in COMPARED else []
    return results.get("complete", False) and set(compared) <= set(results.get("with_peers", ()))


def run_group(words: list[str], seconds: float, **options: Any) -> str:
    """Run a command and return "done", or how it ended; kill it and what it started when the time is over.

    Args:
        words: the command.
        seconds: the time.
        **options: those of subprocess.Popen.
    """
    process = subprocess.Popen(words, start_new_session=True, **options)
    try:
        code = process.wait(seconds)
        return "done" if code == 0 else f"ended with {code}"
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds / 60:.1f} minutes; what it had measured is kept"
    finally:  # also after Ctrl-C, which does not reach the new session
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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
    add("--minutes", type=float, default=25, help="end after this time (default: 25)")
    add("--output", metavar="DIR", type=Path, default=OUTPUT, help="folder of the results")
    add("--report", action="store_true", help="print the results as Markdown and do nothing else")
    add("--wheels", metavar="FILE", nargs="?", const="", help="print the command that downloads the wheels that a "
        "machine lacks; FILE is its `pip list --format=freeze`")  # fmt: skip
    add("--python-version", metavar="VERSION", default="", help="Python of that machine (default: as here)")
    add("--platform", metavar="TAG", action="append", default=[], help="platform of that machine, such as "
        "manylinux_2_28_x86_64; more than one may be given (default: as here)")  # fmt: skip
    options = parser.parse_args(words)
    if unknown := [name for name in options.pieces if name not in PIECES]:
        parser.error(f"unknown: {', '.join(unknown)}; pieces: {', '.join(PIECES)}")
    if options.wheels is not None:
        print_wheels(options)
        return
    failed = []
    if not options.report:
        if not options.tiny and backend() == "cpu":
            raise SystemExit("JAX sees no accelerator: install jax[cuda13], or measure in small with --tiny")
        options.output.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        for name in options.pieces or PIECES:
            file = options.output / f"{name}.json"
            if not options.again and is_complete(file, [peer.partition("=")[0] for peer in options.peer]):
                continue
            left = 60 * options.minutes - (time.monotonic() - began)
            if left <= 0:
                print(f"{name}: left out, {options.minutes:g} minutes are over")
                continue
            if options.again:
                file.unlink(missing_ok=True)
                if name == "correctness":
                    shutil.rmtree(options.output / REFERENCE, ignore_errors=True)
            start = time.monotonic()
            print(f"{name}: {PIECES[name][1]}", flush=True)
            outcome = run_piece(name, options, min(left, 60 * PIECES[name][0]))
            if outcome != "done":
                failed.append(name)
            print(f"{name}: {outcome}, {time.monotonic() - start:.0f} s", flush=True)
    print(report(options.output))
    if failed:
        raise SystemExit(f"not complete: {', '.join(failed)}")


if __name__ == "__main__":
    main()
