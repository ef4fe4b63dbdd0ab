"""Time for which training stands still while its state is saved, and what a save costs the steps beside it.

    python -m benchmarks.saving                      # a state of 2 GB; results in benchmarks/results/saving.json
    python -m benchmarks.saving --before a65e76e     # also of an earlier revision, whose loop wrote the save itself
    python -m benchmarks.saving --processes 8        # also the memory of 8 processes that share a state by fsdp

A perceptron of 8 x 8 pixels is trained in a process of its own with a save after every few steps. "stands still" is
the time that the loop spends in `Trainer.save`, "save" the time until the save is complete; where the loop itself
writes, both are the same. A step that is under way is waited for before the clock starts. Steps are also timed with
and without a save beside them, because on a CPU the thread that writes takes part of it. The first save of a run is
listed by itself: its copy goes into memory that is new to the process.

Memory is the largest resident size of a process during a part of the run, less that before the part. A step needs more:
it gathers the parameters, which belongs to fsdp and not to the state.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.race import RESULTS, ROOT

#: Numbers of the state for each parameter: its value, its momentum and its best value.
NUMBERS = 3


class EnoughSavesError(BaseException):
    """Raised after the last save."""


def measure(folder: str, width: int, saves: int, every: int) -> dict[str, Any]:
    """Train and return the seconds of saves and steps. Also runs at revisions from before saving in a thread."""
    import jax
    import numpy as np

    from zoo import checkpoint
    from zoo.data.sources import from_arrays
    from zoo.training import loop
    from zoo.training.plan import make_plan
    from zoo.training.recipe import Recipe
    from zoo.training.request import TrainRequest

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (256, 8, 8)).astype(np.uint8), np.arange(256) % 10
    recipe = Recipe(epochs=1000, batch_size=16, optimizer="momentum", learning_rate=1e-3, patience=0)
    fields = {"widths": (width, width, width), "image_size": 8}
    recipe = type(recipe)(**{**vars(recipe), "eval_every_epochs": 1000})
    plan = make_plan(TrainRequest("mlp", from_arrays((images, labels)), recipe, fields=fields, workdir=folder))
    still, written, steps, beside = [], [], [], []
    save, save_state, process = loop.Trainer.save, checkpoint.save_state, loop.Trainer.process_metrics
    last: list[float] = []
    writing: list[bool] = []

    def timed_save(trainer):
        trainer.flush()
        jax.block_until_ready(trainer.state)
        if thread := getattr(getattr(trainer, "saver", None), "thread", None):
            thread.join()  # saves must not wait for each other here
        began = time.monotonic()
        save(trainer)
        still.append(time.monotonic() - began)
        last.clear()
        if len(still) == saves:
            if thread := getattr(getattr(trainer, "saver", None), "thread", None):
                thread.join()
            raise EnoughSavesError

    def timed_save_state(*arguments, **options):
        began = time.monotonic()
        writing.append(True)
        path = save_state(*arguments, **options)
        writing.clear()
        written.append(time.monotonic() - began)
        return path

    def timed_process(trainer, step, metrics):
        process(trainer, step, metrics)
        if last:
            (beside if writing else steps).append(time.monotonic() - last[0])
        last[:] = [time.monotonic()]

    loop.Trainer.save, loop.Trainer.process_metrics = timed_save, timed_process
    checkpoint.save_state = timed_save_state
    with suppress(EnoughSavesError):
        loop.fit(plan, save_seconds=1e9, save_steps=every, quiet=True)
    (newest,) = sorted(Path(folder, "state").iterdir())[-1:]
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    rounded = {"stands_still": still, "save": written, "step": steps, "step_beside_a_save": beside}
    return {"bytes": size, **{name: [round(value, 3) for value in values] for name, values in rounded.items()}}


def run(code: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of `measure` in a process that imports the package from a folder."""
    width = round((options.gigabytes * 1e9 / (4 * NUMBERS) / 2) ** 0.5 / 64) * 64
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text = calling(f"measure({folder + '/run'!r}, {width}, {options.saves}, {options.every})")
        environment = {**os.environ, "PYTHONPATH": str(code), "ZOO_MESH": "data=1", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", text], env=environment, capture_output=True, text=True, cwd=folder, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


#: Parts of a run whose memory is measured: module and attribute.
PARTS = {
    "initialisation": ("zoo.training.plan", "Plan.first_state"),
    "placement": ("zoo.training.plan", "Plan.shard_state"),
    "start or resumption": ("zoo.training.loop", "resume"),
    "validation": ("zoo.training.loop", "Trainer.validate"),
    "save": ("zoo.training.loop", "Trainer.save"),
    "save in the thread": ("zoo.training.loop", "write_save"),
}


def resident(name: str) -> int:
    """Return a resident size of this process, in bytes: "VmRSS" now, or "VmHWM" at most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def train_and_watch(words: list[str], file: str) -> int:
    """Run `zoo WORDS` and write the bytes that each of PARTS added at most into a file."""
    import importlib

    from zoo import cli

    added: dict[str, int] = {}

    def watch(part: str, owner: Any, attribute: str) -> None:
        original = getattr(owner, attribute)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
            try:
                return original(*arguments, **options)
            finally:
                added[part] = max(added.get(part, 0), resident("VmHWM") - before)

        setattr(owner, attribute, wrapped)

    for part, (module, name) in PARTS.items():
        *holder, attribute = name.split(".")
        owner: Any = importlib.import_module(module)
        for each in holder:
            owner = getattr(owner, each)
        if hasattr(owner, attribute):
            watch(part, owner, attribute)
    code = cli.main(words)
    Path(file).write_text(json.dumps(added))
    return code


def memory(code: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train in processes that share the state; return its bytes, and those that each part of the run added to each."""
    from zoo.distributed.launch import find_free_port

    count, port = options.processes, find_free_port()
    width = round((options.shared_gigabytes * 1e9 / (4 * NUMBERS)) ** 0.5 / 64) * 64
    words = (
        f"train --model mlp --set widths=({width},{width}) --data digits --limit 160 --epochs 1 --batch-size 16 "
        f"--optimizer momentum --mesh fsdp={count} --save-steps 3 --quiet --no-report --workdir run"
    ).split()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shared = {**os.environ, "PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PJRT_NPROC": "1"}
        shared |= {"ZOO_COORDINATOR": f"127.0.0.1:{port}", "ZOO_PROCESSES": str(count)}
        group = [
            subprocess.Popen(
                [sys.executable, "-c", calling(f"train_and_watch({words!r}, '{number}.json')")], cwd=folder,
                stdout=subprocess.DEVNULL, env={**shared, "ZOO_PROCESS": str(number)},
            )
            for number in range(count)
        ]  # fmt: skip
        if any(codes := [process.wait() for process in group]):
            raise RuntimeError(f"processes ended with {codes}")
        files = [json.loads(Path(folder, f"{number}.json").read_text()) for number in range(count)]
    parameters = 64 * width + width**2 + 10 * width + 2 * width + 10
    return {
        "state": 4 * NUMBERS * parameters, "processes": count,
        "added": {part: [file[part] for file in files] for part in PARTS if part in files[0]},
    }  # fmt: skip


def describe_memory(name: str, row: dict[str, Any]) -> str:
    """Return a line with the most that any process needed for each part of the run."""
    parts = (f"{part} {max(added) / row['state']:.0%}" for part, added in row["added"].items())
    return f"{name}: {row['processes']} processes share {row['state'] / 1e9:.2f} GB; at most {', '.join(parts)} of it"


def calling(call: str) -> str:
    """Return a program that calls a function of this file, which is read by its path: earlier revisions lack it."""
    return (
        f"import importlib.util, json; spec = importlib.util.spec_from_file_location('saving', {__file__!r}); "
        f"saving = importlib.util.module_from_spec(spec); spec.loader.exec_module(saving); "
        f"print(json.dumps(saving.{call}))"
    )


def summary(name: str, row: dict[str, Any]) -> str:
    """Return a line with the medians of all saves but the first."""
    still, save = statistics.median(row["stands_still"][1:]), statistics.median(row["save"][1:])
    beside = (
        f", {statistics.median(row['step_beside_a_save']):.2f} s beside a save" if row["step_beside_a_save"] else ""
    )
    return (
        f"{name}: {row['bytes'] / 1e9:.2f} GB; training stands still for {still:.2f} s (first save "
        f"{row['stands_still'][0]:.2f} s) of a save of {save:.2f} s, {still / save:.1%}; step "
        f"{statistics.median(row['step']):.2f} s{beside}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the state (default: 2)")
    parser.add_argument("--saves", type=int, default=4, help="saves per run (default: 4)")
    parser.add_argument("--every", type=int, default=25, help="steps between two saves (default: 25)")
    parser.add_argument("--before", metavar="REVISION", help="also measure this revision of the package")
    parser.add_argument("--folder", type=Path, help="folder of the saves (default: that of temporary files)")
    parser.add_argument("--processes", type=int, default=0, help="number of processes whose memory to measure as well")
    parser.add_argument("--shared-gigabytes", type=float, default=0.4, help="size of their state (default: 0.4)")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "now": run(ROOT, options)}
    print(summary("now", results["now"]), flush=True)
    if options.processes:
        results["memory"] = memory(ROOT, options)
        print(describe_memory("now", results["memory"]), flush=True)
    if options.before:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", options.before], capture_output=True, check=True
            )
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            results["before"] = {"revision": options.before, **run(Path(folder), options)}
            if options.processes:
                results["memory_before"] = memory(Path(folder), options)
                print(describe_memory(options.before, results["memory_before"]), flush=True)
        print(summary(options.before, results["before"]), flush=True)
    results["load"] = os.getloadavg()[1]
    (RESULTS / "saving.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
