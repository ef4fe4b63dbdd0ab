"""The kill storm: SIGKILL at random moments, the same command again until it ends, and the same bits as undisturbed."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from . import programs
from .modes import MODES
from .programs import Counter, Program

#: Seconds after which a training of a few seconds counts as hung, on a loaded machine too, and its exit code then.
PATIENCE, HUNG = 600.0, 1000


@dataclass
class Storm:
    """Figures of a kill storm.

    Attributes:
        kills: processes that were killed.
        runs: runs that were completed in spite of it.
        moments: what the run's folder held at each kill: name -> count.
        faults: a line for everything that was not as it should be.
        seconds: duration of the storm.
    """

    kills: int = 0
    runs: int = 0
    moments: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def storm(
    name: str, kills: int, folder: Path, data: Path, *, seed: int = 0, say: Callable[[str], None] = lambda line: None
) -> Storm:
    """Kill the training of a mode at least `kills` times, over as many runs as it takes.

    Half of the kills come from outside at a random time, half from the process itself before a random file operation.

    Args:
        name: a mode.
        kills: number of kills.
        folder: an empty folder for the runs.
        data: the folder of images.
        seed: seed of the moments.
        say: called with a line per run.
    """
    result, rng, began = Storm(), random.Random(f"{name} {seed}"), time.monotonic()
    for _ in range(2):  # the first one fills the compilation cache
        alone = folder / "alone"
        shutil.rmtree(alone, ignore_errors=True)
        alone.mkdir(parents=True)
        counter, start, used = Counter(), time.monotonic(), sum(os.times()[2:4])
        code, complaints = live(name, alone, data, before=partial(programs.count_file_events, alone / "run", counter))
        seconds, duration = time.monotonic() - start, sum(os.times()[2:4]) - used
        if code:
            raise RuntimeError(f"{name}: undisturbed training ended with {code}: {complaints}")
    want, events = programs.digests(alone / "run", alone), counter.value
    say(f"{name}: undisturbed in {seconds:.1f} s, {duration:.1f} s of CPU, with {events} file operations")
    while result.kills < kills:
        place = folder / f"run{result.runs}"
        place.mkdir()
        lives = 0
        while True:
            lives += 1
            timed, moment = rng.random() < 0.5, rng.random()
            only = rng.randrange(-1, MODES[name].processes) if MODES[name].processes > 1 else -1
            if timed:
                code, complaints = live(name, place, data, after=moment * duration, only=only)
            else:
                strike = partial(programs.count_file_events, place / "run", Counter(), 1 + int(moment * events))
                code, complaints = live(name, place, data, before=strike)
            where = f"{name}, run {result.runs}, life {lives}"
            if "Traceback" in complaints and code == 0:
                result.faults.append(f"{where}: {complaints[-500:]}")
            if code == 0:
                break
            if code != -signal.SIGKILL:
                result.faults.append(f"{where}: ended with {code}: {complaints[-12000 if code == HUNG else -500 :]}")
                break
            result.kills += 1
            moment_name = describe_moment(place / "run")
            result.moments[moment_name] = result.moments.get(moment_name, 0) + 1
            result.faults += [f"{where}: {line}" for line in half_written(place / "run")]
        if code == 0:
            found = programs.digests(place / "run", place)
            different = sorted(key for key in want if found.get(key) != want[key])
            if different:
                result.faults.append(f"{where}: different {', '.join(different)} (kept in {place})")
            if extra := programs.leftovers(place / "run"):
                result.faults.append(f"{where}: left behind {', '.join(extra)} (kept in {place})")
            if not different and not extra:
                shutil.rmtree(place)
        result.runs += 1
        say(f"{name}: {result.kills} kills, {result.runs} runs, {len(result.faults)} faults")
    result.seconds = time.monotonic() - began
    return result


def live(
    name: str,
    folder: Path,
    data: Path,
    *,
    before: Callable[[], None] | None = None,
    after: float | None = None,
    only: int = -1,
) -> tuple[int, str]:
    """Train until the end or a kill and return (exit code, stderr).

    Args:
        name: a mode.
        folder: current folder of the processes; the run is its subfolder "run".
        data: the folder of images.
        before: called first in every process.
        after: seconds of processor time after which to kill, as the clock says little on a loaded machine; None: not
            from outside.
        only: the process to kill first, a moment before the others; -1: all at once.
    """
    mode, environments = MODES[name], [{}]
    if mode.processes > 1:
        from zoo.distributed.launch import find_free_port

        port = find_free_port()
        environments = [
            {"ZOO_COORDINATOR": f"127.0.0.1:{port}", "ZOO_PROCESSES": str(mode.processes), "ZOO_PROCESS": str(number),
             "ZOO_MESH": "", "ZOO_LOCAL_PROCESSES": str(mode.processes)}
            for number in range(mode.processes)
        ]  # fmt: skip
    group = [
        programs.start(
            mode.words(data), folder, name=f"process{number}", environment=environment,
            before=before if number == 0 else None,
        )
        for number, environment in enumerate(environments)
    ]  # fmt: skip
    patience = time.monotonic() + PATIENCE
    while any(program.poll() is None for program in group):
        if time.monotonic() > patience:
            stacks = dump_stacks(group)
            _kill(group)
            return HUNG, f"hung for {PATIENCE:g} s: {stacks}"
        if after is not None and sum(program.cpu_seconds() for program in group) >= after:
            if only >= 0:
                group[only].signal(signal.SIGKILL)
                time.sleep(0.3)
            _kill(group)
        if any(program.code not in (None, 0) for program in group):
            _kill(group)  # as the launcher does: the others would wait for it
        time.sleep(0.002)
    codes = [program.code for program in group]
    code = -signal.SIGKILL if -signal.SIGKILL in codes else max(codes)
    return code, "".join(program.complained() for program in group)


def dump_stacks(group: list[Program]) -> str:
    """Return the stacks of all threads of the programs that still run, as faulthandler writes them."""
    for program in group:
        if program.poll() is None:
            program.signal(signal.SIGUSR2)
    time.sleep(2)
    return "".join(program.complained()[-6000:] for program in group)


def _kill(group: list[Program]) -> None:
    for program in group:
        if program.poll() is None:
            program.signal(signal.SIGKILL)
            program.wait()


def describe_moment(run: Path) -> str:
    """Return what a kill interrupted, to see that all moments were struck."""
    if not (run / "config.json").exists():
        return "before the run"
    names = {path.name for path in run.rglob(".*")}
    if any(name.startswith(".step_") for name in names):
        return "during a save"
    if names & {".best.tmp", ".best.old"}:
        return "during the best checkpoint"
    if len(list(run.glob("state/step_*"))) > 2:
        return "after a save"
    if (run / "results.json").exists():
        return "after the results"
    if not list(run.glob("state/step_*")):
        return "before the first save"
    return "between saves"


def half_written(run: Path) -> list[str]:
    """Return a line for every file that a reader could mistake for a whole one."""
    from zoo.checkpoint.manifest import MANIFEST, CorruptCheckpointError, check_manifest

    lines = []
    for file in (run / "config.json", run / "results.json"):
        if file.exists():
            try:
                json.loads(file.read_text())
            except ValueError as error:
                lines.append(f"{file.name}: {error}")
    for folder in (run / "best", *sorted(run.glob("state/step_*"))):
        # A folder without a manifest is being deleted or replaced; a program that reads it says so.
        if (folder / MANIFEST).exists() and folder.name == "best":
            try:
                check_manifest(folder)
            except CorruptCheckpointError as error:
                lines.append(str(error))
    return lines
