"""Run the long form of the fuzzing and print its figures.

    python -m tests.fuzz                                   # 100,000 inputs over all readers
    python -m tests.fuzz --inputs 5000 --reader tar        # one reader
    python -m tests.fuzz --reader tar --only 17            # input 17 again, with its traceback
    python -m tests.fuzz --coverage-guided 300 --reader tar   # 300 s with atheris (pip install atheris)

Input n of a reader depends on the seed, the reader and n alone. Readers run in processes of their own, so a crash or an
endless loop is counted and the next input follows.
"""

import argparse
import contextlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fuzz import contract  # noqa: E402

CHUNK = 2000  # inputs of a process
PATIENCE = 150.0  # seconds without a new input, after which a process is killed
ADDRESS_SPACE = 8 * 2**30  # bytes that a process may map beyond those of its start


@dataclass
class Figures:
    """The figures of a reader.

    Attributes:
        inputs: number of inputs.
        accepted: number that were read.
        refused: number that were refused.
        seconds: the longest processor time of one.
        peak_bytes: the largest growth of memory.
        faults: description -> [count, number of the first input].
        noise: number of bytes that libraries printed.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)
    noise: int = 0

    def add(self, other: "Figures") -> None:
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.refused += other.refused
        self.seconds = max(self.seconds, other.seconds)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.noise += other.noise
        for fault, (count, first) in other.faults.items():
            row = self.faults.setdefault(fault, [0, first])
            row[0] += count
            row[1] = min(row[1], first)


def import_readers() -> None:
    """Import what the readers use before processes are forked. Nothing is computed, so that no threads exist."""
    import importlib

    for name in (
        "jax", "h5py", "orbax.checkpoint", "PIL.Image", "safetensors.numpy", "zoo.api", "zoo.analysis.features",
        "zoo.data.sources", "zoo.data.augment.host_crop", "zoo.commands.import_weights", "zoo.training.loop",
        "tests.fuzz.readers",
    ):  # fmt: skip
        importlib.import_module(name)
    from PIL import Image

    Image.init()


def warm_up(name: str, folder: Path, cache: Path) -> None:
    """Read the seeds, which imports what is imported late."""
    from tests.fuzz.readers import NOT_ALL_ACCEPTED, READERS

    reader = READERS[name]
    for number, files in enumerate(reader.seeds()):
        box = folder / f"seed{number}"
        contract.write_files(box, files)
        outcome = contract.check(reader.read, box, 2**40, cache, seconds=300)  # imports and compiles
        contract.remove(box)
        if not outcome.accepted and name not in NOT_ALL_ACCEPTED:
            raise SystemExit(f"{name}: seed {number} is not read: {outcome.message} {outcome.faults}")


def input_of(name: str, number: int, seed: int):
    from tests.fuzz.readers import READERS

    return READERS[name].example(Random(f"{seed}/{name}/{number}"))


def run_inputs(name: str, numbers: range, seed: int, folder: Path, progress: mmap.mmap) -> Figures:
    """Check inputs in this process."""
    from tests.fuzz.readers import READERS

    reader, figures, faults = READERS[name], Figures(), Counter()
    cache = folder / "cache"
    os.environ["XDG_CACHE_HOME"] = os.environ["HOME"] = str(cache)
    cache.mkdir(exist_ok=True)
    warm_up(name, folder, cache)
    used = contract._memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))
    first: dict[str, int] = {}
    for number in numbers:
        progress[:8] = struct.pack("<q", number)
        files = input_of(name, number, seed)
        box = folder / f"input{number}"
        try:
            contract.write_files(box, files)
        except (OSError, ValueError):  # a name that no file can have
            contract.remove(box)
            continue
        outcome = contract.check(reader.read, box, reader.max_bytes, cache)
        contract.remove(box)
        figures.inputs += 1
        figures.accepted += outcome.accepted
        figures.refused += bool(outcome.message)
        figures.seconds = max(figures.seconds, outcome.seconds)
        figures.peak_bytes = max(figures.peak_bytes, outcome.peak_bytes)
        for fault in outcome.faults:
            faults[fault] += 1
            first.setdefault(fault, number)
    figures.faults = {fault: [count, first[fault]] for fault, count in faults.items()}
    return figures


class Worker:
    """A process that checks a range of inputs."""

    def __init__(self, name: str, numbers: range, seed: int, folder: Path):
        self.name, self.numbers, self.seed, self.folder = name, numbers, seed, folder
        folder.mkdir(parents=True)
        (folder / "progress").write_bytes(struct.pack("<q", numbers.start))
        with (folder / "progress").open("r+b") as file:
            self.progress = mmap.mmap(file.fileno(), 8)
        self.last, self.since = -1, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._child()

    def _child(self) -> None:
        output = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        with contextlib.suppress(BaseException):
            try:
                figures = run_inputs(self.name, self.numbers, self.seed, self.folder, self.progress)
                (self.folder / "figures").write_text(json.dumps(asdict(figures)))
                code = 0
            except SystemExit as error:
                (self.folder / "stop").write_text(str(error))
            except BaseException as error:
                (self.folder / "error").write_text(f"{type(error).__name__}: {error}")
        os._exit(code)

    @property
    def current(self) -> int:
        return struct.unpack("<q", self.progress[:8])[0]

    def poll(self) -> Figures | None:
        """Return the figures once the process has ended; a crash or an endless loop is a fault of its input."""
        if self.current != self.last:
            self.last, self.since = self.current, time.monotonic()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        stuck = time.monotonic() - self.since > PATIENCE
        if pid == 0 and not stuck:
            return None
        if pid == 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        noise = (self.folder / "output").stat().st_size
        if (self.folder / "figures").exists():
            figures = Figures(**json.loads((self.folder / "figures").read_text()))
            figures.noise = noise
            return figures
        if (self.folder / "stop").exists():
            raise SystemExit((self.folder / "stop").read_text())
        error = self.folder / "error"
        if error.exists():
            reason = f"the process ended: {error.read_text()[:200]}"
        elif stuck:
            reason = f"no end after {PATIENCE:g} s, not even by an alarm"
        else:
            tail = (self.folder / "output").read_bytes()[-300:].decode("utf-8", "replace")
            how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit code {status}"
            reason = f"the process crashed with {how} {' '.join(tail.split())[-120:]}"
        return Figures(inputs=1, faults={reason: [1, self.current]}, noise=noise)


def run(names: list[str], inputs: int, seed: int, workers: int, folder: Path, say) -> dict[str, Figures]:
    """Check inputs of all readers, in proportion to their shares."""
    from tests.fuzz.readers import READERS

    total = sum(READERS[name].share for name in names)
    tasks = []
    for name in names:
        count = max(round(inputs * READERS[name].share / total), 1)
        tasks += [(name, range(start, min(start + CHUNK, count))) for start in range(0, count, CHUNK)]
    tasks.reverse()
    result = {name: Figures() for name in names}
    running: list[Worker] = []
    number, begin, shown = 0, time.monotonic(), 0.0
    while tasks or running:
        while tasks and len(running) < workers:
            name, numbers = tasks.pop()
            number += 1
            running.append(Worker(name, numbers, seed, folder / str(number)))
        for worker in list(running):
            if (figures := worker.poll()) is None:
                continue
            running.remove(worker)
            for fault in figures.faults.keys() - result[worker.name].faults.keys():
                say(f"{worker.name}: {fault} (input {figures.faults[fault][1]})")
            result[worker.name].add(figures)
            if not (worker.folder / "figures").exists() and worker.current + 1 < worker.numbers.stop:
                # What was checked before the crash is checked again, without the input that crashed.
                if worker.current > worker.numbers.start:
                    tasks.append((worker.name, range(worker.numbers.start, worker.current)))
                tasks.append((worker.name, range(worker.current + 1, worker.numbers.stop)))
            elif not (worker.folder / "figures").exists() and worker.current > worker.numbers.start:
                tasks.append((worker.name, range(worker.numbers.start, worker.current)))
            contract.remove(worker.folder)
        time.sleep(0.02)
        done = sum(figures.inputs for figures in result.values())
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            say(f"{done:,} of {inputs:,} inputs, {time.monotonic() - begin:.0f} s")
    return result


def report(result: dict[str, Figures], seconds: float, say) -> int:
    """Print the figures; return the number of different faults."""
    say(f"{'reader':<22}{'inputs':>9}{'accepted':>10}{'refused':>9}{'longest s':>11}{'peak MiB':>10}{'faults':>8}")
    for name, row in result.items():
        peak = row.peak_bytes / 2**20
        say(
            f"{name:<22}{row.inputs:>9,}{row.accepted:>10,}{row.refused:>9,}{row.seconds:>11.2f}{peak:>10.0f}{len(row.faults):>8}"
        )
    total = Figures()
    for row in result.values():
        total.add(Figures(**{**asdict(row), "faults": {}}))
    faults = sum(len(row.faults) for row in result.values())
    say(
        f"{'all':<22}{total.inputs:>9,}{total.accepted:>10,}{total.refused:>9,}{total.seconds:>11.2f}"
        f"{total.peak_bytes / 2**20:>10.0f}{faults:>8}"
    )
    say(f"{seconds:,.0f} s; libraries printed {total.noise:,} bytes")
    for name, row in result.items():
        for fault, (count, first) in sorted(row.faults.items(), key=lambda item: -item[1][0]):
            say(f"{name}: {fault} ({count:,} times, first with input {first})")
    return faults


def repeat(name: str, number: int, seed: int, folder: Path) -> None:
    """Read an input again, outside of the contract, and leave its files."""
    from tests.fuzz.readers import READERS

    box = folder / f"input{number}"
    contract.write_files(box, input_of(name, number, seed))
    print(f"files: {box}")
    print(READERS[name].read(box))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--inputs", type=int, default=100_000, help="number of inputs over all readers (default: 100,000)"
    )
    parser.add_argument("--reader", action="append", help="a reader; may be repeated (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all inputs")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per processor)"
    )
    parser.add_argument("--only", type=int, help="read this input again, with its traceback")
    parser.add_argument("--coverage-guided", type=int, metavar="SECONDS", help="let atheris choose the inputs")
    parser.add_argument("--list", action="store_true", help="list the readers")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="zoo-fuzz-", dir=memory if memory.is_dir() else None))
    if options.coverage_guided:  # before the readers are imported, which atheris instruments
        from tests.fuzz import guided

        return guided.main(options.reader or [], options.coverage_guided, options.seed, folder)
    from tests.fuzz.readers import READERS

    names = options.reader or list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"no reader {unknown[0]!r}; choose from {', '.join(READERS)}")
    if options.list:
        print("\n".join(READERS))
        return 0
    if options.only is not None:
        repeat(names[0], options.only, options.seed, folder)
        return 0
    import_readers()
    begin = time.monotonic()
    try:
        result = run(names, options.inputs, options.seed, options.workers, folder, lambda line: print(line, flush=True))
    finally:
        contract.remove(folder)
    return int(report(result, time.monotonic() - begin, lambda line: print(line, flush=True)) > 0)


if __name__ == "__main__":
    sys.exit(main())
