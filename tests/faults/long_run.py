"""The long run: memory, open files, disk and time per step of a training of a million steps, from beginning to end."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from . import programs

#: Steps per epoch of digits in batches of 16.
STEPS_PER_EPOCH = 1258 / 16
#: Saves are counted in steps: by time, a loaded machine would save more often and a step would cost more.
COMMAND = (
    "train --model mlp --set widths=(16,) --data digits --batch-size 16 --set min_epoch_steps=0 --save-steps 2500 "
    "--save-every 1000000000 --learning-rate 0.0001 --schedule constant --workdir run"
)


@dataclass(frozen=True)
class Sample:
    """The state of the process at a moment.

    Attributes:
        step: steps done, to the last evaluation.
        wall: seconds since the start.
        cpu: seconds of processor time.
        memory: resident bytes.
        files: open files.
        disk: bytes of the run's folder without its logs.
        logs: bytes of metrics.jsonl and the TensorBoard events, which hold a row per evaluation.
    """

    step: int
    wall: float
    cpu: float
    memory: int
    files: int
    disk: int
    logs: int


def long_run(
    folder: Path, steps: int = 10**6, evals: int = 1000, interval: float = 5.0, say: Callable[[str], None] = print
) -> list[Sample]:
    """Train a tiny perceptron for many steps and return samples taken every `interval` seconds."""
    folder.mkdir(parents=True)
    epochs = steps / STEPS_PER_EPOCH
    words = [*COMMAND.split(), "--epochs", f"{epochs:.6f}", "--set", f"eval_every_epochs={epochs / evals:.6f}"]
    program, began, samples = programs.start(words, folder), time.monotonic(), []
    shown = began
    while program.poll() is None:
        time.sleep(interval)
        sample = take_sample(program, folder / "run", time.monotonic() - began)
        if sample is not None:
            samples.append(sample)
            (folder / "samples.json").write_text(json.dumps([asdict(row) for row in samples], indent=1))
        if sample is not None and time.monotonic() - shown > 60:
            shown = time.monotonic()
            say(str(sample))
    if program.code:
        raise RuntimeError(f"the long run ended with {program.code}: {program.complained()[-500:]}")
    return samples


def take_sample(program: programs.Program, run: Path, seconds: float) -> Sample | None:
    """Return the state of a process; None if it ended or has not evaluated yet."""
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().splitlines()
        step = json.loads(lines[-1])["step"]
        pid, cpu = program.pid, program.cpu_seconds()
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, ValueError, IndexError):
        return None
    sizes = {True: 0, False: 0}
    for folder, _, names in os.walk(run):  # which passes over folders that are deleted meanwhile
        for name in names:
            with suppress(OSError):
                is_log = name == "metrics.jsonl" or name.startswith("events.")
                sizes[is_log] += os.stat(os.path.join(folder, name)).st_size
    return Sample(step, seconds, cpu, resident, files, sizes[False], sizes[True])


def summarise(samples: list[Sample]) -> dict[str, list[float]]:
    """Return each figure in ten consecutive parts of the steps: the largest of each part, and seconds per step."""
    first, last = samples[0].step, samples[-1].step
    parts: list[list[Sample]] = [[] for _ in range(10)]
    for sample in samples:
        parts[min(10 * (sample.step - first) // max(last - first, 1), 9)].append(sample)
    parts = [part for part in parts if len(part) > 1 and part[-1].step > part[0].step]
    figures: dict[str, list[float]] = {
        name: [max(getattr(sample, name) for sample in part) for part in parts]
        for name in ("step", "memory", "files", "disk", "logs")
    }
    for name in ("cpu", "wall"):
        figures[f"{name} per step, us"] = [
            round(1e6 * (getattr(part[-1], name) - getattr(part[0], name)) / (part[-1].step - part[0].step), 1)
            for part in parts
        ]
    return figures
